"""A few tokens through a whole decoder: products wait for the weights to come from memory, and for nothing else.

A row is a token: the newest of a sequence, or several of one that follow one another. Each thread takes its share of
a matrix's rows, and all meet before what they made is read: five times a layer. What is short, such as a
normalization, every thread computes for itself. Weights and cache are float32 or bfloat16, all that is in between is
float32. A row's numbers are the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import carray, types

from nbllm.nn.kernels.dots import dots
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.jit import (
    EXACT,
    LINE,
    SUMS,
    integer,
    matrix_at,
    narrowed,
    part,
    pointer_to,
    prefetch,
    weights_at,
    wide,
    widened,
)
from nbllm.nn.kernels.symbols import barrier, num_threads, thread_number
from nbllm.nn.kernels.team import bounds

# Bytes that are asked for before they are needed. The processor's own foresight stops at every row's end: without
# this, bfloat16 comes at two thirds of the speed.
AHEAD = 8192
FLOAT = 4  # bytes
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
# A row of numbers for each layer, and one for the pass: sizes, and addresses. An address of 0: there is none.
LAYER = np.dtype([
    (name, np.int64)
    for name in (
        "attention_norm", "attention_norm_bias", "qkv", "qkv_bias", "output", "output_bias",
        "feed_forward_norm", "feed_forward_norm_bias", "up", "up_bias", "down", "down_bias", "cache",
    )
])  # fmt: skip
PASS = np.dtype([
    ("eps", np.float64),
    *(
        (name, np.int64)
        for name in (
            # sizes; `batch` sequences are in the cache
            "rows", "batch", "capacity", "layers", "hidden", "heads", "kv_heads", "head_dim", "inner", "vocabulary",
            "activation", "gated", "centred",
            # weights; tables of cosines and sines, float32
            "embedding", "positions", "cos", "sin", "norm", "norm_bias", "head", "layer_table",
            # int64, one a row: the token, its sequence, its column in the cache, and how many columns are padding
            "tokens", "sequences", "columns", "padding",
            # float32: (row, hidden), (thread, row, hidden), (row, head, head_dim), (row, head, head_dim), (row, inner),
            # (thread, capacity), (thread, row), (row, vocabulary)
            "stream", "normal", "qkv", "gathered", "expanded", "scores", "sums", "logits",
        )
    ),
])  # fmt: skip

_passes_at = pointer_to(numba.from_dtype(PASS))
_layers_at = pointer_to(numba.from_dtype(LAYER))
_integers_at = pointer_to(types.int64)
_floats_at = pointer_to(types.float32)
_dots_of_1, _dots_of_2, _dots_of_4 = dots(1), dots(2), dots(4)
MOST_ROWS = LINE // FLOAT  # so many sums have room in a line of memory
_0, _1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_2C0 = np.float32(2 * math.sqrt(2 / math.pi))
_2C0_C1 = np.float32(2 * math.sqrt(2 / math.pi) * 0.044715)
_ROOT_HALF = np.float32(math.sqrt(0.5))


@part(SUMS)
def _dot(weights: Any, x: Any) -> np.float32:
    wide()
    total = _0
    for place in range(len(x)):
        total += widened(weights[place]) * x[place]
    return total


@part(SUMS)
def _add_scaled(out: Any, weights: Any, factor: np.float32) -> None:
    wide()
    for place in range(len(out)):
        out[place] += widened(weights[place]) * factor


@part(SUMS)
def _normalize(x: Any, weight: Any, bias: Any, eps: np.float32, centred: bool, out: Any) -> None:
    wide()
    mean = _0
    if centred:
        for place in range(len(x)):
            mean += x[place]
        mean /= np.float32(len(x))
    square = _0
    for place in range(len(x)):
        square += (x[place] - mean) * (x[place] - mean)
    scale = _1 / np.float32(math.sqrt(square / np.float32(len(x)) + eps))
    for place in range(len(x)):
        out[place] = (x[place] - mean) * scale * widened(weight[place])
    for place in range(len(bias)):
        out[place] += widened(bias[place])


@part(EXACT)
def _activated(x: np.float32, activation: int) -> np.float32:
    if activation == 0:
        return x / (_1 + exp(-x))
    if activation == 1:
        return x / (_1 + exp(-x * (_2C0 + _2C0_C1 * x * x)))
    if activation == 2:
        return _HALF * x * (_1 + np.float32(math.erf(x * _ROOT_HALF)))
    return x if x > _0 else _0


@part(EXACT)
def _vector(address: int, size: int, like: Any) -> Any:
    """Return the weights at an address; none where the address is 0."""
    return carray(weights_at(address, like), (size if address != 0 else 0,))


@part(EXACT)
def _rotate(head: Any, cos: Any, sin: Any) -> None:
    half = len(cos)
    for place in range(half):
        first, second = head[place], head[place + half]
        head[place] = first * cos[place] - second * sin[place]
        head[place + half] = second * cos[place] + first * sin[place]


@part(EXACT)
def _multiply(weights: Any, x: Any, sums: Any) -> None:
    """Set `sums` to the products of a matrix's row with each row of x."""
    wide()
    at, begin, size = weights.ctypes.data, x.ctypes.data, x.shape[1]
    like = weights[0]
    first = 0
    while first + 4 <= len(x):
        sums[first], sums[first + 1], sums[first + 2], sums[first + 3] = _dots_of_4(
            at, begin + first * size * FLOAT, size, like
        )
        first += 4
    if first + 2 <= len(x):
        sums[first], sums[first + 1] = _dots_of_2(at, begin + first * size * FLOAT, size, like)
        first += 2
    if first < len(x):
        sums[first] = _dots_of_1(at, begin + first * size * FLOAT, size, like)[0]


