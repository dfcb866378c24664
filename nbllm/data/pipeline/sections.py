"""A preparation as a part of a report: how much each step left, why the rest went, and by which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbllm.core.quantities import size
from nbllm.core.report.sections import KeyValues, Section, Table
from nbllm.core.report.values import Cell
from nbllm.data.pipeline.counts import Amount

if TYPE_CHECKING:
    from nbllm.data.pipeline.prepared import Prepared


def preparation_sections(prepared: Prepared) -> list[Section]:
    """Return the sections; `report.add(prepared)` calls this."""
    funnel = prepared.funnel
    rows: list[tuple[Cell, ...]] = [("(raw)", *_cells(funnel.raw, funnel.raw))]
    rows += [(count.step, *_cells(count.left, funnel.raw)) for count in funnel.counts]
    why: list[tuple[Cell, ...]] = [
        (
            count.step,
            name,
            rule.kind,
            rule.hits,
            rule.removed.documents if rule.kind == "document" else None,
            size(rule.removed.bytes),
        )
        for count in funnel.counts
        for name, rule in count.rules.items()
        if rule.hits
    ]
    omitted = "".join(
        f" Left out, since it could not be read: {n:,} x {kind}." for kind, n in funnel.omitted.items()
    )
    sections: list[Section] = [
        Table(
            title="How the text was prepared",
            note=f"Tokens are {funnel.tokens}.{omitted}",
            header=("step", "documents", "bytes", "tokens", "kept (% of the bytes)"),
            rows=tuple(rows),
            caption="What each step left.",
        )
    ]
    if why:
        header = ("step", "rule", "removes", "hits", "documents dropped first by it", "bytes removed")
        sections.append(Table(header=header, rows=tuple(why), caption="What was removed, and why."))
    settings = [
        (f"{step['key']}: {rule['name']}", f"{rule['keep']} {rule['threshold']:.6g} {rule['unit']}".rstrip())
        for step in prepared.manifest["steps"]
        for rule in step["rules"]
        if rule["threshold"] is not None
    ]
    facts = [("fingerprint of steps and input", prepared.manifest["fingerprint"])]
    sections.append(KeyValues(entries=(*facts, *settings)))
    return sections


def _cells(left: Amount, raw: Amount) -> tuple[Cell, ...]:
    return left.documents, size(left.bytes), left.tokens, round(100 * left.bytes / max(raw.bytes, 1), 1)
