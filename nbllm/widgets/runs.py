"""The runs panel: every run of a folder, live or ended, and several of them compared."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from nbllm.core.errors import RefusedError, UserError
from nbllm.core.io import expand_user
from nbllm.runs.listing import RunList
from nbllm.runs.managing import delete
from nbllm.runs.run import Run
from nbllm.widgets.base import Message, Panel
from nbllm.widgets.comparison import described, points_of
from nbllm.widgets.overview import Overview, Row, Stamp
from nbllm.widgets.points import packed

PERIOD = 1.0  # seconds between looks at the folder while somebody watches
STUDY = 0.1  # seconds of reading histories at a time
MOST_COMPARED = 12


class RunsPanel(Panel):
    """The panel of a folder of runs; `nb.runs()` in a cell.

    It looks at the folder about once a second as long as somebody watches: at the ends of the files, and once,
    in small portions, at what a sparkline needs. Whole histories are read only of runs that are compared.

    Args:
        runs: The runs; their folder is followed, so those that begin later are shown too.
    """

    front_end: ClassVar[str] = "runs"

    def __init__(self, runs: RunList) -> None:
        super().__init__()
        self.folder = expand_user(runs.folder).resolve()
        self._shown_folder = str(runs.folder)
        self._overview = Overview(self.folder)
        self._unreadable: list[list[str]] = []
        self._names: set[str] = set()
        self._sent_sparklines: dict[str, list[float | None]] = {}
        self._seq = 0
        self._new: set[str] = set()  # viewers who wait for everything
        self._picked: dict[str, list[str]] = {}  # by viewer, the runs compared
        self._asked: set[str] = set()  # viewers who wait for a comparison
        self._comparisons: dict[str, dict[str, Any]] = {}  # by viewer, as last sent
        self._compared: dict[str, Run] = {}
        self._stamps: dict[str, Stamp] = {}  # of the runs whose points were sent
        self.begin(f"runs of {self.folder.name}")

    def receive(self, message: Message) -> None:
        """Note what a viewer wants: hello, compare; the panel's thread answers. Rename or delete a run."""
        kind, viewer = message.get("type"), message["viewer"]
        if kind == "hello":
            self._new.add(viewer)
        elif kind == "compare":
            names = message.get("runs")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise RefusedError("Runs are compared by their names.")
            self._picked[viewer] = list(dict.fromkeys(names))[:MOST_COMPARED]
            self._asked.add(viewer)
        elif kind in ("rename", "delete"):
            name = message.get("run")
            if not isinstance(name, str) or name not in self._overview.entries:
                raise RefusedError(f"There is no run {name!r} any more.")
            work = threading.Thread(
                target=self._manage, args=(message, self.folder / name), name=f"{kind} {name}", daemon=True
            )
            work.start()
        else:
            raise RefusedError(f"This panel knows no message {kind!r}.")
        self._woken.set()

    def _manage(self, message: Message, path: Path) -> None:
        """Rename or delete a run; in a thread of its own, since deleting gigabytes takes seconds."""
        viewer, request = message["viewer"], message.get("request")
        try:
            if message["type"] == "rename":
                name = _rename(path, message.get("name"))
                text = f"{path.name} is now called {name}."
            else:
                name, text = "", _deleted(path)
        except UserError as error:
            self.tell("refused", to=viewer, request=request, reason=error.one_line)
        except Exception as error:
            self.tell("refused", to=viewer, request=request, reason=f"{type(error).__name__}: {error}")
            raise
        else:
            self.tell("done", to=viewer, request=request, text=text, name=name)
            self._woken.set()

    def follow(self) -> None:
        """Look at the folder once a second while somebody watches."""
        more = False
        while not self._closed.is_set():
            self.rest(math.inf if not self.viewers else STUDY / 2 if more else PERIOD)
            self._woken.clear()
            if self._closed.is_set():
                return
            if not self.viewers:
                continue
            try:
                more = self._tick()
            except Exception as error:  # is shown; the next look may succeed
                more = False
                self.tell("problem", text=f"{type(error).__name__}: {error}")

    def _tick(self) -> bool:
        """Send what is new, and return whether more is to be read at once."""
        with self.guard:
            new, self._new = self._new & self.viewers, set()
            asked, self._asked = self._asked, set()
            self._picked = {viewer: names for viewer, names in self._picked.items() if viewer in self.viewers}
            picked = dict(self._picked)
            others = bool(self.viewers - new)
        changed = self._overview.look()
        # A new viewer gets the rows at once, and then what takes longer.
        self._send_rows(changed, new, others=others)
        self._send_rows(self._overview.study(STUDY), set(), others=True)
        self._send_sparklines(new)
        self._compare(picked, asked)
        return not self._overview.is_studied

    def _send_rows(self, changed: list[str], new: set[str], *, others: bool) -> None:
        """Send what changed to the `others`, who have seen the rest, and everything to new viewers."""
        entries, unreadable = self._overview.entries, self._overview.unreadable
        gone = sorted(self._names - set(entries))
        if changed or gone or unreadable != self._unreadable:
            self._seq += 1
            self._names, self._unreadable = set(entries), unreadable
            if others:
                self._tell_rows(whole=False, rows=[self._row(name) for name in changed], gone=gone)
        for viewer in new:
            self._tell_rows(whole=True, rows=[self._row(name) for name in entries], gone=[], to=viewer)

    def _tell_rows(self, *, whole: bool, rows: list[Row], gone: list[str], to: str | None = None) -> None:
        self.tell(
            "runs",
            to=to,
            seq=self._seq,
            folder=self._shown_folder,
            whole=whole,
            now=time.time(),
            rows=rows,
            gone=gone,
            unreadable=self._unreadable,
        )

    def _row(self, name: str) -> Row:
        """Return a run's row with the code that opens it."""
        path = self.folder / name
        shown = name if self.folder == Path("runs").resolve() else str(path)
        return self._overview.entries[name].row | {"open": f"nb.attach({shown!r})"}

    def _send_sparklines(self, new: set[str]) -> None:
        known = {name: entry.sparkline for name, entry in self._overview.entries.items() if entry.sparkline}
        changed = [
            [name, values] for name, values in known.items() if self._sent_sparklines.get(name) != values
        ]
        self._sent_sparklines = known
        if changed:
            self.tell("sparklines", runs=changed)
        for viewer in new:
            self.tell("sparklines", to=viewer, runs=[[name, values] for name, values in known.items()])

    def _compare(self, picked: dict[str, list[str]], asked: set[str]) -> None:
        """Send every viewer's comparison, and the points of its runs that have new ones."""
        runs: dict[str, Run] = {}
        for name in dict.fromkeys(name for names in picked.values() for name in names):
            if name in self._overview.entries:
                with contextlib.suppress(UserError):
                    runs[name] = self._compared.get(name) or Run(self.folder / name)
        self._compared = runs  # not shared, so that their timelines change in this thread only
        stamps = {name: self._overview.entries[name].stamp for name in runs}
        news = {name for name, stamp in stamps.items() if self._stamps.get(name) != stamp}
        self._stamps = stamps
        self._comparisons = {viewer: sent for viewer, sent in self._comparisons.items() if viewer in picked}
        for viewer, names in picked.items():
            shown = [name for name in names if name in runs]
            comparison = described([runs[name] for name in shown]) if shown else {"runs": []}
            if viewer in asked or comparison != self._comparisons.get(viewer):
                self._comparisons[viewer] = comparison
                self.tell("comparison", to=viewer, **comparison)
            for name in shown:
                if viewer in asked or name in news:
                    self._send_points(runs[name], viewer)

    def _send_points(self, run: Run, viewer: str) -> None:
        for series, table in points_of(run).items():
            described_columns, buffers = packed(table)
            self.tell(
                "points",
                to=viewer,
                buffers=buffers,
                run=run.name,
                series=series,
                mode="replace",
                columns=described_columns,
            )


def _rename(path: Path, name: object) -> str:
    from nbllm.widgets.show import run_panels

    if not isinstance(name, str):
        raise RefusedError("A run's name must be a text.")
    # The handle of this kernel's panel is usually the user's own, which should know the new name.
    known = (panel.run for panel in run_panels if panel.run.path == path)
    run = next(known, None) or Run(path)
    return run.rename(name).name


def _deleted(path: Path) -> str:
    left = [str(file.relative_to(path)) for file in delete(path)]
    stays = f" Its folder stays, for files that are no part of a run: {', '.join(left[:5])}." if left else ""
    return f"{path.name} is deleted.{stays}"
