"""What all methods share that learn from pairs of answers without a reward model."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.finetuning.alignment.log_probabilities import TokenLogProbabilities, log_probabilities, next_tokens
from nbllm.finetuning.alignment.preference_rows import prepare_pairs
from nbllm.finetuning.method import Method, Prepared
from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective, Rows
from nbllm.objectives.causal_lm import HiddenAndHead
from nbllm.objectives.measures import measure

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig

SIDES = ("chosen", "rejected")


class Answers(NamedTuple):
    """The answers of a batch of pairs as the policy sees them, the chosen ones first.

    Attributes:
        sums: (pair, 2) log-probabilities.
        means: (pair, 2) those of their tokens on average.
        lengths: (pair, 2) numbers of tokens; at least 1.
        log_ratios: (pair, 2) log-probabilities less those of the reference; of none where there is no reference.
        tokens: All log-probabilities, (2 * pair, position).
        batch: The batch.
    """

    sums: Float[Tensor, "pair 2"]
    means: Float[Tensor, "pair 2"]
    lengths: Float[Tensor, "pair 2"]
    log_ratios: Float[Tensor, "pair 2"] | None
    tokens: TokenLogProbabilities
    batch: Batch


class PairObjective(Objective[HiddenAndHead]):
    """Base of the losses on pairs of answers; a subclass says what the loss of each pair is.

    The loss is summed over pairs, each times its weight, and counted are the weights. `reward_...` are the rewards that
    the policy stands for, as each method defines them; `reward_accuracy` is the share of pairs whose chosen answer has
    the higher one; `kl` is half the square of the chosen answers' log-ratio, which where they are likely under the
    reference is the policy's divergence from it to second order (Schulman's k2).

    Attributes:
        uses_reference: Whether rows hold log-probabilities of a reference.
    """

    needs = "score"
    only_examples = True
    uses_reference: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy", "kl",
    )  # fmt: skip

    def batch(self, windows: Rows, rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", (pair, 2, position), and the columns with a value for each pair.

        Args:
            windows: Columns of `preference_rows.prepare_pairs`.
            rng: Nothing is drawn.
        """
        longest = max(int(windows[f"{side}_length"].max()) for side in SIDES)
        tokens = np.stack([windows[side] for side in SIDES], 1)
        targets = np.stack([self.targets(windows, side) for side in SIDES], 1)
        made: dict[str, Any] = dict(
            zip(("inputs", "targets"), next_tokens(tokens, targets, longest), strict=True)
        )
        made |= {name: windows[name] for name in ("margin", "weight", "mean_length")}
        if self.uses_reference:
            made["reference"] = np.stack([windows[f"reference_{side}"] for side in SIDES], 1)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()}

    def targets(self, windows: Rows, side: str) -> Any:
        """Return what is to be predicted of a side, (pair, position), each token at its own place."""
        return windows[f"{side}_targets"]

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss summed over the pairs times their weights, and the sum of these."""
        answers = self.answers(network, batch)
        losses, rewards = self.losses(answers)
        weight = batch["weight"]
        self.report(answers, rewards.detach())
        return (losses * weight).sum(), float(weight.sum())

    def answers(self, network: HiddenAndHead, batch: Batch) -> Answers:
        """Return how probable the network finds the answers of a batch."""
        shape = batch["targets"].shape[:2]
        found = log_probabilities(network, *(batch[name].flatten(0, 1) for name in ("inputs", "targets")))
        sums = found.sums().unflatten(0, shape)
        return Answers(
            sums,
            found.means().unflatten(0, shape),
            found.counted.sum(-1).clamp(min=1).float().unflatten(0, shape),
            sums - batch["reference"] if self.uses_reference else None,
            found,
            batch,
        )

    @abstractmethod
    def losses(self, answers: Answers) -> tuple[Float[Tensor, " pair"], Float[Tensor, "pair 2"]]:
        """Return the loss of each pair, and the rewards of both of its answers."""

    def report(self, answers: Answers, rewards: Float[Tensor, "pair 2"]) -> None:
        """Measure rewards, their margin and accuracy, and the divergence from the reference."""
        weight = answers.batch["weight"]
        margin = rewards[:, 0] - rewards[:, 1]
        figures = {
            "reward_chosen": rewards[:, 0], "reward_rejected": rewards[:, 1], "reward_margin": margin,
            "reward_accuracy": (margin > 0).float(),
        }  # fmt: skip
        if answers.log_ratios is not None:
            figures["kl"] = answers.log_ratios[:, 0].detach().square() / 2
        for name, values in figures.items():
            measure(name, (values * weight).sum(), weight.sum())


class PairMethod(Method):
    """Base of the methods whose objective is a `PairObjective`."""

    learning_rates: ClassVar[tuple[float, float]] = (2e-5, 1e-6)

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of pairs; errors as `prepare_pairs`."""
        kind = OBJECTIVES[self.objective]
        assert issubclass(kind, PairObjective)
        return prepare_pairs(data, lm, config, reference=kind.uses_reference)


def all_tokens(windows: Rows, side: str) -> Any:
    """Return the tokens of a side as targets, prompt and answer, for losses that learn both."""
    places = np.arange(windows[side].shape[1])
    return np.where(places < windows[f"{side}_length"][:, None], windows[side], IGNORED)
