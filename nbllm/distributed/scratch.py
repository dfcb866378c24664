"""Tensors that lie in files: the system reads them into memory when they are used, and writes back what is not."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nbllm.core.errors import RunError
from nbllm.core.quantities import size

_SMALL = 1 << 18  # bytes; what is smaller stays in memory


class Scratch:
    """Makes tensors in files of a folder.

    Each lies in a file of its own, whose name is removed at once: when the tensor is dropped, or the process ends in
    whatever way, the disk has its space again. Tensors are mapped and shared with the file, so they count neither as
    data of the process nor, when memory is short, as memory in use: the system writes back what was not used for
    longest. All operations work on them as on any tensor, and give the same bits.

    Args:
        folder: On the disk that is to hold them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of zeros; it takes no memory, and its space on the disk is reserved.

        Raises:
            RunError: The disk is full, or cannot be written.
        """
        count = math.prod(shape)
        num_bytes = count * dtype.itemsize
        path = None
        try:
            descriptor, path = tempfile.mkstemp(prefix="offload-", dir=self.folder)
            with os.fdopen(descriptor, "r+b"):
                # A file that only seemed to have the space would end the process when the disk is full.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, max(num_bytes, 1))
                else:
                    os.ftruncate(descriptor, max(num_bytes, 1))
            storage: Any = torch.UntypedStorage.from_file(path, shared=True, nbytes=num_bytes)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise RunError(
                f"A file of {size(num_bytes)} for offloaded tensors cannot be made: {reason}.",
                where=self.folder,
                hint="Free space on this disk, or keep the run on another: nb.train(..., folder=...).",
            ) from None
        finally:
            if path is not None:
                os.unlink(path)
        return torch.empty(0, dtype=dtype).set_(storage).view(torch.Size(shape))

    @contextlib.contextmanager
    def allocating(self, *, zeros_only: bool = False) -> Iterator[None]:
        """Within the context, large tensors that this thread allocates on the CPU are made here.

        Args:
            zeros_only: Just those that are made of zeros, as an optimizer's state is, not copies and empty ones.
        """
        with _Allocating(self.empty, _ZEROS if zeros_only else _ZEROS | _EMPTY | _COPIES):
            yield

    def prefetch(self, tensors: Iterable[Tensor]) -> None:
        """Let a thread read tensors of a scratch, or parts of them, into memory."""
        if _madvise is not None:
            for tensor in tensors:
                self._reader.submit(_read, tensor)


_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}
_ZEROS = {_aten.zeros, _aten.zeros_like, _aten.new_zeros}
_COPIES = {_aten.clone, _aten._to_copy, _aten.cat}


class _Allocating(TorchDispatchMode):
    """Makes the results of some operations in memory of another kind."""

    def __init__(self, make: Callable[[Sequence[int], torch.dtype], Tensor], operations: set[Any]) -> None:
        super().__init__()
        self._make = make
        self._operations = operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation not in self._operations:
            return func(*args, **kwargs)
        shape, dtype, device = _result(operation, args, kwargs)
        if device.type != "cpu" or math.prod(shape) * dtype.itemsize < _SMALL:
            return func(*args, **kwargs)
        made = self._make(shape, dtype)
        if operation is _aten.cat:
            return torch.cat(*args, out=made)
        return made.copy_(args[0]) if operation in _COPIES else made


def _result(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[int], torch.dtype, torch.device]:
    """Return shape, dtype and device of what an operation makes."""
    first = args[0][0] if operation is _aten.cat else args[0]
    if not isinstance(first, Tensor):  # a shape
        device = torch.device(kwargs.get("device") or "cpu")
        return list(args[0]), kwargs.get("dtype") or torch.get_default_dtype(), device
    shape = list(args[1] if operation in (_aten.new_zeros, _aten.new_empty) else first.shape)
    if operation is _aten.cat:
        dim = args[1] if len(args) > 1 else 0
        shape[dim] = sum(each.shape[dim] for each in args[0])
    return shape, kwargs.get("dtype") or first.dtype, torch.device(kwargs.get("device") or first.device)


def _read(tensor: Tensor) -> None:
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None:
        _madvise(start, tensor.data_ptr() + tensor.nbytes - start, mmap.MADV_WILLNEED)


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise = _find_madvise()
