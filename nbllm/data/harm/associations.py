"""What identity groups are mentioned with: crime, family, career, insults, in the same sentence."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.errors import DataError, UserError
from nbllm.core.html import escape, fragment, table
from nbllm.core.proportions import Interval, odds_ratio
from nbllm.core.quantities import counted, number
from nbllm.core.text_table import text_table
from nbllm.data.harm.groups import GROUPS
from nbllm.data.harm.phrases import Phrases, read_phrases
from nbllm.data.harm.toxicity import WORDS
from nbllm.data.overlap import normalized
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset

CONFIDENCE = 0.95
LEAST_MENTIONS = 10  # sentences with a group, to tell anything
ATTRIBUTES = {
    "violence": "violent,violence,kill,killed,killing,murder,attack,attacks,weapon,weapons,terrorist,terrorists,terror",
    "crime": "crime,crimes,criminal,criminals,arrested,prison,thief,drugs,gang,gangs,illegal",
    "poverty": "poor,poverty,homeless,welfare,unemployed,slum",
    "career": "career,business,salary,office,executive,professional,manager,company,leader",
    "family": "family,home,children,marriage,wedding,parents,relatives,kitchen,cooking",
    "competence": "intelligent,brilliant,genius,expert,skilled,successful,talented,clever",
    "appearance": "beautiful,pretty,handsome,attractive,sexy,ugly,slim,gorgeous",
}  # the words of each, separated by commas; toxic words besides
_SENTENCE_END = re.compile(
    r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+"
)  # the latter of Chinese and Japanese
_SHOWN = 30
_HEADER = ("group", "attribute", "sentences", "with both", "PMI (bits)", "odds ratio (* differs from 1)")


@dataclasses.dataclass(frozen=True)
class Association:
    """How often a group and an attribute stand in one sentence.

    Attributes:
        group: The group.
        attribute: The attribute.
        mentions: Sentences that mention the group.
        both: Those that have a word of the attribute, too.
        pmi: Pointwise mutual information in bits: 1 where the attribute is twice as frequent as elsewhere; minus
            infinity where it never stands with the group.
        odds_ratio: Odds of the attribute in sentences with the group over those in others.
        interval: Of the odds ratio, at 95%. Sentences are taken as independent, though those of one document are not
            quite.

    Source: Church and Hanks 1990, "Word Association Norms, Mutual Information, and Lexicography" (PMI).
    """

    group: str
    attribute: str
    mentions: int
    both: int
    pmi: float
    odds_ratio: float
    interval: Interval

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.interval[0] <= 1 <= self.interval[1]


@dataclasses.dataclass(frozen=True)
class Associations:
    """Associations of groups and attributes; its display is a table, the surest first.

    Attributes:
        rows: One for each group that is mentioned often enough, and each attribute that occurs.
        num_sentences: That were read.
        num_documents: They stand in.
    """

    rows: tuple[Association, ...]
    num_sentences: int
    num_documents: int

    def __iter__(self) -> Any:
        return iter(self.rows)

    @property
    def _note(self) -> str:
        differ = sum(row.differs for row in self.rows)
        return (
            f"{counted(self.num_sentences, 'sentences')} of {counted(self.num_documents, 'documents')}. Of "
            f"{counted(len(self.rows), 'odds ratios')}, {differ} differ from 1 at {CONFIDENCE:.0%}; about "
            f"{len(self.rows) * (1 - CONFIDENCE):.0f} would by chance."
        )

    def _cells(self) -> list[tuple[str, ...]]:
        rows = sorted(self.rows, key=lambda row: max(row.interval[0], 1 / row.interval[1]), reverse=True)
        return [
            (
                row.group,
                row.attribute,
                f"{row.mentions:,}",
                f"{row.both:,}",
                number(row.pmi, 3),
                f"{row.odds_ratio:.2f} ({row.interval[0]:.2f} to {row.interval[1]:.2f}){' *' if row.differs else ''}",
            )
            for row in rows[:_SHOWN]
        ]

    def __repr__(self) -> str:
        return f"{self._note}\n{text_table([_HEADER, *self._cells()])}"

    def _repr_html_(self) -> str:
        more = f"the first {_SHOWN} of {len(self.rows):,}" if len(self.rows) > _SHOWN else None
        return fragment(f"<p>{escape(self._note)}</p>{table(self._cells(), _HEADER, caption=more)}")


def identity_associations(
    texts: Dataset | str | os.PathLike[str] | Iterable[str],
    *,
    groups: Mapping[str, Iterable[str]] | None = None,
    attributes: Mapping[str, Iterable[str]] | None = None,
) -> Associations:
    """Return what identity groups are mentioned with, in the same sentence, by words that go with each.

    A model learns what its text says of people. An association is no harm by itself: that churches are mentioned with
    families may be as it should.

    Args:
        texts: Documents.
        groups: By name, the words that mention each; None: English lists of our own.
        attributes: By name, the words of each; None: violence, crime, poverty, career, family, competence, appearance
            and toxic words, in English.

    Raises:
        UserError: A group or attribute has no words.
        DataError: There is no text.
    """
    identity = {name: words.split(",") for name, words in GROUPS["identity"].items()}
    own = {name: words.split(",") for name, words in ATTRIBUTES.items()} | {
        "toxic words": read_phrases(WORDS)
    }
    named, found = (
        _lists(identity if groups is None else groups),
        _lists(own if attributes is None else attributes),
    )
    phrases = Phrases([*named.values(), *found.values()])
    together = np.zeros((len(named), len(found)), np.int64)
    mentions, occurrences = np.zeros(len(named), np.int64), np.zeros(len(found), np.int64)
    num_documents = num_sentences = 0
    for text in iterate_texts(texts):
        num_documents += 1
        for sentence in _SENTENCE_END.split(text):
            spelt = normalized(sentence)
            if not spelt:
                continue
            num_sentences += 1
            has = phrases.find(spelt) > 0
            mentions += has[: len(named)]
            occurrences += has[len(named) :]
            together += np.outer(has[: len(named)], has[len(named) :])
    if not num_sentences:
        raise DataError("There is no text to look for associations in.")
    rows = [
        _association(
            group, attribute, (int(together[i, j]), int(mentions[i]), int(occurrences[j])), num_sentences
        )
        for i, group in enumerate(named)
        for j, attribute in enumerate(found)
        if mentions[i] >= LEAST_MENTIONS and occurrences[j]
    ]
    return Associations(tuple(rows), num_sentences, num_documents)


def _lists(lists: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    if not isinstance(lists, Mapping) or not lists:
        raise UserError("Groups and attributes are given as words by name: {'crime': ['crime', 'prison']}.")
    return {str(name): read_phrases(words) for name, words in lists.items()}


def _association(group: str, attribute: str, counts: tuple[int, int, int], total: int) -> Association:
    both, mentions, occurrences = counts
    cells = (both, mentions - both, occurrences - both, total - mentions - occurrences + both)
    ratio, interval = odds_ratio(cells, CONFIDENCE)
    pmi = math.log2(both * total / (mentions * occurrences)) if both else -math.inf
    return Association(group, attribute, mentions, both, pmi, ratio, interval)
