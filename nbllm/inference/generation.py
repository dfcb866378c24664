"""What a generation returns: the text, and how it came about."""

from __future__ import annotations

from typing import Any

from nbllm.core.html import escape

ENDINGS = {
    "eos": "the model ended the text",
    "stop": "a stop string was met",
    "length": "max_new_tokens was reached",
    "context": "the model's positions were full",
    "interrupt": "interrupted",
    "caller": "the caller asked for the end",
}


def ending_note(made: Generation, *, length_was_chosen: bool) -> str | None:
    """Return what to tell of a text that was cut off where nobody may have expected it; `None` of any other.

    Args:
        made: The text.
        length_was_chosen: Whether a person set `max_new_tokens`, and so expects that end.
    """
    count = len(made.tokens)
    if made.stopped_by == "context":
        return (
            f"A text ended after {count:,} tokens, for it filled the model's context; "
            'overflow="slide" goes on without the oldest tokens.'
        )
    if made.stopped_by == "length" and not length_was_chosen:
        return f"A text ended after {count:,} tokens, the default; max_new_tokens=... sets another length."
    return None


class Generation(str):
    """The text that continues a prompt, or follows from it: a string that also tells how it came about.

    Attributes:
        prompt: The text that was continued.
        continues: Whether it is the prompt's continuation, and not another text, as an encoder-decoder writes.
        tokens: The generated token ids, those of a stop string included, without the end token.
        stopped_by: A key of `ENDINGS`: "eos", "stop", "length", "context", "interrupt" or "caller".
        stop_string: The stop string that ended the text, or `None`.
        seed: The seed that gives this text again.
        score: Of a beam search, the log-probability of the text divided by its number of tokens to the power
            `length_penalty`, by which texts were compared; else `None`.
        seconds: Wall time from the start of the call to this sequence's last token.
    """

    prompt: str
    continues: bool = True
    tokens: list[int]
    stopped_by: str
    stop_string: str | None
    seed: int
    score: float | None
    seconds: float

    def __new__(cls, text: str, **facts: Any) -> Generation:
        """Make a result from its text and the attributes above."""
        made = super().__new__(cls, text)
        made.__dict__.update(facts)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        """Say how to copy and pickle: `str` alone would lose the facts."""
        return (str(self),), dict(self.__dict__)

    @property
    def text(self) -> str:
        """The continuation as a plain string."""
        return str(self)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second of wall time, the reading of the prompt included."""
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0

    def _repr_html_(self) -> str:
        count = len(self.tokens)
        facts = (
            f"{count} token{'s' * (count != 1)}, {self.tokens_per_second:,.0f} a second; "
            f"ended because {ENDINGS[self.stopped_by]}"
        )
        if self.stop_string is not None:
            facts += f" ({self.stop_string!r})"
        between = "" if self.continues else "\n"
        muted = "color:var(--jp-ui-font-color2, var(--vscode-descriptionForeground, #767676))"
        return (
            '<div class="nbllm-generation">'
            '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;margin:0">'
            f'<span style="{muted}">{escape(self.prompt)}</span>{between}<b>{escape(self)}</b></pre>'
            f'<small style="{muted}">{escape(facts)}</small></div>'
        )


class Generations(list[Generation]):
    """The results for a list of prompts, in the prompts' order."""

    def _repr_html_(self) -> str:
        return "".join(f'<div style="margin-bottom:1em">{each._repr_html_()}</div>' for each in self)
