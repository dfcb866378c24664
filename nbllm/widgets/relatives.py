"""The family of a run: what it was forked from, and what was forked from it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from nbllm.core.errors import UserError
from nbllm.runs.run import Run
from nbllm.runs.store import run_folders
from nbllm.runs.summary import parent_name

LOOK_SECONDS = 2.0  # how often the folder is searched for new forks
MOST = 12  # runs drawn together; the nearest relatives, the newest first


class Relatives:
    """A run's relatives in its folder, found anew from time to time.

    Args:
        run: The run in the middle; its handle is used as it is.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.runs: dict[str, Run] = {run.name: run}
        self._parents: dict[Path, tuple[float, str | None]] = {}  # with when the record was written
        self._looked = -LOOK_SECONDS

    def look(self, *, now: bool = False) -> dict[str, Run]:
        """Return the relatives by name, the run itself first; a look at the folder at most every 2 s, or `now`.

        The run may have been renamed; relatives that were renamed or deleted are found anew or left out.
        """
        renamed = self.run.name not in self.runs
        if now or renamed or time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            others = {
                name: run for name, run in self.runs.items() if run is not self.run and run.path.exists()
            }
            self.runs = {self.run.name: self.run, **others}
            for name in self._related():
                if name not in self.runs:
                    with contextlib.suppress(UserError):
                        self.runs[name] = Run(self.run.path.parent / name)
        return self.runs

    def _related(self) -> list[str]:
        """Return the names of all ancestors, and of all that descend from the run or its parent."""
        parents = self._all_parents()
        lines = {name: _line(name, parents) for name in parents}
        own = lines.get(self.run.name, [self.run.name])
        nearest = set(own[:2])  # the run and its parent
        related = [name for name in own[1:] if name in parents]
        others = [name for name, line in lines.items() if name not in own and nearest & set(line)]
        others.sort(key=lambda name: _changed(self.run.path.parent / name), reverse=True)
        return (related + others)[: MOST - 1]

    def _all_parents(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for path in run_folders(self.run.path.parent):
            written = _changed(path)
            if path not in self._parents or self._parents[path][0] != written:
                with contextlib.suppress(UserError):
                    parent = Run(path).parent
                    self._parents[path] = written, None if parent is None else parent_name(parent)
            if path in self._parents:
                found[path.name] = self._parents[path][1]
        return found


def _line(name: str, parents: dict[str, str | None]) -> list[str]:
    """Return a run's name, its parent's, and so on; a cycle, which only a forged record can have, ends it."""
    line: list[str] = []
    step: str | None = name
    while step is not None and step not in line:
        line.append(step)
        step = parents.get(step)
    return line


def _changed(path: Path) -> float:
    """Return when a run's record was written: when the run was made, or the run or its parent renamed."""
    try:
        return (path / "run.json").stat().st_mtime
    except OSError:
        return 0.0
