"""Odds-ratio preference optimization: supervised fine-tuning on the chosen answers that also favours them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nbllm.finetuning.alignment.log_probabilities import next_tokens
from nbllm.finetuning.alignment.pairwise import SIDES, Answers, PairMethod, PairObjective, all_tokens
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Rows
from nbllm.objectives.measures import measure
from nbllm.runs.settings import Setting


@OBJECTIVES.register("orpo")
class OddsRatioPreference(PairObjective):
    """The cross-entropy of the chosen texts, and beta times the negative log-sigmoid of the log-odds ratio.

    As in the published code, the cross-entropy is that of prompt and answer, and the odds are of the mean
    log-probability of an answer's tokens. So that the loss is a sum over pairs, which adds up over batches, a pair's
    cross-entropy is divided by the mean length of all chosen texts of the data; over the whole data that is the mean
    over tokens.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """

    uses_reference = False
    metrics: ClassVar[tuple[str, ...]] = (*PairObjective.metrics[:-1], "chosen_nll")
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(name="beta", low=0.0, high=100.0, default=0.1, help="What the odds ratio counts."),
    )

    def batch(self, windows: Rows, rng: Any) -> Batch:
        """Return the batch of the base, and "answer", (pair, 2, position), whether a target is of the answer."""
        made = dict(super().batch(windows, rng))
        longest = max(int(windows[f"{side}_length"].max()) for side in SIDES)
        own = next_tokens(windows["chosen"], windows["chosen_targets"], longest)[1]
        answer = made["targets"] != IGNORED
        answer[:, 0] = torch.from_numpy(own != IGNORED)
        return made | {"answer": answer}

    def targets(self, windows: Rows, side: str) -> Any:
        """Return all tokens of the chosen text, and of the rejected one the answer."""
        return all_tokens(windows, side) if side == "chosen" else super().targets(windows, side)

    def losses(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair, and beta times the mean log-probabilities."""
        batch, beta = answers.batch, self.values["beta"]
        each = answers.tokens.each.unflatten(0, batch["answer"].shape[:2])
        means = (each * batch["answer"]).sum(-1) / batch["answer"].sum(-1).clamp(min=1)
        odds = means - log1mexp(means)
        nll = -each[:, 0].sum(-1) / batch["mean_length"]
        measure("chosen_nll", (nll.detach() * batch["weight"]).sum(), batch["weight"].sum())
        return nll - beta * F.logsigmoid(odds[:, 0] - odds[:, 1]), beta * means


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, exact at both ends; at 0 that of the largest probability below 1.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # Each branch sees only values for which its gradient is finite.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


@METHODS.register("orpo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPO(PairMethod):
    """Odds-ratio preference optimization of pairs; setting beta."""

    objective: ClassVar[str] = "orpo"
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 8e-6)
