"""The output projection and its loss in one: logits exist only chunk by chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.nn.matmul import add_matmul, matmul_dtype, matmul_into
from nbllm.nn.shared_rows import current_share
from nbllm.nn.vocabulary_part import VocabularyPart, rows_here, split_vocabulary

# Elements of one chunk of logits (float32: 64 MB), and most rows of it. Fewer rows mean more passes over the
# gradient of the weight; more rows bring nothing: the matmuls are as fast, and the chunk leaves the cache.
_CHUNK_ELEMENTS = 1 << 24
_CHUNK_ROWS = 1024
_FEWEST_ROWS = 128
_GPU_CHUNKS = 8  # how many times as large they are on a GPU, which fewer rows do not fill
# Below this a probability is nearly denormal and its logarithm inexact: those rows are recomputed.
_TINY = 1e-30


def linear_cross_entropy(  # noqa: PLR0913 (each is one thing, and most are rarely given)
    hidden: Float[Tensor, "token hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    targets: Int[Tensor, " token"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    softcap: float = 0.0,
    weights: Float[Tensor, " token"] | None = None,
    losses: Float[Tensor, " token"] | None = None,
    chunk: int | None = None,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of softmax(hidden weight^T + bias) against `targets`, summed over tokens, in nats.

    The forward pass takes a chunk of tokens at a time and computes their gradients while their probabilities
    are in memory; so neither logits nor probabilities of all tokens are ever held, and none is computed twice.
    Softmax, loss and the sum over chunks are in float32 for every input dtype.

    Args:
        hidden: (token, hidden).
        weight: (vocabulary, hidden); where its rows are split over processes, as a DTensor's, each computes its own
            logits, and only sums over the vocabulary are exchanged. All have the same `hidden` and `targets`.
        targets: (token,), the correct token of each row.
        bias: (vocabulary,), added to the logits; None: nothing.
        softcap: Bounds the logits softly, to softcap * tanh(logits / softcap); 0: they are not bounded.
        weights: (token,), what each loss is multiplied by; None: 1.
        losses: (token,), float32, filled with the loss of each token, not weighted; None: they are not kept. Where rows
            are shared out over processes (`nn.shared_rows`), each then computes all of them.
        chunk: Rows at a time; chosen by the vocabulary's size when None.
        ignore_index: Rows with this target do not count.

    Returns:
        A float32 scalar: the sum (0 when every row is ignored).

    Raises:
        UserError: A target is not a token of the vocabulary.

    Source: Wijmans et al. 2024, arXiv:2411.09009 (the logits need not be materialised).
    """
    part = split_vocabulary(weight)
    if chunk is None:
        size = weight.shape[0] if part is None else part.size
        chunk = rows_of_a_chunk(size, hidden.device.type)
    assert chunk > 0, chunk
    counted = targets != ignore_index
    if targets.device.type == "cpu":  # on a GPU the check would wait for it; there the kernel asserts
        _check_targets(targets, counted, weight.shape[0])
    tokens = _Tokens(targets, counted, weights, losses)
    share = None if losses is not None else current_share()
    if share is not None:
        hidden, tokens = share.of(hidden), tokens.part(slice(share.rank, None, share.size))
    rows = None if bias is None else rows_here(bias)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, rows_here(weight), rows, tokens, (chunk, softcap, part))
    return loss if share is None else share.sum(loss)


