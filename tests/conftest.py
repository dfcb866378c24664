"""Set up before any test: threads that wait sleep, and shapes and types of the model code are checked at every call.

torch's threads wait for one another by spinning, which takes the core from whom they wait for where more threads than
cores are busy: with two tests at a time, or beside other work, small models then run five times slower.

jaxtyping rewrites `nbllm.nn` and `nbllm.models` while they are imported, so their annotations become checks.
Nothing is imported here but the hook; `kernels` folders stay out, since Numba compiles what it finds, and `compute`,
where no tensors go in or out.
`NBLLM_SHAPE_CHECKS=0` leaves the checks out, to time the code as it is.
"""

import functools
import importlib.util
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded; kernels and runs inherit it
_answers = tempfile.TemporaryDirectory(prefix="nbllm-answers-", ignore_cleanup_errors=True)
os.environ["NBLLM_ANSWERS"] = _answers.name  # of evaluations: none is kept for the next run of the tests

PACKAGE = Path(importlib.util.find_spec("nbllm").origin).parent
PARTS = [module.name for module in pkgutil.iter_modules([str(PACKAGE / "nn")])]
CHECKED = ("nbllm.models", *(f"nbllm.nn.{name}" for name in PARTS if name not in ("kernels", "compute")))

if os.environ.get("NBLLM_SHAPE_CHECKS", "1") != "0":
    early = [name for name in sys.modules if name.startswith(CHECKED)]
    assert not early, f"imported before the hook that checks them: {early}"
    install_import_hook(list(CHECKED), "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def runs_end_with_the_tests():
    """A script waits at its end for the runs that it has started; these must not be waited for."""
    yield
    if "nbllm.training.launcher" in sys.modules:
        for thread, trainer in list(sys.modules["nbllm.training.launcher"]._threads.values()):
            trainer.exit_reason = "the tests are over"
            thread.join(60)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of a published model in nbllm's cache: SmolLM2-135M-Instruct in Q4_1, as the package index has it."""
    from nbllm.models.zoo.known import MODELS

    path = MODELS["smollm2-135m-instruct"].sources[-1].find()
    if path is None:
        pytest.skip(
            "HF_HUB_OFFLINE=1 nbllm fetch smollm2-135m-instruct"
        )  # offline: else the hub's copy comes
    return path


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Return an executed notebook by its name, such as "00-tour": `executed(name)`; each is executed once."""
    from tests.notebooks import executed as notebooks

    @functools.cache
    def executed(name: str) -> notebooks.Executed:
        notebook = notebooks.notebooks_folder() / f"{name}.ipynb"
        given = os.environ.get("NBLLM_EXECUTED")
        if given:
            return notebooks.read(notebook, Path(given).resolve() / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            return notebooks.execute_once(notebook, tmp_path_factory.mktemp("executed") / name)

    return executed
