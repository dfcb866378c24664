"""Supervised fine-tuning: predict the next token, where an example says that it counts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective, Rows
from nbllm.objectives.causal_lm import HiddenAndHead
from nbllm.objectives.heads import head_cross_entropy
from nbllm.objectives.isolation import seen_of


@OBJECTIVES.register("sft")
class SupervisedFineTuning(Objective[HiddenAndHead]):
    """The cross-entropy of the tokens that are to be learnt, such as those of answers, given all before them.

    Its windows are rows of a `data.sample_store.SampleStore`, which `nbllm.finetuning` makes of conversations; of plain
    windows of text every token counts. Examples that share a row do not see each other.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.4.
    """

    needs = "score"

    def batch(self, windows: NDArray[np.int64] | Rows, rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", (batch, position), and "documents" where examples share a row.

        Args:
            windows: Columns "inputs", "targets" and "examples" of rows, (batch, position) each, or (batch, position)
                plain tokens.
            rng: Nothing is drawn.
        """
        if isinstance(windows, np.ndarray):
            targets = np.full_like(windows, IGNORED)
            targets[:, :-1] = windows[:, 1:]
            return {"inputs": torch.from_numpy(windows.copy()), "targets": torch.from_numpy(targets)}
        examples = windows["examples"]
        made = {name: windows[name] for name in ("inputs", "targets")}
        shared = (examples >= 0) & (examples != examples[:, :1])
        if shared.any():
            made["documents"] = examples
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over all targets, in nats, and their number."""
        targets = batch["targets"]
        hidden = network.hidden(batch["inputs"], **seen_of(batch, causal=True))
        return head_cross_entropy(network, hidden, targets), int((targets != IGNORED).sum())
