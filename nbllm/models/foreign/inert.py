"""Pickles read without running what they say: no class or function that a file names is ever looked up or called."""

from __future__ import annotations

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING
from typing import Any, ClassVar

import torch

from nbllm.core.errors import WeightsError

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

# Of Python's own modules, those whose classes settings and counters are made of. Nothing else of them is in an honest
# checkpoint, so that a file that names os.system is refused.
_DATA_MODULES = frozenset(
    """
    _codecs argparse collections copyreg dataclasses datetime decimal enum fractions functools pathlib random re signal
    types typing uuid
    """.split()
)
_DATA_BUILTINS = frozenset(
    """
    bool bytearray bytes complex dict float frozenset getattr int list object range set slice str tuple
    """.split()
)


class Inert:
    """What stands for an object whose class is not loaded: it keeps what the object was made of.

    Attributes:
        origin: The name of the class or function, such as "argparse.Namespace".
        arguments: What it was called with.
        state: What its attributes were set from; None where nothing was.
    """

    origin: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> Inert:
        """Keep the arguments."""
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop an entry of a mapping."""

    def append(self, value: Any) -> None:
        """Drop an element of a list."""

    def extend(self, values: Any) -> None:
        """Drop elements of a list."""

    def add(self, value: Any) -> None:
        """Drop an element of a set."""


class _Ordered(dict[Any, Any]):
    """An OrderedDict without the attributes that a pickle may set on it."""

    def __setstate__(self, state: Any) -> None:
        """Drop the attributes."""


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle of plain values: containers, numbers and texts are made, all else becomes `Inert`.

    Shapes (`torch.Size`) are tuples, dtypes are torch's, and a storage's class is the dtype of its elements.

    Raises:
        WeightsError: The pickle names a function of Python's own that no checkpoint needs, such as `os.system`.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function."""
        package = module.split(".")[0]
        package = IMPORT_MAPPING.get(module, IMPORT_MAPPING.get(package, package)).split(".")[0]
        if package == "builtins":
            is_data = name in _DATA_BUILTINS
        else:
            is_data = package in _DATA_MODULES or package not in sys.stdlib_module_names
        if not is_data:
            raise WeightsError(
                f"The file asks to call {module}.{name}, which no checkpoint needs; nothing of it was run.",
                hint="Do not open this file with torch.load or pickle: it may be malicious. Ask whoever made it.",
            )
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if module == "torch":
            if name == "Size":
                return tuple
            if name in _STORAGES:
                return _STORAGES[name]
            if isinstance(dtype := vars(torch).get(name), torch.dtype):
                return dtype
        return type(name.rpartition(".")[2], (Inert,), {"origin": f"{module}.{name}"})


def fields(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that is not loaded; raises TypeError where it is none."""
    if not isinstance(value, Inert) or not isinstance(value.state, dict):
        raise TypeError(f"a {type(value).__name__} in the place of an object")
    return value.state
