"""Supervised fine-tuning: predict the next token, where an example says that it counts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective, Rows
from nbllm.objectives.causal_lm import HiddenAndHead
from nbllm.objectives.heads import Head, head_cross_entropy
from nbllm.objectives.isolation import seen_of
from nbllm.objectives.measures import loss_of_source, measure
from nbllm.objectives.text_to_text import Denoiser, TextToText

_WEIGHING = ("sources", "weights")  # columns that rows may lack


@OBJECTIVES.register("sft")
class SupervisedFineTuning(Objective[HiddenAndHead]):
    """The cross-entropy of the tokens that are to be learnt, such as those of answers, given all before them.

    Its windows are rows of a `data.sample_store.SampleStore`, which `nbllm.finetuning` makes of conversations; of plain
    windows of text every token counts. Examples that share a row do not see each other. Where tokens are weighted, the
    loss is the weighted mean: the sum of weight times cross-entropy over the sum of the weights.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.4.
    """

    needs = "score"

    def batch(self, windows: NDArray[np.int64] | Rows, rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", (batch, position), and "documents" where examples share a row.

        Of a mixture also "sources", (batch,), the number of each row's data set; and "weights", (batch, position).

        Args:
            windows: Columns "inputs", "targets" and "examples" of rows, (batch, position) each, perhaps "sources" and
                "weights"; or (batch, position) plain tokens.
            rng: Nothing is drawn.
        """
        if isinstance(windows, np.ndarray):
            targets = np.full_like(windows, IGNORED)
            targets[:, :-1] = windows[:, 1:]
            return {"inputs": torch.from_numpy(windows.copy()), "targets": torch.from_numpy(targets)}
        examples = windows["examples"]
        made = {name: windows[name] for name in ("inputs", "targets", *_WEIGHING) if name in windows}
        shared = (examples >= 0) & (examples != examples[:, :1])
        if shared.any():
            made["documents"] = examples
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, float]:
        """Return the weighted cross-entropy summed over all targets, in nats, and the sum of their weights."""
        hidden = network.hidden(batch["inputs"], **seen_of(batch, causal=True))
        return _weighted_loss(self, network, hidden, batch)


@OBJECTIVES.register("sft_text_to_text")
class SupervisedTextToText(TextToText):
    """The same for an encoder-decoder: the cross-entropy of each token of an answer given the question.

    In the rows of its store the inputs are the question's tokens and the targets the answer's.
    """

    needs = "denoise"
    only_examples = True

    def batch(self, windows: Rows, rng: np.random.Generator) -> Batch:
        """Return the batch of `TextToText`, and "sources" and "weights" as `SupervisedFineTuning` has them.

        Args:
            windows: Columns of rows, as for `SupervisedFineTuning`.
            rng: Nothing is drawn.
        """
        real, counted = windows["examples"] >= 0, windows["targets"] != IGNORED
        longest, most = (int(there.sum(1).max()) for there in (real, counted))  # padding is at the end
        targets = np.where(counted, windows["targets"], self.end)
        made = self.pair(
            *(np.ascontiguousarray(each) for each in (windows["inputs"][:, :longest], targets[:, :most])),
            *(np.ascontiguousarray(each) for each in (real[:, :longest], counted[:, :most])),
        )
        weighing = {name: windows[name] for name in _WEIGHING if name in windows}
        if "weights" in weighing:
            weighing["weights"] = np.ascontiguousarray(weighing["weights"][:, :most])
        return {**made, **{name: torch.from_numpy(each) for name, each in weighing.items()}}

    def loss(self, network: Denoiser, batch: Batch) -> tuple[Tensor, float]:
        """Return the weighted cross-entropy summed over the answers, in nats, and the sum of the weights."""
        hidden = network.hidden(
            batch["inputs"],
            batch["decoder_inputs"],
            attention_mask=batch["mask"],
            decoder_attention_mask=batch["targets"] != IGNORED,
        )
        return _weighted_loss(self, network, hidden, batch)


def _weighted_loss(
    objective: Objective[HiddenAndHead] | Objective[Denoiser], head: Head, hidden: Tensor, batch: Batch
) -> tuple[Tensor, float]:
    """Return the weighted loss and the weights' sum; measure the loss on each data set."""
    targets, weights, sources = batch["targets"], batch.get("weights"), batch.get("sources")
    names = objective.sources if sources is not None else ()
    losses = torch.empty(targets.shape, device=targets.device) if names else None
    loss = head_cross_entropy(head, hidden, targets, weights=weights, losses=losses)
    counts = (targets != IGNORED).float() if weights is None else weights * (targets != IGNORED)
    if losses is not None and sources is not None:
        for number, name in enumerate(names):
            rows = sources == number
            if bool(rows.any()):
                measure(loss_of_source(name), (losses[rows] * counts[rows]).sum(), counts[rows].sum())
    return loss, float(counts.sum(dtype=torch.float64))
