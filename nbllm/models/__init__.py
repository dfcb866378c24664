"""Model architectures (survey 3.2): one block, configured; families map it to Hugging Face layouts.

`nbllm.models()` lists the published models that `nbllm.load` opens by name; the parts are the names below.
"""

import sys
import types
from typing import Any

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)


class _Models(types.ModuleType):
    """This package, callable: `nb.models()`."""

    def __call__(self) -> Any:
        """Return the published models that are known by name, as a `ModelList`."""
        from nbllm.models.zoo.listing import list_models

        return list_models()


sys.modules[__name__].__class__ = _Models