@part(EXACT)
def _project(weights: Any, bias: Any, place: int, x: Any, sums: Any) -> None:
    """Set `sums` to number `place` of weights times x plus bias, for each row of x."""
    _multiply(weights[place], x, sums)
    if len(bias) > 0:
        for row in range(len(x)):
            sums[row] += widened(bias[place])


@part(EXACT)
def _integers(address: int, plan: Any) -> Any:
    """Return the integers, one a row, at an address."""
    return carray(_integers_at(address), (plan.rows,))


@part(EXACT)
def _make_heads(plan: Any, layer: Any, normal: Any, sums: Any, like: Any) -> None:
    """Make this thread's heads of queries, keys and values, turned to their positions; keep the latter two."""
    heads, kv, size = plan.heads, plan.kv_heads, plan.head_dim
    count = heads + 2 * kv
    weights = carray(weights_at(layer.qkv, like), (count * size, plan.hidden))
    bias = _vector(layer.qkv_bias, count * size, like)
    out = matrix_at(plan.qkv, plan.rows * count, size)
    cache = carray(weights_at(layer.cache, like), (2, plan.batch, kv, plan.capacity, size))
    columns, padding = _integers(plan.columns, plan), _integers(plan.padding, plan)
    sequences = _integers(plan.sequences, plan)
    first, last = bounds(thread_number(), num_threads(), count)
    for head in range(first, last):
        for place in range(size):
            prefetch(weights[head * size + place], AHEAD)
            _project(weights, bias, head * size + place, normal, sums)
            for row in range(plan.rows):
                out[row * count + head, place] = sums[row]
        for row in range(plan.rows):
            made = out[row * count + head]
            position = columns[row] - padding[row]
            if head < heads + kv and plan.cos != 0:
                cos = matrix_at(plan.cos, position + 1, size // 2)
                _rotate(made, cos[position], matrix_at(plan.sin, position + 1, size // 2)[position])
            if head >= heads:
                kept = cache[(head - heads) // kv, sequences[row], (head - heads) % kv, columns[row]]
                for place in range(size):
                    kept[place] = narrowed(made[place], like)


@part(SUMS)
def _softmax(scores: Any) -> None:
    """Turn scores into weights that sum to 1."""
    wide()
    most = scores[0]
    for place in range(len(scores)):
        most = max(most, scores[place])
    total = _0
    for place in range(len(scores)):
        scores[place] = exp(scores[place] - most)
        total += scores[place]
    for place in range(len(scores)):
        scores[place] /= total


@part(EXACT)
def _attend(plan: Any, layer: Any, like: Any) -> None:
    """Let this thread's heads, of all rows, gather from what the cache holds."""
    thread, threads = thread_number(), num_threads()
    heads, kv, size = plan.heads, plan.kv_heads, plan.head_dim
    cache = carray(weights_at(layer.cache, like), (2, plan.batch, kv, plan.capacity, size))
    queries = matrix_at(plan.qkv, plan.rows * (heads + 2 * kv), size)
    gathered = matrix_at(plan.gathered, plan.rows * heads, size)
    columns, padding = _integers(plan.columns, plan), _integers(plan.padding, plan)
    sequences = _integers(plan.sequences, plan)
    room = matrix_at(plan.scores, threads, plan.capacity)[thread]
    scale = _1 / np.float32(math.sqrt(np.float32(size)))
    first, last = bounds(thread, threads, plan.rows * heads)
    for item in range(first, last):
        row, head = item // heads, item % heads
        place = head // (heads // kv)
        keys, values = cache[0, sequences[row], place], cache[1, sequences[row], place]
        begin = padding[row]
        query, out = queries[row * (heads + 2 * kv) + head], gathered[item]
        scores = room[: columns[row] + 1 - begin]
        for place in range(len(scores)):
            scores[place] = _dot(keys[begin + place], query) * scale
        _softmax(scores)
        out[:] = _0
        for place in range(len(scores)):
            _add_scaled(out, values[begin + place], scores[place])


@part(EXACT)
def _add_product(plan: Any, matrix: int, bias_at: int, x: Any, sums: Any, like: Any) -> None:
    """Add this thread's share of weights times x, and of the bias, to the stream."""
    stream = matrix_at(plan.stream, plan.rows, plan.hidden)
    weights = carray(weights_at(matrix, like), (plan.hidden, x.shape[1]))
    bias = _vector(bias_at, plan.hidden, like)
    first, last = bounds(thread_number(), num_threads(), plan.hidden)
    for place in range(first, last):
        prefetch(weights[place], AHEAD)
        _project(weights, bias, place, x, sums)
        for row in range(plan.rows):
            stream[row, place] += sums[row]


@part(EXACT)
def _expand(plan: Any, layer: Any, normal: Any, sums: Any, like: Any) -> None:
    """Make this thread's share of what is between the two matrices of the feed-forward part."""
    inner = plan.inner
    weights = carray(weights_at(layer.up, like), ((2 if plan.gated else 1) * inner, plan.hidden))
    bias = _vector(layer.up_bias, weights.shape[0], like)
    out = matrix_at(plan.expanded, plan.rows, inner)
    first, last = bounds(thread_number(), num_threads(), inner)
    for place in range(first, last):
        prefetch(weights[place], AHEAD)
        _project(weights, bias, place, normal, sums)
        for row in range(plan.rows):
            out[row, place] = _activated(sums[row], plan.activation)
        if plan.gated:
            prefetch(weights[inner + place], AHEAD)
            _project(weights, bias, inner + place, normal, sums)
            for row in range(plan.rows):
                out[row, place] *= sums[row]


@part(EXACT)
def _begin(plan: Any, like: Any) -> None:
    """Set the stream to the tokens' vectors, with those of their positions where these are learned."""
    if thread_number() == 0:
        tokens, columns = _integers(plan.tokens, plan), _integers(plan.columns, plan)
        padding = _integers(plan.padding, plan)
        stream = matrix_at(plan.stream, plan.rows, plan.hidden)
        embedding = carray(weights_at(plan.embedding, like), (plan.vocabulary, plan.hidden))
        for row in range(plan.rows):
            stream[row, :] = _0
            _add_scaled(stream[row], embedding[tokens[row]], _1)
            if plan.positions != 0:
                position = columns[row] - padding[row]
                learned = carray(weights_at(plan.positions, like), (position + 1, plan.hidden))
                _add_scaled(stream[row], learned[position], _1)


@part(EXACT)
def _normalize_all(plan: Any, weight_at: int, bias_at: int, out: Any, like: Any) -> None:
    """Normalize the stream, every thread for itself."""
    stream = matrix_at(plan.stream, plan.rows, plan.hidden)
    weight, bias = _vector(weight_at, plan.hidden, like), _vector(bias_at, plan.hidden, like)
    for row in range(plan.rows):
        _normalize(stream[row], weight, bias, np.float32(plan.eps), plan.centred != 0, out[row])


@part(EXACT)
def _score(plan: Any, normal: Any, sums: Any, like: Any) -> None:
    """Make this thread's share of the logits."""
    logits = matrix_at(plan.logits, plan.rows, plan.vocabulary)
    head = carray(weights_at(plan.head, like), (plan.vocabulary, plan.hidden))
    first, last = bounds(thread_number(), num_threads(), plan.vocabulary)
    for place in range(first, last):
        prefetch(head[place], AHEAD)
        _multiply(head[place], normal, sums)
        for row in range(plan.rows):
            logits[row, place] = sums[row]


@part(EXACT)
def decode(data: Any, like: Any) -> None:
    """Argument 1: the address of a row of `PASS`. `like` is a number of the kind that weights are made of."""
    plan = carray(_passes_at(integer(data, 1)), (1,))[0]
    layers = carray(_layers_at(plan.layer_table), (plan.layers,))
    own = thread_number() * plan.rows
    normal = matrix_at(plan.normal, num_threads() * plan.rows, plan.hidden)[own : own + plan.rows]
    gathered = matrix_at(plan.gathered, plan.rows, plan.heads * plan.head_dim)
    expanded = matrix_at(plan.expanded, plan.rows, plan.inner)
    sums = carray(_floats_at(plan.sums + thread_number() * LINE), (plan.rows,))
    _begin(plan, like)
    barrier()
    for place in range(plan.layers):
        layer = layers[place]
        _normalize_all(plan, layer.attention_norm, layer.attention_norm_bias, normal, like)
        _make_heads(plan, layer, normal, sums, like)
        barrier()
        _attend(plan, layer, like)
        barrier()
        _add_product(plan, layer.output, layer.output_bias, gathered, sums, like)
        barrier()
        _normalize_all(plan, layer.feed_forward_norm, layer.feed_forward_norm_bias, normal, like)
        _expand(plan, layer, normal, sums, like)
        barrier()
        _add_product(plan, layer.down, layer.down_bias, expanded, sums, like)
        barrier()
    _normalize_all(plan, plan.norm, plan.norm_bias, normal, like)
    _score(plan, normal, sums, like)
