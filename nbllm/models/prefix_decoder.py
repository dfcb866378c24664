"""The prefix decoder: it reads a prompt in both directions, and continues it token by token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder
from nbllm.models.network import NETWORKS
from nbllm.nn.hooks import keep_methods
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.masks import prefix_mask

Ids = Int[Tensor, "batch position"]
Real = Bool[Tensor, "batch key"] | Int[Tensor, "batch key"]


@NETWORKS.register("prefix_decoder")
@keep_methods
class PrefixDecoder(Decoder):
    """A decoder whose first tokens, the prefix, all see each other; arguments as `Network` takes them.

    It has the parts of a causal decoder, and without a prefix it computes the same. When it generates, the prompt is
    the prefix, which is read once.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.2.1 ("prefix LM"); Du et al. 2022, arXiv:2103.10360 (GLM).
    """

    can = frozenset({"generate", "denoise", "infill"})
    kind = "a prefix decoder, which reads a prompt in both directions and continues it"
    reads_prefix = True
    fixed: ClassVar = {**Decoder.fixed, "score_head": False}

    def add_parts(self, config: ModelConfig) -> None:
        """Add the parts of a decoder; refuse scaling of positions that would read a prompt again, as causal text."""
        if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
            raise UserError(
                "A prefix decoder reads its prompt once, and dynamic scaling of positions would have to read it again.",
                where="ModelConfig",
                hint='Use another kind of scaling, such as "yarn".',
            )
        super().add_parts(config)

    def forward(self, input_ids: Ids, **given: Any) -> Float[Tensor, "batch _ vocabulary"]:
        """Return the logits of the next token at each position; arguments as `hidden` takes them."""
        return self.logits(self.hidden(input_ids, **given))

    def hidden(  # noqa: PLR0913 (each is one thing, and all but the first are rarely given)
        self,
        input_ids: Ids,
        decoder_input_ids: Int[Tensor, "batch target"] | None = None,
        *,
        prefix_lengths: Int[Tensor, " batch"] | None = None,
        cache: KVCache | None = None,
        positions: Ids | None = None,
        attention_mask: Real | None = None,
        decoder_attention_mask: Bool[Tensor, "batch target"] | Int[Tensor, "batch target"] | None = None,
        visible: Bool[Tensor, "#batch 1 position key"] | None = None,
        span_positions: Ids | None = None,
    ) -> Float[Tensor, "batch _ hidden"]:
        """Return the residual stream after the final normalization, which the head reads.

        Given `decoder_input_ids`, as an encoder-decoder is, the network reads `input_ids` as the prefix and the others
        behind it, and returns what predicts the token after each of these. Their first, the start token, is not read:
        the last token of the prefix predicts what comes first, as it does when the network generates.

        Args:
            input_ids: (batch, position) token ids.
            decoder_input_ids: (batch, target) token ids, from the start token.
            prefix_lengths: (batch,), how many tokens of each sequence, padding not counted, see each other. None: none,
                so that all are causal.
            cache: As in `Decoder.hidden`; a prefix is read whole, into an empty cache.
            positions: As in `Decoder.hidden`.
            attention_mask: As in `Decoder.hidden`; with `decoder_input_ids`, of `input_ids`, padded at the end.
            decoder_attention_mask: (batch, target), nonzero at the real ones of `decoder_input_ids`, padded at the end.
            visible: As in `Decoder.hidden`, instead of what follows from `prefix_lengths`.
            span_positions: As in `Decoder.hidden`.

        Raises:
            UserError: As in `Decoder.hidden`.
        """
        if decoder_input_ids is not None:
            return self._hidden_after(input_ids, decoder_input_ids, attention_mask, decoder_attention_mask)
        if prefix_lengths is not None:
            assert cache is None or not cache.length, "a prefix is read whole"
            visible = prefix_mask(prefix_lengths, input_ids.shape[1], attention_mask)
        return super().hidden(
            input_ids, cache=cache, positions=positions, attention_mask=attention_mask, visible=visible,
            span_positions=span_positions,
        )  # fmt: skip

    def _hidden_after(
        self,
        input_ids: Ids,
        decoder_input_ids: Int[Tensor, "batch target"],
        mask: Tensor | None,
        decoder_mask: Tensor | None,
    ) -> Float[Tensor, "batch target hidden"]:
        """Join each row's real tokens into one sequence; return what predicts the token after each of the second."""
        (rows, first), count = input_ids.shape, decoder_input_ids.shape[1]
        every = torch.full((rows, 1), 1, device=input_ids.device)
        lengths = every * first if mask is None else mask.bool().sum(1, keepdim=True)
        counts = every * count if decoder_mask is None else decoder_mask.bool().sum(1, keepdim=True)
        places = torch.arange(int((lengths + counts).max()) - 1, device=input_ids.device)[None]
        # Behind the prefix come the decoder's tokens from the second on.
        column = torch.where(places < lengths, places, places - lengths + first + 1)
        joined = torch.cat((input_ids, decoder_input_ids), dim=1)
        ids = joined.gather(1, column.clamp(max=joined.shape[1] - 1))
        hidden = self.hidden(ids, prefix_lengths=lengths[:, 0])
        wanted = lengths - 1 + torch.arange(count, device=input_ids.device)[None]
        wanted = wanted.clamp(max=ids.shape[1] - 1)[:, :, None].expand(-1, -1, hidden.shape[2])
        return hidden.gather(1, wanted)
