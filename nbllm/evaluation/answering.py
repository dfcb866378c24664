"""A model answers requests, in batches. Nothing else in the evaluation calls the model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nbllm.evaluation.preparing import Prepared, prepare
from nbllm.evaluation.remote import Remote
from nbllm.evaluation.requests import ContinuationScore, DocumentLikelihood, Generate, Likelihood, Request
from nbllm.inference.generation import Generation
from nbllm.inference.text import generate_encoded
from nbllm.lm import Score

if TYPE_CHECKING:
    from nbllm.evaluation.answer_store import AnswerStore
    from nbllm.evaluation.requests import Answer
    from nbllm.lm import LM
    from nbllm.models.continuations import Likelihoods
    from nbllm.models.encoder_decoder import EncoderDecoder

Kind = TypeVar("Kind")
_DIGEST = 32  # bytes of a key that are the same for all texts drawn from one prompt


def answer(
    lm: LM, requests: Sequence[Request], *, batch_tokens: int = 4096, truncation: str = "shots"
) -> list[Answer]:
    """Return a model's answer to each request, in their order.

    Args:
        lm: The model and its tokenizer.
        requests: Of any kinds, mixed.
        batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no answer.
        truncation: As for `prepare`.

    Raises:
        UserError: A stride is longer than the context, or a prompt does not fit into it.
        KeyboardInterrupt: A generation was interrupted: what there is of it is no answer.
    """
    return answer_prepared(lm, prepare(lm, requests, truncation=truncation), batch_tokens=batch_tokens)


def answer_prepared(
    lm: LM | Remote,
    prepared: Sequence[Prepared],
    *,
    batch_tokens: int = 4096,
    store: AnswerStore | None = None,
) -> list[Answer]:
    """Return a model's answer to each prepared request, in their order.

    Args:
        lm: The model and its tokenizer.
        prepared: The requests.
        batch_tokens: As for `answer`.
        store: Answers that are known already; new ones are added.

    Raises:
        KeyboardInterrupt: As `answer`.
    """
    keys = _keys(prepared)
    known = {} if store is None else store.find(list(dict.fromkeys(keys)))
    # Texts that are drawn from one prompt are drawn together: each depends on how many there were before.
    anew = {key[:_DIGEST] for key in keys if key not in known}
    answers = {key: _from_json(value) for key, value in known.items() if key[:_DIGEST] not in anew}
    left = {key: each for key, each in zip(keys, prepared, strict=True) if key not in answers}
    for kind, indices in _grouped(left.values(), lambda each: type(each.request)).items():
        some = [(key, left[key]) for key in (list(left)[i] for i in indices)]
        asked = [each for _, each in some]
        found = lm.answer(asked) if isinstance(lm, Remote) else _ANSWERING[kind](lm, asked, batch_tokens)
        new = dict(zip((key for key, _ in some), found, strict=True))
        answers |= new
        if store is not None:
            store.add({key: _to_json(each) for key, each in new.items() if _can_be_kept(left[key])})
    return [answers[key] for key in keys]


def _keys(prepared: Sequence[Prepared]) -> list[bytes]:
    """Return a key for each request; those of equal ones are equal, but for texts that are drawn several times."""
    seen: Counter[bytes] = Counter()
    keys = []
    for each in prepared:
        key = each.key
        if isinstance(each.request, Generate) and each.request.sampling.temperature > 0:
            seen[key] += 1
            key += str(seen[key]).encode()
        keys.append(key)
    return keys


def _can_be_kept(prepared: Prepared) -> bool:
    """Say whether the same request has the same answer again."""
    request = prepared.request
    return not (
        isinstance(request, Generate) and request.sampling.temperature > 0 and request.sampling.seed is None
    )


def _document_likelihoods(lm: LM, prepared: Sequence[Prepared], batch_tokens: int) -> list[Score]:
    """Return the likelihood of each document, which begins and ends as documents do in training.

    The first token is predicted from the token that documents begin with, and the document is charged for predicting
    the one that ends it (`document_bounds`; the two may be the same). So the figures are those of a lossless code of
    the documents, their ends included. Where the tokenizer has no such tokens, neither is predicted.
    """
    out: dict[int, Score] = {}
    requests: list[Any] = [each.request for each in prepared]
    for stride, indices in _grouped(requests, lambda request: request.stride).items():
        found = lm.score_tokens(
            [prepared[i].before for i in indices], stride=stride, batch_tokens=batch_tokens
        )
        for i, values in zip(indices, found, strict=True):
            out[i] = Score(float(values.double().sum()), len(values), len(requests[i].text.encode()))
    return [out[i] for i in range(len(prepared))]


def _likelihoods(lm: LM, prepared: Sequence[Prepared], batch_tokens: int) -> list[ContinuationScore]:
    """Return the likelihood of each continuation, given its context; an encoder reads that, where there is one."""
    from nbllm.models.continuations import Likelihoods, continuation_likelihoods

    if lm.decoder_tokens is not None:
        return _target_likelihoods(lm, prepared, lm.decoder_tokens.decoder_start_token_id, batch_tokens)
    context = lm.model.context_length
    is_long = [len(each.before) + len(each.after) - 1 > context for each in prepared]
    pairs = [(each.before, each.after) for each, long in zip(prepared, is_long, strict=True) if not long]
    with lm.lock:
        network = lm.causal_network_for("score")
        short = iter(continuation_likelihoods(network, pairs, max_batch_tokens=batch_tokens))
    out = []
    for each, long in zip(prepared, is_long, strict=True):
        if long:  # a continuation longer than the context: read in windows
            (values,) = lm.score_tokens([each.before + each.after], batch_tokens=batch_tokens)
            found = Likelihoods(values[-len(each.after) :], greedy=False)
        else:
            found = next(short)
        out.append(_score(each, found))
    return out


def _target_likelihoods(
    lm: LM, prepared: Sequence[Prepared], start: int, batch_tokens: int
) -> list[ContinuationScore]:
    """Return the likelihood of each continuation as a text of the decoder, which begins with `start`."""
    from nbllm.models.targets import target_likelihoods

    pairs = [(each.before, each.after) for each in prepared]
    with lm.lock:
        network = cast("EncoderDecoder", lm.generative_network())
        found = target_likelihoods(network, pairs, start=start, max_batch_tokens=batch_tokens)
    return [_score(each, likelihoods) for each, likelihoods in zip(prepared, found, strict=True)]


def _score(prepared: Prepared, found: Likelihoods) -> ContinuationScore:
    assert isinstance(prepared.request, Likelihood)
    num_bytes = len(prepared.request.continuation.encode())
    total = float(found.values.double().sum())
    return ContinuationScore(total, len(found.values), num_bytes, found.greedy)


def _generations(lm: LM, prepared: Sequence[Prepared], _: int) -> list[Answer]:
    """Return the texts that continue the prompts."""
    out: dict[int, Answer] = {}
    requests: list[Any] = [each.request for each in prepared]
    for sampling, indices in _grouped(requests, lambda request: request.sampling).items():
        made = generate_encoded(
            lm.generative_network(),
            lm.tokenizer,
            [(str(requests[i].prompt), prepared[i].before) for i in indices],
            config=sampling,
            lock=lm.lock,
            end_ids=lm.end_tokens,
            decoder_tokens=lm.decoder_tokens,
        )
        if any(each.stopped_by == "interrupt" for each in made):
            raise KeyboardInterrupt
        out.update(zip(indices, made, strict=True))
    return [out[i] for i in range(len(prepared))]


_ANSWERING: dict[type, Callable[[LM, Any, int], Sequence[Answer]]] = {
    DocumentLikelihood: _document_likelihoods,
    Likelihood: _likelihoods,
    Generate: _generations,
}


def _to_json(found: Answer) -> dict[str, Any]:
    if isinstance(found, Generation):
        return {"text": str(found), **vars(found)}
    return dataclasses.asdict(found)


def _from_json(values: dict[str, Any]) -> Answer:
    if "text" in values:
        return Generation(values.pop("text"), **values)
    return ContinuationScore(**values) if "greedy" in values else Score(**values)


def _grouped(things: Iterable[Kind], key: Callable[[Kind], Any]) -> dict[Any, list[int]]:
    """Return the indices of the things of each key, in their order."""
    groups: dict[Hashable, list[int]] = {}
    for index, thing in enumerate(things):
        groups.setdefault(key(thing), []).append(index)
    return groups
