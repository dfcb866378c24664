"""Simple preference optimization: the average log-probability is the reward, and there is no reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from nbllm.finetuning.alignment.dpo import preference_loss
from nbllm.finetuning.alignment.pairwise import Answers, PairMethod, PairObjective
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES
from nbllm.runs.settings import Setting


@OBJECTIVES.register("simpo")
class SimplePreference(PairObjective):
    """The negative log-likelihood of the preferences, where beta * the mean log-probability is an answer's reward.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """

    uses_reference = False
    metrics: ClassVar[tuple[str, ...]] = PairObjective.metrics[:-1]  # no divergence without a reference
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            name="beta", low=0.0, low_open=True, high=100.0, default=2.0, help="What a nat a token is worth."
        ),
        Setting(
            name="gamma", low=0.0, high=100.0, default=1.0,
            help="By how much the chosen answer's reward is to be higher.",
        ),
    )  # fmt: skip

    def losses(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair, and its rewards."""
        rewards = self.values["beta"] * answers.means
        return preference_loss(rewards[:, 0] - rewards[:, 1] - self.values["gamma"]), rewards


@METHODS.register("simpo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPO(PairMethod):
    """Simple preference optimization of pairs; settings beta and gamma."""

    objective: ClassVar[str] = "simpo"
