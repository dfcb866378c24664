"""The functions of torch's own libraries that kernels call, under names that compiled code can be linked to."""

from __future__ import annotations

import ctypes
import glob
from pathlib import Path

import llvmlite.binding as llvm
import torch
from numba import types

_FOLDER = Path(torch.__file__).parent / "lib"


def _library(pattern: str) -> ctypes.CDLL:
    """Return the library of torch's that matches `pattern`; it is loaded already.

    Raises:
        OSError: There is none: another platform, or a build of torch that links it elsewhere.
    """
    found = sorted(glob.glob(str(_FOLDER / pattern)))
    if not found:
        raise OSError(f"torch has no library {pattern}")
    return ctypes.CDLL(found[0])


def _enter(name: str, function: object) -> None:
    llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)  # type: ignore[arg-type]


_openmp = _library("libgomp*.so*")
run_parallel = _openmp.GOMP_parallel
run_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
run_parallel.restype = None
_enter("nbllm_thread", _openmp.omp_get_thread_num)
_enter("nbllm_threads", _openmp.omp_get_num_threads)
thread_number = types.ExternalFunction("nbllm_thread", types.int32())
num_threads = types.ExternalFunction("nbllm_threads", types.int32())
_enter("nbllm_barrier", _openmp.GOMP_barrier)
barrier = types.ExternalFunction("nbllm_barrier", types.void())

# BLAS's single-precision matmul as torch links it; 13 addresses, sizes are 32 bits wide. MKL's runs on one thread
# when it is called from within a team; other libraries promise no such thing.
has_sgemm = torch.backends.mkl.is_available()
if has_sgemm:
    _enter("nbllm_sgemm", _library("libtorch_cpu.so").sgemm_)
sgemm = types.ExternalFunction("nbllm_sgemm", types.void(*[types.intp] * 13))
