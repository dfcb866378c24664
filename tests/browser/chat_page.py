"""A page with the chat panel on a model that only pretends: it keeps what is sent, and says what a test says."""

from __future__ import annotations

import math
import random
from typing import Any

from playwright.sync_api import Locator, Page

from nbllm.widgets.modules import script, style

MODEL = """async ([code, css]) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  window.listeners = new Set();
  window.sent = [];
  window.model = {
    send: (content) => sent.push(structuredClone(content)),
    on: (name, listener) => { if (name === "msg:custom") listeners.add(listener); },
    off: (name, listener) => listeners.delete(listener),
  };
  window.say = (content) => { for (const listener of [...listeners]) listener(content, []); };
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { default: front } = await import(url);
  window.leave = front.render({ model, el: document.getElementById("cell") });
}"""

CONTROLS = {"temperature": "0.7", "top_p": "0.95", "max_new_tokens": "512", "seed": "", "system": ""}
FACTS = {
    "num_tokens": 3, "seconds": 0.5, "tokens_per_second": 23.42, "stopped_by": "eos", "seed": "7411234567890123456",
    "context": 120, "max_positions": 2048,
}  # fmt: skip

Token = list[Any]


def token(text: str, probability: float = 0.5, *others: tuple[str, float], shown: str | None = None) -> Token:
    """Return a token as nbllm/widgets/chat.py sends it."""
    return [text, text if shown is None else shown, probability, [list(other) for other in others]]


def tokens_of(text: str, seed: int = 0) -> list[Token]:
    """Return the words of a text as tokens that look like a model's."""
    noise = random.Random(seed)
    words = [" and", " the", " a", " of", ",", ".", "\n", " model", " which"]
    made = []
    for i, word in enumerate(text.split(" ")):
        probability = min(0.9996, 1 - noise.random() ** 2 * 0.97)
        rest = 1 - probability
        others = [
            (other, rest * math.exp(-1 - rank) / 0.6) for rank, other in enumerate(noise.sample(words, 3))
        ]
        made.append(token(word if i == 0 else f" {word}", probability, *others))
    return made


def question(id: int, text: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "text": text, "state": "done", "facts": {}, "error": ""}


def answered(id: int, state: str = "done", error: str = "", **facts: Any) -> dict[str, Any]:
    made = {} if state in ("running", "failed") else {**FACTS, **facts}
    return {"id": id, "role": "assistant", "text": "", "state": state, "facts": made, "error": error}


class ChatPage:
    """The page, and what tests do with it."""

    def __init__(self, page: Page, *, width: int = 760, theme: str = "light") -> None:
        self.page = page
        self.name = "smollm2-135m-instruct"
        self.errors: list[str] = []
        self.seq = 0
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        ground = "#ffffff" if theme == "light" else "#0d1117"
        page.set_content(
            f"<!doctype html><html lang=en data-theme={theme}><meta charset=utf-8><style>body {{ margin: 8px; "
            f"background: {ground} }} #cell {{ width: {width}px }}</style><body><div id=cell></div></body></html>"
        )
        page.evaluate(MODEL, [script("chat"), style("chat")])

    @property
    def panel(self) -> Locator:
        return self.page.locator(".nbllm-chat")

    @property
    def viewer(self) -> str:
        return self.page.evaluate("sent[0].viewer")

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages of a kind that the panel has sent."""
        return [message for message in self.page.evaluate("sent") if message["type"] == kind]

    def say(self, kind: str, **fields: Any) -> None:
        """Say as the kernel."""
        self.page.evaluate("(content) => say(content)", {"type": kind, **fields})
        assert self.errors == []

    def state(self, *turns: dict[str, Any], **controls: str) -> None:
        self.seq += 1
        said = {**CONTROLS, **controls}
        shape = "llama, 30 layers x 576, 9 heads, vocabulary 49152, context 8192, 134.5M parameters"
        self.say("state", seq=self.seq, name=self.name, shape=shape, controls=said, turns=list(turns))

    def tokens(self, turn: int, tokens: list[Token], first: int = 0, seconds: float = 1.0) -> None:
        self.say("tokens", turn=turn, first=first, tokens=tokens, seconds=seconds)

    def accept(self) -> dict[str, Any]:
        """Say that the newest request is accepted; return it."""
        request = [message for message in self.page.evaluate("sent") if "request" in message][-1]
        self.say("accepted", to=self.viewer, request=request["request"])
        return request

    def button(self, name: str) -> Locator:
        return self.panel.get_by_role("button", name=name, exact=True)


# In JupyterLab

# What a page is told and does, without the test's own way to it: when stop was clicked, when the panel said stopped.
WATCH = """() => {
  window.stopped = new Promise((done) => {
    const panel = document.querySelector(".nbllm-chat");
    const look = () => panel.innerText.includes("stopped by you") && done(performance.now() - window.clicked);
    new MutationObserver(look).observe(panel, { subtree: true, childList: true, characterData: true });
  });
}"""
CLICK = """() => {
  window.clicked = performance.now();
  [...document.querySelectorAll(".nbllm-chat .danger")].at(-1).click();
}"""


def ask(panel: Locator, text: str) -> None:
    field = panel.get_by_label("Question", exact=True)
    field.fill(text)
    field.press("Enter")


def answers(panel: Locator) -> Locator:
    return panel.locator(".chat-model .chat-text")


def has_tokens(page: Page, count: int) -> None:
    """Wait until the last answer has more than so many tokens."""
    page.wait_for_function(
        "(n) => [...document.querySelectorAll('.chat-model')].at(-1)?.querySelectorAll('.chat-token').length > n",
        arg=count,
        timeout=60_000,
    )


def stop_after(page: Page, tokens: int) -> float:
    """Stop an answer once it has so many tokens; return the milliseconds from the click to "stopped"."""
    has_tokens(page, tokens)
    page.evaluate(WATCH)
    page.evaluate(CLICK)
    return page.evaluate("stopped")
