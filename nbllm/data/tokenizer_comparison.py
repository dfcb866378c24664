"""Compare tokenizers on the same texts: how many tokens they need, and what they lose."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError
from nbllm.core.html import Raw, fragment, table
from nbllm.core.quantities import column, counted, number
from nbllm.core.text_table import text_table
from nbllm.data.encoding import encode_text
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_WORD = re.compile(r"\w+|[^\w\s]+")
_MOST_BYTES = 10_000_000


@dataclasses.dataclass(frozen=True)
class TokenizerFigures:
    """What one tokenizer makes of the texts.

    Attributes:
        name: Its name.
        vocab_size: Tokens that it has.
        num_tokens: Tokens of the texts.
        fertility: Tokens a word; words are runs of letters and digits, and runs of punctuation.
        bytes_per_token: UTF-8 bytes a token.
        coverage: Share of the bytes that are not encoded as the unknown token.
        restored: Share of the texts that are decoded to exactly what they were.
        used: Share of the vocabulary that occurs.
    """

    name: str
    vocab_size: int
    num_tokens: int
    fertility: float
    bytes_per_token: float
    coverage: float
    restored: float
    used: float


@dataclasses.dataclass(frozen=True)
class TokenizerComparison:
    """Tokenizers side by side; its display is a table.

    Attributes:
        rows: One for each tokenizer.
        num_documents: Texts that were read.
        num_bytes: Of them.
    """

    rows: tuple[TokenizerFigures, ...]
    num_documents: int
    num_bytes: int

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __getitem__(self, name: str) -> TokenizerFigures:
        return next(row for row in self.rows if row.name == name)

    @property
    def _note(self) -> str:
        return f"{counted(self.num_documents, 'documents')}, {number(self.num_bytes)} bytes"

    def __repr__(self) -> str:
        columns = [
            [name, *(str(v) if isinstance(v, str) else number(v) for v in values)]
            for name, values in zip(_HEADER, self._columns(), strict=True)
        ]
        return f"{self._note}\n{text_table([*zip(*columns, strict=True)])}"

    def _repr_html_(self) -> str:
        shown = [
            values if isinstance(values[0], str) else [Raw(text) for text in column(values, "")]
            for values in self._columns()
        ]
        return fragment(table([*zip(*shown, strict=True)], _HEADER, caption=self._note, row_headers=True))

    def _columns(self) -> list[list[Any]]:
        names = [field.name for field in dataclasses.fields(TokenizerFigures)]
        return [[getattr(row, name) for row in self.rows] for name in names]


_HEADER = (
    "tokenizer", "vocabulary", "tokens", "tokens a word", "bytes a token", "coverage", "texts restored",
    "vocabulary used",
)  # fmt: skip


def compare_tokenizers(
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | Sequence[PreTrainedTokenizerBase],
    texts: Dataset | str | os.PathLike[str] | Iterable[str],
) -> TokenizerComparison:
    """Compare tokenizers on texts, best those that none was trained on.

    Args:
        tokenizers: By name, or a list.
        texts: Documents; at most 10 MB of them are read.

    Raises:
        UserError: There is no tokenizer.
        DataError: There is no text.
    """
    by_name = (
        dict(tokenizers)
        if isinstance(tokenizers, Mapping)
        else {f"tokenizer {place}": each for place, each in enumerate(tokenizers, start=1)}
    )
    for name, tokenizer in by_name.items():
        if not callable(getattr(tokenizer, "decode", None)):
            raise UserError(f"{name!r} is no tokenizer but {type(tokenizer).__name__}.")
    if not by_name:
        raise UserError("There is no tokenizer to compare.")
    read: list[str] = []
    size = 0
    for text in iterate_texts(texts):
        if text:
            read.append(text)
            size += len(text.encode("utf-8", "replace"))
        if size >= _MOST_BYTES:
            break
    if not read:
        raise DataError("There is no text to compare tokenizers on.")
    num_words = sum(len(_WORD.findall(text)) for text in read)
    rows = tuple(_figures(name, tokenizer, read, num_words, size) for name, tokenizer in by_name.items())
    return TokenizerComparison(rows, len(read), size)


def _figures(
    name: str, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_words: int, num_bytes: int
) -> TokenizerFigures:
    num_tokens = unknown = restored = 0
    used: set[int] = set()
    for text in texts:
        ids = encode_text(tokenizer, text)
        num_tokens += len(ids)
        used.update(ids)
        restored += tokenizer.decode(ids, skip_special_tokens=False) == text
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            unknown += _unknown_bytes(tokenizer, text)
    return TokenizerFigures(
        name,
        len(tokenizer),
        num_tokens,
        num_tokens / max(1, num_words),
        num_bytes / max(1, num_tokens),
        1 - unknown / num_bytes,
        restored / len(texts),
        len(used) / len(tokenizer),
    )


def _unknown_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return how many bytes of a text are encoded as the unknown token."""
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return sum(
        len(text[start:stop].encode("utf-8", "replace"))
        for token, (start, stop) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        if token == tokenizer.unk_token_id
    )
