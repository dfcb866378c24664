"""The bubble of a pipeline: the share of time in which its ranks wait for each other."""

from __future__ import annotations


def bubble_share(ranks: int, micro_batches: int, *, chunks: int = 1) -> float:
    """Return the share of a step that a rank is idle: (p - 1) / (v m + p - 1).

    All stages are taken to cost the same, and a backward pass any constant multiple of a forward pass. It holds for
    GPipe and 1F1B (which differ in memory alone) and, with several stages on each rank, for interleaved 1F1B.

    Args:
        ranks: Of the pipeline, p.
        micro_batches: Of a step, m.
        chunks: Stages on each rank, v.

    Source: Huang et al. 2019 (GPipe), arXiv:1811.06965, section 2.3; Narayanan et al. 2021, arXiv:2104.04473,
        sections 2.2.1 and 2.2.2.
    """
    return (ranks - 1) / (chunks * micro_batches + ranks - 1)


def zero_bubble_share(ranks: int, micro_batches: int) -> float:
    """Return the same for the zero-bubble schedule ZB-H1: (p - 1) / (3 m + p - 1).

    Forward pass, gradient of the input and gradient of the weights are taken to cost the same, so that a step takes
    3 m of these beside (p - 1) (forward + input - weights) of waiting.

    Source: Qi et al. 2023, arXiv:2401.10241, section 2.3, table 2.
    """
    return (ranks - 1) / (3 * micro_batches + ranks - 1)
