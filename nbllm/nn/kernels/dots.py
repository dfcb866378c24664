"""Several sums of products with the same weights, each in an order of its own that no other changes.

Written in vectors, for two things cannot be said to a compiler in loops: that the weights, which come from memory,
are to be used for all rows while they are here, and that a row's sum is the same to the bit whatever rows are beside.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, STRIDE = 16, 4  # numbers of a vector; vectors that are summed apart, so that none waits for another
_FLOAT, _WORD = ir.FloatType(), ir.IntType(32)


def dots(rows: int) -> Any:
    """Return a function of (weights, x, size, like) that gives `rows` sums: weights . x of each row, a tuple.

    `weights` is the address of `size` numbers like `like` (float32, or uint16 that stand for bfloat16), `x` that of a
    contiguous float32 matrix (rows, size).
    """

    @intrinsic
    def made(context: Any, weights: Any, x: Any, size: Any, like: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums = _Sums(builder, rows, arguments, half=like != types.float32)
            return context.make_tuple(builder, signature.return_type, sums.totals())

        return types.UniTuple(types.float32, rows)(types.intp, types.intp, types.intp, like), generate

    return made


class _Sums:
    """Writes the code of `dots`."""

    def __init__(self, builder: Any, rows: int, arguments: Any, *, half: bool) -> None:
        self.builder, self.rows, self.half = builder, rows, half
        self.weights, self.x, self.size, _ = arguments
        self.index = self.size.type

    def totals(self) -> list[Any]:
        """Return the sums: whole strides first, then whole vectors, then what is left, number by number."""
        builder = self.builder
        wide = ir.VectorType(_FLOAT, LANES)
        zero = ir.Constant(wide, [0.0] * LANES)
        parts = [[self._variable(zero) for _ in range(STRIDE)] for _ in range(self.rows)]
        rests = [self._variable(ir.Constant(_FLOAT, 0.0)) for _ in range(self.rows)]
        strides = self._whole(LANES * STRIDE)
        vectors = self._whole(LANES)
        self._loop(self._number(0), strides, LANES * STRIDE, STRIDE, LANES, parts)
        self._loop(strides, vectors, LANES, 1, LANES, parts)
        self._loop(vectors, self.size, 1, 1, 1, [[rest] for rest in rests])
        totals = []
        for own, rest in zip(parts, rests, strict=True):
            one, two, three, four = (builder.load(part) for part in own)
            vector = builder.fadd(builder.fadd(one, two), builder.fadd(three, four))
            width = LANES
            while width > 1:  # halves are added until one number is left
                width //= 2
                low, high = (
                    ir.Constant(ir.VectorType(_WORD, width), [*range(begin, begin + width)])
                    for begin in (0, width)
                )
                undefined = ir.Constant(vector.type, ir.Undefined)
                vector = builder.fadd(
                    builder.shuffle_vector(vector, undefined, low),
                    builder.shuffle_vector(vector, undefined, high),
                )
            total = builder.extract_element(vector, ir.Constant(_WORD, 0))
            totals.append(builder.fadd(total, builder.load(rest)))
        return totals

    def _loop(self, first: Any, last: Any, step: int, count: int, lanes: int, parts: list[list[Any]]) -> None:
        """Add `count` vectors of `lanes` numbers a turn to each row's parts."""
        builder = self.builder
        with cgutils.for_range_slice(builder, first, last, self._number(step), self.index) as (place, _):
            for part in range(count):
                at = builder.add(place, self._number(part * lanes))
                weight = self._weight(at, lanes)
                for row in range(self.rows):
                    begin = builder.add(builder.mul(self.size, self._number(row)), at)
                    value = self._load(self.x, begin, _FLOAT, 4, lanes)
                    sum_ = parts[row][part]
                    builder.store(self._multiply_add(weight, value, builder.load(sum_)), sum_)

    def _weight(self, at: Any, lanes: int) -> Any:
        """Return weights as float32."""
        if not self.half:
            return self._load(self.weights, at, _FLOAT, 4, lanes)
        builder = self.builder
        words = _WORD if lanes == 1 else ir.VectorType(_WORD, lanes)
        floats = _FLOAT if lanes == 1 else ir.VectorType(_FLOAT, lanes)
        bits = builder.zext(self._load(self.weights, at, ir.IntType(16), 2, lanes), words)
        sixteen = ir.Constant(words, 16 if lanes == 1 else [16] * lanes)
        return builder.bitcast(builder.shl(bits, sixteen), floats)

    def _load(self, base: Any, at: Any, kind: Any, width: int, lanes: int) -> Any:
        builder = self.builder
        address = builder.add(base, builder.mul(at, self._number(width)))
        whole = kind if lanes == 1 else ir.VectorType(kind, lanes)
        loaded = builder.load(builder.inttoptr(address, whole.as_pointer()))
        loaded.align = width
        return loaded

    def _multiply_add(self, left: Any, right: Any, added: Any) -> Any:
        kind = left.type
        name = "llvm.fmuladd.f32" if kind == _FLOAT else f"llvm.fmuladd.v{kind.count}f32"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind] * 3), name
        )
        return self.builder.call(function, [left, right, added])

    def _variable(self, value: Any) -> Any:
        variable = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, variable)
        return variable

    def _whole(self, step: int) -> Any:
        """Return the largest multiple of `step`, a power of two, that is not above the size."""
        return self.builder.and_(self.size, self._number(-step))

    def _number(self, value: int) -> Any:
        return ir.Constant(self.index, value)
