"""Dot products of a few rows of weights with a few rows of activations, each summed in a fixed order.

Written as vector instructions, because two things cannot be expressed in a loop: that weights, once loaded from memory,
are used for all rows, and that a sum is the same to the bit whatever is computed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from nbllm.nn.kernels.compilation import LINE

# The 32 registers of 512 bits hold the sums of 4 rows of weights with 4 of activations; 16 of 256 bits, with 2.
_IS_WIDE = "+avx512f" in (config.CPU_FEATURES or get_host_cpu_features())
LANES, ROWS = (16, 4) if _IS_WIDE else (8, 2)  # elements of a vector; the most rows of activations at once
_FLOAT, _HALF, _WORD = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_FLOATS, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_WORD, LANES)


def dots(count: int, rows: int) -> Any:
    """Return a function of (weights, x, size, out, ahead, like) that adds `count` x `rows` dot products to a matrix.

    `weights` is the address of a contiguous matrix (count, size) of `like`'s dtype (float32, or uint16 for the bits of
    bfloat16), `x` of a float32 one (rows, size). `count` is a power of two. `out` is a pair: the address of `count`
    elements in a row of a float32 matrix, and its number of columns; the next row of x is added to the next row.
    Meanwhile memory is prefetched. The pair `ahead` says from which address on, and how many bytes with each vector of
    x: at most as many as are read.
    """

    @intrinsic
    def add(
        context: Any, weights: Any, x: Any, size: Any, out: Any, ahead: Any, like: Any
    ) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Dots(builder, count, rows, arguments, half=like != types.float32).add()
            return context.get_dummy_value()

        pair = types.UniTuple(types.intp, 2)
        return types.void(types.intp, types.intp, types.intp, pair, pair, like), generate

    return add


class _Dots:
    """Writes the code of `dots`."""

    def __init__(self, builder: Any, count: int, rows: int, arguments: Any, *, half: bool) -> None:
        self.builder, self.count, self.rows, self.half = builder, count, rows, half
        self.weights, self.x, self.size, out, ahead, _ = arguments
        self.out, self.columns = cgutils.unpack_tuple(builder, out, 2)
        self.ahead, self.pace = cgutils.unpack_tuple(builder, ahead, 2)

    def add(self) -> None:
        """Sum whole vectors, then the last one, of fewer elements; add the totals to the matrix."""
        builder, size = self.builder, self.size
        zeros = _constant(_FLOAT, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(self.rows * self.count)]
        whole = builder.and_(size, self._number(-LANES))
        steps = (self._number(0), whole, self._number(LANES))
        with cgutils.for_range_slice(builder, *steps, size.type) as (place, _):
            self._prefetch_step(builder.udiv(place, self._number(LANES)))
            self._add_products(sums, place)
        with builder.if_then(builder.icmp_signed("<", whole, size)):
            self._add_products(sums, whole, which=self._first(builder.sub(size, whole)))
        for row in range(self.rows):
            own = sums[row * self.count : (row + 1) * self.count]
            totals = self._totals([builder.load(each) for each in own])
            at = self._at(self.out, row, self.columns, self._number(0), totals.type)
            builder.store(builder.fadd(builder.load(at, align=4), totals), at, align=4)

    def _prefetch_step(self, step: Any) -> None:
        """Prefetch a step's part of the memory: as many cache lines as the step reads; some may be the same."""
        builder = self.builder
        lines = max(1, self.count * LANES * (2 if self.half else 4) // LINE)
        begin = builder.add(self.ahead, builder.mul(step, self.pace))
        for line in range(lines):
            part = builder.sdiv(builder.mul(self.pace, self._number(line)), self._number(lines))
            self._prefetch(builder.add(begin, part))

    def _prefetch(self, address: Any) -> None:
        """Prefetch the cache line at an address; an invalid address does no harm."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        hints = [
            ir.Constant(_WORD, value) for value in (0, 2, 1)
        ]  # for reading; into the level-2 cache; data
        self.builder.call(function, [self.builder.inttoptr(address, pointer), *hints])

    def _add_products(self, sums: list[Any], place: Any, which: Any = None) -> None:
        """Add to each sum the product of a vector of weights and one of x, or only of their elements `which`."""
        builder = self.builder
        weights = [self._weights_at(number, place, which) for number in range(self.count)]
        for row in range(self.rows):
            x = self._load(self.x, row, place, _FLOAT, which)
            for weight, own in zip(weights, sums[row * self.count : (row + 1) * self.count], strict=True):
                added = self._call(f"llvm.fmuladd.v{LANES}f32", weight, x, builder.load(own))
                builder.store(added, own)

    def _totals(self, held: list[Any]) -> Any:
        """Return a vector of the sum of each vector's elements: halves are added until one element is left.

        Several vectors share the additions: the halves of two lie side by side in one.
        """
        width = LANES  # elements of each sum that are left
        while width > 1:
            width //= 2
            if len(held) > 1:
                pairs = zip(held[::2], held[1::2], strict=True)
                held = [self._halves_added(left, right, width, LANES) for left, right in pairs]
            else:
                held = [self._halves_added(held[0], held[0], width, held[0].type.count // 2)]
        return held[0]

    def _halves_added(self, left: Any, right: Any, width: int, count: int) -> Any:
        """Add the halves, of `width` elements, of each sum in two vectors; return the first `count` elements."""
        starts = range(0, 2 * left.type.count, 2 * width)
        places = [start + place for start in starts for place in range(width)][:count]
        low, high = (_constant(_WORD, [place + half for place in places]) for half in (0, width))
        shuffle = self.builder.shuffle_vector
        return self.builder.fadd(shuffle(left, right, low), shuffle(left, right, high))

    def _weights_at(self, row: int, place: Any, which: Any) -> Any:
        """Return a vector of weights as float32."""
        if not self.half:
            return self._load(self.weights, row, place, _FLOAT, which)
        builder = self.builder
        bits = builder.zext(self._load(self.weights, row, place, _HALF, which), _WORDS)
        return builder.bitcast(builder.shl(bits, _constant(_WORD, [16] * LANES)), _FLOATS)

    def _load(self, base: Any, row: int, place: Any, kind: Any, which: Any) -> Any:
        """Load a vector from a matrix with `size` columns; elements not in `which` are 0 and not read."""
        vector = ir.VectorType(kind, LANES)
        at = self._at(base, row, self.size, place, vector)
        width = _bytes(kind)
        if which is None:
            return self.builder.load(at, align=width)
        name = f"llvm.masked.load.v{LANES}{'f32' if kind == _FLOAT else 'i16'}.p0"
        return self._call(name, at, ir.Constant(_WORD, width), which, ir.Constant(vector, None))

    def _at(self, base: Any, row: int, columns: Any, place: Any, vector: Any) -> Any:
        """Return the pointer to a vector in a matrix."""
        builder = self.builder
        place = builder.add(builder.mul(columns, self._number(row)), place)
        address = builder.add(base, builder.mul(place, self._number(_bytes(vector.element))))
        return builder.inttoptr(address, vector.as_pointer())

    def _first(self, count: Any) -> Any:
        """Return a mask of a vector's first `count` elements."""
        builder = self.builder
        one = builder.insert_element(
            ir.Constant(_WORDS, ir.Undefined), builder.trunc(count, _WORD), ir.Constant(_WORD, 0)
        )
        all_ = builder.shuffle_vector(one, one, _constant(_WORD, [0] * LANES))
        return builder.icmp_unsigned("<", _constant(_WORD, range(LANES)), all_)

    def _call(self, name: str, *arguments: Any) -> Any:
        kind = ir.FunctionType(arguments[-1].type, [each.type for each in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def _number(self, value: int) -> Any:
        return ir.Constant(self.size.type, value)


def _constant(kind: Any, values: Sequence[float]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), list(values))


def _bytes(kind: Any) -> int:
    return 4 if kind == _FLOAT else 2
