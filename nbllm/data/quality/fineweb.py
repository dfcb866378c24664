"""FineWeb's three rules, and the fourth of its code.

Source: Penedo et al. 2024, "The FineWeb datasets", arXiv:2406.17557, section 3.5. `published="code"` measures as
datatrove's FineWebQualityFilter does (version 0.10), on the words that `nbllm.data.quality.gopher` describes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Filter, Rule
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.gopher import Published, check_published, ratio
from nbllm.data.quality.limits import MOST_UNITS
from nbllm.data.quality.reasons import Explained

SHORT = 30  # characters


@STEPS.register("fineweb")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FineWeb(Explained, Filter):
    """Drops documents of unfinished, repeated or short lines.

    Where a threshold is None, it is the published one. The paper drops a document whose share of lines that end in
    punctuation is .12 or less, of characters in duplicated lines .1 or more, of lines under 30 characters .67 or more.
    The code drops below .12, above .01, and above .67 with a line of 30 characters counted as short; it also drops a
    document of more than .3 line feeds per word. It takes no quotation mark for the end of a line.

    Lines are those that are not blank. Those that end in any script's mark of the end of a sentence, or (in the paper's
    form) a quotation mark, end in punctuation.

    Attributes:
        min_ended_lines: Share of lines that end in punctuation, at least.
        max_duplicate_characters: Share of characters in lines that repeat an earlier one, at most.
        max_short_lines: Share of short lines, at most.
        max_line_feeds: Line feeds per word, at most; None in the paper.
        published: "paper" or "code".
    """

    min_ended_lines: float | None = None
    max_duplicate_characters: float | None = None
    max_short_lines: float | None = None
    max_line_feeds: float | None = None
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_published(self.published)
        if self.published == "code":
            thresholds = {"min_ended_lines": 0.12, "max_duplicate_characters": 0.01, "max_short_lines": 0.67}
            thresholds["max_line_feeds"] = 0.3
        else:  # the numbers that follow and precede: what equals the threshold is dropped
            thresholds = {
                "min_ended_lines": math.nextafter(0.12, 1),
                "max_duplicate_characters": math.nextafter(0.1, 0),
                "max_short_lines": math.nextafter(0.67, 0),
            }
        for name, threshold in thresholds.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, threshold)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order of the code."""
        thresholds = (
            ("lines ending in punctuation, at least", "ended_lines", "at least", self.min_ended_lines),
            ("short lines, at most", "short_lines", "at most", self.max_short_lines),
            (
                "characters in duplicate lines, at most",
                "duplicate_characters",
                "at most",
                self.max_duplicate_characters,
            ),
            ("line feeds per word, at most", "line_feeds_per_word", "at most", self.max_line_feeds),
        )
        return tuple(
            Rule(name, f"fineweb/{signal}", keep, threshold)  # type: ignore[arg-type]
            for name, signal, keep, threshold in thresholds
            if threshold is not None
        )

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return what the rules read, one value a document; of nothing, a share is 0."""
        from nbllm.data.kernels import fineweb as kernels

        as_code = self.published == "code"
        counts = np.zeros((texts.num_documents, len(kernels.COUNTS)), np.int64)
        short = SHORT + 1 if as_code else SHORT
        kernels.count_lines(texts, character_table(), short, as_code, MOST_UNITS, counts)
        count = dict(zip(kernels.COUNTS, counts.T, strict=True))
        return {
            "fineweb/ended_lines": ratio(count["ended_lines"], count["lines"]),
            "fineweb/short_lines": ratio(count["short_lines"], count["lines"]),
            "fineweb/duplicate_characters": ratio(count["duplicate_characters"], count["characters"]),
            "fineweb/line_feeds_per_word": ratio(count["line_feeds"], count["words"]),
        }
