"""By what the loss is multiplied in float16, whose small gradients would otherwise be rounded to zero."""

from __future__ import annotations

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without an overflow after which a larger scale is tried


def next_scale(scale: float, steps: int, *, overflowed: bool) -> tuple[float, int]:
    """Return the scale of the next step, and how many steps in a row did not overflow.

    The scale is halved when a gradient overflows (the step is skipped then), and doubled after 2,000 steps in which
    none did; so it is a power of two, and rounds nothing.

    Args:
        scale: That of this step.
        steps: How many steps in a row before it did not overflow since the scale was changed.
        overflowed: Whether a gradient of this step is not finite.

    Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2; `torch.amp.GradScaler`.
    """
    if overflowed:
        return scale / 2, 0
    return (scale * 2, 0) if steps + 1 == GROWTH_INTERVAL else (scale, steps + 1)
