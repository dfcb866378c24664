"""Prefix language modelling: predict the second part of a text from its first part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.spans import compacted
from nbllm.objectives.text_to_text import TextToText


@OBJECTIVES.register("prefix_lm")
class PrefixLM(TextToText):
    """Each window is divided in two at a place drawn uniformly; the first part is read, the second is predicted.

    The tokens of the first part, at least one, see each other; only those of the second part count.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.3.1; Liu et al. 2018, arXiv:1801.10198.
    """

    overlap = 1  # the first token of a window is never predicted

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" with their "mask", "decoder_inputs" and "targets"; padded at the end."""
        rows, length = windows.shape
        is_first = np.arange(length) < rng.integers(1, length, size=(rows, 1))
        inputs, real = compacted(windows, is_first, self.start)
        targets, counted = compacted(windows, ~is_first, self.start)
        return self.pair(inputs, targets, real, counted)


show = PrefixLM.show
