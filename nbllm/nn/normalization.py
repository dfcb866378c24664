"""Normalization layers by name."""

from __future__ import annotations

from torch import nn

NORMS = ("layer_norm", "rms_norm")


def make_norm(kind: str, size: int, eps: float) -> nn.Module:
    """Return a normalization over the last dimension.

    Args:
        kind: "layer_norm" (Ba et al. 2016, arXiv:1607.06450; weight and bias) or "rms_norm" (Zhang and
            Sennrich 2019, arXiv:1910.07467; weight only).
        size: Length of the last dimension.
        eps: Added to the variance.
    """
    assert kind in NORMS, kind
    if kind == "layer_norm":
        return nn.LayerNorm(size, eps=eps)
    return nn.RMSNorm(size, eps=eps)
