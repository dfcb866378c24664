"""The layouts of rows that hold examples: which fields tell each one, and how it is read.

| layout | fields |
|---|---|
| OpenAI, ShareGPT | `messages`, `conversations` or `conversation`: ("role", "content") or ("from", "value") |
| Alpaca | `instruction`, perhaps `input`, and `output` |
| Self-Instruct | `instruction` and `instances`, each with `input` and `output`: an example each |
| Natural Instructions | a file of a task (`Definition`, `Instances`), or on the hub `definition`, `inputs`, `targets` |
| P3 | `inputs_pretokenized` and `targets_pretokenized` |
| Flan, xP3 | `inputs` and `targets` |
| static-hh | `prompt`, a conversation as one text, and `response` |
| prompt and completion | `prompt` and `completion`: texts, or messages |
| OIG | `text`, a conversation with the marks <human>: and <bot>: |
| plain text | `text` |

Each row may have `weight`, what its example counts in the loss; a message of a conversation may have one as well, and
`weights`: [start, stop, weight] for characters of what it says, or of the row's answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from nbllm.core.errors import DataError, listed
from nbllm.data.sources.chats import COLUMNS, is_conversation, read_messages, read_transcript
from nbllm.finetuning.examples import Example, Span
from nbllm.inference.messages import ROLES

Fields: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of rows.

    Attributes:
        name: Of the data set that brought it into use.
        fields: Those that tell it.
        read: Returns the examples of a row, which has these fields.
    """

    name: str
    fields: frozenset[str]
    read: Callable[[Fields], list[Example]]


def read_examples(value: object) -> list[Example]:
    """Return the examples that a value holds, in one of the layouts.

    Raises:
        DataError: It has none of them, an unknown role, no answer, an empty one, or a weight that is no number.
    """
    if isinstance(value, str):
        return [Example(completion=_text(value, "text"))]
    if is_conversation(value):
        return [_conversation(value)]
    if not isinstance(value, Mapping):
        raise DataError(f"An example is a text, messages or a mapping, not {type(value).__name__}.")
    fields = {str(key): each for key, each in value.items() if each is not None}
    layout = next((each for each in LAYOUTS if each.fields <= fields.keys()), None)
    if layout is None:
        raise DataError(
            f"The example has the fields {listed(sorted(fields))}; none of the known layouts.",
            hint=f"Known: {listed([each.name for each in LAYOUTS], quote=False)}.",
        )
    examples = layout.read(fields)
    if not examples:
        raise DataError("The row holds no example.")
    if "weight" not in fields:
        return examples
    weight = _weight(fields["weight"], "weight")
    return [dataclasses.replace(example, weight=weight) for example in examples]


def read_example(value: object) -> Example:
    """Return the first of the examples that `read_examples` returns."""
    return read_examples(value)[0]


def _chat(column: str) -> Callable[[Fields], list[Example]]:
    def read(fields: Fields) -> list[Example]:
        if not is_conversation(fields[column]):
            raise DataError(f"{column} holds no messages.")
        return [_conversation(fields[column])]

    return read


def _alpaca(fields: Fields) -> list[Example]:
    return [_asked(fields["instruction"], fields.get("input", ""), fields["output"], _spans(fields))]


def _self_instruct(fields: Fields) -> list[Example]:
    return [
        _asked(fields["instruction"], each.get("input"), each.get("output")) for each in _instances(fields)
    ]


def _natural_instructions(fields: Fields) -> list[Example]:
    definition = fields["Definition"]
    definition = "\n".join(definition) if _is_texts(definition) else definition
    examples = []
    for each in _instances(fields, "Instances"):
        output = each.get("output")  # right answers; the first is the one to be learnt
        output = output[0] if _is_texts(output) and output else output
        examples.append(_asked(definition, each.get("input"), output))
    return examples


def _hub_instructions(fields: Fields) -> list[Example]:
    targets = fields["targets"]
    return [
        _asked(
            fields["definition"], fields["inputs"], targets[0] if _is_texts(targets) and targets else targets
        )
    ]


def _inputs_and_targets(suffix: str = "") -> Callable[[Fields], list[Example]]:
    def read(fields: Fields) -> list[Example]:
        asked, answer = (_text(fields[f"{name}{suffix}"], name).strip() for name in ("inputs", "targets"))
        return [_asked(asked, "", answer, _spans(fields))]

    return read


