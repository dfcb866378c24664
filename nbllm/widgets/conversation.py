"""A conversation with a model: its turns, exports and static HTML."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from nbllm.core.html import Raw, escape, fragment
from nbllm.inference.chat import AnswerToken

RUNNING = "running"


@dataclasses.dataclass
class Turn:
    """One message of a conversation.

    Attributes:
        id: Of this turn among all of its conversation, those that were cut away too.
        role: "user" or "assistant".
        text: What was said; of an answer that is being written, what there is.
        state: Of an answer: "running", "done", "stopped" or "failed"; of the user: "done".
        tokens: Of an answer: its tokens with their probabilities.
        facts: Of an answer that has ended: how it came about.
        error: Why it failed.
    """

    id: int
    role: str
    text: str = ""
    state: str = "done"
    tokens: list[AnswerToken] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""

    def take(self, token: AnswerToken) -> None:
        """Add a token to an answer."""
        if not self.text:  # many models begin with a space
            token = dataclasses.replace(token, text=token.text.lstrip())
        self.tokens.append(token)
        self.text += token.text


class Conversation:
    """Turns of a user and a model.

    Attributes:
        system: What the model is told beforehand; empty: nothing.
        turns: Oldest first.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Turn] = []
        self._count = 0

    def add(self, role: str, text: str = "", state: str = "done") -> Turn:
        """Add a turn at the end."""
        self._count += 1
        turn = Turn(self._count, role, text, state)
        self.turns.append(turn)
        return turn

    def cut(self, turn: Turn) -> None:
        """Drop a turn and all after it."""
        del self.turns[self.turns.index(turn) :]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as `LM.chat` takes it, without questions whose answer failed."""
        made = [{"role": "system", "content": self.system}] if self.system else []
        for i, turn in enumerate(self.turns):
            following = self.turns[i + 1] if i + 1 < len(self.turns) else None
            if "failed" not in (turn.state, following and following.state):
                made.append({"role": turn.role, "content": turn.text.strip()})
        return made

    def to_json(self, **about: Any) -> str:
        """Return everything as JSON: messages, and each answer's tokens with their probabilities."""
        answers = [
            {
                **turn.facts,
                "state": turn.state,
                "tokens": [dataclasses.asdict(token) for token in turn.tokens],
            }
            for turn in self.turns
            if turn.role == "assistant" and turn.state != "failed"
        ]
        return json.dumps(
            {**about, "messages": self.messages, "answers": answers}, ensure_ascii=False, indent=1
        )

    def to_markdown(self, title: str, subtitle: str) -> str:
        """Return the messages as Markdown; each text is fenced so that it cannot close its fence."""
        parts = [f"# {_one_line(title)}", _one_line(subtitle)]
        for message in self.messages:
            text = message["content"]
            longest = max(map(len, re.findall(r"`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            parts.append(f"## {message['role'].capitalize()}\n\n{fence}text\n{text}\n{fence}")
        return "\n\n".join(parts) + "\n"

    def to_text(self, title: str, subtitle: str) -> str:
        """Return the messages as plain text."""
        said = [f"{message['role'].capitalize()}: {message['content']}" for message in self.messages]
        return "\n\n".join([f"{title}\n{subtitle}", *said])

    def to_html(self, title: str, subtitle: str) -> str:
        """Return the messages as HTML that runs nothing."""
        said = "".join(
            f"<p><strong>{escape(message['role'].capitalize())}</strong></p>"
            f'<pre dir="auto">{escape(message["content"])}</pre>'
            for message in self.messages
        )
        head = f'<p><strong>{escape(title)}</strong><br><span class="muted">{escape(subtitle)}</span></p>'
        return fragment(f"{head}{Raw(said) or '<p>No messages.</p>'}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
