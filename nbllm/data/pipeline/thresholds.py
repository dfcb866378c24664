"""What would be kept with other thresholds: from the stored signals, without running a step again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
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
class _Decided:
    """A step of a finished run, with its rules at the thresholds that are asked about."""

    key: str
    sees_dropped: bool  # a filter beside others
    rules: list[Rule]

    @property
    def signals(self) -> list[str]:
        return [rule.signal for rule in self.rules if rule.signal and rule.kind == "document"]


def outlook(folder: Path, steps: list[dict[str, Any]], thresholds: Mapping[str, float]) -> Outlook:
    """Return what would be kept.

    Args:
        folder: Of a finished run.
        steps: As its manifest describes them.
        thresholds: New ones, by "step: rule", or by the name of the rule or its signal where only one has it.

    Raises:
        UserError: There is no such rule, or it has no stored signal.
    """
    moved = _moved(steps, thresholds)
    decided = [
        _Decided(
            step["key"],
            step["shape"] == "Filter" and not step["expensive"],
            [_rule(step["key"], rule, moved) for rule in step["rules"]],
        )
        for step in steps
    ]
    hits = _decided_hits(folder, decided)
    ids: list[NDArray[np.int64]] = []
    amounts = {f"{step.key}: {rule.name}": Amount() for step in decided for rule in step.rules}
    kept = unknown = Amount()
    for table in _signals(folder, decided):
        removed, lost = _decide(table, decided, hits)
        good = (removed == "") & ~lost
        kept += _amount(table, good)
        unknown += _amount(table, lost)
        for name in amounts:
            amounts[name] += _amount(table, removed == name)
        ids.append(table["id"].to_numpy()[good])
    shown = {name: amount for name, amount in amounts.items() if amount.documents}
    return Outlook(kept, shown, unknown, np.concatenate([np.empty(0, np.int64), *ids]))


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


def _rule(key: str, rule: Mapping[str, Any], moved: Mapping[str, float]) -> Rule:
    threshold = float("nan") if rule["threshold"] is None else rule["threshold"]
    threshold = moved.get(f"{key}: {rule['name']}", threshold)
    return Rule(**{**rule, "threshold": threshold})


def _decided_hits(folder: Path, steps: list[_Decided]) -> dict[str, NDArray[np.int64]]:
    """Return the documents that a step itself decided to drop, by "step: rule"."""
    hits = {
        f"{step.key}: {rule.name}": [np.empty(0, np.int64)]
        for step in steps
        for rule in step.rules
        if rule.kind == "document" and not rule.signal
    }
    if hits:
        with pq.ParquetFile(folder / LEDGER_FILE) as file:
            for batch in file.iter_batches(columns=["id", "step", "rule", "kind"]):
                table = pa.Table.from_batches([batch]).filter(pc.field("kind") == "document")
                names = pc.binary_join_element_wise(table["step"], table["rule"], ": ")
                for name, found in hits.items():
                    chosen = pc.equal(names, name)
                    found.append(table["id"].filter(chosen).to_numpy())
    return {name: np.sort(np.concatenate(found)) for name, found in hits.items()}


def _signals(folder: Path, steps: list[_Decided]) -> Iterator[pa.Table]:
    columns = {"id", "bytes", "tokens", REMOVED_BY, *(name for step in steps for name in step.signals)}
    with pq.ParquetFile(folder / SIGNALS_FILE) as file:
        for batch in file.iter_batches(columns=sorted(columns)):
            yield pa.Table.from_batches([batch])


def _decide(
    table: pa.Table, steps: list[_Decided], hits: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (documents,) what would remove each ("" where nothing does), and whether that cannot be told."""
    ids = table["id"].to_numpy()
    removed_by = np.array([name or "" for name in table[REMOVED_BY].to_pylist()], object)
    removed = np.full(len(ids), "", object)
    lost = np.zeros(len(ids), bool)
    dropped_before = np.zeros(len(ids), bool)  # in the run itself, by an earlier step
    for step in steps:
        open_ = (removed == "") & ~lost
        seen = ~dropped_before
        if step.sees_dropped:
            unseen = [pc.is_null(table[name]).to_numpy() for name in step.signals]
            seen = ~np.logical_or.reduce(unseen) if unseen else np.ones(len(ids), bool)
        lost |= open_ & ~seen
        open_ &= seen
        for rule in step.rules:
            if rule.kind != "document":
                continue
            name = f"{step.key}: {rule.name}"
            if rule.signal:
                values = table[rule.signal].to_numpy().astype(float)
                broken = rule.broken(values)
            else:
                broken = np.isin(ids, hits[name])
            broken = broken & open_
            removed[broken] = name
            open_ &= ~broken
        names = [f"{step.key}: {rule.name}" for rule in step.rules]
        dropped_before |= np.isin(removed_by.astype(str), names)
    return removed, lost


def _amount(table: pa.Table, chosen: NDArray[np.bool_]) -> Amount:
    return Amount(
        int(chosen.sum()),
        int(table["bytes"].to_numpy()[chosen].sum()),
        int(table["tokens"].to_numpy()[chosen].sum()),
    )
