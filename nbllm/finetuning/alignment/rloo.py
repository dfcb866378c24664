"""REINFORCE with a leave-one-out baseline, from a reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from nbllm.finetuning.alignment.advantages import leave_one_out_advantages
from nbllm.finetuning.alignment.grpo import check_group
from nbllm.finetuning.alignment.policy import PolicyObjective, reported_kl
from nbllm.finetuning.alignment.policy_loss import clipped_surrogate
from nbllm.finetuning.alignment.policy_method import PolicyMethod
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.measures import measure

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork


@OBJECTIVES.register("rloo")
class RLOO(PolicyObjective):
    """RLOO: a whole answer is one action; its baseline is the mean of the others to the same prompt.

    The score of an answer is its reward less `kl_coefficient` times the sum of the log-ratios of its tokens. With
    several updates for an answer, the ratio of the whole answer is clipped.

    Source: Ahmadian et al. 2024, arXiv:2402.14740, section 2.2.
    """

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set what the next iteration is computed with; errors as of all methods.

        Raises:
            UserError: A prompt has one answer alone.
        """
        super().configure(values)
        check_group(values)

    @property
    def needs_old(self) -> bool:
        """The divergence is a part of the score."""
        return self.compares or super().needs_old

    def advantages(self, batch: Batch, scores: Float[Tensor, " sequence"]) -> dict[str, Tensor]:
        """Return the advantage of each answer, (sequence,)."""
        if self.compares:
            scores = scores - self.values["kl_coefficient"] * reported_kl(batch, self.kl_estimator).sum(1)
        return {"advantages": leave_one_out_advantages(scores, int(self.values["samples"]))}

    def loss_of_answers(self, network: CausalNetwork, batch: Batch) -> tuple[Tensor, float]:
        """Return the losses of answers, summed, and their number."""
        mask = batch["mask"]
        seen = self.seen(network, batch)
        now = seen.log_probs.sum(1)
        old = batch["old"].sum(1) if "old" in batch else now.detach()
        losses, is_clipped = clipped_surrogate(now, old, batch["advantages"], clip=self.values["clip_range"])
        measure("entropy", seen.entropies.sum(), int(mask.sum()))
        measure("clip_fraction", is_clipped.sum(), len(mask))
        return losses.sum(), len(mask)


@METHODS.register("rloo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RLOOMethod(PolicyMethod):
    """RLOO from a reward; its arguments are those of `PolicyMethod`."""

    objective: ClassVar[str] = "rloo"
