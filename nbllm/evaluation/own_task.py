"""`nb.evaluation.task`: a task of one's own, made of rows and templates in a cell."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.evaluation.examples import Source
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.exact_match import ExactMatch
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout, load_split
from nbllm.evaluation.tasks.base import TASKS, Task
from nbllm.evaluation.tasks.few_shot import FewShotTask, Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice
from nbllm.evaluation.tasks.open_answer import OpenAnswer

_LAYOUT = Layout("own")


def task(
    rows: Any,
    *,
    prompt: str,
    answer: str,
    choices: str | Sequence[str] | None = None,
    name: str = "task",
    preamble: str = "",
    **settings: Any,
) -> Task:
    r"""Make a task of rows, to be given to `nb.evaluate`.

    With choices, the likeliest of them is the model's answer; without, the model writes one, and it is right where it
    is the reference, or one of several.

    Args:
        rows: Mappings, a `datasets.Dataset` or a file (.jsonl, .json, .csv, .tsv, .parquet).
        prompt: What is asked, with names of columns in braces: "{question}\nAnswer:".
        answer: The column of the right answer: of choices the index, or one of them; else a text or a list of texts.
        choices: The column that holds a list of them, in braces ("{options}"); or one template for each
            (["{a}", "{b}"], ["yes", "no"]).
        name: The task's name in the report.
        preamble: What stands before the first prompt.
        **settings: Of a task of choices or of writing: shots (taken from the other rows), shots_seed, normalizer;
            max_new_tokens.

    Raises:
        DataError: There is no row, or a row lacks a column that is named; the nearest name is given.
        UserError: A template is malformed, a setting is unknown, or the name is that of another task.
    """
    if name in TASKS:
        raise UserError(
            f"There is a task named {name!r} already.", where="task", hint='Give it another: name="mine".'
        )
    records, _ = load_split(rows, _LAYOUT, _LAYOUT.splits)
    templates = () if choices is None else (choices,) if isinstance(choices, str) else tuple(choices)
    given = {"template": prompt, "answer": answer, "begin": preamble, **settings}
    kind: type[_OwnChoice | _OwnAnswer] = _OwnAnswer
    if choices is not None:
        kind, given["choices"] = _OwnChoice, templates
    own: Any = type(kind.__name__, (kind,), {"name": name, "label": name, "records": tuple(records)})
    made: _Own = own.from_dict(given)
    for record in records[:1]:
        for template in (prompt, *templates):
            _filled(template, record)
    made.read(None)  # every row is looked at now, not after a long run
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Own(FewShotTask):
    """What tasks of one's own have in common.

    Args:
        template: The prompt, with names of columns in braces.
        answer: The column of the right answer.
        begin: What stands before the first prompt.
    """

    layout = _LAYOUT
    records: ClassVar[tuple[Record, ...]] = ()

    template: str
    answer: str
    begin: str = ""

    def examples(self, source: Source) -> tuple[Sequence[Item], str]:
        """Return the rows, or those that `data` gives, with worked examples from the others."""
        return self.read(source.data)

    def read(self, data: Any) -> tuple[Sequence[Item], str]:
        """Return the examples of data; of `None`, those of the task's own rows."""
        records: Sequence[Record] = self.records
        words = "given as rows"
        if data is not None:
            records, words = load_split(data, self.layout, self.layout.splits)
        items = self._items(records)
        pools = self._pools(items)
        return [{**item, "shots": self._shots(item, pools)} for item in items], words

    def question(self, item: Item) -> str:
        """Return the prompt."""
        return str(item["prompt"])

    def preamble(self, item: Item) -> str:
        """Return what stands before the first prompt."""
        return self.begin


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OwnChoice(_Own, MultipleChoice):
    """A task of choices.

    Args:
        choices: A column in braces, or a template for each choice.
    """

    choices: tuple[str, ...]

    def __post_init__(self) -> None:
        """Keep the templates as a tuple."""
        super().__post_init__()
        object.__setattr__(self, "choices", tuple(self.choices))

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the row."""
        prompt, choices = _filled(self.template, record), self._choices(record)
        yield {
            "prompt": prompt,
            "question": prompt,
            "choices": choices,
            "answer": self._index(record, choices),
        }

    def _choices(self, record: Record) -> list[str]:
        if len(self.choices) == 1:
            names = _names(self.choices[0])
            if len(names) == 1 and self.choices[0] == f"{{{names[0]}}}":
                return record.texts(names[0])
        return [_filled(template, record) for template in self.choices]

    def _index(self, record: Record, choices: list[str]) -> int:
        value = record[self.answer]
        if isinstance(value, str) and value in choices:
            return choices.index(value)
        return record.index(self.answer, range(len(choices)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OwnAnswer(_Own, OpenAnswer):
    """A task of writing; the answer ends with its line."""

    stop = ("\n",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match."""
        return (ExactMatch(),)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the row."""
        prompt = _filled(self.template, record)
        value = record[self.answer]
        references = record.texts(self.answer) if isinstance(value, (list, tuple)) else [str(value)]
        yield {"prompt": prompt, "question": prompt, "references": references}


def _names(template: str) -> list[str]:
    """Return the names in braces.

    Raises:
        UserError: The template is malformed.
    """
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            f"The template {template!r} is malformed: {error}.", hint="Double a brace that is text."
        ) from None


def _filled(template: str, record: Record) -> str:
    """Return a template with the values of a row."""
    names = _names(template)
    for name in names:
        if name not in record.values:
            raise DataError(
                f"The template {template!r} names the column {name!r}, which the row has not.",
                where=record.where,
                hint=nearest(name, map(str, record.values)),
            )
    return template.format(**{name: record[name] for name in names})
