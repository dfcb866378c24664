"""RefinedWeb's line-wise corrections.

Source: Penedo et al. 2023, "The RefinedWeb dataset for Falcon LLM", arXiv:2306.01116, appendix G.2. The paper gives one
example of each pattern and no list, no share for "mainly" upper case, and no code; what is used here is stated below.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Editor, Edits, Rule
from nbllm.data.quality.c4 import phrase_texts
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.gopher import ratio

NOUNS = (
    "like",
    "share",
    "comment",
    "retweet",
    "repost",
    "quote",
    "bookmark",
    "upvote",
    "downvote",
    "download",
)
COUNTED = tuple(word for noun in (*NOUNS, "view", "follower") for word in (noun, noun + "s"))


@STEPS.register("refinedweb-lines")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinedWebLines(Editor):
    """Removes lines of a page's frame, and drops pages of which more than a few words are removed.

    A line is removed that is mainly in upper case, is only a number, counts something ("3 likes"), or is one word. Of a
    short line, a span is removed that stands at its start, at its end, or anywhere. Upper and lower case of ASCII are
    the same in all these. Words are those of `nbllm.data.quality.gopher`; blank lines stay.

    Attributes:
        max_uppercase: Share of a line's characters, without space, that are upper case, at most.
        max_removed_words: Share of a page's words that are removed, at most; else the page is dropped.
        max_words: Words of a line that counts as short, at most.
        counted: What a counter counts.
        start: Spans that are removed at the start of a short line.
        end: Spans that are removed at the end of a short line.
        anywhere: Spans that are removed anywhere in a short line.
    """

    max_uppercase: float = 0.5
    max_removed_words: float = 0.05
    max_words: int = 10
    counted: tuple[str, ...] = COUNTED
    start: tuple[str, ...] = ("sign-in",)
    end: tuple[str, ...] = ("read more...", "read more…")
    anywhere: tuple[str, ...] = ("items in cart",)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """That of pages, then those of lines and spans in the order of the kernel."""
        return (
            Rule("removed words, at most", "refinedweb/removed_words", "at most", self.max_removed_words),
            Rule("upper case in a line, at most", keep="at most", threshold=self.max_uppercase, kind="line"),
            Rule("no line that is a number", kind="line"),
            Rule("no line that counts something", kind="line"),
            Rule("words in a line, at least", threshold=2, unit="words", kind="line"),
            Rule("no frame at the start of a short line", kind="span"),
            Rule("no frame at the end of a short line", kind="span"),
            Rule("no frame in a short line", kind="span"),
        )

    def edits(self, texts: Texts) -> Edits:
        """Return the lines and spans to remove, and the share of words that they have."""
        from nbllm.data.kernels import refinedweb as kernels

        groups = (self.counted, self.start, self.end, self.anywhere)
        phrases = kernels.Phrases(*(phrase_texts(tuple(filter(None, group))) for group in groups))
        limits = kernels.Limits(float(self.max_uppercase), int(self.max_words))
        capacity = 64
        while True:
            counts = np.zeros((texts.num_documents, 2), np.int64)
            edits, values = np.empty((capacity, 4), np.int64), np.empty(capacity)
            number = kernels.correct_lines(texts, character_table(), phrases, limits, counts, edits, values)
            if number <= capacity:
                break
            capacity = number
        edits = edits[:number]
        return Edits(
            document=edits[:, 0].copy(),
            start=edits[:, 1].copy(),
            stop=edits[:, 2].copy(),
            rule=(edits[:, 3] + 1).astype(np.int32),
            value=values[:number].copy(),
            signals={"refinedweb/removed_words": ratio(counts[:, kernels.REMOVED], counts[:, kernels.TOTAL])},
        )
