"""Settings of a generation: how tokens are chosen, how many, and when it ends."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from nbllm.core.config import Config, check_choice
from nbllm.core.errors import UserError
from nbllm.core.signature import InWords, settings_of

_INFINITY = float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """Configuration of a generation.

    The settings act in this order: repetition penalty, repeated n-grams and early end tokens, temperature, top-k,
    top-p, min-p; then one token is drawn from what is left. The default is the model's own distribution, untouched.
    With `num_beams`, nothing is drawn: of each prompt, the likeliest texts that beam search finds are returned.

    Args:
        temperature: Divides the logits: below 1 is more cautious, above 1 more random. 0 is greedy: always
            the likeliest token (top-k, top-p and min-p always keep that one, so they change nothing then).
        top_k: Only the so many likeliest tokens; `None` or 0 for all.
        top_p: Only the smallest set of tokens that together has this probability.
        min_p: Only tokens at least this share as probable as the likeliest one.
        repetition_penalty: Above 1 makes tokens of the prompt and of the text so far less likely.
        no_repeat_ngram_size: Above 0, no sequence of so many tokens comes twice in prompt and text; 3 is usual for
            summaries.
        max_new_tokens: Largest number of tokens to generate.
        min_new_tokens: The text does not end before it has so many tokens.
        stop: Strings that end the text; the text ends before the first of them.
        seed: Every sequence draws from a generator of its own, made from this seed and its prompt: the same
            prompt gives the same text alone or in any batch, and a prompt that is given twice gives two
            texts. `None` draws a fresh seed, which the result records.
        overflow: What happens when prompt and text fill the model's positions: "stop" ends the text (a longer
            prompt is an error); "slide" drops the oldest tokens, keeps the newest half of the positions and
            goes on.
        batch_size: So many prompts, or beams of prompts, are decoded together. Changes speed and memory, not the
            text.
        num_beams: Above 1, beam search: so many beginnings of a text are kept, the likeliest, and each is continued.
        length_penalty: The score of a beam's text is its log-probability divided by its number of tokens to this
            power: 0 is the log-probability itself, which favours short texts; above 1 favours long ones.
        early_stopping: When a beam search ends. True: as soon as there are `num_beams` whole texts. False: when no beam
            has a better score at its present length than the worst of these. "never": when none can reach one.
        num_return_sequences: Texts for each prompt: drawn, or the best of a beam search, the best one first.

    Raises:
        UserError: A value is out of range, or settings exclude each other.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 100
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = 0
    overflow: str = "stop"
    batch_size: int = 32
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        """Check every kind and range."""
        self._check_number("temperature", 0, _INFINITY)
        self._check_number("top_p", 0, 1, open_low=True)
        self._check_number("min_p", 0, 1)
        self._check_number("repetition_penalty", 0, _INFINITY, open_low=True)
        if self.temperature == _INFINITY or self.repetition_penalty == _INFINITY:
            raise UserError("temperature and repetition_penalty must be finite.", where="SamplingConfig")
        self._check_count("no_repeat_ngram_size", 0)
        self._check_count("max_new_tokens", 1)
        self._check_count("min_new_tokens", 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens ({self.min_new_tokens}) is more than max_new_tokens ({self.max_new_tokens}).",
                where="SamplingConfig",
            )
        self._check_count("batch_size", 1)
        if self.top_k is not None:
            self._check_count("top_k", 0)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise UserError(
                f"seed must be a whole number or None, not {self.seed!r}.", where="SamplingConfig"
            )
        check_choice(self, "overflow", ("stop", "slide"))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        self._check_count("num_beams", 1)
        self._check_count("num_return_sequences", 1)
        self._check_number("length_penalty", -_INFINITY, _INFINITY)
        if abs(self.length_penalty) == _INFINITY:
            raise UserError("length_penalty must be finite.", where="SamplingConfig")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UserError(
                f'early_stopping must be True, False or "never", not {self.early_stopping!r}.',
                where="SamplingConfig",
            )
        problem = self._contradiction()
        if problem is not None:
            raise UserError(problem[0], where="SamplingConfig", hint=problem[1])

    def _contradiction(self) -> tuple[str, str] | None:
        """Return which settings exclude each other and what to do; None where none do."""
        if self.num_beams == 1:
            for name, unused in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) != unused:
                    return f"{name} is for beam search.", "Pass num_beams=4, say, or leave it."
            if self.greedy and self.num_return_sequences > 1:
                return (
                    "At temperature 0, all texts of a prompt are the same.",
                    "Pass a temperature, or num_beams.",
                )
            return None
        if self.num_return_sequences > self.num_beams:
            return (
                f"{self.num_beams} beams cannot return {self.num_return_sequences} texts.",
                "Use more beams.",
            )
        drawing = {
            "temperature": self.temperature in (0, 1),
            "top_k": not self.top_k,
            "top_p": self.top_p == 1,
            "min_p": self.min_p == 0,
        }
        for name, unused in drawing.items():
            if not unused:
                return (
                    f"Beam search draws nothing, so {name} has no effect on it.",
                    f"Leave {name}, or num_beams.",
                )
        if self.stop:
            return (
                "Beams are compared as tokens; stop strings are not looked for in them.",
                "Leave stop and cut the text, or use num_beams=1.",
            )
        if self.overflow == "slide":
            return (
                "A beam's score is of all its tokens; they cannot be dropped for later ones.",
                'Use overflow="stop", or num_beams=1.',
            )
        return None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def _check_number(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{name} must be a number, not {value!r}.", where="SamplingConfig")
        if not low <= value <= high or (open_low and value == low):  # NaN fails the comparison too
            least = f"greater than {low}" if open_low else f"at least {low}"
            most = "" if high == _INFINITY else f" and at most {high}"
            raise UserError(f"{name} must be {least}{most}, not {value!r}.", where="SamplingConfig")

    def _check_count(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(
                f"{name} must be a whole number, at least {low}, not {value!r}.", where="SamplingConfig"
            )


MAX_NEW_TOKENS_OF_CHAT = 512  # an answer is longer than the sample of a text
_RECOMMENDED = InWords("as the model's makers recommend")
OF_BEAMS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
)  # a chat streams one text
CHAT_SETTINGS = settings_of(
    SamplingConfig,
    OF_BEAMS,
    max_new_tokens=MAX_NEW_TOKENS_OF_CHAT,
    temperature=_RECOMMENDED,
    top_k=_RECOMMENDED,
    top_p=_RECOMMENDED,
    min_p=_RECOMMENDED,
    repetition_penalty=_RECOMMENDED,
)
"""What a chat takes beside its messages, with its own defaults."""


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else None
    )
    if strings is None or not all(isinstance(string, str) for string in strings):
        raise UserError(f"stop must be a string or a list of strings, not {value!r}.", where="SamplingConfig")
    if "" in strings:
        raise UserError(
            "stop holds an empty string, which would end every text at once.",
            where="SamplingConfig",
            hint="leave it out",
        )
    return strings
