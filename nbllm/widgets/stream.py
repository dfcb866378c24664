"""What has changed in a run since it was last sent."""

from __future__ import annotations

import bisect
import dataclasses
import time

from nbllm.runs.liveness import LIVE
from nbllm.runs.run import Run
from nbllm.runs.timeline import Points, Timeline
from nbllm.widgets.card import Card, CardMaker, changes
from nbllm.widgets.points import MOST, Column, columns, thinned

IDLE_PERIOD = 1.0  # seconds between looks at a run that is not live


@dataclasses.dataclass(frozen=True)
class Piece:
    """Points to send.

    Args:
        series: "steps" or "evaluations".
        mode: "replace" all points, "append" after those up to `cut`, or a "window" of more detail.
        table: The columns.
        cut: Points after this step are superseded; `None` when there are none.
        total: How many points the run has.
    """

    series: str
    mode: str
    table: dict[str, Column]
    cut: int | None
    total: int


class RunStream:
    """Follows one run: its card and its points, as they change.

    Args:
        run: The run.
        color: Its place among the colours.
    """

    def __init__(self, run: Run, color: int) -> None:
        self.run = run
        self._maker = CardMaker(run, color)
        self._card: Card = {}
        self._line: tuple[int, int] = (-1, -1)
        self._looked = 0.0
        self._sent = {"steps": 0, "evaluations": 0}  # the last step of each that was sent

    @property
    def is_live(self) -> bool:
        """Whether the run was live when its card was last made."""
        return self._card.get("state") in LIVE

    def look(self) -> tuple[Card, list[Piece]]:
        """Return what is new since the last look: changes of the card, and points; all of one moment.

        A run that is not live is looked at from time to time only: another kernel may take it up again.
        """
        if self._card and not self.is_live and time.monotonic() - self._looked < IDLE_PERIOD:
            return {}, []
        self._looked = time.monotonic()
        with self.run.guard:
            return self.changed(), self.pieces()

    def card(self) -> Card:
        """Return the whole card as it was last made, or make it if there is none."""
        return self._card or self._maker.card()

    def changed(self) -> Card:
        """Return what has changed in the card since the last call: everything the first time."""
        card = self._maker.card()
        before, self._card = self._card, card
        return changes(before, card)

    def pieces(self) -> list[Piece]:
        """Return the points that are new since the last call: all, thinned, after a rewind or a new session."""
        with self.run.guard:
            timeline = self.run.timeline
            line = _line_of(timeline)
            if line != self._line:
                self._line = line
                pieces = self._all(timeline)
            else:
                pieces = [self._new(name, points) for name, points in _series(timeline)]
            for name, points in _series(timeline):
                self._sent[name] = points.steps[-1] if points.steps else 0
        return [piece for piece in pieces if piece.mode == "replace" or len(piece.table["step"])]

    def everything(self) -> list[Piece]:
        """Return all points up to those last sent, thinned, for a new viewer."""
        with self.run.guard:
            return self._all(self.run.timeline)

    def window(self, first: int, last: int, most: int) -> Piece:
        """Return the points of training between two steps in more detail."""
        with self.run.guard:
            points = self.run.timeline.steps
            begin, end = _place(points, first), _place(points, last + 1)
            table = thinned(columns(points, begin, end), max(4, min(most, MOST)))
            return Piece("steps", "window", table, None, len(points.steps))

    def _all(self, timeline: Timeline) -> list[Piece]:
        return [
            Piece(name, "replace", thinned(columns(points)), None, len(points.steps))
            for name, points in _series(timeline)
        ]

    def _new(self, name: str, points: Points) -> Piece:
        sent = self._sent[name]
        table = columns(points, _place(points, sent + 1))
        return Piece(name, "append", thinned(table), sent, len(points.steps))


def _place(points: Points, step: int) -> int:
    """Return the place of the first point at or after a step."""
    return bisect.bisect_left(points.steps, step)


def _series(timeline: Timeline) -> list[tuple[str, Points]]:
    return [("steps", timeline.steps), ("evaluations", timeline.evaluations)]


def _line_of(timeline: Timeline) -> tuple[int, int]:
    """Return a value that changes whenever existing points may have been removed: by sessions and rewinds."""
    rewinds = sum(action.action == "rewind" for action in timeline.state_actions)
    return timeline.session.number, rewinds
