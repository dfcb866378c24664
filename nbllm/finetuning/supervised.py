"""Supervised fine-tuning: the model learns to answer as the examples do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nbllm.core.config import check_choice
from nbllm.finetuning.method import METHODS, Method
from nbllm.finetuning.preparing import Prepared, prepare
from nbllm.finetuning.tokens import TRAIN_ON
from nbllm.inference.chat_templates import TEMPLATES, use_template

if TYPE_CHECKING:
    from nbllm.data.sample_store import SampleStore
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig


@METHODS.register("sft")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Supervised fine-tuning on conversations, instructions, completions or texts.

    Args:
        train_on: "assistant": what the assistant says in all turns; "answer": in the last; "everything".
        template: A chat template by name, "plain", "chatml", "alpaca" or "vicuna", which the model's tokenizer has from
            then on; None: its own, and where it has none, roles are plain words.
    """

    objective: ClassVar[str] = "sft"

    train_on: str = "assistant"
    template: str | None = None

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice(self, "train_on", TRAIN_ON)
        if self.template is not None:
            check_choice(self, "template", tuple(TEMPLATES))

    def objective_for(self, lm: LM) -> str:
        """Return the objective of decoders, or that of encoder-decoders."""
        return "sft_text_to_text" if _is_pair(lm) else self.objective

    def trained(self, lm: LM) -> LM:
        """Return the model, whose tokenizer has the template that is asked for."""
        if self.template is not None:
            use_template(lm.tokenizer, self.template)
        return lm

    def sample_prompts(self, store: SampleStore, lm: LM) -> tuple[str, ...]:
        """Return the questions of two examples, as the model is asked them."""
        prompts = []
        for row in range(min(2, store.num_rows)):
            inputs, targets, examples = (
                store.columns[name][row] for name in ("inputs", "targets", "examples")
            )
            trained = np.flatnonzero(targets >= 0)
            asked = inputs[examples >= 0] if _is_pair(lm) else inputs[: trained[0] + 1]
            prompts.append(str(lm.tokenizer.decode(asked.tolist(), skip_special_tokens=_is_pair(lm))))
        return tuple(prompts)

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of examples; errors as `nbllm.finetuning.preparing.prepare`."""
        pairs = _is_pair(lm)
        return prepare(
            data,
            lm.tokenizer,
            length=config.sequence_length,
            train_on=self.train_on,
            pack=not pairs and lm.causal_network_for("score").takes_mask,
            pairs=pairs,
        )


def _is_pair(lm: LM) -> bool:
    from nbllm.models.encoder_decoder import EncoderDecoder

    return isinstance(lm.model, EncoderDecoder)
