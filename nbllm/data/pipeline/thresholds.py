"""What would be kept with other thresholds: from the stored signals, without running a step again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nbllm.core import html
from nbllm.core.errors import UserError, listed, nearest
from nbllm.core.quantities import size
from nbllm.core.text_table import text_table
from nbllm.data.pipeline.applying import REMOVED_BY
from nbllm.data.pipeline.counts import Amount
from nbllm.data.pipeline.finishing import LEDGER_FILE, SIGNALS_FILE
from nbllm.data.pipeline.step import Rule

MOST_KEPT = 1 << 24  # values that are kept in memory
HEADER = ("rule", "documents", "bytes", "tokens")


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What a pipeline would keep with other thresholds. Amounts are of the documents as they were read.

    Attributes:
        kept: What would be kept.
        removed: What each rule would remove, by "step: rule".
        unknown: Documents that would pass a step which dropped them, and about which a later step, which never saw
            them, cannot be asked. Only a new run decides about these.
        ids: int64, the documents that would be kept.
    """

    kept: Amount
    removed: dict[str, Amount]
    unknown: Amount
    ids: NDArray[np.int64]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        amounts = {"kept": self.kept, **self.removed}
        if self.unknown.documents:
            amounts["not known without a new run"] = self.unknown
        return [
            (name, f"{amount.documents:,}", size(amount.bytes), f"{amount.tokens:,}")
            for name, amount in amounts.items()
        ]

    def __repr__(self) -> str:
        return text_table([HEADER, *self._rows()])

    def _repr_html_(self) -> str:
        return html.fragment(html.table(self._rows(), HEADER, row_headers=True))


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of a finished run.

    Attributes:
        key: Its name there.
        sees_dropped: Whether it is a filter beside others, which saw what these dropped.
        rules: Its rules about whole documents.
    """

    key: str
    sees_dropped: bool
    rules: list[Rule]

    def names(self) -> list[str]:
        """Return "step: rule" for each rule."""
        return [f"{self.key}: {rule.name}" for rule in self.rules]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """What is known of some documents. All arrays are (documents,).

    Attributes:
        removed_by: The rule that removed each in the run, as its number among all rules; -1: none did.
        signals: By name; NaN where a signal is not defined or was not measured.
        measured: By name, whether there is a value.
        hits: By number of the rule, whether a step itself decided to drop each.
    """

    ids: NDArray[np.int64]
    bytes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    removed_by: NDArray[np.int32]
    signals: dict[str, NDArray[np.float64]]
    measured: dict[str, NDArray[np.bool_]]
    hits: dict[int, NDArray[np.bool_]]


class StoredSignals:
    """The signals of a finished run, and what other thresholds would make of them.

    Up to `MOST_KEPT` values are kept in memory once they are read, so that a slider can be followed.

    Args:
        folder: Of the run.
        steps: As its manifest describes them.
    """

    def __init__(self, folder: Path, steps: list[dict[str, Any]]) -> None:
        self._folder = folder
        self._described = steps
        self._steps = [
            _Step(
                step["key"],
                step["shape"] == "Filter" and not step["expensive"],
                [_rule(rule) for rule in step["rules"] if rule["kind"] == "document"],
            )
            for step in steps
        ]
        self._names = [name for step in self._steps for name in step.names()]
        self._kept: list[_Chunk] | None = None

    def outlook(self, thresholds: Mapping[str, float]) -> Outlook:
        """Return what would be kept.

        Args:
            thresholds: New ones, by "step: rule", or by the name of the rule or its signal where only one has it.

        Raises:
            UserError: There is no such rule, or it has no stored signal.
        """
        moved = _moved(self._described, thresholds)
        ids = [np.empty(0, np.int64)]
        amounts = [Amount() for _ in self._names]
        kept = unknown = Amount()
        for chunk in self._chunks():
            removed, lost = self._decide(chunk, moved)
            good = (removed < 0) & ~lost
            kept += _amount(chunk, good)
            unknown += _amount(chunk, lost)
            for number in np.unique(removed[removed >= 0]).tolist():
                amounts[number] += _amount(chunk, removed == number)
            ids.append(chunk.ids[good])
        shown = {name: amount for name, amount in zip(self._names, amounts, strict=True) if amount.documents}
        return Outlook(kept, shown, unknown, np.concatenate(ids))

    def _chunks(self) -> Iterable[_Chunk]:
        if self._kept is not None:
            return self._kept
        with pq.ParquetFile(self._folder / SIGNALS_FILE) as file:
            size = file.metadata.num_rows * (4 + 2 * len(self._columns()) + len(self._own_decisions()))
        if size > MOST_KEPT:
            return self._read()
        self._kept = list(self._read())
        return self._kept

    def _columns(self) -> list[str]:
        return sorted({rule.signal for step in self._steps for rule in step.rules if rule.signal})

    def _own_decisions(self) -> list[int]:
        """Return the numbers of the rules without a signal: the step decides."""
        rules = [rule for step in self._steps for rule in step.rules]
        return [number for number, rule in enumerate(rules) if not rule.signal]

    def _read(self) -> Iterator[_Chunk]:
        dropped = self._dropped()
        names, columns = pa.array(self._names, pa.string()), self._columns()
        wanted = list(dict.fromkeys(["id", "bytes", "tokens", REMOVED_BY, *columns]))
        with pq.ParquetFile(self._folder / SIGNALS_FILE) as file:
            for batch in file.iter_batches(columns=wanted):
                ids = batch["id"].to_numpy()
                removed_by = pc.index_in(batch[REMOVED_BY].cast(pa.string()), value_set=names)
                values = {name: batch[name].to_numpy(zero_copy_only=False).astype(float) for name in columns}
                yield _Chunk(
                    ids=ids,
                    bytes=batch["bytes"].to_numpy(),
                    tokens=batch["tokens"].to_numpy(),
                    removed_by=pc.fill_null(removed_by, -1).to_numpy(),
                    signals=values,
                    measured={
                        name: batch[name].is_valid().to_numpy(zero_copy_only=False) for name in columns
                    },
                    hits={number: np.isin(ids, found) for number, found in dropped.items()},
                )

    def _dropped(self) -> dict[int, NDArray[np.int64]]:
        """Return the documents that a step itself decided to drop, by number of the rule."""
        found = {number: [np.empty(0, np.int64)] for number in self._own_decisions()}
        if found:
            with pq.ParquetFile(self._folder / LEDGER_FILE) as file:
                for batch in file.iter_batches(columns=["id", "step", "rule", "kind"]):
                    table = pa.Table.from_batches([batch]).filter(pc.field("kind") == "document")
                    names = pc.binary_join_element_wise(table["step"], table["rule"], ": ")
                    for number, ids in found.items():
                        chosen = pc.equal(names, self._names[number])
                        ids.append(table["id"].filter(chosen).to_numpy())
        return {number: np.concatenate(ids) for number, ids in found.items()}

    def _decide(
        self, chunk: _Chunk, moved: Mapping[str, float]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return (documents,) which rule would remove each (-1: none), and whether that cannot be told."""
        removed = np.full(len(chunk.ids), -1, np.int32)
        lost = np.zeros(len(chunk.ids), bool)
        dropped_before = np.zeros(len(chunk.ids), bool)  # in the run itself, by an earlier step
        first = 0
        for step in self._steps:
            seen = ~dropped_before
            if step.sees_dropped:
                measured = [chunk.measured[rule.signal] for rule in step.rules if rule.signal]
                seen = np.logical_and.reduce(measured) if measured else np.ones(len(chunk.ids), bool)
            lost |= (removed < 0) & ~lost & ~seen
            undecided = (removed < 0) & ~lost
            for number, rule in enumerate(step.rules, first):
                if rule.signal:
                    threshold = moved.get(self._names[number], rule.threshold)
                    broken = dataclasses.replace(rule, threshold=threshold).broken(chunk.signals[rule.signal])
                else:
                    broken = chunk.hits[number]
                broken = broken & undecided
                removed[broken] = number
                undecided &= ~broken
            dropped_before |= (chunk.removed_by >= first) & (chunk.removed_by < first + len(step.rules))
            first += len(step.rules)
        return removed, lost


def _moved(steps: list[dict[str, Any]], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return thresholds by "step: rule"."""
    known: dict[str, list[str]] = {}
    for step in steps:
        for rule in step["rules"]:
            if rule["signal"] and rule["kind"] == "document":
                full = f"{step['key']}: {rule['name']}"
                for name in {full, rule["name"], rule["signal"]}:
                    known.setdefault(name, []).append(full)
    moved = {}
    for name, threshold in thresholds.items():
        if name not in known:
            raise UserError(
                f"There is no rule {name!r} whose threshold can be moved.", hint=nearest(name, known)
            )
        if len(known[name]) > 1:
            raise UserError(f"{name!r} is several rules.", hint=f"Name one of {listed(known[name])}.")
        moved[known[name][0]] = float(threshold)
    return moved


def _rule(described: Mapping[str, Any]) -> Rule:
    threshold = float("nan") if described["threshold"] is None else described["threshold"]
    return Rule(**{**described, "threshold": threshold})


def _amount(chunk: _Chunk, chosen: NDArray[np.bool_]) -> Amount:
    return Amount(int(chosen.sum()), int(chunk.bytes[chosen].sum()), int(chunk.tokens[chosen].sum()))
