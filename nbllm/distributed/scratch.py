"""Tensors that lie in files: the system reads them into memory when they are used, and writes back what is not."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nbllm.core.errors import RunError
from nbllm.core.quantities import size

_SMALL = 1 << 18  # bytes; what is smaller stays in memory
_PREFETCH_PIECE = 8 << 20  # bytes that are requested by one call


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
        self._wanted: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
        self._prefetcher: threading.Thread | None = None

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
                os.posix_fallocate(descriptor, 0, max(num_bytes, 1))
            storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=num_bytes)
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
        """Let the system read tensors of a scratch, or parts of them, in the background."""
        if _madvise is None:
            return
        if self._prefetcher is None:
            self._prefetcher = threading.Thread(
                target=_read_ahead, args=(self._wanted,), name="prefetch offloaded tensors", daemon=True
            )
            self._prefetcher.start()
        for tensor in tensors:
            self._wanted.put(tensor)

    def close(self) -> None:
        """End the prefetching; the tensors remain."""
        if self._prefetcher is not None:
            self._wanted.put(None)
            self._prefetcher.join()
            self._prefetcher = None


def check_space(folder: Path, num_bytes: int) -> None:
    """Check that a disk has space for offloaded tensors.

    Raises:
        RunError: It has not; both figures are given.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RunError(
            f"Offloading needs {size(num_bytes)} on the disk; {size(free)} are free.",
            where=folder,
            hint="Free space on this disk, or keep the run on another: nb.train(..., folder=...).",
        )


_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}
_ZEROS = {_aten.zeros, _aten.zeros_like, _aten.new_zeros}
_COPIES = {_aten.clone, _aten._to_copy}


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
        first = args[0]
        like = first if isinstance(first, Tensor) else None
        shape = first if like is None else like.shape
        if operation in (_aten.new_zeros, _aten.new_empty):
            shape = args[1]
        dtype = kwargs.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
        device = kwargs.get("device") or (torch.get_default_device() if like is None else like.device)
        if torch.device(device).type != "cpu" or math.prod(shape) * dtype.itemsize < _SMALL:
            return func(*args, **kwargs)
        made = self._make(shape, dtype)
        return made.copy_(first) if operation in _COPIES else made


def _read_ahead(wanted: queue.SimpleQueue[Tensor | None]) -> None:
    while (tensor := wanted.get()) is not None:
        start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.data_ptr() + tensor.nbytes
        for piece in range(start, end, _PREFETCH_PIECE):
            assert _madvise is not None
            _madvise(piece, min(_PREFETCH_PIECE, end - piece), mmap.MADV_WILLNEED)
        del tensor


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise = _find_madvise()
