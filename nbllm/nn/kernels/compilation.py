"""Decorators for kernels and for their parts, and how a kernel reads its arguments.

A kernel gets one address: a table of 64-bit slots, `SLOTS` an argument, that `team.run` has filled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from nbllm.core.kernel_cache import name_by_sources

Function = TypeVar("Function", bound=Callable[..., Any])

LINE = 64  # bytes that come from memory together
SLOTS = 3  # of a tensor: its address, rows, columns; of a number: itself
EXACT = {"contract"}
# Sums may be split over the lanes of a vector; NaN and infinity stay what they are.
SUMS = {"contract", "reassoc", "nsz"}


def kernel(function: Function) -> Any:
    """Compile `function(data)` to a C function that a team of threads runs; see `team.run`."""
    name_by_sources(function)
    signature = types.void(types.CPointer(types.int64))
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError:  # no folder to keep the machine code in can be written
        return numba.cfunc(signature)(function)


def part(fastmath: set[str]) -> Callable[[Function], Function]:
    """Compile a function that kernels call, with the liberties of `fastmath`."""

    def compile_it(function: Function) -> Function:
        return cast("Function", numba.njit(nogil=True, fastmath=fastmath, error_model="numpy")(function))

    return compile_it


def pointer_to(kind: Any) -> Any:
    """Return a function that takes an address as that of elements of a Numba type, for `carray`."""

    @intrinsic
    def at(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return at


_floats_at, _integers_at = pointer_to(types.float32), pointer_to(types.int64)
# Of the dtype that a kernel is to read and write; NumPy has no bfloat16.
FLOAT32, BFLOAT16 = np.float32(0), np.uint16(0)


@intrinsic
def weights_at(context: Any, address: Any, like: Any) -> Any:
    """The address as that of elements like `like`: float32, or uint16 that stand for bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.intp, like), generate


@intrinsic
def widened(context: Any, value: Any) -> Any:
    """A weight as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if value == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), generate


@intrinsic
def narrowed(context: Any, value: Any, like: Any) -> Any:
    """A float32 as a number like `like`; as bfloat16, the nearest, and of two the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))

    return like(types.float32, like), generate


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 number with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of_float(context: Any, value: Any) -> Any:
    """The 32 bits of a float32 number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def wide(context: Any) -> Any:
    """In a part with loops: let them be vectors as wide as the processor has, as BLAS's between them are.

    LLVM by itself stays at 256 bits where there are 512, for the sake of processors that slow down at the first
    wide instruction.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows no attributes with values, and writes each as it finds it.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@part(EXACT)
def weights_vector(address: Any, size: Any, like: Any) -> Any:
    """Return so many weights at an address; none where the address is 0."""
    return carray(weights_at(address, like), (size if address != 0 else 0,))


@part(EXACT)
def no_weights(like: Any) -> Any:
    """Return the bias of a layer that has none."""
    return weights_vector(0, 0, like)


@part(EXACT)
def matrix_at(address: Any, rows: Any, columns: Any) -> Any:
    """Return the contiguous float32 matrix (rows, columns) at an address."""
    return carray(_floats_at(address), (rows, columns))


@part(EXACT)
def integers_at(address: Any, count: Any) -> Any:
    """Return so many 64-bit integers at an address."""
    return carray(_integers_at(address), (count,))


@part(EXACT)
def integer(data: Any, argument: int) -> Any:
    """Return an argument that is an integer."""
    return np.intp(data[SLOTS * argument])


@part(EXACT)
def real(data: Any, argument: int) -> np.float32:
    """Return an argument that is a number."""
    slots = carray(data, (SLOTS * argument + 1,)).view(np.float64)
    return np.float32(slots[SLOTS * argument])


@part(EXACT)
def matrix(data: Any, argument: int) -> Any:
    """Return an argument that is a float32 tensor, all dimensions but the last folded into one: (row, column)."""
    place = SLOTS * argument
    return matrix_at(np.intp(data[place]), np.intp(data[place + 1]), np.intp(data[place + 2]))


@part(EXACT)
def matrix_of(data: Any, argument: int, like: Any) -> Any:
    """Return an argument as `matrix` does, of elements like `FLOAT32` or `BFLOAT16`."""
    place = SLOTS * argument
    address, shape = np.intp(data[place]), (np.intp(data[place + 1]), np.intp(data[place + 2]))
    return carray(weights_at(address, like), shape)


@part(EXACT)
def vector(data: Any, argument: int) -> Any:
    """Return an argument that is a float32 tensor as one row."""
    place = SLOTS * argument
    return carray(_floats_at(np.intp(data[place])), (np.intp(data[place + 1]) * np.intp(data[place + 2]),))
