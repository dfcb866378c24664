"""The training panel: a run seen live, and steered, from any number of browser tabs."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from nbllm.core.errors import RefusedError, RunError, UserError
from nbllm.runs import commands
from nbllm.runs.actions import ACTIONS, find
from nbllm.runs.asking import check_asked
from nbllm.runs.liveness import LIVE
from nbllm.runs.run import Run
from nbllm.widgets.base import Message, Panel
from nbllm.widgets.points import packed
from nbllm.widgets.relatives import Relatives
from nbllm.widgets.stream import IDLE_PERIOD, Piece, RunStream

PERIOD = 0.1  # seconds between updates while the user is active: 10 a second, whatever the run's step rate
CALM_PERIOD = 1.0  # while not: browser and training may have to share two cores
ATTENDED = (
    5.0  # seconds after a message during which the user counts as active; moving the pointer sends some
)
PICTURE_PERIOD = 15.0  # seconds between pictures of a live run, which are what a saved notebook shows
SHARE = 0.02  # of a core at most goes into looking


class TrainingPanel(Panel):
    """A run's panel; `nb.panel(run)`, or the run itself in a cell.

    It knows nothing but the run's directory, so it is the same for a run of this kernel, of another process, or
    of another machine with a shared disk. What a person asks goes into the directory at once, whatever the
    kernel is busy with, where the front end has subshells (JupyterLab 4.4 with ipykernel 7).

    Args:
        run: The run.
        on_change: Called in the panel's thread when the run's state has changed, and now and then while it is live.
    """

    front_end: ClassVar[str] = "training"

    def __init__(self, run: Run, on_change: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.run = run  # the user's own handle: the panel follows when the run is renamed
        self.created = run.record.get("created")
        self._on_change = on_change
        self._relatives = Relatives(run)
        self._streams: dict[str, RunStream] = {}
        self._colors = itertools.count()
        self._seq = 0
        self._state = ""
        self._heard = time.monotonic()
        self._next_picture = self._heard + PICTURE_PERIOD
        self.begin(f"panel of {run.name}")

    # -- from viewers -------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Answer a viewer: hello, window, command; attend says that the user is active."""
        kind, viewer = message.get("type"), message["viewer"]
        self._heard = time.monotonic()
        if kind == "hello":
            self._welcome(viewer)
        elif kind == "window":
            self._show_window(message)
        elif kind == "command":
            self._command(message)
        elif kind != "attend":
            raise RefusedError(f"This panel knows no message {kind!r}.")
        self._woken.set()

    def _welcome(self, viewer: str) -> None:
        self._update(quiet=len(self.viewers) == 1)  # the only viewer gets everything below
        self._tell_everything(viewer)

    def _show_window(self, message: Message) -> None:
        first, last, most = (message.get(name) for name in ("first", "last", "points"))
        if isinstance(first, int) and isinstance(last, int) and isinstance(most, int):
            key = self._key(message)
            piece = self._streams[key].window(first, last, most)
            self._send_points(key, piece, to=message["viewer"], first=first, last=last)

    def _command(self, message: Message) -> None:
        run = self._streams[self._key(message)].run
        action, args, viewer, request = (
            message.get(name) for name in ("action", "args", "viewer", "request")
        )
        if not isinstance(args, dict):
            raise RefusedError("The arguments must be names with values.")
        kind = find(action)
        if kind is not None and kind.done_by == "launcher":
            work = threading.Thread(
                target=self._begin, args=(run, kind.name, args, viewer, request), name=f"{action} {run.name}"
            )
            work.start()
            return
        command = commands.send(run.path, str(action), check_asked(run, action, args))
        self.tell("sent", to=viewer, request=request, id=command.id)

    def _begin(self, run: Run, action: str, args: dict[str, Any], viewer: str, request: Any) -> None:
        """Take a run up again or fork it; in a thread of its own, since loading takes seconds."""
        try:
            text, new = self._begun(run, action, args)
        except UserError as error:
            self.tell("refused", to=viewer, request=request, reason=error.one_line)
        except Exception as error:
            self.tell("refused", to=viewer, request=request, reason=f"{type(error).__name__}: {error}")
            raise
        else:
            self._relatives.look(now=True)
            self._woken.set()
            self.tell("done", to=viewer, request=request, text=text, run=new)

    def _begun(self, run: Run, action: str, args: dict[str, Any]) -> tuple[str, str]:
        if run.launcher is None:
            from nbllm.training import attach  # torch is loaded here, only where a run is to be started

            run = attach(run.path)
        if action == "start_again":
            outcome = run.resume()
            return f"Resumed at step {outcome.step:,}." if outcome.step is not None else "Resuming.", run.name
        asked = ACTIONS["fork"].check(args)
        if not asked["name"].strip():
            raise RefusedError("A fork needs a name.")
        fork = run.fork(asked["name"].strip(), asked.get("step"), **asked.get("changes", {}))
        with self.guard:
            self._relatives.runs[fork.name] = fork
        return f"{fork.name} has begun.", fork.name

    def _key(self, message: Message) -> str:
        key = message.get("run")
        if key not in self._streams:
            raise RunError(f"This panel shows no run {key!r}.")
        return str(key)

    # -- to viewers ---------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Look at the run up to ten times a second while it is live."""
        while not self._closed.is_set():
            live, began = False, time.thread_time()
            with contextlib.suppress(RunError):  # a folder that is gone may come back; its state says so
                live = self._tick()
            took = time.thread_time() - began  # not what a cell that computes made it wait
            period = PERIOD if time.monotonic() - self._heard < ATTENDED else CALM_PERIOD
            self.rest(max(period, took / SHARE) if live else IDLE_PERIOD)
            if self._woken.is_set():
                self._woken.clear()
                self._closed.wait(PERIOD / 2)  # several viewers' messages are answered together

    def _tick(self) -> bool:
        """Send what is new, and return whether one of the runs is live."""
        with self.guard:
            if self.viewers:
                self._update()
                states = {stream.card()["state"] for stream in self._streams.values()}
                stream = self._streams.get(self.run.name)  # none: it was renamed just now
                state = self._state if stream is None else stream.card()["state"]
            else:
                state = self.run.state
                states = {state}
        before, self._state = self._state, state
        due = state in LIVE and time.monotonic() >= self._next_picture
        if self._on_change is not None and before and (state != before or due):
            began = time.thread_time()
            self._on_change()
            took = time.thread_time() - began
            self._next_picture = time.monotonic() + max(PICTURE_PERIOD, took / SHARE)
        return bool(states & LIVE)

    def _tell_everything(self, viewer: str | None = None) -> None:
        cards = [stream.card() for stream in self._streams.values()]
        self.tell("snapshot", to=viewer, seq=self._seq, focus=self.run.name, runs=cards)
        for key, stream in self._streams.items():
            for piece in stream.everything():
                self._send_points(key, piece, to=viewer)

    def _update(self, *, quiet: bool = False) -> None:
        """Send what is new to all viewers, or only take note of it."""
        related = self._relatives.look(now=not self._streams)
        gone = set(self._streams) - set(related)  # renamed or deleted
        self._streams = {name: stream for name, stream in self._streams.items() if name not in gone}
        for name, run in related.items():
            if name not in self._streams:
                self._streams[name] = RunStream(run, color=next(self._colors))
        looks = {key: stream.look() for key, stream in self._streams.items()}
        if quiet:
            return
        if gone:
            self._seq += 1
            self._tell_everything()
            return
        changed = [card for card, _ in looks.values() if card]
        pieces = [(key, piece) for key, (_, found) in looks.items() for piece in found]
        if changed:
            self._seq += 1
            self.tell("update", seq=self._seq, runs=changed)
        for key, piece in pieces:
            self._send_points(key, piece)

    def _send_points(
        self,
        key: str,
        piece: Piece,
        *,
        to: str | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> None:
        described, buffers = packed(piece.table)
        self.tell(
            "points",
            to=to,
            buffers=buffers,
            run=key,
            series=piece.series,
            mode=piece.mode,
            cut=piece.cut,
            total=piece.total,
            first=first,
            last=last,
            columns=described,
        )
