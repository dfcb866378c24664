"""Runs any model by calling it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.allocator import kept_memory
from nbllm.inference.runners.base import Step

if TYPE_CHECKING:
    from nbllm.inference.workspace import Workspace
    from nbllm.models.network import CausalNetwork, GenerativeNetwork


_LONG = 128  # tokens of a prompt: with fewer, giving memory back at the end costs what was saved


class CalledRunner:
    """A model runner for every model of one stack, on every device.

    Args:
        model: The model, in evaluation mode.
        workspace: Not needed.
    """

    def __init__(self, model: GenerativeNetwork, workspace: Workspace) -> None:
        self._model = cast("CausalNetwork", model)
        self._device = next(model.parameters()).device

    def run(self, step: Step) -> Float[Tensor, "row token vocabulary"]:
        """Read a step's tokens; see `ModelRunner`."""
        padding = step.batch.padding
        cache: Any = step.batch.cache  # of the model's own kind: it made it
        ids = torch.tensor(step.tokens, device=self._device)
        positions = mask = None
        if bool((padding > 0).any()):
            column = torch.arange(cache.length + ids.shape[1], device=self._device)
            own = column[None, :] - padding.to(self._device)[:, None]
            mask, positions = own >= 0, own[:, cache.length :].clamp(min=0)
        prefix = {}
        if self._model.reads_prefix and not cache.length:
            # Of a context that is read anew, what was generated is still not part of the prompt.
            lengths = [max(0, len(each.prompt) - each.start) for each in step.batch.sequences]
            prefix = {"prefix_lengths": torch.tensor(lengths, device=self._device)}
        # What is allocated anew for each operation costs a third of a long prompt's time, until it is reused.
        with (
            kept_memory() if ids.numel() >= _LONG and self._device.type == "cpu" else contextlib.nullcontext()
        ):
            hidden = self._model.hidden(ids, cache=cache, positions=positions, attention_mask=mask, **prefix)
        return self._model.logits(hidden[:, -step.num_logits :]).float()
