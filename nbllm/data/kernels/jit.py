"""The decorator of every kernel: without the GIL, machine code cached on disk where possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from nbllm.core.kernel_cache import name_by_sources

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function` with Numba on first call.

    Numba refuses `cache=True` where neither the package's folder nor the user's cache folder can be written
    (a read-only container): the kernel is then compiled once a process.
    """
    name_by_sources(function)
    try:
        return cast("Function", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast("Function", numba.njit(nogil=True)(function))


def inlined(function: Function) -> Function:
    """Compile `function` into every kernel that calls it: no call, and no counting of references to its arrays."""
    return cast("Function", numba.njit(nogil=True, inline="always")(function))
