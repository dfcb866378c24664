"""Group-relative policy optimization from a reward, with the normalizations that were proposed since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.finetuning.alignment.advantages import group_advantages
from nbllm.finetuning.alignment.kl import ESTIMATORS
from nbllm.finetuning.alignment.policy import PolicyObjective
from nbllm.finetuning.alignment.policy_loss import AVERAGES, averaged, clipped_surrogate
from nbllm.finetuning.alignment.policy_method import PolicyMethod
from nbllm.finetuning.method import METHODS
from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.measures import measure

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork


@OBJECTIVES.register("grpo")
class GRPO(PolicyObjective):
    """GRPO: an answer's advantage is how much better it scores than the others to its prompt.

    The divergence is a part of the loss, by the estimator k3 at each token, and not of the reward. The estimator's own
    gradient, at answers of the policy, is that of KL(reference, policy); multiplied by the ratio of the policy and the
    one that sampled (`unbiased_kl_gradient`), it is that of KL(policy, reference), which is reported.

    | `normalization` | an answer's advantage is divided by | its tokens' losses are averaged |
    |---|---|---|
    | "grpo" | the standard deviation of its group | over the answer, then over answers |
    | "dr_grpo" | nothing | over all answers as if each had `max_new_tokens` |
    | "token_mean" (DAPO) | the standard deviation of its group | over the tokens of all answers |

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1; Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO); Yu et al.
        2025, arXiv:2503.14476 (DAPO); DeepSeek-AI 2025, arXiv:2512.02556, section 3.1 (the divergence's gradient).
    """

    kl_estimator = "k3"
    options: ClassVar[Mapping[str, str | float | bool]] = {
        **PolicyObjective.options,
        "prompts": 4,
        "samples": 8,
        "normalization": "grpo",
        "unbiased_kl_gradient": True,
    }

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set what the next iteration is computed with; errors as of all methods.

        Raises:
            UserError: There is no such normalization, or a group is of one answer.
        """
        super().configure(values)
        if values["normalization"] not in NORMALIZATIONS:
            known = ", ".join(map(repr, NORMALIZATIONS))
            raise UserError(f"normalization is {values['normalization']!r}; it must be one of {known}.")
        check_group(values)

    def advantages(self, batch: Batch, scores: Float[Tensor, " sequence"]) -> dict[str, Tensor]:
        """Return the advantage of each answer, (sequence,)."""
        scale, _ = NORMALIZATIONS[self.values["normalization"]]
        return {"advantages": group_advantages(scores, int(self.values["samples"]), scale=scale)}

    def loss_of_answers(self, network: CausalNetwork, batch: Batch) -> tuple[Tensor, float]:
        """Return the losses of tokens, added and counted as the normalization says."""
        values, mask = self.values, batch["mask"]
        seen = self.seen(network, batch)
        old = batch.get("old", seen.log_probs.detach())
        losses, is_clipped = clipped_surrogate(
            seen.log_probs, old, batch["advantages"][:, None], clip=values["clip_range"]
        )
        if self.compares:
            kl = ESTIMATORS[self.kl_estimator](seen.log_probs - batch["reference"]) * mask
            if values["unbiased_kl_gradient"]:
                kl = kl * (seen.log_probs - old).exp()
            measure("kl", kl.sum(), len(mask))
            losses = losses + values["kl_coefficient"] * kl
        tokens = int(mask.sum())
        measure("entropy", seen.entropies.sum(), tokens)
        measure("clip_fraction", (is_clipped & mask).sum(), tokens)
        _, over = NORMALIZATIONS[values["normalization"]]
        return averaged(losses, mask, over=over, longest=int(values["max_new_tokens"]))


NORMALIZATIONS: dict[str, tuple[bool, str]] = dict(
    zip(("grpo", "dr_grpo", "token_mean"), zip((True, False, True), AVERAGES, strict=True), strict=True)
)
"""By name: whether advantages are divided by the deviation of their group, and what the loss is averaged over."""


def check_group(values: Mapping[str, Any]) -> None:
    """Raise `UserError` where a prompt has one answer alone, which cannot be compared with others."""
    if values["samples"] < 2:
        raise UserError("Answers are compared with others to the same prompt: samples must be at least 2.")


@METHODS.register("grpo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOMethod(PolicyMethod):
    """GRPO from a reward; its arguments are those of `PolicyMethod`."""

    objective: ClassVar[str] = "grpo"
