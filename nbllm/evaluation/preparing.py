"""Requests as token ids, shortened to what the model can read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_before, encode_text, encode_texts
from nbllm.evaluation.requests import DocumentLikelihood, Generate, Likelihood, Prompt, Request
from nbllm.inference.text import source_around
from nbllm.inference.unicode import check_unicode

if TYPE_CHECKING:
    from nbllm.lm import LM


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request as the model reads it.

    Attributes:
        request: What was asked.
        before: Token ids of the context or the prompt, and of what begins it; of a document all of them.
        after: Token ids of a continuation.
        dropped_shots: Worked examples that were left out, since the whole was too long.
        dropped_tokens: Tokens that were cut off at the beginning.
        key: Identifies the answer among those of one model.
    """

    request: Request
    before: list[int]
    after: list[int]
    dropped_shots: int = 0
    dropped_tokens: int = 0

    @property
    def key(self) -> bytes:
        """Return a SHA-256 of all that the answer depends on, beside the model."""
        request, extra = self.request, {}
        if isinstance(request, DocumentLikelihood):
            extra = {"stride": request.stride}
        elif isinstance(request, Generate):
            extra = request.sampling.to_dict()
        facts = [type(request).__name__, self.before, self.after, extra]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def prepare(lm: LM, requests: Sequence[Request], *, truncation: str = "shots") -> list[Prepared]:
    """Return requests as token ids.

    Args:
        lm: The model and its tokenizer.
        requests: Of any kinds, mixed.
        truncation: What becomes of a prompt that is longer than the context. "shots": its worked examples are left out,
            the last one first, and where that is not enough its beginning is cut off; "left": its beginning is cut off,
            as by lm_eval; "error": it is refused.

    Raises:
        UserError: A stride is longer than the context, or a prompt does not fit and `truncation` is "error".
    """
    tokens = _Tokens(lm)
    tokens.read(
        text
        for request in requests
        for text in (
            (request.text,)
            if isinstance(request, DocumentLikelihood)
            else (str(request.prompt),)
            if isinstance(request, Generate)
            else _joined(str(request.context), request.continuation)
        )
    )
    return [_PREPARING[type(request)](lm, request, tokens, truncation) for request in requests]


