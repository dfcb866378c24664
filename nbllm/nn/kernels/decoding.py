"""A decoding step of a few tokens through a whole decoder, as fast as the weights come from memory.

A row is a token: the newest of a sequence, or several consecutive ones of one sequence. Each thread computes its share
of a matrix's rows, and all wait for one another before the result is read: six barriers a layer. Short operations, such
as a normalization, are computed by every thread for itself. Weights and cache are float32 or bfloat16, everything in
between is float32. A row's result is the same to the bit whichever rows are computed with it.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import carray

from nbllm.nn.kernels.cached_attention import attend, gather
from nbllm.nn.kernels.compilation import (
    EXACT,
    SUMS,
    integer,
    integers_at,
    matrix_at,
    narrowed,
    no_weights,
    part,
    pointer_to,
    weights_at,
    weights_vector,
    wide,
    widened,
)
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.gelu import C0, C1
from nbllm.nn.kernels.projections import add_products, project
from nbllm.nn.kernels.symbols import barrier, num_threads, thread_number
from nbllm.nn.kernels.team import bounds

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
# Sizes and addresses: one record for each layer, and one for the whole pass. The address 0: there is none.
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
            # float32: (row, hidden), (thread, row, hidden), (row, head, head_dim), (row, head, head_dim), (row, inner)
            # or, gated, (row, 2 inner), (row, inner), (row, vocabulary); (thread, heads that share keys, CHUNK) and
            # (row, head, chunk, 2 + head_dim) of cached_attention
            "stream", "normal", "qkv", "gathered", "up", "expanded", "logits", "scores", "partial",
        )
    ),
])  # fmt: skip

_passes_at = pointer_to(numba.from_dtype(PASS))
_layers_at = pointer_to(numba.from_dtype(LAYER))
_0, _1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_2C0, _2C0_C1 = np.float32(2 * C0), np.float32(2 * C0 * C1)
_ROOT_HALF = np.float32(math.sqrt(0.5))


@part(EXACT)
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
def _activate(x: Any, activation: int, out: Any) -> None:
    wide()
    if activation == 0:
        for place in range(len(x)):
            out[place] = x[place] / (_1 + exp(-x[place]))
    elif activation == 1:
        for place in range(len(x)):
            out[place] = x[place] / (_1 + exp(-x[place] * (_2C0 + _2C0_C1 * x[place] * x[place])))
    elif activation == 2:
        for place in range(len(x)):
            out[place] = _HALF * x[place] * (_1 + np.float32(math.erf(x[place] * _ROOT_HALF)))
    else:
        for place in range(len(x)):
            out[place] = _0 if x[place] < _0 else x[place]  # NaN stays


@part(EXACT)
def _multiply(out: Any, factors: Any) -> None:
    wide()
    for place in range(len(out)):
        out[place] *= factors[place]


@part(EXACT)
def _rotate(head: Any, cos: Any, sin: Any) -> None:
    half = len(cos)
    for place in range(half):
        first, second = head[place], head[place + half]
        head[place] = first * cos[place] - second * sin[place]
        head[place + half] = second * cos[place] + first * sin[place]


@part(EXACT)
def _make_heads(plan: Any, layer: Any, normal: Any, like: Any) -> None:
    """Compute this thread's heads of queries, keys and values, rotated to their positions; store keys and values."""
    heads, kv, size = plan.heads, plan.kv_heads, plan.head_dim
    count = heads + 2 * kv
    weights = carray(weights_at(layer.qkv, like), (count * size, plan.hidden))
    bias = weights_vector(layer.qkv_bias, count * size, like)
    out = matrix_at(plan.qkv, plan.rows, count * size)
    cache = carray(weights_at(layer.cache, like), (2, plan.batch, kv, plan.capacity, size))
    columns, padding = integers_at(plan.columns, plan.rows), integers_at(plan.padding, plan.rows)
    sequences = integers_at(plan.sequences, plan.rows)
    first, last = bounds(thread_number(), num_threads(), count)
    project(weights, bias, normal, first * size, last * size, out)
    for head in range(first, last):
        for row in range(plan.rows):
            one = out[row, head * size : (head + 1) * size]
            position = columns[row] - padding[row]
            if head < heads + kv and plan.cos != 0:
                cos = matrix_at(plan.cos, position + 1, size // 2)
                _rotate(one, cos[position], matrix_at(plan.sin, position + 1, size // 2)[position])
            if head >= heads:
                stored = cache[(head - heads) // kv, sequences[row], (head - heads) % kv, columns[row]]
                for place in range(size):
                    stored[place] = narrowed(one[place], like)


@part(EXACT)
def _add_to_stream(plan: Any, matrix: int, bias_at: int, x: Any, like: Any) -> None:
    """Add this thread's share of weights times x plus bias to the residual stream."""
    stream = matrix_at(plan.stream, plan.rows, plan.hidden)
    weights = carray(weights_at(matrix, like), (plan.hidden, x.shape[1]))
    bias = weights_vector(bias_at, plan.hidden, like)
    first, last = bounds(thread_number(), num_threads(), plan.hidden)
    if len(bias) > 0:
        for row in range(plan.rows):
            _add_scaled(stream[row, first:last], bias[first:last], _1)
    add_products(weights, x, first, last, stream)


@part(EXACT)
def _expand(plan: Any, layer: Any, normal: Any, like: Any) -> None:
    """Compute this thread's share of the feed-forward part's inner activations."""
    inner = plan.inner
    count = (2 if plan.gated else 1) * inner
    weights = carray(weights_at(layer.up, like), (count, plan.hidden))
    bias = weights_vector(layer.up_bias, count, like)
    up, out = matrix_at(plan.up, plan.rows, count), matrix_at(plan.expanded, plan.rows, inner)
    first, last = bounds(thread_number(), num_threads(), inner)
    project(weights, bias, normal, first, last, up)
    if plan.gated:
        project(weights, bias, normal, inner + first, inner + last, up)
    for row in range(plan.rows):
        _activate(up[row, first:last], plan.activation, out[row, first:last])
        if plan.gated:
            _multiply(out[row, first:last], up[row, inner + first : inner + last])


@part(EXACT)
def _begin(plan: Any, like: Any) -> None:
    """Set the residual stream to the token embeddings, plus the position embeddings where these are learned."""
    if thread_number() == 0:
        tokens, columns = integers_at(plan.tokens, plan.rows), integers_at(plan.columns, plan.rows)
        padding = integers_at(plan.padding, plan.rows)
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
    """Normalize the residual stream, every thread for itself."""
    stream = matrix_at(plan.stream, plan.rows, plan.hidden)
    weight, bias = weights_vector(weight_at, plan.hidden, like), weights_vector(bias_at, plan.hidden, like)
    for row in range(plan.rows):
        _normalize(stream[row], weight, bias, np.float32(plan.eps), plan.centred != 0, out[row])


@part(EXACT)
def _score(plan: Any, normal: Any, like: Any) -> None:
    """Compute this thread's share of the logits."""
    logits = matrix_at(plan.logits, plan.rows, plan.vocabulary)
    head = carray(weights_at(plan.head, like), (plan.vocabulary, plan.hidden))
    first, last = bounds(thread_number(), num_threads(), plan.vocabulary)
    project(head, no_weights(like), normal, first, last, logits)


@part(EXACT)
def decode(data: Any, like: Any) -> None:
    """Argument 1: the address of a row of `PASS`. `like` is a value of the weights' dtype."""
    plan = carray(_passes_at(integer(data, 1)), (1,))[0]
    layers = carray(_layers_at(plan.layer_table), (plan.layers,))
    own = thread_number() * plan.rows
    normal = matrix_at(plan.normal, num_threads() * plan.rows, plan.hidden)[own : own + plan.rows]
    gathered = matrix_at(plan.gathered, plan.rows, plan.heads * plan.head_dim)
    expanded = matrix_at(plan.expanded, plan.rows, plan.inner)
    _begin(plan, like)
    barrier()
    for place in range(plan.layers):
        layer = layers[place]
        _normalize_all(plan, layer.attention_norm, layer.attention_norm_bias, normal, like)
        _make_heads(plan, layer, normal, like)
        barrier()
        attend(plan, layer, like)
        barrier()
        gather(plan)
        barrier()
        _add_to_stream(plan, layer.output, layer.output_bias, gathered, like)
        barrier()
        _normalize_all(plan, layer.feed_forward_norm, layer.feed_forward_norm_bias, normal, like)
        _expand(plan, layer, normal, like)
        barrier()
        _add_to_stream(plan, layer.down, layer.down_bias, expanded, like)
        barrier()
    _normalize_all(plan, plan.norm, plan.norm_bias, normal, like)
    _score(plan, normal, like)
