"""Which attention backend is fastest for given shapes: measured once per shape and process."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import torch
from torch import Tensor

from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.compute.decisions import current_choices
from nbllm.nn.compute.profile import measure_unseen
from nbllm.nn.heads import split_heads
from nbllm.nn.kernels import compiled, readable

USUAL = "sdpa"  # where nothing is measured
CANDIDATES = ("sdpa", "blocked", "per_head")  # eager is the reference, never the fastest
_ROUNDS = 4
_SHORTEST_PROMPT = 128  # tokens: with fewer, all backends take about as long
# Measuring must stay a matter of a second. So of a large batch some sequences are measured, with about so many
# scores (time grows with the batch in proportion); where one sequence has more, the usual backend is taken.
_SCORES = 1 << 24
_MOST_SCORES = 1 << 27


class AttentionShape(NamedTuple):
    """What the fastest backend depends on."""

    batch: int
    num_heads: int
    num_kv_heads: int
    length: int
    head_dim: int
    dtype: torch.dtype
    num_threads: int


_times: dict[AttentionShape, dict[str, float]] = {}
_lock = threading.Lock()


def choose(query: Tensor, key: Tensor, *, causal: bool, mask: Tensor | None) -> str:
    """Return the name of the backend for these inputs.

    Training on the CPU, causal and without a mask, is measured, forward and backward, at the first call for a
    shape. Without gradients, such as for a prompt, it is what the present choices say. All else is "sdpa": on a GPU
    its kernels are the fastest, a few queries have no blocks, and what is compiled is traced and not timed.

    Args:
        query: (batch, heads, query, head_dim).
        key: (batch, kv_heads, key, head_dim).
        causal: As in `attend`.
        mask: As in `attend`.
    """
    training = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    square = query.shape[2] == key.shape[2] > 1
    if (
        torch.compiler.is_compiling()
        or query.device.type != "cpu"
        or not causal
        or mask is not None
        or not square
    ):
        return USUAL
    if not training:
        if query.shape[2] < _SHORTEST_PROMPT or not readable(query, key, dtype=query.dtype):
            return USUAL
        return current_choices().prompt_attention.get(str(query.dtype).removeprefix("torch."), USUAL)
    times = measured_times(query, key)
    return min(times, key=times.__getitem__) if times else USUAL


def measured_times(query: Tensor, key: Tensor) -> dict[str, float]:
    """Return seconds of forward and backward by backend, for causal self-attention of these shapes.

    Measured once a process; empty for shapes too large to measure quickly.
    """
    batch, heads, length, head_dim = query.shape
    scores = heads * length**2
    if scores > _MOST_SCORES:
        return {}
    shape = AttentionShape(
        max(1, min(batch, _SCORES // scores)),
        heads,
        key.shape[1],
        length,
        head_dim,
        query.dtype,
        torch.get_num_threads(),
    )
    with _lock:  # two threads that measure at once would measure each other
        if shape not in _times:
            _times[shape] = measure_unseen(_measure, shape)
        return _times[shape]


def candidates(dtype: torch.dtype) -> list[str]:
    """Return the names of those that do something of their own here."""
    has_kernel = dtype == torch.float32 and compiled("attention") is not None
    return [name for name in CANDIDATES if name != "per_head" or has_kernel]


def _measure(shape: AttentionShape) -> dict[str, float]:
    """Time the candidates in turn and keep each one's best, so that a busy moment does not matter."""
    draw = torch.Generator().manual_seed(0)  # the global random state must not change
    counts = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    fused = torch.randn(shape.batch, shape.length, sum(counts) * shape.head_dim, generator=draw)
    fused = fused.to(shape.dtype).requires_grad_()
    best = dict.fromkeys(candidates(shape.dtype), float("inf"))
    with torch.enable_grad():
        for _ in range(_ROUNDS):
            for name in best:
                began = time.perf_counter()
                query, key, value = split_heads(fused, counts, shape.head_dim)
                out = BACKENDS[name](query, key, value, None, True, shape.head_dim**-0.5)
                torch.autograd.grad(out, fused, torch.ones_like(out))
                best[name] = min(best[name], time.perf_counter() - began)
    return best