def split_tokens(lm: LM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a context, with the token that begins a document, and of its continuation.

    Context and continuation are encoded together where their border is one between tokens, as it mostly is with
    the joining space at the beginning of the continuation (where a context ends with a space, it is moved there).
    Where a token would span the border, they are encoded one by one, so that the continuation never loses a token
    to the context.
    """
    return _split(lm, context, continuation, _Tokens(lm))


class _Tokens:
    """The tokens of texts, each of which is encoded once."""

    def __init__(self, lm: LM) -> None:
        self._tokenizer = lm.tokenizer
        self._known: dict[str, list[int]] = {}

    def read(self, texts: Any) -> None:
        """Encode texts together, which is faster than one by one."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, encode_texts(self._tokenizer, new), strict=True)

    def __call__(self, text: str) -> list[int]:
        found = self._known.get(text)
        return encode_text(self._tokenizer, text) if found is None else found


def _joined(context: str, continuation: str) -> tuple[str, str]:
    """Return the context without the spaces that it ends with, and the whole."""
    return context.rstrip(), context + continuation


def _split(lm: LM, context: str, continuation: str, tokens: _Tokens) -> tuple[list[int], list[int]]:
    stripped, whole = _joined(context, continuation)
    before, alone, together = _begin(lm, stripped), tokens(stripped), tokens(whole)
    if together[: len(alone)] == alone and len(together) > len(alone):
        return before + alone, together[len(alone) :]
    return before + alone, tokens(whole[len(stripped) :])


def _begin(lm: LM, context: str) -> list[int]:
    """Return what the tokenizer puts before a text; before an empty one, the token that documents begin with."""
    return added_before(lm.tokenizer) if context else document_bounds(lm.tokenizer).start_tokens


def _prepare_document(lm: LM, request: DocumentLikelihood, tokens: _Tokens, _: str) -> Prepared:
    """Return a document between the tokens that documents begin and end with."""
    context = lm.model.context_length
    if request.stride is not None and request.stride > context:
        raise UserError(
            f"A stride of {request.stride} skips tokens: the context has {context}.",
            hint=f"Use stride={context} or less.",
        )
    bounds = document_bounds(lm.tokenizer)
    return Prepared(request, bounds.start_tokens + tokens(request.text) + bounds.end_tokens, [])


def _prepare_likelihood(lm: LM, request: Likelihood, tokens: _Tokens, truncation: str) -> Prepared:
    """Return a context and its continuation; where an encoder reads the context, each has positions of its own."""
    if lm.decoder_tokens is not None:
        stripped, whole = _joined(str(request.context), request.continuation)
        after = tokens(whole[len(stripped) :])

        def encode_source(context: str) -> tuple[_Around, list[int], list[int]]:
            return source_around(lm.tokenizer), tokens(context.rstrip()), after

        room = lm.model.context_length + len(after)
        return _shortened(request, request.context, encode_source, room, truncation)

    def encode(context: str) -> tuple[_Around, list[int], list[int]]:
        before, after = _split(lm, context, request.continuation, tokens)
        begin = _begin(lm, context.rstrip())
        return (begin, []), before[len(begin) :], after

    # The last token is not read: nothing is predicted from it.
    return _shortened(request, request.context, encode, lm.model.context_length + 1, truncation)


def _prepare_generation(lm: LM, request: Generate, tokens: _Tokens, truncation: str) -> Prepared:
    """Return a prompt. It is made of data: a control token that it spells is plain text, as in a context."""
    check_unicode(str(request.prompt), "prompt", "a request to generate")
    is_source = lm.decoder_tokens is not None  # an encoder reads it, and the answer has positions of its own

    def encode(prompt: str) -> tuple[_Around, list[int], list[int]]:
        around = source_around(lm.tokenizer) if is_source else (_begin(lm, prompt), [])
        return around, tokens(prompt), []

    context = lm.model.context_length
    room = context if is_source else max(context - request.sampling.max_new_tokens, context // 2)
    return _shortened(request, request.prompt, encode, room, truncation)


_Around = tuple[
    list[int], list[int]
]  # tokens that are put before a text and behind it, and are never cut off


def _shortened(
    request: Request,
    given: str | Prompt,
    encode: Callable[[str], tuple[_Around, list[int], list[int]]],
    room: int,
    truncation: str,
) -> Prepared:
    """Return a request of which all together has at most `room` tokens."""
    prompt = Prompt(given) if isinstance(given, str) else given

    def excess(around: _Around, text: list[int], after: list[int]) -> int:
        return max(0, min(len(text) - 1, len(around[0]) + len(text) + len(around[1]) + len(after) - room))

    shots = len(prompt.shots)
    around, text, after = encode(str(prompt))
    while truncation == "shots" and shots and excess(around, text, after):
        shots -= 1
        around, text, after = encode(prompt.with_shots(shots))
    cut = excess(around, text, after)
    if cut and truncation == "error":
        raise UserError(
            f"A prompt of {len(text):,} tokens is longer than the context by {cut:,}.",
            where=f"the prompt that begins {str(prompt)[:60]!r}",
            hint='truncation="shots" leaves out worked examples first; shots=... sets how many there are.',
        )
    before = [*around[0], *text[cut:], *around[1]]
    return Prepared(request, before, after, len(prompt.shots) - shots, cut)


_PREPARING: dict[type, Callable[[LM, Any, _Tokens, str], Prepared]] = {
    DocumentLikelihood: _prepare_document,
    Likelihood: _prepare_likelihood,
    Generate: _prepare_generation,
}
