"""A model answers requests, in batches. Nothing else in the evaluation calls the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nbllm.core.errors import UserError
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_before, encode_text
from nbllm.evaluation.requests import DocumentLikelihood, Generate, Likelihood, Request
from nbllm.inference.text import generate_encoded, source_around
from nbllm.inference.unicode import check_unicode
from nbllm.lm import Score

if TYPE_CHECKING:
    from nbllm.evaluation.requests import Answer
    from nbllm.lm import LM

Kind = TypeVar("Kind")


def answer(lm: LM, requests: Sequence[Request], *, batch_tokens: int = 4096) -> list[Answer]:
    """Return a model's answer to each request, in their order.

    Args:
        lm: The model and its tokenizer.
        requests: Of any kinds, mixed.
        batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no answer.

    Raises:
        UserError: A stride is longer than the context, or a prompt does not fit into it.
        KeyboardInterrupt: A generation was interrupted: what there is of it is no answer.
    """
    answers: dict[int, Answer] = {}
    for kind, indices in _grouped(requests, lambda request: type(request)).items():
        found = _ANSWERING[kind](lm, [requests[i] for i in indices], batch_tokens)
        answers.update(zip(indices, found, strict=True))
    return [answers[i] for i in range(len(requests))]


def _document_likelihoods(lm: LM, requests: Sequence[DocumentLikelihood], batch_tokens: int) -> list[Score]:
    """Return the likelihood of each document, which begins and ends as documents do in training.

    The first token is predicted from the token that documents begin with, and the document is charged for predicting
    the one that ends it (`document_bounds`; the two may be the same). So the figures are those of a lossless code of
    the documents, their ends included. Where the tokenizer has no such tokens, neither is predicted.
    """
    bounds = document_bounds(lm.tokenizer)
    out: dict[int, Score] = {}
    for stride, indices in _grouped(requests, lambda request: request.stride).items():
        _check_stride(lm, stride)
        sequences = [
            bounds.start_tokens + encode_text(lm.tokenizer, requests[i].text) + bounds.end_tokens
            for i in indices
        ]
        found = lm.score_tokens(sequences, stride=stride, batch_tokens=batch_tokens)
        for i, values in zip(indices, found, strict=True):
            num_bytes = len(requests[i].text.encode())
            out[i] = Score(float(values.double().sum()), len(values), num_bytes)
    return [out[i] for i in range(len(requests))]


def _check_stride(lm: LM, stride: int | None) -> None:
    context = lm.config.max_positions
    if stride is not None and stride > context:
        raise UserError(
            f"A stride of {stride} skips tokens: the context has {context}.",
            hint=f"Use stride={context} or less.",
        )


def _likelihoods(lm: LM, requests: Sequence[Likelihood], batch_tokens: int) -> list[Score]:
    """Return the likelihood of each continuation, given its context.

    Context and continuation are encoded together where their border is one between tokens, as it mostly is with
    the joining space at the beginning of the continuation (where a context ends with a space, it is moved there).
    Where a token would span the border, they are encoded one by one, so that the continuation never loses a token
    to the context.
    """
    pairs = [split_tokens(lm, str(request.context), request.continuation) for request in requests]
    found = lm.score_tokens([before + after for before, after in pairs], batch_tokens=batch_tokens)
    out = []
    for request, (_, after), values in zip(requests, pairs, found, strict=True):
        kept = values[-len(after) :]  # without a first token to predict from, the very first is not counted
        out.append(Score(float(kept.double().sum()), len(kept), len(request.continuation.encode())))
    return out


def split_tokens(lm: LM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a context, with the token that begins a document, and of its continuation."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    before = _before(lm, context)
    alone, together = encode_text(lm.tokenizer, context), encode_text(lm.tokenizer, context + continuation)
    if together[: len(alone)] == alone and len(together) > len(alone):
        return before + alone, together[len(alone) :]
    return before + alone, encode_text(lm.tokenizer, continuation)


def _before(lm: LM, context: str) -> list[int]:
    """Return what the tokenizer puts before a text; before an empty one, the token that documents begin with."""
    return added_before(lm.tokenizer) if context else document_bounds(lm.tokenizer).start_tokens


def _encoded(lm: LM, prompt: str) -> list[int]:
    """Return a prompt's tokens, with those that stand before a text, or where an encoder reads it around one."""
    ids = encode_text(lm.tokenizer, prompt)
    if lm.decoder_tokens is None:
        return _before(lm, prompt) + ids
    before, after = source_around(lm.tokenizer)
    return before + ids + after


def _generations(lm: LM, requests: Sequence[Generate], batch_tokens: int) -> list[Answer]:
    """Return the texts that continue the prompts.

    A prompt is made of data: a control token that it spells is plain text, as in a context.
    """
    out: dict[int, Answer] = {}
    for request in requests:
        check_unicode(str(request.prompt), "prompt", "a request to generate")
    for sampling, indices in _grouped(requests, lambda request: request.sampling).items():
        prompts = [str(requests[i].prompt) for i in indices]
        made = generate_encoded(
            lm.generative_network(),
            lm.tokenizer,
            [(prompt, _encoded(lm, prompt)) for prompt in prompts],
            config=sampling,
            lock=lm.lock,
            end_ids=lm.end_tokens,
            decoder_tokens=lm.decoder_tokens,
        )
        if any(each.stopped_by == "interrupt" for each in made):
            raise KeyboardInterrupt
        out.update(zip(indices, made, strict=True))
    return [out[i] for i in range(len(requests))]


_ANSWERING: dict[type, Callable[[LM, Any, int], Sequence[Answer]]] = {
    DocumentLikelihood: _document_likelihoods,
    Likelihood: _likelihoods,
    Generate: _generations,
}


def _grouped(things: Iterable[Kind], key: Callable[[Kind], Any]) -> dict[Any, list[int]]:
    """Return the indices of the things of each key, in their order."""
    groups: dict[Hashable, list[int]] = {}
    for index, thing in enumerate(things):
        groups.setdefault(key(thing), []).append(index)
    return groups
