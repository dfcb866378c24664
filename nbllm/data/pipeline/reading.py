"""The step before all others: what is no text is left out, and counted."""

from __future__ import annotations

import dataclasses

import numpy as np

from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.editing import valid_utf8
from nbllm.data.pipeline.step import Editor, Edits, Rule

QUOTED = 500  # bytes


@dataclasses.dataclass(frozen=True)
class Readable(Editor):
    """Drops rows without a text, and texts that are not UTF-8."""

    @property
    def title(self) -> str:
        """What it is called: read."""
        return "read"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """No row is null, and each is UTF-8."""
        return (Rule("not null"), Rule("valid UTF-8"))

    def edits(self, texts: Texts) -> Edits:
        """Return the rows to drop."""
        valid = np.empty(texts.num_documents, bool)
        valid_utf8(texts.data, texts.offsets, valid)
        bad = np.flatnonzero(~(valid & texts.valid))
        nothing = np.zeros(len(bad), np.int64)
        rule = np.where(texts.valid[bad], 1, 0).astype(np.int32)
        shown = [texts.__getitem__(int(document))[:QUOTED].decode(errors="replace") for document in bad]
        return Edits(bad, nothing, nothing, rule, np.full(len(bad), np.nan), shown=shown)
