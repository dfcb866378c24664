"""How much text enters and leaves each step, and which rule removed how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from nbllm.data.pipeline.step import Step


@dataclasses.dataclass(frozen=True)
class Amount:
    """An amount of text.

    Attributes:
        documents: Number of documents.
        bytes: Of their UTF-8.
        tokens: As counted by a tokenizer, or an estimate (`nbllm.data.pipeline.tokens`).
    """

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.documents - other.documents, self.bytes - other.bytes, self.tokens - other.tokens)


@dataclasses.dataclass(frozen=True)
class RuleCount:
    """What one rule removed.

    Attributes:
        kind: "document", "line" or "span".
        hits: Documents that break the rule, each counted at every rule that it breaks; or lines or spans removed.
        removed: Documents of which this is the first rule broken, with their bytes and tokens; of lines and spans
            their bytes.
    """

    kind: str
    hits: int = 0
    removed: Amount = Amount()

    def __add__(self, other: RuleCount) -> RuleCount:
        assert self.kind == other.kind
        return RuleCount(self.kind, self.hits + other.hits, self.removed + other.removed)


@dataclasses.dataclass(frozen=True)
class StepCount:
    """What one step did.

    Attributes:
        step: Its name.
        entered: What came in.
        left: What went out.
        added: Bytes of replacements.
        rules: What each rule removed.
    """

    step: str
    entered: Amount = Amount()
    left: Amount = Amount()
    added: int = 0
    rules: Mapping[str, RuleCount] = dataclasses.field(default_factory=dict)

    @classmethod
    def zero(cls, step: Step) -> Self:
        """Return the count of a step that has seen nothing."""
        return cls(step.title, rules={rule.name: RuleCount(rule.kind) for rule in step.rules})

    def __add__(self, other: StepCount) -> StepCount:
        assert self.step == other.step and list(self.rules) == list(other.rules)
        return StepCount(
            self.step,
            self.entered + other.entered,
            self.left + other.left,
            self.added + other.added,
            {name: count + other.rules[name] for name, count in self.rules.items()},
        )

    @property
    def balances(self) -> bool:
        """Whether what came in is what went out and what was removed: documents and bytes exactly.

        Tokens are counted again where a text was edited, and cut text may end within one.
        """
        removed = sum((count.removed for count in self.rules.values()), Amount())
        return (
            self.entered.documents == self.left.documents + removed.documents
            and self.entered.bytes + self.added == self.left.bytes + removed.bytes
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Return the count that `dataclasses.asdict` made a dictionary of."""
        rules = {
            name: RuleCount(rule["kind"], rule["hits"], Amount(**rule["removed"]))
            for name, rule in value["rules"].items()
        }
        return cls(value["step"], Amount(**value["entered"]), Amount(**value["left"]), value["added"], rules)
