"""`Panel`: a widget whose front end is a module in `static/`, and which any number of viewers may watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import anywidget

from nbllm.core.errors import UserError
from nbllm.core.terminal import json_only
from nbllm.widgets.modules import script, style

Message = dict[str, Any]
BEAT = 3.0  # seconds without a message after which viewers are told that the kernel is alive


class Panel(anywidget.AnyWidget):
    """A widget that exchanges messages, from any thread, with every viewer that has said hello.

    Subclasses set `front_end`, the stem of their files in `static/`, answer messages in `receive`, and look at what
    they show in `follow`, in a thread that `begin` starts.
    """

    front_end: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its script and style."""
        if "front_end" in cls.__dict__:  # a widget that gets traits gets a class of its own, too
            cls._esm = script(cls.front_end)
            cls._css = style(cls.front_end)
        super().__init_subclass__(**kwargs)

    def __init__(self, **traits: Any) -> None:
        self._closed = threading.Event()  # first, since a widget whose creation fails is closed too
        self._woken = threading.Event()
        self._told = time.monotonic()
        super().__init__(**traits)
        self.guard = threading.RLock()  # messages come in any thread: JupyterLab's come in a subshell's
        self.viewers: set[str] = set()
        self.on_msg(self._on_message)
        # ipykernel 7.4 takes a comm's messages where the comm sent last, which is the main shell, busy or not,
        # for what our threads send. Without this they are taken in the subshell that the front end names.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = None

    def receive(self, message: Message) -> None:
        """Answer a message of a viewer. A `UserError` that this raises is told to the viewer who asked."""
        raise NotImplementedError

    def follow(self) -> None:
        """Look, and tell what is new, until `_closed` is set; `_woken` is set when there is something to do at once."""
        raise NotImplementedError

    def begin(self, name: str) -> None:
        """Start the thread that follows, when everything that it looks at is there."""
        self._thread = threading.Thread(target=self.follow, name=name, daemon=True)
        self._thread.start()

    def rest(self, seconds: float) -> None:
        """Wait until there is something to do or the time is over; meanwhile tell viewers that the kernel is alive."""
        until = time.monotonic() + seconds
        while not self._woken.wait(max(0.0, min(BEAT, until - time.monotonic()))):
            if self.viewers and time.monotonic() - self._told >= BEAT:
                with self.guard:
                    self.tell("alive")
            if time.monotonic() >= until:
                return

    def close(self) -> None:
        """Stop following; what is shown goes on."""
        self._closed.set()
        self._woken.set()
        super().close()

    def tell(self, kind: str, *, buffers: Sequence[bytes] = (), to: str | None = None, **fields: Any) -> None:
        """Send a message to one viewer, or to all."""
        content = {"type": kind, **fields}
        if to is not None:
            content["to"] = to
        self._told = time.monotonic()
        self.send(json_only(content), buffers=list(buffers) or None)

    def _on_message(self, _: object, message: Any, buffers: object) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("viewer"), str):
            return  # of another version of the front end, perhaps
        viewer = message["viewer"]
        try:
            with self.guard:
                if message.get("type") == "bye":
                    self.viewers.discard(viewer)
                    return
                self.viewers.add(viewer)
                self.receive(message)
        except UserError as error:
            self.tell("refused", to=viewer, request=message.get("request"), reason=error.one_line)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.tell("problem", to=viewer, text=text)
            raise
