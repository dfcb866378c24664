"""Runs encoder-decoders by calling them: the source is read once, then the decoder token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nbllm.inference.runners.base import Step

if TYPE_CHECKING:
    from nbllm.inference.workspace import Workspace
    from nbllm.models.encoder_decoder import EncoderDecoder
    from nbllm.models.network import GenerativeNetwork
    from nbllm.nn.cross_attention_cache import CrossAttentionCache


class EncoderDecoderRunner:
    """A model runner for encoder-decoders, on every device.

    Args:
        model: The model, in evaluation mode.
        workspace: Not needed.
    """

    def __init__(self, model: GenerativeNetwork, workspace: Workspace) -> None:
        self._model = cast("EncoderDecoder", model)
        self._device = model.device

    def run(self, step: Step) -> Float[Tensor, "row token vocabulary"]:
        """Read a step's tokens, and with the first of them the sources; see `ModelRunner`."""
        batch = step.batch
        cache = cast("CrossAttentionCache", batch.cache)
        ids = torch.tensor(step.tokens, device=self._device)
        real = None
        if bool((batch.padding > 0).any()):
            column = torch.arange(cache.length + ids.shape[1], device=self._device)
            real = column[None, :] >= batch.padding.to(self._device)[:, None]
        source, mask = (None, None) if cache.has_source else self._sources(step)
        hidden = self._model.hidden(
            source, ids, attention_mask=mask, decoder_attention_mask=real, cache=cache
        )
        return self._model.logits(hidden[:, -step.num_logits :]).float()

    def _sources(self, step: Step) -> tuple[Int[Tensor, "row source"], Bool[Tensor, "row source"]]:
        """Return what the encoder reads, padded on the right, and which tokens are real."""
        sources = [sequence.source or [] for sequence in step.batch.sequences]
        longest = max(map(len, sources))
        ids = torch.tensor([source + [0] * (longest - len(source)) for source in sources])
        real = torch.arange(longest)[None, :] < torch.tensor([len(source) for source in sources])[:, None]
        return ids.to(self._device), real.to(self._device)
