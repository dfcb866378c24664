r"""Preferences: which of two answers is the better one, or whether one is good, in the layouts that data sets have.

| layout | fields |
|---|---|
| hh-rlhf | `chosen` and `rejected`: a conversation each, as one text ("\n\nHuman: ...\n\nAssistant: ...") |
| pairs | `chosen` and `rejected`, with `prompt` or beginning alike: texts or messages |
| ratings | `prompt`, `completions`, and `ratings`: a number each, higher is better |
| rankings | `prompt` and `ranked`: completions, the best first |
| labels | `prompt`, `completion` and `label` or `desirable`: true or false |

A pair may have a `margin`, by how much the chosen answer is better; or `score_chosen` and `score_rejected`, whose
difference that is. Of ratings and rankings each two completions that differ are a pair, and all pairs of a prompt
together count as one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.errors import DataError, listed
from nbllm.data.sources.chats import Message, is_conversation, read_messages, read_transcript
from nbllm.finetuning.examples import Example
from nbllm.finetuning.layouts import read_example


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers, of which one is better.

    Attributes:
        chosen: The better one, with what it answers. Turns that both share count nothing.
        rejected: The other.
        margin: By how much it is better.
        weight: What the pair counts in the loss.
    """

    chosen: Example
    rejected: Example
    margin: float = 0.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An answer, and whether it is a good one.

    Attributes:
        prompt: What is answered: messages, or a text.
        answer: What answers it: messages, or a text.
        desirable: Whether it is good.
    """

    prompt: tuple[Message, ...] | str
    answer: tuple[Message, ...] | str
    desirable: bool

    def example(self, other: Verdict | None = None) -> Example:
        """Return the prompt with its answer, or with that to another prompt.

        Raises:
            DataError: One is of messages, the other a text.
        """
        answer = self.answer if other is None else other.answer
        if isinstance(self.prompt, str) and isinstance(answer, str):
            return Example(prompt=self.prompt, completion=answer)
        if isinstance(self.prompt, str) or isinstance(answer, str):
            raise DataError("Some prompts are messages, others texts.")
        weights = (0.0,) * len(self.prompt) + (1.0,) * len(answer)
        return Example(messages=(*self.prompt, *answer), turn_weights=weights)


def read_pairs(value: object) -> list[Pair]:
    """Return the pairs that a value holds, in one of the layouts.

    Raises:
        DataError: It has none of them, is unpaired, or has an answer that is empty, or the same twice.
    """
    fields = _fields(value)
    if "completions" in fields or "ranked" in fields:
        return _of_list(fields)
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if name in fields and not fields.get(other):
            raise DataError(f"It is unpaired: there is {name}, but no {other}.")
    if not {"chosen", "rejected"} <= fields.keys():
        if "completion" in fields:
            raise DataError("It is unpaired: one completion.", hint='method="kto" learns from labels.')
        raise DataError(
            f"The row has the fields {listed(sorted(fields))}; none of the known layouts.",
            hint="chosen and rejected; prompt, completions and ratings; or prompt and ranked.",
        )
    return [_pair(fields.get("prompt"), fields["chosen"], fields["rejected"], _margin(fields))]


def read_verdicts(value: object) -> list[Verdict]:
    """Return the verdicts that a value holds: a label is one, a pair two.

    Raises:
        DataError: As `read_pairs`, or a label is neither true nor false.
    """
    fields = _fields(value)
    if "completion" not in fields:
        pairs = read_pairs(value)
        both = [(pair.chosen, True) for pair in pairs] + [(pair.rejected, False) for pair in pairs]
        return [_verdict(example, desirable) for example, desirable in both]
    label = fields.get("label", fields.get("desirable"))
    if label not in (0, 1):  # true and false, too
        raise DataError(f"label must be true or false, not {label!r}.")
    example = _answered(fields.get("prompt", ""), fields["completion"], "completion")
    return [_verdict(example, bool(label))]


def _fields(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"A row of preferences is a mapping, not {type(value).__name__}.")
    return {str(name): each for name, each in value.items() if each is not None}


def _of_list(fields: dict[str, Any]) -> list[Pair]:
    """Return the pairs of completions that are rated or ranked."""
    answers = fields["ranked" if "ranked" in fields else "completions"]
    ratings = fields.get("ratings", fields.get("scores"))
    if not isinstance(answers, Sequence) or isinstance(answers, str):
        raise DataError("completions must be a list.")
    if "ranked" in fields:
        ratings = range(len(answers), 0, -1)
    if not isinstance(ratings, Sequence) or len(ratings) != len(answers):
        raise DataError("There must be a rating for each completion.")
    rated = [(answer, _number(rating, "A rating")) for answer, rating in zip(answers, ratings, strict=True)]
    rated.sort(key=lambda each: -each[1])
    pairs = [
        _pair(fields.get("prompt"), better, worse, 0.0 if "ranked" in fields else high - low)
        for (better, high), (worse, low) in itertools.combinations(rated, 2)
        if high > low
    ]
    if not pairs:
        raise DataError("It is unpaired: no two completions that are rated differently.")
    return [dataclasses.replace(pair, weight=1 / len(pairs)) for pair in pairs]


def _pair(prompt: object, chosen: object, rejected: object, margin: float) -> Pair:
    better, worse = (
        _answered(prompt, answer, name) for answer, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    if (better.messages, better.prompt, better.completion) == (
        worse.messages,
        worse.prompt,
        worse.completion,
    ):
        raise DataError("Both answers are the same.")
    if bool(better.messages) != bool(worse.messages):
        raise DataError("One answer is a conversation, the other a text.")
    if better.messages:
        pairs = enumerate(zip(better.messages, worse.messages, strict=False))
        shorter = min(len(better.messages), len(worse.messages))
        shared = next((place for place, (one, two) in pairs if one != two), shorter)
        return Pair(_after(better, shared, "chosen"), _after(worse, shared, "rejected"), margin)
    if prompt is None:  # what both texts begin with, up to the last space
        pairs_of_letters = enumerate(zip(better.completion, worse.completion, strict=False))
        differs = next((place for place, (one, two) in pairs_of_letters if one != two), None)
        shared = better.completion.rfind(" ", 0, differs) + 1
        better, worse = (
            Example(prompt=each.completion[:shared], completion=each.completion[shared:])
            for each in (better, worse)
        )
    for name, each in (("chosen", better), ("rejected", worse)):
        if not each.completion.strip():
            raise DataError(f"{name} is empty after what both texts begin with.")
    return Pair(better, worse, margin)


def _after(example: Example, shared: int, name: str) -> Example:
    """Return the conversation of which only what comes after the shared turns counts."""
    answers = [each["content"] for each in example.messages[shared:] if each["role"] == "assistant"]
    if not any(answer.strip() for answer in answers):
        raise DataError(f"{name} has no answer after the turns that both share.")
    weights = tuple(float(place >= shared) for place in range(len(example.messages)))
    return dataclasses.replace(example, turn_weights=weights)


def _answered(prompt: object, answer: object, name: str) -> Example:
    """Return a prompt with its answer, each of which may be messages, a transcript or a text."""
    if isinstance(answer, str) and not answer.strip():
        raise DataError(f"{name} is empty.")
    asked: Sequence[Any] = []
    if is_conversation(prompt):
        asked = read_messages(prompt) or []  # type: ignore[arg-type]  # a conversation
    elif isinstance(prompt, str) and (turns := read_transcript(prompt)):
        asked = turns if turns[-1]["content"] or turns[-1]["role"] != "assistant" else turns[:-1]
    elif isinstance(prompt, str) and is_conversation(answer) and prompt.strip():
        asked = [{"role": "user", "content": prompt}]
    if is_conversation(answer):
        said: Sequence[Any] = read_messages(answer) or []  # type: ignore[arg-type]  # a conversation
        begins_so = list(said[: len(asked)]) == list(asked)  # UltraFeedback states the prompt twice
        return read_example([*([] if begins_so else asked), *said])
    if not isinstance(answer, str):
        raise DataError(f"{name} must be a text or messages, not {type(answer).__name__}.")
    if asked:
        return read_example([*asked, {"role": "assistant", "content": answer.strip()}])
    if not prompt and (turns := read_transcript(answer)):
        return read_example(turns)
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(f"prompt must be a text or messages, not {type(prompt).__name__}.")
    return Example(prompt=prompt or "", completion=answer)


def _verdict(example: Example, desirable: bool) -> Verdict:
    if not example.messages:
        return Verdict(example.prompt, example.completion, desirable)
    weights = example.turn_weights or (0.0,) * (len(example.messages) - 1) + (1.0,)
    shared = next((place for place, weight in enumerate(weights) if weight), len(weights))
    return Verdict(example.messages[:shared], example.messages[shared:], desirable)


def _margin(fields: dict[str, Any]) -> float:
    if "margin" in fields:
        return _number(fields["margin"], "margin")
    if {"score_chosen", "score_rejected"} <= fields.keys():
        return _number(fields["score_chosen"], "score_chosen") - _number(
            fields["score_rejected"], "score_rejected"
        )
    return 0.0


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{name} must be a number, not {value!r}.")
    return float(value)
