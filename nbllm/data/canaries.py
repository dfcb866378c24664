"""Canaries: made-up secrets planted in a text, which measure how much a model remembers of single documents."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.config import Config
from nbllm.core.errors import DataError, UserError
from nbllm.core.html import escape, fragment, table
from nbllm.core.progress import progress
from nbllm.core.proportions import Interval, wilson
from nbllm.core.seeding import derive
from nbllm.core.text_table import text_table

if TYPE_CHECKING:
    from datasets import Dataset

CONFIDENCE = 0.95
_PLACE = "{}"
_AT_ONCE = 64
_MOST = 10_000  # planted documents
_RECORD = re.compile(r"Canaries were planted: (\{[^\n]*\})")
_HEADER = ("canary", "planted", "bits", "rank", "exposure (bits)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canaries(Config):
    """Made-up secrets; the same settings always make the same ones.

    Attributes:
        repeats: How often each is planted; one that is planted 0 times is measured beside the others.
        template: The document, with {} in the place of the code.
        digits: Of a code.
        seed: Of the codes and of their places.

    Raises:
        UserError: A setting is out of range.
    """

    repeats: tuple[int, ...] = (0, 1, 4, 16, 64)
    template: str = "The code of the archive is {}."
    digits: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "repeats", tuple(self.repeats))
        if not self.repeats or any(type(each) is not int or each < 0 for each in self.repeats):
            raise UserError("repeats must be whole numbers of at least 0.", where="repeats")
        if sum(self.repeats) > _MOST:
            raise UserError(f"More than {_MOST:,} documents would be planted.", where="repeats")
        if not isinstance(self.template, str) or self.template.count(_PLACE) != 1 or "\n" in self.template:
            raise UserError("template must be one line with one {} in it.", where="template")
        if type(self.digits) is not int or not 4 <= self.digits <= 18:
            raise UserError("digits must be from 4 to 18.", where="digits")

    @property
    def texts(self) -> tuple[str, ...]:
        """The documents, one for each of `repeats`."""
        return self._drawn("canary", len(self.repeats))

    def others(self, count: int) -> tuple[str, ...]:
        """Return documents with other codes, which are planted nowhere."""
        planted = set(self.texts)
        return tuple(text for text in self._drawn("other", count) if text not in planted)

    def _drawn(self, name: str, count: int) -> tuple[str, ...]:
        codes: dict[str, None] = {}
        for number in range(10 * count):
            if len(codes) == count:
                break
            code = derive(self.seed, name, number) % 10**self.digits
            codes[f"{code:0{self.digits}d}"] = None
        return tuple(self.template.replace(_PLACE, code) for code in codes)

    @classmethod
    def of(cls, source: Any) -> Canaries:
        """Return the canaries of a data set in which they were planted, or of a run that was trained on one.

        Raises:
            DataError: None were planted there.
        """
        if isinstance(source, cls):
            return source
        record = getattr(source, "record", None)
        data = record.get("data") if isinstance(record, Mapping) else None
        train = data.get("train") if isinstance(data, Mapping) else None
        said = train.get("source") if isinstance(train, Mapping) else None
        if said is None:
            said = getattr(getattr(source, "info", None), "description", "")
        found = _RECORD.search(str(said))
        if found is None:
            raise DataError(
                "No canaries are recorded there.",
                hint="Give the Canaries that were planted, or the data set or run.",
            )
        try:
            return cls.from_dict(json.loads(found[1]))
        except (ValueError, TypeError) as error:
            raise DataError(f"The record of the canaries is damaged: {error}.") from error


def plant_canaries(dataset: Dataset, canaries: Canaries | None = None) -> Dataset:
    """Return a data set with canaries among its documents; its description, which runs record, says which.

    Plant them last: deduplication would remove them, and privacy might. Plant them in the training part, so that none
    is held out: `training, held = nb.data.split(text)`, then `nb.train(lm, nb.data.plant_canaries(training),
    validation=held)`.

    Args:
        dataset: Documents, with a column `text`.
        canaries: None: five, planted 0, 1, 4, 16 and 64 times.

    Raises:
        DataError: It is no data set of documents.

    Source: Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232.
    """
    from datasets import Dataset, concatenate_datasets

    if "text" not in (getattr(dataset, "column_names", None) or ()):
        raise DataError(
            "Canaries are planted in a data set with a column text.", hint="nb.data.load makes one."
        )
    chosen = canaries or Canaries()
    documents = [text for text, times in zip(chosen.texts, chosen.repeats, strict=True) for _ in range(times)]
    empty: dict[str, Any] = dict.fromkeys(dataset.column_names)
    source = {"source": "a canary"} if "source" in empty else {}
    rows = [{**empty, **source, "text": text} for text in documents]
    planted = Dataset.from_list(rows, features=dataset.features) if rows else dataset.select([])
    rng = np.random.default_rng(derive(chosen.seed, "places"))
    places = rng.integers(0, len(dataset) + 1, len(rows))  # each before that row
    keys = np.concatenate([np.arange(len(dataset)) + 0.5, places])
    order = np.argsort(keys, kind="stable")
    made = concatenate_datasets([dataset, planted]).select(order)
    made.info.description = (
        f"{dataset.info.description} Canaries were planted: {json.dumps(chosen.to_dict())}".strip()
    )
    return made


@dataclasses.dataclass(frozen=True)
class CanaryExposure:
    """How much better a model knows a canary than others like it.

    Attributes:
        text: The canary.
        repeats: How often it was planted.
        bits: Minus the base-2 logarithm of its probability.
        rank: Its place among the others and itself, from 1, the likeliest.
        exposure: Bits that the model tells of its code: the logarithm of the number of all over the rank.
        interval: Of the exposure, at 95%, from that of the share of others that are likelier.
    """

    text: str
    repeats: int
    bits: float
    rank: int
    exposure: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class CanaryExposures:
    """The exposures of canaries; its display is a table.

    Attributes:
        rows: One for each canary.
        num_others: Other codes that each was compared with: an exposure is at most the logarithm of one more.
    """

    rows: tuple[CanaryExposure, ...]
    num_others: int

    def __iter__(self) -> Any:
        return iter(self.rows)

    @property
    def _note(self) -> str:
        return (
            f"Compared with {self.num_others:,} other codes: an exposure is at most "
            f"{math.log2(self.num_others + 1):.1f} bits; of a code that the model never saw it is 1.4 on average."
        )

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.text, f"{row.repeats:,} times", f"{row.bits:.1f}", f"{row.rank:,}",
                f"{row.exposure:.1f} ({row.interval[0]:.1f} to {row.interval[1]:.1f})",
            )
            for row in self.rows
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"{self._note}\n{text_table([_HEADER, *self._cells()])}"

    def _repr_html_(self) -> str:
        return fragment(f"<p>{escape(self._note)}</p>{table(self._cells(), _HEADER)}")


def canary_exposure(lm: Any, canaries: Any, *, num_others: int = 1000) -> CanaryExposures:
    """Measure how exposed canaries are in a model: how much likelier it finds them than others like them.

    The exposure of a canary is the logarithm of the number of possible codes over the canary's rank among them, which
    is estimated from a sample of codes. It says how many bits of the code somebody saves who asks the model.

    Args:
        lm: The model: `lm.score(texts)` must tell how probable it finds texts.
        canaries: The `Canaries`, the data set they were planted in, or the run that was trained on it.
        num_others: Codes of the sample.

    Raises:
        UserError: The model cannot score, or `num_others` is out of range.
        DataError: No canaries are recorded there.

    Source: Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232, sections 4.2 and 4.3.
    """
    if type(num_others) is not int or not 10 <= num_others <= 1_000_000:
        raise UserError(f"num_others must be from 10 to 1,000,000, not {num_others!r}.")
    chosen = Canaries.of(canaries)
    others = chosen.others(num_others)
    texts = [*chosen.texts, *others]
    bits = _bits(lm, texts)
    sample = np.sort(bits[len(chosen.texts) :])
    rows = []
    for text, repeats, own in zip(chosen.texts, chosen.repeats, bits, strict=False):
        likelier = int(np.searchsorted(sample, own))
        share = (likelier + 1) / (len(sample) + 1)
        low, high = wilson(likelier, len(sample), CONFIDENCE)
        least = 1 / (len(sample) + 1)
        interval = (max(0.0, -math.log2(high)), -math.log2(max(low, least)))
        rows.append(CanaryExposure(text, repeats, float(own), likelier + 1, -math.log2(share), interval))
    return CanaryExposures(tuple(rows), len(sample))


def _bits(lm: Any, texts: Sequence[str]) -> Any:
    """Return minus the base-2 logarithm of the probability of each text, (texts,)."""
    found: list[float] = []
    with progress("exposure of canaries", len(texts), " texts") as bar:
        for start in range(0, len(texts), _AT_ONCE):
            some = lm.score(list(texts[start : start + _AT_ONCE]))
            found += [0.0 - score.log_probability / math.log(2) for score in some]
            bar.update(len(some))
    return np.array(found)
