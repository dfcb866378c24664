"""What a finished preparation is asked while a person looks at it: its thresholds, its documents, its duplicates."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.pipeline.code import code_of, step_of
from nbllm.data.pipeline.differing import Segment, differing
from nbllm.data.pipeline.finishing import LEDGER_FILE, SIGNALS_FILE
from nbllm.data.pipeline.histograms import Histogram, histogram
from nbllm.data.pipeline.prepared import Prepared
from nbllm.data.pipeline.step import Step
from nbllm.data.pipeline.thresholds import Outlook

MOST_CHARACTERS = 4000  # of a text that is shown
KEPT = "kept"
NEWLY_KEPT, NEWLY_DROPPED = "newly kept", "newly dropped"


@dataclasses.dataclass(frozen=True)
class MovableRule:
    """A rule whose threshold can be moved without running anything again.

    Attributes:
        name: "step: rule", as `Prepared.at` takes it.
        signal: What it reads.
        keep: Whether what is kept has at least, or at most, the threshold.
        threshold: As it was.
        unit: Of the threshold; "" for a share.
        whole: Whether the values are whole numbers.
        histogram: Of the signal over all documents.
    """

    name: str
    signal: str
    keep: Literal["at least", "at most"]
    threshold: float
    unit: str
    whole: bool
    histogram: Histogram


@dataclasses.dataclass(frozen=True)
class ShownText:
    """A document, or what was removed of one.

    Attributes:
        id: Of the document.
        why: The reasons for which it was removed, "rule: value, threshold"; empty for what is kept.
        parts: The text, in pieces that are marked or not.
        cut: Whether only its beginning is shown.
    """

    id: int
    why: tuple[str, ...]
    parts: tuple[Segment, ...]
    cut: bool


@dataclasses.dataclass(frozen=True)
class ShownPair:
    """A removed duplicate beside what it repeats.

    Attributes:
        id: Of the removed document.
        partner: Of the other.
        step: What found them.
        jaccard: How alike they are, exactly; NaN where that was not measured.
        removed: The text of the removed one, what differs marked.
        kept: That of the other; empty where it was removed too and not quoted.
    """

    id: int
    partner: int
    step: str
    jaccard: float
    removed: tuple[Segment, ...]
    kept: tuple[Segment, ...]


class Inspection:
    """Answers questions about a finished preparation from its files.

    Args:
        prepared: The preparation.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    @functools.cached_property
    def rules(self) -> list[MovableRule]:
        """The rules whose thresholds can be moved, in the order of the steps."""
        found = [
            (step["key"], rule)
            for step in self.prepared.manifest["steps"]
            for rule in step["rules"]
            if rule["signal"] and rule["kind"] == "document" and rule["threshold"] is not None
        ]
        limits: dict[str, list[float]] = {}
        for _, rule in found:
            limits.setdefault(rule["signal"], []).append(float(rule["threshold"]))
        histograms = {signal: self._histogram(signal, values) for signal, values in limits.items()}
        return [
            MovableRule(
                f"{key}: {rule['name']}", rule["signal"], rule["keep"], float(rule["threshold"]), rule["unit"],
                histograms[rule["signal"]][1], histograms[rule["signal"]][0],
            )
            for key, rule in found
        ]  # fmt: skip

    def at(self, thresholds: Mapping[str, float]) -> Outlook:
        """Return what would be kept with other thresholds; see `Prepared.at`."""
        return self.prepared.at(thresholds)

    def code(self, thresholds: Mapping[str, float]) -> str:
        """Return Python that prepares text by the same steps with these thresholds."""
        return code_of(self.prepared.manifest["steps"], thresholds)

    @functools.cached_property
    def lists(self) -> dict[str, int]:
        """What can be paged through, with how many entries each has: what is kept, and what each rule removed."""
        names, counts = np.unique(self._ledger["name"], return_counts=True)
        order = {
            f"{step['key']}: {rule['name']}": i
            for i, (step, rule) in enumerate(
                (step, rule) for step in self.prepared.manifest["steps"] for rule in step["rules"]
            )
        }
        found = sorted(zip(names, counts, strict=True), key=lambda each: order.get(each[0], -1))
        return {KEPT: len(self._kept), **{str(name): int(count) for name, count in found}}

    def page(
        self, name: str, start: int, count: int, thresholds: Mapping[str, float] | None = None
    ) -> tuple[list[ShownText], int]:
        """Return some entries of a list, and how many it has.

        Args:
            name: One of `lists`; or "newly kept" and "newly dropped", compared with `thresholds`.
            start: The first entry.
            count: How many at most.
            thresholds: Those that were moved.

        Raises:
            UserError: There is no such list.
        """
        if name in (NEWLY_KEPT, NEWLY_DROPPED):
            ids = self._changed(name, thresholds or {})
            chosen = ids[start : start + count]
            return [self._document(int(each)) for each in chosen], len(ids)
        if name == KEPT:
            return [self._document(int(each)) for each in self._kept[start : start + count]], len(self._kept)
        if name not in self.lists:
            raise UserError(f"There is no list {name!r}.")
        rows = np.flatnonzero(self._ledger["name"] == name)
        return [self._removed(int(row)) for row in rows[start : start + count]], len(rows)

    @functools.cached_property
    def num_pairs(self) -> int:
        """How many removals name what they repeat."""
        return len(self._pair_rows)

    def pairs(self, start: int, count: int) -> list[ShownPair]:
        """Return some duplicates beside what they repeat, the least alike first: these are the doubtful ones."""
        return [self._pair(int(row)) for row in self._pair_rows[start : start + count]]

    # -- how ----------------------------------------------------------------------------------------------------

    def _histogram(self, signal: str, thresholds: list[float]) -> tuple[Histogram, bool]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pq.read_table(self.prepared.folder / SIGNALS_FILE, columns=[signal])[signal]
        whole = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
        values = column.cast(pa.float64()).to_numpy() if len(column) else np.empty(0)
        return histogram(np.asarray(values, float), thresholds, whole=whole), whole

    @functools.cached_property
    def _ledger(self) -> dict[str, NDArray[Any]]:
        """The columns of the ledger but the text, and the name of the rule."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        columns = ["id", "step", "rule", "kind", "start", "stop", "value", "threshold", "partner", "jaccard"]
        table = pq.read_table(self.prepared.folder / LEDGER_FILE, columns=columns)
        names = pc.binary_join_element_wise(table["step"], table["rule"], ": ")
        found = {"name": np.asarray(names.to_pylist(), object)}
        for column in columns:
            values = table[column]
            if column == "partner":
                values = values.fill_null(-1)
            found[column] = values.to_numpy()
        return found

    @functools.cached_property
    def _data(self) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset([str(file) for file in self.prepared.files], format="parquet")

    @functools.cached_property
    def _kept(self) -> NDArray[np.int64]:
        """(documents,) the ids of what is kept, in the order of the files."""
        return np.asarray(self._data.to_table(columns=["document_id"])["document_id"].to_numpy(), np.int64)

    @functools.cached_property
    def _kept_order(self) -> NDArray[np.intp]:
        """(documents,) the places in `_kept`, by ascending id."""
        return np.argsort(self._kept, kind="stable")

    @functools.cached_property
    def _quotes(self) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset(str(self.prepared.folder / LEDGER_FILE), format="parquet")

    def _drops(self, document: int) -> NDArray[np.intp]:
        """Return the rows of the ledger that drop a document."""
        return np.flatnonzero((self._ledger["id"] == document) & (self._ledger["kind"] == "document"))

    def _changed(self, name: str, thresholds: Mapping[str, float]) -> NDArray[np.int64]:
        then, now = self.at({}).ids, self.at(thresholds).ids
        first, second = (now, then) if name == NEWLY_KEPT else (then, now)
        return np.setdiff1d(first, second)

    def _text(self, document: int) -> str | None:
        """Return a document's text: as it was kept, or as the ledger quotes it."""
        at = int(np.searchsorted(self._kept, document, sorter=self._kept_order))
        if at < len(self._kept) and self._kept[self._kept_order[at]] == document:
            found = self._data.take([int(self._kept_order[at])], columns=["text"])
            return str(found["text"][0].as_py())
        texts = (self._quoted(int(row)) for row in self._drops(document))
        return next((text for text in texts if text), None)

    def _quoted(self, row: int) -> str:
        return self._quotes.take([row], columns=["text"])["text"][0].as_py() or ""

    def _document(self, document: int) -> ShownText:
        text = self._text(document) or ""
        return ShownText(document, (), ((text[:MOST_CHARACTERS], False),), len(text) > MOST_CHARACTERS)

    def _removed(self, row: int) -> ShownText:
        document = int(self._ledger["id"][row])
        is_document = self._ledger["kind"][row] == "document"
        why = [self._reason(row)]
        if is_document:
            why += [self._reason(int(other)) for other in self._drops(document) if other != row]
        text = self._quoted(row) or (self._text(document) or "" if is_document else "")
        length = int(self._ledger["stop"][row] - self._ledger["start"][row])
        return ShownText(document, tuple(why), tuple(self._marked(row, text)), length > len(text.encode()))

    def _reason(self, row: int) -> str:
        name, value, limit = (self._ledger[column][row] for column in ("rule", "value", "threshold"))
        said = [f"{value:.4g}"] if math.isfinite(value) else []
        said += [f"threshold {limit:.4g}"] if math.isfinite(limit) else []
        return f"{name}: {', '.join(said)}" if said else str(name)

    def _marked(self, row: int, text: str) -> list[Segment]:
        """Return a removed text with what the rule objects to marked, as far as its step says."""
        step = self._steps.get(str(self._ledger["step"][row]))
        spans = () if step is None else step.reasons(str(self._ledger["rule"][row]), text)
        parts: list[Segment] = []
        end = 0
        for start, stop in spans:
            parts += [(text[end:start], False), (text[start:stop], True)]
            end = stop
        return [part for part in [*parts, (text[end:], False)] if part[0]]

    @functools.cached_property
    def _steps(self) -> dict[str, Step]:
        """The steps of the pipeline that their settings alone make, by key."""
        made = {step["key"]: step_of(step["settings"]) for step in self.prepared.manifest["steps"]}
        return {key: step for key, step in made.items() if step is not None}

    @functools.cached_property
    def _pair_rows(self) -> NDArray[np.intp]:
        rows = np.flatnonzero(self._ledger["partner"] >= 0)
        alike = np.nan_to_num(self._ledger["jaccard"][rows], nan=2.0)
        return np.asarray(rows[np.argsort(alike, kind="stable")])

    def _pair(self, row: int) -> ShownPair:
        document, partner = (int(self._ledger[column][row]) for column in ("id", "partner"))
        own = self._quoted(row)
        other = (self._text(partner) or "")[:MOST_CHARACTERS]
        removed, kept = differing(own, other) if other else (((own, False),), ())
        return ShownPair(
            document, partner, str(self._ledger["step"][row]), float(self._ledger["jaccard"][row]),
            removed, kept,
        )  # fmt: skip
