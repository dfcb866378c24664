"""Direct preference optimization: the policy is its own reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nbllm.finetuning.alignment.pairwise import Answers, PairMethod, PairObjective
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES
from nbllm.runs.settings import Setting

BETA = Setting(
    name="beta", low=0.0, low_open=True, high=100.0, default=0.1,
    help="How strongly the policy is held to the reference.",
)  # fmt: skip


@OBJECTIVES.register("dpo")
class DirectPreference(PairObjective):
    """The negative log-likelihood of the preferences, where beta * log(policy / reference) is an answer's reward.

    With label_smoothing, so many of the preferences are taken to be wrong: the loss is that expected (cDPO), or with
    robust=True the one that is unbiased by them (robust DPO).

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, "A note on DPO with noisy preferences";
        Chowdhury et al. 2024, arXiv:2403.00409, eq. 12.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        BETA,
        Setting(
            name="label_smoothing", low=0.0, high=0.5, high_open=True, default=0.0,
            help="The share of preferences that are taken to be wrong.",
        ),
    )  # fmt: skip
    options: ClassVar[Mapping[str, str | float | bool]] = {"robust": False}

    def losses(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair, and its rewards."""
        assert answers.log_ratios is not None
        rewards = self.values["beta"] * answers.log_ratios
        margin = rewards[:, 0] - rewards[:, 1]
        return preference_loss(margin, self.values["label_smoothing"], robust=self.values["robust"]), rewards


def preference_loss(margin: Tensor, label_smoothing: float = 0.0, *, robust: bool = False) -> Tensor:
    """Return the negative log-likelihood of each preference under Bradley and Terry's model.

    Args:
        margin: (pair,) the chosen answer's reward less the rejected one's.
        label_smoothing: The share of preferences that are taken to be wrong.
        robust: Whether the loss is unbiased by these, instead of that expected.
    """
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    if robust:
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * wrong


@METHODS.register("dpo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(PairMethod):
    """Direct preference optimization of pairs; settings beta, label_smoothing and robust."""

    objective: ClassVar[str] = "dpo"
