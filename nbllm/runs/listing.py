"""The runs of a folder, as a table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from nbllm.core.errors import RunError, UserError, nearest
from nbllm.core.html import escape, fragment, table
from nbllm.core.io import expand_user
from nbllm.core.text_table import text_table
from nbllm.runs.events import is_number
from nbllm.runs.run import Run
from nbllm.runs.snapshot import CSS, badge
from nbllm.runs.store import run_folders
from nbllm.runs.summary import RunSummary, read_summary

HEADER = ("name", "state", "step", "loss", "parent", "age")


class RunList(Sequence[Run]):
    """The runs of a folder, newest first: by position, or by name.

    Args:
        folder: Where they are.
        runs: The runs.
        unreadable: Name and reason of those that cannot be opened.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], unreadable: Sequence[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self.unreadable = list(unreadable)
        self._runs = list(runs)

    @overload
    def __getitem__(self, key: int | str) -> Run: ...
    @overload
    def __getitem__(self, key: slice) -> RunList: ...
    def __getitem__(self, key: int | str | slice) -> Run | RunList:
        if isinstance(key, slice):
            return RunList(self.folder, self._runs[key])
        if isinstance(key, int):
            return self._runs[key]
        for run in self._runs:
            if run.name == key:
                return run
        raise RunError(
            f"There is no run {key!r}.",
            where=self.folder,
            hint=nearest(str(key), [run.name for run in self._runs])
            if self._runs
            else "The folder holds none.",
        )

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows, as text: name, state, step, loss, parent, age."""
        return [_row(read_summary(run.path, run.record)) for run in self._runs]

    def __repr__(self) -> str:
        if not self._runs and not self.unreadable:
            return f"No runs in {self.folder}."
        table = text_table([HEADER, *self.rows()])
        return "\n".join([table, *(f"{name}: unreadable ({reason})" for name, reason in self.unreadable)])

    def _repr_html_(self) -> str:
        rows = [(row[0], badge(row[1]), *row[2:]) for row in self.rows()]
        body = str(table(rows, HEADER)) if rows else f'<p class="muted">No runs in {escape(self.folder)}.</p>'
        notes = "".join(
            f'<div class="run-note">{escape(name)}: unreadable ({escape(reason)})</div>'
            for name, reason in self.unreadable
        )
        return fragment(f"<style>{CSS}</style>{body}{notes}")


def list_runs(folder: Path | str = "runs") -> RunList:
    """Return the runs in `folder`, newest first; those that cannot be read are listed with the reason.

    Raises:
        RunError: The folder itself may not be read.
    """
    folder = expand_user(folder)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
            os.scandir(folder).close()
    except OSError as error:
        raise RunError(f"The folder of runs cannot be read: {error.strerror}.", where=folder) from error
    runs, unreadable = [], []
    for path in run_folders(folder):
        try:
            runs.append(Run(path))
        except UserError as error:
            unreadable.append((path.name, error.what))
    runs.sort(key=_created, reverse=True)
    return RunList(folder, runs, unreadable)


def _created(run: Run) -> float:
    value = run.record.get("created")
    return float(value) if is_number(value) else 0.0


def _row(summary: RunSummary) -> tuple[str, ...]:
    return (
        summary.name,
        summary.label,
        f"{summary.step:,}" + (f" / {summary.steps:,}" if summary.steps else ""),
        "" if summary.loss is None else f"{summary.loss:.3f}",
        summary.parent_text,
        summary.age_text,
    )
