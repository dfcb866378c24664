import platform
import sys

import pytest

from nbllm.nn import kernels


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="elsewhere torch's own operations may have to do",
)
def test_every_kernel_is_compiled_here():
    errors = kernels.why_not_compiled()
    if platform.machine() == "aarch64":  # it calls MKL's matmul, which is made for x86-64 alone
        assert "MKL" in errors.pop("attention", "MKL")
    assert errors == {}


def test_all_modules_with_kernels_are_named():
    import inspect
    import pkgutil
    from importlib import import_module

    modules = [
        import_module(f"{kernels.__name__}.{module.name}")
        for module in pkgutil.iter_modules(kernels.__path__)
    ]
    with_kernels = {
        module.__name__.rpartition(".")[2] for module in modules if "\n@kernel\n" in inspect.getsource(module)
    }
    assert with_kernels | {"team"} == set(kernels.NAMES)
