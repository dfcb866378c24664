"""The task "gsm8k": word problems of grade-school mathematics, whose answer is a number."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.strict_accuracy import StrictAccuracy
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer

_MARKED = re.compile(r"(?:####|\bA:)\s*(-?\$?-?[0-9][0-9.,]*)")
_NUMBER = re.compile(r"-?\$?-?(?:[0-9][0-9.,]*|\.[0-9]+)")


@TASKS.register("gsm8k")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm8k(OpenAnswer):
    """Word problems. The model writes a solution, and the number that it ends with is compared as a number.

    Strict: the last number after "####", as solutions of the data end ("A:" in the published example solutions).
    Flexible: that one, or else the last number of the text. A text without any is wrong.

    Data: the columns question and answer, whose last line is "#### " and a number, or "openai/gsm8k".

    Args:
        chain_of_thought: Whether the prompt ends with "Let's think step by step." (Kojima et al. 2022).

    Source: Cobbe et al. 2021, arXiv:2110.14168.
    """

    name = "gsm8k"
    label = "GSM8K"
    unit = "problems"
    layout = Layout("gsm8k", ("test",), ("train",), subset="main")
    stop = ("Question:",)

    chain_of_thought: bool = False
    max_new_tokens: int = 256

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy of the flexible extraction, and of the strict one."""
        return Accuracy(), StrictAccuracy()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a problem with its solution."""
        solution = record.text("answer")
        if strict_number(solution) is None:
            raise DataError("The answer does not end with '#### ' and a number.", where=record.where)
        yield {"question": record.text("question"), "references": [solution]}

    def question(self, item: Item) -> str:
        """Return the problem."""
        step = " Let's think step by step." if self.chain_of_thought else ""
        return f"Question: {item['question']}\nAnswer:{step}"

    def judged(self, written: str, references: Sequence[str]) -> Row:
        """Return whether the number is right, by both extractions."""
        gold = strict_number(references[0])
        strict, flexible = strict_number(written), flexible_number(written)
        return {
            "expected": str(gold),
            "predicted": "" if flexible is None else str(flexible),
            "correct": float(flexible is not None and flexible == gold),
            "correct_strict": float(strict is not None and strict == gold),
        }


def strict_number(text: str) -> Decimal | None:
    """Return the last number after "####" or "A:"; `None` where there is none."""
    return _last(_MARKED.findall(text))


def flexible_number(text: str) -> Decimal | None:
    """Return the strict number, or else the last number of a text; `None` where there is none."""
    strict = strict_number(text)
    return _last(_NUMBER.findall(text)) if strict is None else strict


def _last(found: Sequence[str]) -> Decimal | None:
    for each in reversed(found):
        try:
            return Decimal(each.replace(",", "").replace("$", "").rstrip("."))
        except InvalidOperation:
            continue
    return None
