"""The arguments of `nb.finetune` that all methods share which train a policy on its own answers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.finetuning.alignment.prompts import PreparedPrompts, prepare_prompts, prompts_in
from nbllm.finetuning.alignment.rewards import name_of
from nbllm.finetuning.method import Method

if TYPE_CHECKING:
    from nbllm.data.sample_store import SampleStore
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig

SHOWN = 2  # prompts that samples answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyMethod(Method):
    """Base of the methods that learn from a reward.

    Args:
        reward: A function of a prompt and an answer that returns a number; its further parameters are given the
            fields of the prompt's example by name. Or the name of one in `nbllm.finetuning.REWARDS`; or a reward model,
            its folder, or the run that trains it (`method="reward"`).

    Raises:
        UserError: It is missing, or no such thing.
    """

    reward: Any = None

    def __post_init__(self) -> None:
        """Refuse a run without a reward."""
        if self.reward is None:
            raise UserError(
                "There is no reward to learn from.",
                hint="reward=lambda prompt, answer: float(len(answer) < 80)",
            )

    def options(self) -> dict[str, Any]:
        """Return what the run records: the reward's name."""
        return {"reward": name_of(self.reward)}

    def sample_prompts(self, store: SampleStore, lm: LM) -> tuple[str, ...]:
        """Return the first prompts, which the samples answer beside the reference."""
        shown = store.take(list(range(min(SHOWN, store.num_rows))))
        return tuple(
            str(lm.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
            for _, tokens, _ in prompts_in(shown)
        )

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> PreparedPrompts:
        """Make rows of prompts; errors as `prepare_prompts`."""
        lm.causal_network_for("generate")
        return prepare_prompts(
            data, lm.tokenizer, end_tokens=lm.end_tokens, length=config.sequence_length,
            max_new_tokens=int(config.objective_settings["max_new_tokens"]),
        )  # fmt: skip
