"""The panel of a preparation: what each step kept, thresholds to move, documents and duplicates to look at."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from nbllm.core.errors import DataError, RefusedError, UserError
from nbllm.data.pipeline.counts import Amount, StepCount
from nbllm.data.pipeline.inspection import (
    NEWLY_DROPPED,
    NEWLY_KEPT,
    Inspection,
    MovableRule,
    ShownPair,
    ShownText,
)
from nbllm.data.pipeline.prepared import Prepared
from nbllm.widgets.base import Message, Panel

if TYPE_CHECKING:
    from nbllm.data.harm.audit import Treatment

MOST_ENTRIES = 20  # of a page


class DataPanel(Panel):
    """The panel of what a pipeline has written; `nb.data.prepare(...)` in a cell.

    Nothing is run again: everything is answered from the files. The answers are made in the panel's thread, the newest
    question of each kind first, so that a slider that moves does not queue up work.

    Args:
        prepared: The preparation.
    """

    front_end: ClassVar[str] = "data"

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self.prepared = prepared
        self._inspection = Inspection(prepared)
        self._asked: dict[tuple[str, str], Message] = {}  # by viewer and kind, the newest
        self.begin(f"data in {prepared.folder.name}")

    def receive(self, message: Message) -> None:
        """Note what a viewer asks; the panel's thread answers."""
        kind = message.get("type")
        if kind not in ("hello", "outlook", "page", "pairs", "audit"):
            raise RefusedError(f"This panel knows no message {kind!r}.")
        self._asked[message["viewer"], kind] = message
        self._woken.set()

    def follow(self) -> None:
        """Answer."""
        while not self._closed.is_set():
            self.rest(math.inf)
            self._woken.clear()
            while not self._closed.is_set():
                with self.guard:
                    if not self._asked:
                        break
                    message = self._asked.pop(next(iter(self._asked)))
                self._answer(message)

    def _answer(self, message: Message) -> None:
        viewer, request = message["viewer"], message.get("request")
        try:
            kind, fields = getattr(self, f"_{message['type']}")(message)
            self.tell(kind, to=viewer, request=request, **fields)
        except UserError as error:
            self.tell("refused", to=viewer, request=request, reason=error.one_line)
        except Exception as error:  # is shown; the next question may have an answer
            self.tell("problem", to=viewer, text=f"{type(error).__name__}: {error}")

    def _hello(self, _: Message) -> tuple[str, dict[str, Any]]:
        inspection, funnel = self._inspection, self.prepared.funnel
        return "state", {
            "folder": str(self.prepared.folder),
            "tokens": funnel.tokens,
            "omitted": dict(funnel.omitted),
            "raw": _amount(funnel.raw),
            "kept": _amount(funnel.kept),
            "steps": [_step(count) for count in funnel.counts],
            "rules": [_rule(rule) for rule in inspection.rules],
            "lists": list(inspection.lists.items()),
            "pairs": inspection.num_pairs,
            "code": inspection.code({}),
        }

    def _outlook(self, message: Message) -> tuple[str, dict[str, Any]]:
        thresholds = self._thresholds(message)
        found = self._inspection.at(thresholds)
        return "outlook", {
            "kept": _amount(found.kept),
            "unknown": _amount(found.unknown),
            "removed": [[name, _amount(amount)] for name, amount in found.removed.items()],
            "code": self._inspection.code(thresholds),
        }

    def _page(self, message: Message) -> tuple[str, dict[str, Any]]:
        name, start, count = str(message.get("name")), *_extent(message)
        moved = self._thresholds(message) if name in (NEWLY_KEPT, NEWLY_DROPPED) else {}
        entries, total = self._inspection.page(name, start, count, moved)
        return "page", {
            "name": name, "start": start, "total": total, "entries": [_text(each) for each in entries],
        }  # fmt: skip

    def _pairs(self, message: Message) -> tuple[str, dict[str, Any]]:
        start, count = _extent(message)
        entries = [_pair(each) for each in self._inspection.pairs(start, count)]
        return "pairs", {"start": start, "total": self._inspection.num_pairs, "entries": entries}

    def _audit(self, _: Message) -> tuple[str, dict[str, Any]]:
        from nbllm.data.harm.audit import harm_audit

        try:
            audit = harm_audit(self.prepared)
        except DataError as error:
            return "audit", {"note": f"{error.what} {error.hint or ''}".strip(), "rows": []}
        return "audit", {"note": audit.note, "rows": [_treatment(row) for row in audit.surest_first()]}

    def _thresholds(self, message: Message) -> dict[str, float]:
        given = message.get("thresholds")
        if not isinstance(given, dict):
            raise RefusedError("Thresholds come by the names of their rules.")
        known = {rule.name for rule in self._inspection.rules}
        for name, value in given.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise RefusedError(f"{name!r} has no threshold {value!r}.")
        return {name: float(value) for name, value in given.items()}


def _extent(message: Message) -> tuple[int, int]:
    start, count = message.get("start"), message.get("count")
    if type(start) is not int or type(count) is not int or start < 0 or not 0 < count <= MOST_ENTRIES:
        raise RefusedError(f"A page has from 1 to {MOST_ENTRIES} entries.")
    return start, count


def _amount(amount: Amount) -> dict[str, int]:
    return dataclasses.asdict(amount)


def _step(count: StepCount) -> dict[str, Any]:
    rules = [
        {"name": name, "kind": rule.kind, "hits": rule.hits, "removed": _amount(rule.removed)}
        for name, rule in count.rules.items()
        if rule.hits
    ]
    return {"name": count.step, "left": _amount(count.left), "rules": rules}


def _rule(rule: MovableRule) -> dict[str, Any]:
    spread = rule.histogram
    return {
        "name": rule.name, "signal": rule.signal, "keep": rule.keep, "threshold": rule.threshold, "unit": rule.unit,
        "whole": rule.whole, "edges": spread.edges.tolist(), "counts": spread.counts.tolist(), "log": spread.log,
        "missing": spread.missing,
    }  # fmt: skip


def _text(shown: ShownText) -> dict[str, Any]:
    return {"id": _id(shown.id), "why": list(shown.why), "parts": list(shown.parts), "cut": shown.cut}


def _pair(pair: ShownPair) -> dict[str, Any]:
    return {
        "id": _id(pair.id), "partner": _id(pair.partner), "step": pair.step,
        "jaccard": pair.jaccard if math.isfinite(pair.jaccard) else None,
        "removed": list(pair.removed), "kept": list(pair.kept),
    }  # fmt: skip


def _treatment(row: Treatment) -> dict[str, Any]:
    return {
        "step": row.step, "axis": row.axis, "group": row.group, "documents": row.documents, "removed": row.removed,
        "interval": list(row.interval), "rest": row.rest_share, "ratio": row.ratio,
        "between": list(row.ratio_interval), "differs": row.differs,
    }  # fmt: skip


def _id(document: int) -> str:
    """Return an id as text: JavaScript's numbers have not 63 bits."""
    return f"{document:016x}"
