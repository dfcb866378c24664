"""Runs that a loop in miniature writes, and panels that are listened to without a browser."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nbllm.widgets.base import Panel
from tests.runs.conftest import SETTINGS as SETTINGS, Loop as Loop, path as path, start as start


class Viewer:
    """What a front end would hear: the messages of a panel, in order."""

    def __init__(self, panel: Panel, name: str = "viewer") -> None:
        self.panel, self.name = panel, name
        self.messages: list[tuple[dict, list[bytes]]] = []

    def say(self, kind: str, **fields: object) -> None:
        self.panel._on_message(None, {"type": kind, "viewer": self.name, **fields}, [])

    def heard(self, kind: str) -> list[dict]:
        return [
            m for m, _ in list(self.messages) if m["type"] == kind and m.get("to", self.name) == self.name
        ]

    def wait(self, kind: str, test=lambda message: True, seconds: float = 10.0) -> dict:
        """Return the first message of a kind that passes a test, once it has come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.heard(kind):
                if test(message):
                    return message
            time.sleep(0.01)
        raise AssertionError(f"no {kind} came; only {[m['type'] for m, _ in self.messages]}")

    def cards(self) -> dict[str, dict]:
        """Fold snapshot and updates into cards, as a front end does."""
        cards: dict[str, dict] = {}
        for message, _ in list(self.messages):
            if message.get("to", self.name) != self.name:
                continue
            if message["type"] == "snapshot":
                cards = {card["key"]: dict(card) for card in message["runs"]}
            elif message["type"] == "update":
                for card in message["runs"]:
                    cards.setdefault(card["key"], {}).update(card)
        return cards

    def points(self, run: str, series: str = "steps") -> dict[str, np.ndarray]:
        """Fold the points into columns, as a front end does."""
        table: dict[str, np.ndarray] = {}
        for message, buffers in list(self.messages):
            if message["type"] != "points" or message.get("to", self.name) != self.name:
                continue
            if (message["run"], message["series"]) != (run, series) or message["mode"] == "window":
                continue
            new = {
                column["name"]: np.frombuffer(buffer, column["dtype"])
                for column, buffer in zip(message["columns"], buffers, strict=True)
            }
            if message["mode"] == "replace" or not table:
                table = new
                continue
            kept = table["step"] <= message["cut"]
            table = {name: np.concatenate([table[name][kept], new[name]]) for name in table}
        return table


@pytest.fixture
def listen(monkeypatch):
    """Make a panel's messages heard by viewers; the panels end with the test."""
    heard: list[tuple[Panel, Viewer]] = []

    def send(self, content, buffers=None):
        for panel, viewer in heard:
            if panel is self:
                viewer.messages.append((content, [bytes(b) for b in buffers or []]))

    monkeypatch.setattr(Panel, "send", send)

    def listen(panel: Panel, name: str = "viewer") -> Viewer:
        viewer = Viewer(panel, name)
        heard.append((panel, viewer))
        return viewer

    yield listen
    for panel in {id(p): p for p, _ in heard}.values():
        panel.close()
