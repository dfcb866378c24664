"""Identity preference optimization: DPO that does not drive certain preferences to infinite rewards."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from nbllm.finetuning.alignment.dpo import BETA
from nbllm.finetuning.alignment.pairwise import Answers, PairMethod, PairObjective
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES
from nbllm.runs.settings import Setting


@OBJECTIVES.register("ipo")
class IdentityPreference(PairObjective):
    """The squared distance of the log-ratios' difference from 1 / (2 beta).

    Log-ratios are averages over the tokens of an answer, without which the loss would grow with its length; so the
    authors computed their results (huggingface.co/blog/pref-tuning), and so does trl.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; beta is their tau.
    """

    settings: ClassVar[tuple[Setting, ...]] = (BETA,)

    def losses(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair, and beta times the log-ratios."""
        assert answers.log_ratios is not None
        beta = self.values["beta"]
        means = answers.log_ratios / answers.lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * beta)).square(), beta * answers.log_ratios


@METHODS.register("ipo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class IPO(PairMethod):
    """Identity preference optimization of pairs; setting beta."""

    objective: ClassVar[str] = "ipo"
