"""What all methods share that train a policy on its own answers: how probable these are, and what is reported."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.finetuning.alignment.kl import ESTIMATORS, adapted_coefficient
from nbllm.finetuning.alignment.prompts import prompts_in
from nbllm.finetuning.alignment.reference import Reference
from nbllm.finetuning.alignment.rewards import reward_named
from nbllm.finetuning.alignment.rollout_stepper import RolloutStepper
from nbllm.finetuning.alignment.rollouts import sample_answers
from nbllm.nn.linear_log_probabilities import linear_log_probabilities
from nbllm.objectives.base import Batch, Objective, Rows
from nbllm.objectives.measures import measure
from nbllm.runs.settings import Setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.finetuning.alignment.rewards import Reward
    from nbllm.finetuning.alignment.rollouts import Answers
    from nbllm.models.network import CausalNetwork
    from nbllm.training.optim import Optimizer


class Evaluated(NamedTuple):
    """Answers as a network sees them.

    Attributes:
        log_probs: (sequence, token) of each token of the answers; 0 at padding.
        entropies: (sequence, token) of the distribution that each was drawn from, without gradient; 0 at padding.
        hidden: (real token, hidden) what the head read, the tokens of the first answer before those of the next.
    """

    log_probs: Float[Tensor, "sequence token"]
    entropies: Float[Tensor, "sequence token"]
    hidden: Float[Tensor, "real hidden"]


def evaluate(network: CausalNetwork, batch: Batch, temperature: float) -> Evaluated:
    """Return how probable a network finds the answers of a batch, at the temperature at which they are drawn.

    Args:
        network: The network.
        batch: "inputs", "starts", "answers" and "mask", as `rollouts.Answers.to_batch` makes them.
        temperature: Divides the logits.
    """
    mask = batch["mask"]
    rows, columns = mask.nonzero(as_tuple=True)
    hidden = network.hidden(batch["inputs"])[rows, batch["starts"][rows] - 1 + columns]
    log_probs, entropies = linear_log_probabilities(
        hidden, network.head_weight, batch["answers"][rows, columns],
        bias=network.head_bias, softcap=network.logit_softcap, temperature=temperature,
    )  # fmt: skip
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return Evaluated(
        zeros.index_put((rows, columns), log_probs), zeros.index_put((rows, columns), entropies), hidden
    )


class PolicyObjective(Objective["CausalNetwork"]):
    """Base of the objectives that train on sampled answers and their rewards; one step of the loop is one iteration.

    An iteration samples answers with the policy as it is (`rollout_stepper`), scores them, computes advantages
    (`advantages`), and takes one or several optimizer steps on `loss`.

    The networks of this package drop nothing out, so that policy, sampler and reference are the same function at the
    same weights; and the sampler draws from the very distribution that is trained, at one temperature.

    Attributes:
        reference: The policy that the run began with.
        kl_estimator: By which the divergence from the reference is estimated: "k1" or "k3".
    """

    needs = "generate"
    loss_unit = ""
    only_examples = True
    stepper = RolloutStepper
    kl_estimator: ClassVar[str] = "k1"
    metrics: ClassVar[tuple[str, ...]] = (
        "reward", "kl", "entropy", "clip_fraction", "length", "ended", "kl_coefficient",
    )  # fmt: skip
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            name="kl_coefficient", low=0.0, high=1e3, default=0.05,
            help="What a nat of divergence from the reference costs; 0: nothing, and it is not measured.",
        ),
        Setting(
            name="kl_target", low=0.0, high=1e6, default=0.0, unit="nats",
            help="The divergence of an answer that the coefficient is adapted to; 0: it stays as it is.",
        ),
        Setting(name="clip_range", low=0.0, low_open=True, high=10.0, default=0.2, help="How far a ratio may leave 1."),
        Setting(
            name="temperature", low=1e-3, high=1e3, default=1.0, help="Divides the logits, in sampling and training."
        ),
        Setting(
            name="missing_end_penalty", low=0.0, high=1e6, default=0.0,
            help="What is taken from the score of an answer that was cut.",
        ),
    )  # fmt: skip
    options: ClassVar[Mapping[str, str | float | bool]] = {
        "reward": "",
        "prompts": 8,
        "samples": 4,
        "max_new_tokens": 64,
        "updates": 1,
        "minibatches": 1,
        "kl_horizon": 10_000.0,
        "normalize_reward": False,
    }

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        self.tokenizer = tokenizer
        self.reference: Reference | None = None
        self.reward_scale: tuple[float, float] | None = None  # mean and deviation on the reference's answers
        self._reward: Reward | None = None

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer."""
        return cls(tokenizer)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set what the next iteration is computed with.

        Raises:
            UserError: A count is below 1, or the answers cannot be shared among the minibatches.
        """
        for name in ("prompts", "samples", "max_new_tokens", "updates", "minibatches"):
            if values[name] < 1:
                raise UserError(f"{name} must be at least 1, not {values[name]!r}.")
        if values["minibatches"] > values["prompts"] * values["samples"]:
            raise UserError(f"There are fewer answers than the {values['minibatches']} minibatches.")
        super().configure(values)

    # -- state ---------------------------------------------------------------------------------------------------

    def begin_with(self, network: CausalNetwork) -> None:
        """Keep the network as the reference."""
        self.reference = Reference(network)
        self.reward_scale = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the reference's own values, and how rewards are normalized."""
        assert self.reference is not None
        held = {f"reference.{name}": value for name, value in self.reference.tensors().items()}
        if self.reward_scale is not None:
            held["reward_scale"] = torch.tensor(self.reward_scale, dtype=torch.float64)
        return held

    def load_state_tensors(self, tensors: Mapping[str, Tensor], network: CausalNetwork) -> None:
        """Put back what `state_tensors` returned."""
        self.reference = Reference(network, _named(tensors, "reference."))
        scale = tensors.get("reward_scale")
        self.reward_scale = None if scale is None else (float(scale[0]), float(scale[1]))

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers of modules that this objective has beside the network."""
        return []

    def configure_optimizers(self, factor: float) -> None:
        """Set what these use in the next step; `factor` is what the schedule multiplies learning rates by."""

    def compared_with(self) -> AbstractContextManager[None]:
        """Return a context in which the network is the reference."""
        assert self.reference is not None
        return self.reference.active()

    # -- an iteration --------------------------------------------------------------------------------------------

    @property
    def compares(self) -> bool:
        """Whether the reference is needed: where the divergence costs something."""
        return bool(self.values["kl_coefficient"] > 0)

    @property
    def is_on_policy(self) -> bool:
        """Whether each answer is trained on once, by the policy that sampled it: the ratio is then 1."""
        return bool(self.values["updates"] == 1 and self.values["minibatches"] == 1)

    @property
    def needs_old(self) -> bool:
        """Whether the log-probabilities of the policy that sampled are needed before the first update."""
        return not self.is_on_policy

    def adapted(self, kl: float, num_sequences: int) -> float:
        """Return the coefficient of the divergence for the next step, where it has a target; else as it is."""
        values = self.values
        if not values["kl_target"] or not self.compares:
            return float(values["kl_coefficient"])
        return adapted_coefficient(
            values["kl_coefficient"], kl, target=values["kl_target"], horizon=values["kl_horizon"],
            num_sequences=num_sequences,
        )  # fmt: skip

    def seen(self, network: CausalNetwork, batch: Batch) -> Evaluated:
        """Return how a network sees answers, at the temperature at which they are drawn."""
        return evaluate(network, batch, self.values["temperature"])

    def observe(self, network: CausalNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return what must be known of answers before the first update, by the policy that sampled them.

        Args:
            network: The policy.
            batch: Some answers.

        Returns:
            (sequence, token) each: "old" log-probabilities, and what a method adds.
        """
        return {"old": self.seen(network, batch).log_probs}

    @abstractmethod
    def advantages(self, batch: Batch, scores: Float[Tensor, " sequence"]) -> dict[str, Tensor]:
        """Return what the loss needs besides, such as "advantages", from the scores of all answers of an iteration.

        Args:
            batch: All answers, with "old" where it is needed, and "reference" where the divergence costs something.
            scores: Of the answers.
        """

    def sample(self, network: CausalNetwork, rows: Mapping[str, NDArray[Any]], seed: int) -> Answers:
        """Return answers to the prompts in some rows."""
        values = self.values
        return sample_answers(
            network, self.tokenizer, prompts_in(rows), samples=int(values["samples"]),
            max_new_tokens=int(values["max_new_tokens"]), temperature=float(values["temperature"]), seed=seed,
        )  # fmt: skip

    def score(self, answers: Answers) -> Float[Tensor, " sequence"]:
        """Return the reward of each answer, as the reward function or model gives it; errors as `reward_named`."""
        if self._reward is None:
            self._reward = reward_named(str(self.values["reward"]))
        return self._reward(answers)

    def report(self, answers: Answers, rewards: Float[Tensor, " sequence"]) -> None:
        """Report the mean reward, the tokens of an answer, and the share of answers that ended."""
        measure("reward", rewards.sum(), len(answers))
        measure("length", sum(map(len, answers.tokens)), len(answers))
        measure("ended", sum(answers.ended), len(answers))

    # -- held-out prompts ----------------------------------------------------------------------------------------

    def batch(self, windows: Rows, rng: np.random.Generator) -> Batch:
        """Return rows of held-out prompts, and the "seed" by which answers to them are sampled."""
        seed = np.full(len(windows["lengths"]), rng.integers(2**31))
        return {name: torch.from_numpy(np.asarray(each)) for name, each in {**windows, "seed": seed}.items()}

    def loss(self, network: CausalNetwork, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss of a batch of answers; of held-out prompts, the negative reward of answers to them."""
        if "answers" in batch:
            return self.loss_of_answers(network, batch)
        rows = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
        answers = self.sample(network, rows, int(rows["seed"][0]))
        rewards = self.score(answers)
        self.report(answers, rewards)
        return -rewards.sum(), len(answers)

    @abstractmethod
    def loss_of_answers(self, network: CausalNetwork, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss of answers with what `observe` and `advantages` returned, as `Objective.loss` does."""


def reported_kl(batch: Batch, estimator: str) -> Float[Tensor, "sequence token"]:
    """Return the estimated divergence at each token of the answers as they were sampled, 0 at padding; report it.

    What is reported as "kl" is the mean over answers of the sum of just these.

    Args:
        batch: With "old", "reference" and "mask".
        estimator: A name in `kl.ESTIMATORS`.
    """
    kl: Tensor = ESTIMATORS[estimator](batch["old"] - batch["reference"]) * batch["mask"]
    measure("kl", kl.sum(), len(kl))
    return kl


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
