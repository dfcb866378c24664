"""Proximal policy optimization from a reward, as in RLHF."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.finetuning.alignment.advantages import generalized_advantages, token_rewards, whitened
from nbllm.finetuning.alignment.policy import PolicyObjective, reported_kl
from nbllm.finetuning.alignment.policy_loss import averaged, clipped_surrogate, value_loss
from nbllm.finetuning.alignment.policy_method import PolicyMethod
from nbllm.finetuning.alignment.value_head import ValueHead
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.measures import measure
from nbllm.runs.settings import Setting

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork
    from nbllm.training.optim import Optimizer


@OBJECTIVES.register("ppo")
class PPO(PolicyObjective):
    """PPO with a value head on the policy's own hidden states.

    The reward of a token is the score of the answer at its last token, less `kl_coefficient` times the log-ratio of
    policy and reference at each; advantages are generalized (gamma 1, lambda .95) and whitened over the tokens of
    answers; ratio and values are clipped.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.4; Schulman et al. 2017,
        arXiv:1707.06347; Huang et al. 2023, "The N Implementation Details of RLHF with PPO".
    """

    metrics: ClassVar[tuple[str, ...]] = (*PolicyObjective.metrics, "value_loss")
    settings: ClassVar[tuple[Setting, ...]] = (
        *PolicyObjective.settings,
        Setting(
            name="value_clip_range", low=0.0, low_open=True, high=1e6, default=0.2,
            help="How far a value may leave the one at sampling.",
        ),
        Setting(name="value_coefficient", low=0.0, high=1e3, default=0.1, help="What the value's loss counts."),
        Setting(name="value_lr", low=0.0, high=1.0, default=1e-3, help="Peak learning rate of the value head."),
    )  # fmt: skip
    options: ClassVar[Mapping[str, str | float | bool]] = {
        **PolicyObjective.options,
        "prompts": 32,
        "samples": 1,
        "updates": 4,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten": True,
        "normalize_reward": True,
    }
    head: ValueHead

    def begin_with(self, network: CausalNetwork) -> None:
        """Keep the network as the reference, and make a value head that expects nothing."""
        super().begin_with(network)
        self.head = ValueHead(network)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state of all methods, and the value head's."""
        own = {f"value.{name}": tensor for name, tensor in self.head.state_tensors().items()}
        return {**super().state_tensors(), **own}

    def load_state_tensors(self, tensors: Mapping[str, Tensor], network: CausalNetwork) -> None:
        """Put back what `state_tensors` returned."""
        super().load_state_tensors(tensors, network)
        self.head = ValueHead(network)
        self.head.load_state_tensors(
            {name.removeprefix("value."): each for name, each in tensors.items() if name.startswith("value.")}
        )

    def optimizers(self) -> list[Optimizer]:
        """Return the value head's optimizer."""
        return [self.head.optimizer]

    def configure_optimizers(self, factor: float) -> None:
        """Set the value head's learning rate; `factor` is the schedule's."""
        self.head.configure(factor * self.values["value_lr"])

    @property
    def needs_old(self) -> bool:
        """Values and divergence are needed before the first update."""
        return True

    def observe(self, network: CausalNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the log-probability and the value of each token."""
        seen = self.seen(network, batch)
        return {"old": seen.log_probs, "values": self.head(seen.hidden, batch["mask"])}

    def advantages(self, batch: Batch, scores: Float[Tensor, " sequence"]) -> dict[str, Tensor]:
        """Return "advantages" and "returns" of each token."""
        values, mask = self.values, batch["mask"]
        kl = reported_kl(batch, self.kl_estimator) if self.compares else torch.zeros_like(batch["old"])
        rewards = token_rewards(scores, kl, mask, coefficient=values["kl_coefficient"])
        advantages, returns = generalized_advantages(
            rewards, batch["values"], mask, gamma=values["gamma"], lam=values["lam"]
        )
        if values["whiten"]:
            advantages = whitened(advantages, mask)
        return {"advantages": advantages, "returns": returns}

    def loss_of_answers(self, network: CausalNetwork, batch: Batch) -> tuple[Tensor, float]:
        """Return the policy's loss and, times its coefficient, the value's, summed over tokens, and their number."""
        values, mask = self.values, batch["mask"]
        seen = self.seen(network, batch)
        losses, is_clipped = clipped_surrogate(
            seen.log_probs, batch["old"], batch["advantages"], clip=values["clip_range"]
        )
        of_values = value_loss(
            self.head(seen.hidden, mask), batch["values"], batch["returns"], clip=values["value_clip_range"]
        )
        tokens = int(mask.sum())
        measure("entropy", seen.entropies.sum(), tokens)
        measure("clip_fraction", (is_clipped & mask).sum(), tokens)
        measure("value_loss", (of_values * mask).sum(), tokens)
        return averaged(losses + values["value_coefficient"] * of_values, mask, over="token", longest=0)


@METHODS.register("ppo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOMethod(PolicyMethod):
    """PPO from a reward; its arguments are those of `PolicyMethod`."""

    objective: ClassVar[str] = "ppo"
