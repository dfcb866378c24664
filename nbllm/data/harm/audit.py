"""Whose text each filter removes: the share of it, by dialect, identity group and topic, with intervals."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.html import escape, fragment, table
from nbllm.core.proportions import Interval, relative_risk, wilson
from nbllm.core.quantities import counted
from nbllm.core.text_table import text_table
from nbllm.data.harm.groups import Axes, groups as make_groups
from nbllm.data.pipeline.applying import REMOVED_BY
from nbllm.data.pipeline.finishing import SIGNALS_FILE
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.prepared import Prepared
from nbllm.data.pipeline.step import Step

CONFIDENCE = 0.95
LEAST_DOCUMENTS = 5  # of a group, to tell anything
_GROUP = "group/"
_SHOWN = 30


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How a step treats the documents of a group.

    Attributes:
        step: The step.
        axis: "dialect", "identity", "topic", ...
        group: The group.
        documents: Of the group that reached the step.
        removed: Those that it removed.
        interval: Of the share removed, Wilson's at 95%.
        rest_share: The share that it removed of all other documents.
        ratio: The share of the group over that of the others.
        ratio_interval: Of the ratio, at 95%.
    """

    step: str
    axis: str
    group: str
    documents: int
    removed: int
    interval: Interval
    rest_share: float
    ratio: float
    ratio_interval: Interval

    @property
    def share(self) -> float:
        """The share of the group's documents that the step removed."""
        return self.removed / self.documents

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio leaves out 1."""
        return not self.ratio_interval[0] <= 1 <= self.ratio_interval[1]


@dataclasses.dataclass(frozen=True)
class HarmAudit:
    """How each step treats each group; its display is a table, those that differ most surely first.

    Attributes:
        rows: One for each step that removes documents and each group.
        skipped: Groups of fewer than 5 documents, of which nothing is told.
        num_documents: That were read.
    """

    rows: tuple[Treatment, ...]
    skipped: tuple[str, ...]
    num_documents: int

    def __iter__(self) -> Any:
        return iter(self.rows)

    def of(self, step: str) -> tuple[Treatment, ...]:
        """Return how one step treats each group.

        Raises:
            UserError: The step removed no document, or there is none of that name.
        """
        found = tuple(row for row in self.rows if row.step == step)
        if not found:
            known = ", ".join(dict.fromkeys(row.step for row in self.rows)) or "none"
            raise UserError(f"No step {step!r} removed documents.", hint=f"Steps that did: {known}.")
        return found

    def surest_first(self) -> list[Treatment]:
        """Return the rows, those first whose ratio differs from 1 most surely."""

        def surely(row: Treatment) -> float:
            low, high = row.ratio_interval
            return max(low, 1 / high)  # how far 1 is outside the interval, as a factor

        return sorted(self.rows, key=surely, reverse=True)

    @property
    def note(self) -> str:
        """How much was compared, how much would differ by chance, and of which groups nothing is told."""
        differ = sum(row.differs for row in self.rows)
        sentence = (
            f"Of {counted(len(self.rows), 'ratios')}, {differ} differ from 1 at {CONFIDENCE:.0%}; "
            f"about {len(self.rows) * (1 - CONFIDENCE):.0f} would by chance."
        )
        few = f" Fewer than {LEAST_DOCUMENTS} documents: {', '.join(self.skipped)}." if self.skipped else ""
        return f"{counted(self.num_documents, 'documents')}. {sentence}{few}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.step,
                row.axis,
                row.group,
                f"{row.documents:,}",
                f"{row.share:.1%} ({row.interval[0]:.1%} to {row.interval[1]:.1%})",
                f"{row.rest_share:.1%}",
                f"{row.ratio:.2f} ({row.ratio_interval[0]:.2f} to {row.ratio_interval[1]:.2f})"
                + (" *" if row.differs else ""),
            )
            for row in self.surest_first()[:_SHOWN]
        ]

    def __repr__(self) -> str:
        return f"{self.note}\n{text_table([_HEADER, *self._cells()])}"

    def _repr_html_(self) -> str:
        more = f"the first {_SHOWN} of {len(self.rows):,}" if len(self.rows) > _SHOWN else None
        return fragment(f"<p>{escape(self.note)}</p>{table(self._cells(), _HEADER, caption=more)}")


_HEADER = ("step", "axis", "group", "documents", "removed", "removed of others", "ratio (* differs from 1)")


def harm_audit(
    prepared: Any, steps: Iterable[Step | Iterable[Step]] | None = None, *, groups: Axes | None = None
) -> HarmAudit:
    """Return whose text each step removes: its share in each dialect, identity group and topic.

    Args:
        prepared: Text, which is then taken through `steps`; or what a pipeline with the step
            `nbllm.data.harm.groups.groups()` at its beginning made of one: a folder, `Prepared`, or its data set.
        steps: The steps to audit. The text is prepared in a temporary folder.
        groups: By axis, the words of each group, or a function that names the group of each text; None: English lists
            of our own. See `nbllm.data.harm.groups.groups`.

    Raises:
        UserError: Groups or steps are wrong.
        DataError: There is no text, or the prepared text was not tagged with groups.
    """
    if steps is not None:
        with tempfile.TemporaryDirectory(prefix="nbllm-audit-") as folder:
            return _audit(Pipeline([make_groups(groups), *steps]).run(prepared, Path(folder) / "run"))
    if groups is not None:
        raise UserError("Text that was prepared has its groups already.", hint="Give the text and the steps.")
    found = getattr(prepared, "prepared", prepared)
    return _audit(found if isinstance(found, Prepared) else Prepared(found))


def _audit(prepared: Prepared) -> HarmAudit:
    import pyarrow.parquet as pq

    path = prepared.folder / SIGNALS_FILE
    columns = [name for name in pq.read_schema(path).names if name == REMOVED_BY or name.startswith(_GROUP)]
    read = pq.read_table(path, columns=columns)
    signals = {name: read[name].to_pylist() for name in columns}
    members = _members(signals)
    if not members:
        raise DataError(
            "This text was not tagged with groups when it was prepared.",
            where=prepared.folder,
            hint="Give the text and the steps: nb.data.harm_audit(text, [nb.data.quality('gopher')]).",
        )
    removed_by = [name or "" for name in signals[REMOVED_BY]]
    reached = np.ones(len(removed_by), np.bool_)
    rows: list[Treatment] = []
    few: dict[str, None] = {}
    for step in prepared.manifest["steps"]:
        removed = np.array(
            [name == step["key"] or name.startswith(f"{step['key']}: ") for name in removed_by]
        )
        if removed.any():
            for (axis, group), member in members.items():
                inside, outside = reached & member, reached & ~member
                if min(inside.sum(), outside.sum()) < LEAST_DOCUMENTS:
                    few[group] = None
                    continue
                rows.append(_treatment(step["key"], axis, group, removed, inside, outside))
        reached &= ~removed
    return HarmAudit(tuple(rows), tuple(few), len(removed_by))


def _treatment(
    step: str,
    axis: str,
    group: str,
    removed: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> Treatment:
    hit, documents = int((removed & inside).sum()), int(inside.sum())
    other_hit, others = int((removed & outside).sum()), int(outside.sum())
    ratio, ratio_interval = relative_risk(hit, documents, other_hit, others, CONFIDENCE)
    interval = wilson(hit, documents, CONFIDENCE)
    return Treatment(step, axis, group, documents, hit, interval, other_hit / others, ratio, ratio_interval)


def _members(signals: dict[str, list[Any]]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Return which documents belong to each group, by axis and name."""
    found: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for column, values in signals.items():
        if not column.startswith(_GROUP):
            continue
        axis, _, group = column.removeprefix(_GROUP).partition(": ")
        if group:
            found[axis, group] = np.array([value is True for value in values])
        else:
            for name in sorted({value for value in values if value}):
                found[axis, name] = np.array([value == name for value in values])
    return found