def _static_hh(fields: Fields) -> list[Example]:
    prompt, response = _text(fields["prompt"], "prompt"), _text(fields["response"], "response").strip()
    turns = read_transcript(prompt) or [{"role": "user", "content": prompt}]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]
    return [_conversation([*turns, {"role": "assistant", "content": response}])]


def _completion(fields: Fields) -> list[Example]:
    prompt, completion = fields["prompt"], fields["completion"]
    if is_conversation(prompt) and is_conversation(completion):
        return [_conversation([*prompt, *completion])]
    return [
        Example(
            prompt=_text(prompt, "prompt", may_be_empty=True),
            completion=_text(completion, "completion"),
            spans=_spans(fields),
        )
    ]


def _plain_text(fields: Fields) -> list[Example]:
    text = _text(fields["text"], "text")
    turns = read_transcript(text)
    if any(turn["role"] == "assistant" for turn in turns):
        return [_conversation(turns)]
    return [Example(completion=text, spans=_spans(fields))]


LAYOUTS: tuple[Layout, ...] = (  # the first whose fields a row has
    *(Layout(f"messages ({column})", frozenset({column}), _chat(column)) for column in COLUMNS),
    Layout("Self-Instruct", frozenset({"instruction", "instances"}), _self_instruct),
    Layout("Natural Instructions", frozenset({"Definition", "Instances"}), _natural_instructions),
    Layout("Natural Instructions (hub)", frozenset({"definition", "inputs", "targets"}), _hub_instructions),
    Layout(
        "P3", frozenset({"inputs_pretokenized", "targets_pretokenized"}), _inputs_and_targets("_pretokenized")
    ),
    Layout("Flan", frozenset({"inputs", "targets"}), _inputs_and_targets()),
    Layout("prompt and completion", frozenset({"prompt", "completion"}), _completion),
    Layout("static-hh", frozenset({"prompt", "response"}), _static_hh),
    Layout("Alpaca", frozenset({"instruction", "output"}), _alpaca),
    Layout("text, or OIG", frozenset({"text"}), _plain_text),
)


def _instances(fields: Fields, name: str = "instances") -> list[Mapping[str, Any]]:
    instances = fields[name]
    if not isinstance(instances, Sequence) or not all(isinstance(each, Mapping) for each in instances):
        raise DataError(f"{name} must be a list of mappings.")
    return list(instances)


def _asked(instruction: object, given: object, answer: object, spans: tuple[Span, ...] = ()) -> Example:
    """Return the conversation of an instruction, perhaps with what it is about, and its answer."""
    parts = [
        _text(each, "instruction", may_be_empty=True)
        for each in (instruction, "" if given is None else given)
    ]
    question, answered = "\n\n".join(filter(None, parts)), _text(answer, "output")
    return Example(
        messages=({"role": "user", "content": question}, {"role": "assistant", "content": answered}),
        spans=tuple(dataclasses.replace(span, message=1) for span in spans),
    )


def _conversation(value: Any) -> Example:
    messages = read_messages(value)
    if messages is None:
        raise DataError("A message of the conversation holds no text.")
    for message in messages:
        if message["role"] not in ROLES:
            raise DataError(f"There is no role {message['role']!r}.", hint=f"One of {', '.join(ROLES)}.")
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not any(answer.strip() for answer in answers):
        raise DataError("The conversation has no answer." if not answers else "Its answers are empty.")
    weights = tuple(_weight(message.get("weight"), "weight") for message in value)
    spans = [span for number, message in enumerate(value) for span in _spans(message, number)]
    return Example(
        messages=tuple(messages),
        turn_weights=weights if any(weight != 1 for weight in weights) else (),
        spans=tuple(spans),
    )


def _spans(fields: Mapping[str, Any], message: int = 0) -> tuple[Span, ...]:
    stated = fields.get("weights")
    if stated is None:
        return ()
    spans = []
    for each in stated if isinstance(stated, Sequence) and not isinstance(stated, str) else [None]:
        if (
            not isinstance(each, Sequence)
            or len(each) != 3
            or not all(type(place) is int for place in each[:2])
        ):
            raise DataError("weights must be lists of a start, a stop (both in characters) and a weight.")
        spans.append(Span(message, each[0], each[1], _weight(each[2], "weights")))
    return tuple(spans)


def _weight(value: object, name: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise DataError(f"{name} must be a number, 0 or more, not {value!r}.")
    return float(value)


def _is_texts(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(each, str) for each in value)
    )


def _text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, not {type(value).__name__}.")
    if not may_be_empty and not value.strip():
        raise DataError(f"{name} is empty.")
    return value
