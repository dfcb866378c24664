"""The runs of a folder, as a table."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from nbllm.core.errors import RunError, UserError, nearest
from nbllm.core.quantities import duration
from nbllm.core.text_table import text_table
from nbllm.runs.events import event_files, is_number
from nbllm.runs.run import Run
from nbllm.runs.state import judge, newest_session
from nbllm.runs.store import run_folders

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
        """Return the table's rows, as text: name, state, step, loss (nats a token), parent, age."""
        return [_row(run) for run in self._runs]

    def __repr__(self) -> str:
        if not self._runs and not self.unreadable:
            return f"No runs in {self.folder}."
        table = text_table([HEADER, *self.rows()])
        return "\n".join([table, *(f"{name}: unreadable ({reason})" for name, reason in self.unreadable)])

    def _repr_html_(self) -> str:
        from nbllm.runs.snapshot import list_html

        return list_html(self)


def list_runs(folder: Path | str = "runs") -> RunList:
    """Return the runs in `folder`, newest first; those that cannot be read are listed with the reason."""
    folder = Path(folder).expanduser()
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


def _row(run: Run) -> tuple[str, ...]:
    session = newest_session(run.path)  # the end of the newest file: quick however long the run is
    steps = run.steps if _mentions(run.path, b'"steps":') else run.recorded_steps
    step = f"{session.step:,}" + (f" / {steps:,}" if steps else "")
    loss = "" if session.loss is None else f"{session.loss:.3f}"
    return (
        run.name,
        judge(session, run.path, run.record),
        step,
        loss,
        parent_text(run),
        age_text(_created(run)),
    )


def _mentions(path: Path, text: bytes) -> bool:
    """Say whether the events hold `text`, far quicker than reading them as events."""
    for file in event_files(path):
        with contextlib.suppress(OSError, ValueError), open(file, "rb") as opened:  # ValueError: it is empty
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(text) >= 0:
                    return True
    return False


def parent_text(run: Run) -> str:
    """Return "name at step n", or "" for a run that is no fork."""
    if run.parent is None:
        return ""
    return f"{parent_name(run.parent)} at {run.parent.get('step', '?')}"


def parent_name(parent: Mapping[str, Any]) -> str:
    """Return the name of the run that a record names as its parent."""
    name = str(parent.get("name", parent.get("run", "?")))
    return name.rstrip("/").rpartition("/")[2]


def age_text(created: float) -> str:
    """Return how long ago that was, or "" when it is not known."""
    seconds = time.time() - created
    if not created:
        return ""
    return duration(round(seconds)) if seconds >= 1 else "now"
