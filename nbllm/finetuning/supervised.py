"""Supervised fine-tuning: the model learns to answer as the examples do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from nbllm.core.config import check_choice
from nbllm.finetuning.method import METHODS, Method
from nbllm.finetuning.preparing import Prepared, prepare
from nbllm.finetuning.tokens import TRAIN_ON

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig


@METHODS.register("sft")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Supervised fine-tuning on conversations, instructions, completions or texts.

    Args:
        train_on: "assistant": what the assistant says in all turns; "answer": in the last; "everything".
    """

    objective: ClassVar[str] = "sft"

    train_on: str = "assistant"

    def __post_init__(self) -> None:
        """Check the choice."""
        check_choice(self, "train_on", TRAIN_ON)

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of examples; errors as `nbllm.finetuning.preparing.prepare`."""
        network = lm.causal_network_for("score")
        return prepare(
            data, lm.tokenizer, length=config.sequence_length, train_on=self.train_on, pack=network.takes_mask
        )
