"""The divergence of a policy from its reference: estimators of it, and what sets its coefficient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def k1(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the log-ratio itself: unbiased, of either sign, of high variance."""
    return log_ratio


def k2(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half its square: never negative, of low variance, biased where the policies are far apart."""
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return exp(-x) - 1 + x: unbiased, never negative, of low variance."""
    return torch.expm1(-log_ratio) + log_ratio


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of KL(policy, reference) from log policy(x) - log reference(x) at samples x of the policy.

Source: Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html.
"""


def adapted_coefficient(
    coefficient: float, kl: float, *, target: float, horizon: float, num_sequences: int
) -> float:
    """Return the coefficient of the divergence for the next step, which keeps it near a target.

    Args:
        coefficient: The one of this step.
        kl: The divergence that was measured, in nats for a sequence.
        target: What it is to be, in the same unit.
        horizon: Sequences over which the coefficient can change by a fifth of a factor e.
        num_sequences: How many were sampled in this step.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2; the error is clipped to a fifth.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * num_sequences / horizon)