def rows_of_a_chunk(vocabulary: int, device_type: str) -> int:
    """Return for how many tokens at a time logits are computed.

    Args:
        vocabulary: How many tokens there are; of a head split over ranks, on each.
        device_type: "cpu" or "cuda".
    """
    scale = 1 if device_type == "cpu" else _GPU_CHUNKS
    return max(_FEWEST_ROWS, min(scale * _CHUNK_ROWS, scale * _CHUNK_ELEMENTS // vocabulary))


def _check_targets(targets: Tensor, counted: Tensor, vocabulary: int) -> None:
    bad = counted & ((targets < 0) | (targets >= vocabulary))
    if bad.any():
        place = int(bad.nonzero()[0])
        raise UserError(
            f"The target {int(targets[place])} is not a token of this vocabulary of {vocabulary}.",
            where=f"target number {place}",
            hint="Tokenize the text with the model's own tokenizer.",
        )


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, for a loss of weight 1; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: _Tokens,
        settings: tuple[int, float, VocabularyPart | None],
    ) -> Tensor:
        targets = tokens.targets
        chunk, softcap, part = settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            rows = min(chunk, max(len(targets), 1))
            dtype = matmul_dtype(hidden, rows)
            hidden_grad = torch.empty_like(hidden) if wants_hidden else None
            weight_grad = _empty_or_zero(weight, empty=len(targets) > 0) if wants_weight else None
            bias_grad = (
                torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
            )
            matrix = weight.to(dtype)
            buffer = torch.empty(rows, len(weight), dtype=torch.float32, device=hidden.device)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for start in range(0, len(targets), rows):
                places = slice(start, start + rows)
                inputs = hidden[places].to(dtype)
                probabilities = buffer[: len(inputs)]
                head = _Head(matrix, bias, softcap)
                loss += _loss_of_chunk(inputs, head, tokens.part(places), probabilities, part)
                if bias_grad is not None:
                    bias_grad += probabilities.sum(0)
                scores_grad = probabilities.to(dtype)
                if hidden_grad is not None:
                    matmul_into(hidden_grad[places], scores_grad, matrix)
                if weight_grad is not None:
                    into = add_matmul if start else matmul_into
                    into(weight_grad, scores_grad.t(), inputs)
        if part is not None and hidden_grad is not None:
            part.sum(hidden_grad)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if saved is None else (saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


class _Tokens(NamedTuple):
    """What is to be predicted, (token,) each, as `linear_cross_entropy` is given it."""

    targets: Tensor
    counted: Tensor
    weights: Tensor | None
    losses: Tensor | None

    def part(self, part: slice) -> _Tokens:
        return _Tokens(*(None if each is None else each[part] for each in self))  # type: ignore[arg-type]


class _Head(NamedTuple):
    matrix: Tensor
    bias: Tensor | None
    softcap: float

    def logits(self, inputs: Tensor, out: Tensor) -> Tensor | None:
        """Write the logits into `out`, and return their derivative by what was not bounded; None: 1."""
        matmul_into(out, inputs, self.matrix.t())
        if self.bias is not None:
            out += self.bias
        if not self.softcap:
            return None
        out.div_(self.softcap).tanh_()
        slope = 1 - out.square()
        out.mul_(self.softcap)
        return slope


def _loss_of_chunk(
    inputs: Tensor, head: _Head, tokens: _Tokens, buffer: Tensor, part: VocabularyPart | None
) -> Tensor:
    """Return a chunk's summed loss; leave in `buffer` the gradient of what the head's matrix and bias give."""
    targets, counted, weights, kept = tokens
    slope = head.logits(inputs, buffer)
    places = targets.clamp(min=0)[:, None]
    if part is not None:
        losses = _softmax_and_loss_of_part(part, places, buffer)
    else:
        if buffer.device.type == "cpu":
            losses, right = _softmax_and_loss(inputs, head, places, buffer)
        else:
            losses, right = _exact_softmax_and_loss(places, buffer)
        buffer.scatter_(1, places, right - 1)
    if slope is not None:
        buffer *= slope
    if buffer.device.type != "cpu" or not bool(counted.all()):
        losses = losses.masked_fill(~counted[:, None], 0.0)
        buffer.masked_fill_(~counted[:, None], 0.0)
    if kept is not None:
        kept.copy_(losses[:, 0])
    if weights is not None:
        losses = losses * weights[:, None]
        buffer *= weights[:, None]
    return losses.sum()


def _softmax_and_loss(inputs: Tensor, head: _Head, places: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Make probabilities of the logits in `buffer`; return the losses and the right tokens' probabilities.

    The quickest on a CPU: one pass, and only where a probability is tiny the logits are made again.
    """
    torch.softmax(buffer, -1, out=buffer)
    right = buffer.gather(1, places)
    losses = -right.log()
    unlikely = ~(right > _TINY)  # true for NaN as well
    if bool(unlikely.any()):
        logits = torch.empty_like(buffer)
        head.logits(inputs, logits)
        exact = logits.logsumexp(-1, keepdim=True) - logits.gather(1, places)
        losses = torch.where(unlikely, exact, losses)
    return losses, right


def _exact_softmax_and_loss(places: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same without asking what the result is, for which a GPU would have to be waited for."""
    total = buffer.logsumexp(-1, keepdim=True)
    losses = total - buffer.gather(1, places)
    buffer.sub_(total).exp_()
    return losses, torch.exp(-losses)


def _softmax_and_loss_of_part(part: VocabularyPart, places: Tensor, buffer: Tensor) -> Tensor:
    """Make probabilities, less 1 at the right tokens, of logits of a part of the vocabulary; return the losses."""
    rows, inside = part.rows_of(places)
    top = part.maximum(buffer.amax(-1, keepdim=True))
    buffer -= top
    right = buffer.gather(1, rows).masked_fill_(~inside, 0.0)
    buffer.exp_()
    sums = part.sum(torch.stack((buffer.sum(-1, keepdim=True), right)))
    buffer /= sums[0]
    buffer.scatter_add_(1, rows, -inside.to(buffer.dtype))
    losses: Tensor = sums[0].log() - sums[1]
    return losses


def _empty_or_zero(weight: Tensor, *, empty: bool) -> Tensor:
    make = torch.empty_like if empty else torch.zeros_like
    return make(weight, dtype=torch.float32)
