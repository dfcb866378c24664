"""C4's rules: which lines of a page are kept, and which pages.

Source: Raffel et al. 2020, "Exploring the limits of transfer learning", JMLR 21, section 2.2. `published="code"`
decides as datatrove's C4QualityFilter does (version 0.10), which has the numbers of the paper's first version.

Of C4's other rules, the list of bad words is `nb.data.toxicity`'s, repeated spans of three sentences are
`nb.data.dedup`'s, and the language is `Language`'s.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa

from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Editor, Edits, Rule
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.gopher import Published, check_published

LOREM_IPSUM = ("lorem ipsum",)
JAVASCRIPT = ("javascript",)
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
CITATIONS = ("edit]", "citation needed]")  # behind a bracket, beside digits


def phrase_texts(phrases: tuple[str, ...]) -> Texts:
    """Return phrases as the kernels read them, in lower case."""
    return Texts.of(pa.array([phrase.lower() for phrase in phrases], pa.string()))


@functools.cache
def _phrases() -> tuple[Texts, Texts, Texts, Texts]:
    return (
        phrase_texts(JAVASCRIPT),
        phrase_texts(POLICY),
        phrase_texts(LOREM_IPSUM),
        phrase_texts(CITATIONS),
    )


@STEPS.register("c4")
@dataclasses.dataclass(frozen=True, kw_only=True)
class C4(Editor):
    """Removes lines that are no sentences, and pages with few of them, of code or of placeholder text.

    Removed are lines that do not end in punctuation (a mark that ends sentences in any script, or a quotation mark), of
    few words, with "javascript", or with a notice such as "use of cookies"; blank lines; and citation markers ("[12]",
    "[edit]", "[citation needed]"). Dropped are pages with "lorem ipsum" or "{" and those with few sentences left.
    Upper and lower case of ASCII are the same. Words are those of `nbllm.data.quality.gopher`, citation markers among
    them; a sentence ends with a mark and a space, or a mark that is not ASCII.

    The code differs: 5 sentences and 3 words instead of 3 and 5; the marks are . ? ! " and ', directly at the end once
    citation markers are taken away, and an ellipsis is none; words are what stands between spaces, in every script; a
    line with one of over 1,000 code points is removed; a line that is removed for another reason does not drop its
    page by "lorem ipsum" or "{". Space at the ends of kept lines stays here; datatrove strips it.

    Attributes:
        min_sentences: Sentences of a page, at least; None: 3, or 5 in the code.
        min_words_per_line: Words of a line, at least; None: 5, or 3 in the code.
        end_punctuation: Whether a line must end in punctuation. FineWeb leaves that out.
        max_word_length: Code points between two spaces, at most; the code's alone.
        published: "paper" or "code".
    """

    min_sentences: int | None = None
    min_words_per_line: int | None = None
    end_punctuation: bool = True
    max_word_length: int = 1000
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_published(self.published)
        published = {"min_sentences": 5, "min_words_per_line": 3}
        if self.published == "paper":
            published = {"min_sentences": 3, "min_words_per_line": 5}
        for name, number in published.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, number)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those of pages, then those of lines in the order of the kernel, then the citation markers."""
        assert self.min_sentences is not None
        assert self.min_words_per_line is not None
        return (
            Rule("sentences, at least", "c4/sentences", "at least", self.min_sentences, "sentences"),
            Rule('"lorem ipsum", at most', "c4/lorem_ipsum", "at most", 0),
            Rule("curly brackets, at most", "c4/curly_brackets", "at most", 0),
            Rule("no blank line", kind="line"),
            Rule("line ends in punctuation", kind="line"),
            Rule("words in a line, at least", threshold=self.min_words_per_line, unit="words", kind="line"),
            Rule(
                "longest word in a line, at most",
                keep="at most",
                threshold=self.max_word_length,
                unit="characters",
                kind="line",
            ),
            Rule('no "javascript" in a line', kind="line"),
            Rule("no notice of policy in a line", kind="line"),
            Rule("no citation marker", kind="span"),
        )

    def edits(self, texts: Texts) -> Edits:
        """Return the lines and citation markers to remove, and the signals of the pages."""
        from nbllm.data.kernels import c4 as kernels

        assert self.min_words_per_line is not None
        demands = kernels.Demands(
            self.end_punctuation, self.min_words_per_line, self.max_word_length, self.published == "code"
        )
        capacity = 64
        while True:
            counts = np.zeros((texts.num_documents, 3), np.int64)
            edits, values = np.empty((capacity, 4), np.int64), np.empty(capacity)
            number = kernels.filter_lines(
                texts, character_table(), kernels.Phrases(*_phrases()), demands, counts, edits, values
            )
            if number <= capacity:
                break
            capacity = number
        edits = edits[:number]
        first_line_rule = 3
        return Edits(
            document=edits[:, 0].copy(),
            start=edits[:, 1].copy(),
            stop=edits[:, 2].copy(),
            rule=(edits[:, 3] + first_line_rule).astype(np.int32),
            value=values[:number].copy(),
            signals={
                "c4/sentences": counts[:, kernels.SENTENCES].copy(),
                "c4/lorem_ipsum": counts[:, kernels.LOREM_IPSUM].copy(),
                "c4/curly_brackets": counts[:, kernels.CURLY_BRACKETS].copy(),
            },
        )
