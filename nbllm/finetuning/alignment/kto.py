"""Kahneman-Tversky optimization: learning from single answers, each of which is good or not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nbllm.finetuning.alignment.dpo import BETA
from nbllm.finetuning.alignment.log_probabilities import log_probabilities, next_tokens
from nbllm.finetuning.alignment.preference_rows import prepare_verdicts
from nbllm.finetuning.method import METHODS, Method, Prepared
from nbllm.objectives.base import OBJECTIVES, Batch, Objective, Rows
from nbllm.objectives.causal_lm import HiddenAndHead
from nbllm.objectives.measures import measure
from nbllm.runs.settings import Setting

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig


@OBJECTIVES.register("kto")
class KahnemanTversky(Objective[HiddenAndHead]):
    """1 less the value of an answer's log-ratio to a human, from the policy's divergence as the reference point.

    The divergence is estimated from the batch's prompts with answers to others, without gradient, and is at least 0: a
    batch should have several rows. Counted are the answers.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    """

    needs = "score"
    only_examples = True
    one_pass: ClassVar[bool] = False  # the answers of other prompts are read too
    metrics: ClassVar[tuple[str, ...]] = ("reward_chosen", "reward_rejected", "reward_accuracy", "kl")
    settings: ClassVar[tuple[Setting, ...]] = (
        BETA,
        Setting(name="desirable_weight", low=0.0, high=100.0, default=1.0, help="What a good answer counts."),
        Setting(name="undesirable_weight", low=0.0, high=100.0, default=1.0, help="What a bad one counts."),
    )

    def batch(self, windows: Rows, rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets" of the answers, "other_inputs" and "other_targets", (row, position), and more.

        Args:
            windows: Columns of `preference_rows.prepare_verdicts`.
            rng: Nothing is drawn.
        """
        made = {name: windows[name] for name in ("desirable", "reference_answer", "reference_other")}
        for name, prefix in (("answer", ""), ("other", "other_")):
            longest = int(windows[f"{name}_length"].max())
            both = next_tokens(windows[name], windows[f"{name}_targets"], longest)
            made[f"{prefix}inputs"], made[f"{prefix}targets"] = both
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()}

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, int]:
        """Return the loss summed over answers, and their number."""
        values, desirable = self.values, batch["desirable"]
        with torch.no_grad():
            others = log_probabilities(network, batch["other_inputs"], batch["other_targets"]).sums()
            kl = (others - batch["reference_other"]).mean().clamp(min=0)
        sums = log_probabilities(network, batch["inputs"], batch["targets"]).sums()
        log_ratios = sums - batch["reference_answer"]
        sign = 2 * desirable - 1
        weights = torch.where(desirable > 0, values["desirable_weight"], values["undesirable_weight"])
        losses = weights * (1 - torch.sigmoid(values["beta"] * sign * (log_ratios - kl)))
        rewards = values["beta"] * log_ratios.detach()
        measure("reward_chosen", (rewards * desirable).sum(), desirable.sum())
        measure("reward_rejected", (rewards * (1 - desirable)).sum(), (1 - desirable).sum())
        measure("reward_accuracy", (sign * (log_ratios.detach() - kl) > 0).sum(), len(sign))
        measure("kl", kl * len(sign), len(sign))
        return losses.sum(), len(losses)


@METHODS.register("kto")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KTO(Method):
    """Kahneman-Tversky optimization of labels or pairs; settings beta, desirable_weight and undesirable_weight."""

    objective: ClassVar[str] = "kto"
    learning_rates: ClassVar[tuple[float, float]] = (2e-5, 1e-6)

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of labelled answers; errors as `prepare_verdicts`."""
        return prepare_verdicts(data, lm, config)
