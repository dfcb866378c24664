"""From the text of documents to tokens: one rule for packing and for scoring.

A document is text throughout. One that spells a control token, such as `<|endoftext|>`, is encoded as the characters
that it has; only what a chat template writes, and the token between documents, are control tokens.
"""

from __future__ import annotations

import itertools
import json
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.data.chat_template import encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nbllm.data.sources.chats import Message

GROUP_CHARACTERS = 1 << 21  # encoded at once: enough to keep the tokenizer's threads busy
PIECE_CHARACTERS = 1 << 18  # a longer text is encoded in pieces, by several threads
MARGIN = 1000  # characters around a cut that are looked at
TRIES = 20

_LINE_END = re.compile(r"(?<=\S)\n")
_encoders: weakref.WeakKeyDictionary[Any, tuple[object, DocumentEncoder]] = weakref.WeakKeyDictionary()


class DocumentEncoder:
    """Encodes documents with a tokenizer, as plain text: nothing is added, cut or padded.

    It keeps a copy of a fast tokenizer, so that it neither changes the tokenizer's settings nor is changed with them.

    Args:
        tokenizer: A transformers tokenizer.

    Attributes:
        json: All that the encoding depends on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = tokenizer
        source = getattr(tokenizer, "backend_tokenizer", None)
        self._backend: Any = None
        self.json = repr(tokenizer)
        if source is None:
            return
        self._backend = Tokenizer.from_str(source.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.json = self._backend.to_str()
        self._can_cut = _is_local(json.loads(self.json))

    def encode(
        self, texts: Sequence[str], advance: Callable[[int], object] = lambda count: None
    ) -> list[NDArray[np.int64]]:
        """Return the tokens of each text.

        Args:
            texts: The documents.
            advance: Told the number of characters whenever some were encoded.
        """
        if self._backend is None:  # a tokenizer in Python
            return [self._encode_slowly(text, advance) for text in texts]
        cut = [list(self._pieces(text)) for text in texts]
        found = self._encode_pieces(itertools.chain.from_iterable(cut), advance)
        return [np.concatenate(list(itertools.islice(found, len(pieces)))) for pieces in cut]

    def encode_conversation(self, messages: Sequence[Message]) -> NDArray[np.int64]:
        """Return the tokens of a conversation as the tokenizer's chat template renders it.

        Control tokens that stand in messages are encoded as plain text, as in documents.

        Raises:
            DataError: The template cannot render it.
        """
        try:
            return np.array(encode_conversation(self._tokenizer, messages), np.int64)
        except UserError as error:
            raise DataError(
                error.what,
                where=f"the conversation that begins {str(messages[0]['content'])[:60]!r}",
                hint=error.hint,
            ) from error

    def _encode_slowly(self, text: str, advance: Callable[[int], object]) -> NDArray[np.int64]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        advance(len(text))
        return np.array(ids, np.int64)

    def _encode_pieces(
        self, pieces: Iterator[str], advance: Callable[[int], object]
    ) -> Iterator[NDArray[np.int64]]:
        for group in _groups(pieces):
            encodings = self._backend.encode_batch_fast(group, add_special_tokens=False)
            advance(sum(map(len, group)))
            for encoding in encodings:
                yield np.array(encoding.ids, np.int64)

    def _pieces(self, text: str) -> Iterator[str]:
        """Yield a text in pieces whose tokens are those of the whole."""
        begin = 0
        while self._can_cut and len(text) - begin > PIECE_CHARACTERS + MARGIN:
            end = self._cut(text, begin + PIECE_CHARACTERS)
            if end is None:
                break
            yield text[begin:end]
            begin = end
        yield text[begin:]

    def _cut(self, text: str, start: int) -> int | None:
        """Return a place from `start` on where a line ends and the tokenizer splits the text, or None.

        What a token may span is settled by the pre-tokenizer, which looks at the text around; it is asked twice, with
        more and with less of the text before, so that the answer does not depend on where it began to read.
        """
        for match in itertools.islice(_LINE_END.finditer(text, start), TRIES):
            place = match.start()
            if all(self._parts_at(text, place, before) for before in (MARGIN, MARGIN // 2)):
                return place
        return None

    def _parts_at(self, text: str, place: int, before: int) -> bool:
        window = text[place - before : place + MARGIN]
        return any(begin == before for _, (begin, _) in self._backend.pre_tokenizer.pre_tokenize_str(window))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of one document, as packing encodes it."""
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each document, as packing encodes it; together is faster than one by one."""
    known = _encoders.get(tokenizer)
    state = (id(getattr(tokenizer, "backend_tokenizer", None)), len(tokenizer))
    if known is None or known[0] != state:
        known = _encoders[tokenizer] = (state, DocumentEncoder(tokenizer))
    return [ids.tolist() for ids in known[1].encode(texts)]


def added_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer itself puts before the tokens of a text: its beginning-of-text token, or nothing."""
    return added_around(tokenizer)[0]


def added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what the tokenizer itself puts before and after the tokens of a text: BERT's [CLS] and [SEP]."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    begin = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    before, after = whole[:begin], whole[begin + len(plain) :]
    return [int(token) for token in before], [int(token) for token in after]


def _groups(pieces: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece) + 1
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _is_local(tokenizer: dict[str, Any]) -> bool:
    """Return whether the tokens of a text depend only on its pre-tokens: then it can be cut between these."""
    settings = json.dumps(tokenizer["pre_tokenizer"])
    return (
        tokenizer["normalizer"] is None
        and tokenizer["pre_tokenizer"] is not None
        and '"add_prefix_space": true' not in settings
        and "Metaspace" not in settings
        and all(token["special"] for token in tokenizer["added_tokens"])
    )
