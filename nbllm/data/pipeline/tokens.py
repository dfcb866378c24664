"""How many tokens a document has: counted by a tokenizer, or estimated."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.data.arrow_text import Texts

BYTES_PER_TOKEN = 4  # of English in the vocabularies of published models; other languages have fewer


class TokenCounter:
    """Counts the tokens of documents.

    Args:
        tokenizer: A fast tokenizer. Without one the count is an estimate, a token for every four bytes begun, which
            is right within a fifth for English prose, and too low for most other scripts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        from nbllm.data.encoding import DocumentEncoder

        self._encoder = None if tokenizer is None else DocumentEncoder(tokenizer)
        if self._encoder is None:
            self.how = f"estimated as bytes / {BYTES_PER_TOKEN}"
        else:
            digest = hashlib.sha256(self._encoder.json.encode()).hexdigest()[:16]
            self.how = f"counted by a tokenizer of {len(tokenizer):,} tokens ({digest})"  # type: ignore[arg-type]

    @property
    def exact(self) -> bool:
        """Whether a tokenizer counts."""
        return self._encoder is not None

    def count(self, texts: Texts) -> NDArray[np.int64]:
        """Return int64 (documents,)."""
        if self._encoder is None:
            return -(-np.diff(texts.offsets) // BYTES_PER_TOKEN)
        strings = [
            texts.__getitem__(document).decode(errors="replace") for document in range(texts.num_documents)
        ]
        return np.array([len(ids) for ids in self._encoder.encode(strings)], np.int64)
