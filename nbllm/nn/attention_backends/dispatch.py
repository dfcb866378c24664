"""`attend`: the only entry to the attention backends."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention_backends import eager
from nbllm.nn.attention_backends.measuring import choose
from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.masks import Mask

# A backend is one file beside this one: finding it enters it.
for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"{__package__}.{_module.name}")

_forced: ContextVar[str | None] = ContextVar("forced attention backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, in this thread, every attention goes through the backend `name`.

    Raises:
        UserError: There is no such backend.
    """
    if name != "auto":
        BACKENDS[name]
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    *,
    causal: bool,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "batch head query head_dim"]:
    """Attend from each query to the keys it may see.

    Args:
        query: (batch, heads, query, head_dim).
        key: (batch, kv_heads, key, head_dim); heads is a multiple of kv_heads.
        value: As `key`.
        causal: Whether a query sees only keys up to its own position. With fewer queries than keys (a cache)
            the last query is aligned with the last key.
        mask: Broadcastable to (batch, heads, query, key); boolean, True where a query may see a key, or
            floating, added to the scaled scores. It must leave every query at least one key.
        scale: Multiplies the scores; 1 / sqrt(head_dim) when None.
        softcap: Bounds the scaled scores softly, to softcap * tanh(scores / softcap), before the mask; 0: they are not
            bounded. Only "eager" computes it, so that it is taken whatever `backend` says.
        backend: A name in `BACKENDS`, or "auto": the fastest measured for these shapes.

    Returns:
        (batch, heads, query, head_dim).

    Raises:
        UserError: There is no such backend.
    """
    # What is traced for torch.compile cannot ask a context variable; a block that is compiled is not forced.
    name = backend if torch.compiler.is_compiling() else _forced.get() or backend
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if softcap:
        return eager.attend_with_softcap(query, key, value, mask, causal, scale, softcap=softcap)
    if name == "auto":
        name = choose(query, key, causal=causal, mask=mask)
    return BACKENDS[name](query, key, value, mask, causal, scale)
