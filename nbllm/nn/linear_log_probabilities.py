"""The output projection and the log-probabilities of given tokens in one: logits exist only chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.nn.matmul import add_matmul, matmul_dtype, matmul_into
from nbllm.nn.vocabulary_part import VocabularyPart, rows_here, split_vocabulary

_CHUNK_ELEMENTS = 1 << 24  # of one chunk of logits: 64 MB of float32
_CHUNK_ROWS = 1024


def linear_log_probabilities(
    hidden: Float[Tensor, "token hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    tokens: Int[Tensor, " token"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    softcap: float = 0.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Return how probable tokens are under softmax((hidden weight^T + bias) / temperature), and the entropy of that.

    Where a loss is a function of these, such as a clipped ratio, its gradient is known only in the backward pass,
    which therefore computes the logits of a chunk once more; those of all tokens are never held.

    Args:
        hidden: (token, hidden).
        weight: (vocabulary, hidden); its rows may be split over processes, as in `linear_cross_entropy`.
        tokens: (token,), one of each distribution.
        bias: (vocabulary,), added to the logits; None: nothing.
        softcap: Bounds the logits softly, to softcap * tanh(logits / softcap); 0: they are not bounded.
        temperature: Divides the logits, as where the tokens were drawn.
        chunk: Rows at a time; chosen by the vocabulary's size when None.

    Returns:
        The natural logarithms, float32, with gradient; and the entropy of each distribution in nats, without.

    Source: Wijmans et al. 2024, arXiv:2411.09009 (the logits need not be materialised).
    """
    part, bias = split_vocabulary(weight), None if bias is None else rows_here(bias)
    size = weight.shape[0] if part is None else part.size
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_ELEMENTS // size)) if chunk is None else chunk
    found: tuple[Tensor, Tensor] = _LinearLogProbabilities.apply(
        hidden, rows_here(weight), bias, tokens, (rows, softcap, temperature), part
    )
    return found


class _LinearLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        settings: tuple[int, float, float],
        vocabulary: VocabularyPart | None,
    ) -> tuple[Tensor, Tensor]:
        log_probs = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(log_probs)
        normalizers = torch.empty_like(log_probs)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, logits, _ in _chunks(hidden, weight, bias, settings):
                norm = logits.logsumexp(-1) if vocabulary is None else vocabulary.logsumexp(logits)
                normalizers[part] = norm
                logits -= norm[:, None]
                if vocabulary is None:
                    log_probs[part] = logits.gather(1, tokens[part, None])[:, 0]
                else:
                    log_probs[part] = vocabulary.pick(logits, tokens[part])
                entropy = -(logits.exp() * logits).sum(-1)
                entropies[part] = entropy if vocabulary is None else vocabulary.sum(entropy)
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizers)
        ctx.settings, ctx.vocabulary = settings, vocabulary
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, normalizers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        temperature = ctx.settings[2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part, logits, slope in _chunks(hidden, weight, bias, ctx.settings):
                scores_grad = logits.sub_(normalizers[part, None]).exp_().neg_()
                ones = torch.ones_like(normalizers[part, None])
                rows = tokens[part]
                if ctx.vocabulary is not None:
                    rows, inside = ctx.vocabulary.rows_of(rows)
                    ones.masked_fill_(~inside[:, None], 0.0)
                # of the logarithm: 1 at the token, less all probabilities
                scores_grad.scatter_add_(1, rows[:, None], ones)
                scores_grad.mul_((grad[part] / temperature)[:, None])
                if slope is not None:
                    scores_grad *= slope
                if bias_grad is not None:
                    bias_grad += scores_grad.sum(0)
                dtype = matmul_dtype(hidden, len(scores_grad))
                narrow = scores_grad.to(dtype)
                if hidden_grad is not None:
                    matmul_into(hidden_grad[part], narrow, weight.to(dtype))
                if weight_grad is not None:
                    add_matmul(weight_grad, narrow.t(), hidden[part].to(dtype))
        if ctx.vocabulary is not None and hidden_grad is not None:
            ctx.vocabulary.sum(hidden_grad)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
        )


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[int, float, float]) -> Any:
    """Yield slices of the rows with their logits, divided by the temperature, and the slope of the softcap or None."""
    rows, softcap, temperature = settings
    dtype = matmul_dtype(hidden, min(rows, max(len(hidden), 1)))
    matrix = weight.to(dtype)
    buffer = torch.empty(min(rows, len(hidden)), len(weight), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), rows):
        part = slice(start, min(start + rows, len(hidden)))
        logits = buffer[: part.stop - start]
        matmul_into(logits, hidden[part].to(dtype), matrix.t())
        if bias is not None:
            logits += bias
        slope = None
        if softcap:
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(softcap)
        yield part, logits.div_(temperature), slope
