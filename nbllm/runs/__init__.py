"""The run directory: how training is steered, watched and recorded. Knows no model and no torch.

`nbllm.runs(folder)` lists the runs of a folder; the parts of the protocol are the names below.
"""

import sys
import types
from typing import Any

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)


class _Runs(types.ModuleType):
    """This package, callable: `nb.runs()`."""

    def __call__(self, folder: Any = "runs") -> Any:
        """Return the runs in `folder`, newest first, as a `RunList`."""
        return self.list_runs(folder)


sys.modules[__name__].__class__ = _Runs
