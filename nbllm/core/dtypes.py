"""The names of dtypes, as people and torch write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError, listed

if TYPE_CHECKING:
    import torch

FLOATS = ("float32", "bfloat16", "float16")
_SHORT = {"bf16": "bfloat16", "fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16"}


def dtype_name(value: Any) -> Any:
    """Return the name of a dtype, given as torch's object or by a name; what is neither stays as it is."""
    if isinstance(value, str):
        return _SHORT.get(value, value.removeprefix("torch."))
    text = str(value)
    return text.removeprefix("torch.") if text.startswith("torch.") else value


def float_dtype(value: Any) -> torch.dtype:
    """Return torch's dtype for weights.

    Raises:
        UserError: It is none of `FLOATS`.
    """
    import torch

    name = dtype_name(value)
    if name not in FLOATS:
        raise UserError(f"dtype is {value!r}; it must be one of {listed(FLOATS)}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
