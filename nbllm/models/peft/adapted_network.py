"""Networks with adapters that belong to no single layer: virtual tokens before a text, and updates of the head.

Virtual tokens are vectors without ids. Those of a prompt are embedded before a text's own; those of a prefix are keys
and values of every layer. They stand at the first positions, prefix before prompt; the text's own positions follow, and
every token of it sees them. Wherever padding is, it takes no position and is seen by nobody, so that a padded text is
computed as it would be alone (peft#1093, #2821). A caller sees none of this: hidden states and cache are those of the
text's own tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.models.encoder import Encoder
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Adapted, Part
from nbllm.models.peft.virtual_cache import VirtualCache
from nbllm.models.rwkv import RWKV
from nbllm.nn.key_prefix import KeyPrefix
from nbllm.nn.masks import causal_mask, prefix_mask


class NetworkPart(Part):
    """A part of a network itself."""

    num_prompt_tokens = 0
    num_prefix_tokens = 0

    def prompt(self) -> Float[Tensor, "token hidden"]:
        """Return the embedded tokens before a text; of a part with `num_prompt_tokens`."""
        raise NotImplementedError

    def prefix(self) -> Float[Tensor, "layer 2 kv_head token head_dim"]:
        """Return keys and values of the tokens before a text, in every layer; of one with `num_prefix_tokens`."""
        raise NotImplementedError

    def head_weight(self, weight: Float[Tensor, "vocabulary hidden"]) -> Float[Tensor, "vocabulary hidden"]:
        """Return the matrix of the head with this part."""
        return weight


class AdaptedNetwork(Adapted):
    """Mixed into the class of a network that has parts."""

    def forward(self, *args: Any, **given: Any) -> Any:
        """Compute the network: what its parts do is done in the methods below."""
        return super(Adapted, self).forward(*args, **given)

    @property
    def parts(self) -> list[NetworkPart]:
        """The parts in order."""
        return cast("list[NetworkPart]", list(self.adapters.values()))

    @property
    def num_prompt_tokens(self) -> int:
        """How many embedded tokens stand before a text."""
        return sum(part.num_prompt_tokens for part in self.parts)

    @property
    def num_prefix_tokens(self) -> int:
        """Of how many tokens keys and values stand before a text."""
        return sum(part.num_prefix_tokens for part in self.parts)

    @property
    def num_virtual_tokens(self) -> int:
        """How many positions virtual tokens take."""
        return self.num_prompt_tokens + self.num_prefix_tokens

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary hidden"]:
        """The matrix of the head, with the updates of the parts."""
        weight: Tensor = super().head_weight  # type: ignore[misc]
        for part in self.parts:
            weight = part.head_weight(weight)
        return weight

    def embed_tokens(
        self, input_ids: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embeddings of tokens; ids below 0 stand for the prompt's."""
        x: Tensor = super().embed_tokens(input_ids.clamp(min=0))  # type: ignore[misc]
        if not _has_prompt(input_ids):
            return x
        prompt = torch.cat([part.prompt() for part in self.parts if part.num_prompt_tokens]).to(x.dtype)
        return torch.where(
            (input_ids < 0)[:, :, None], prompt[(input_ids + len(prompt)).clamp(max=len(prompt) - 1)], x
        )

    def make_cache(self, batch: int, max_length: int) -> Any:
        """Return an empty cache that holds the virtual tokens too, and does not count them."""
        virtual = self.num_cached_tokens
        cache = super().make_cache(batch, virtual + max_length)  # type: ignore[misc]
        return VirtualCache(cache, virtual) if virtual else cache

    @property
    def num_cached_tokens(self) -> int:
        """How many of the virtual tokens the cache holds."""
        return self.num_virtual_tokens

    def _with_prompt_ids(self, ids: Tensor) -> Tensor:
        virtual = torch.arange(-self.num_prompt_tokens, 0, device=ids.device)
        return torch.cat((virtual.expand(len(ids), -1), ids), dim=1)

    def _prefixed(self, batch: int, cache: VirtualCache | None) -> Any:
        """Return what attention finds keys and values in: the cache, begun with those of the prefix where it is new."""
        count = self.num_prefix_tokens
        if not count:
            return None if cache is None else cache.inner
        if cache is not None and cache.length:
            return cache.inner
        prefix = torch.cat([part.prefix() for part in self.parts if part.num_prefix_tokens], dim=3)
        prefix = prefix.to(cast(Network, self).dtype)
        if cache is None:
            return KeyPrefix(prefix, batch)
        cache.inner.reset()
        for layer, (key, value) in enumerate(prefix):
            cache.inner.update(layer, *(each.expand(batch, -1, -1, -1) for each in (key, value)))
        cache.inner.advance(count)
        return cache.inner


class AdaptedDecoder(AdaptedNetwork):
    """Of causal networks and prefix decoders."""

    def forward(self, input_ids: Tensor, **given: Any) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of the next token at each position of the text; arguments as `hidden` takes them."""
        out: Tensor = cast(Any, self).logits(self.hidden(input_ids, **given))
        return out

    def hidden(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor | None = None,
        *,
        prefix_lengths: Tensor | None = None,
        cache: Any = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visible: Tensor | None = None,
        span_positions: Tensor | None = None,
        **more: Any,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states of the text's tokens; arguments as the network's own `hidden` takes them."""
        own: Any = super().hidden  # type: ignore[misc]
        prompt, virtual = self.num_prompt_tokens, self.num_virtual_tokens
        given: dict[str, Any] = {**more}
        if not virtual or decoder_input_ids is not None or _has_prompt(input_ids):
            # Without virtual tokens, or this is called again with the texts joined, or with the prompt before them.
            given |= {
                "decoder_input_ids": decoder_input_ids, "prefix_lengths": prefix_lengths, "cache": cache,
                "positions": positions, "attention_mask": attention_mask, "visible": visible,
                "span_positions": span_positions,
            }  # fmt: skip
            return cast(Tensor, own(input_ids, **_without_none(given)))
        batch, count = input_ids.shape
        begins = cache is None or not cache.length
        kept = self._prefixed(batch, cache)
        new = prompt if begins else 0
        if new:
            input_ids = self._with_prompt_ids(input_ids)
        if attention_mask is not None:
            attention_mask = _padded(attention_mask, virtual, 1)
        if positions is not None:
            positions = positions + virtual
            if new:
                first = torch.arange(virtual - prompt, virtual, device=positions.device)
                positions = torch.cat((first.expand(batch, -1), positions), dim=1)
        if span_positions is not None:
            span_positions = _padded(span_positions, new, 0)
        if prefix_lengths is not None:
            real = None if attention_mask is None else attention_mask[:, virtual - prompt :]
            visible = prefix_mask(prefix_lengths + prompt, prompt + count, real)
            visible = _padded(visible, virtual - prompt, True)
        elif visible is not None:
            if getattr(self, "reads_prefix", False) and prompt:
                raise UserError(
                    "A prompt before packed texts would see all of them.", hint="Use packing='joined'."
                )
            visible = _seeing_prompt(visible, virtual - new, new)
        given |= {
            "cache": kept, "positions": positions, "attention_mask": attention_mask, "visible": visible,
            "span_positions": span_positions,
        }  # fmt: skip
        out: Tensor = own(input_ids, **_without_none(given))
        return out[:, new:]


class AdaptedRecurrent(AdaptedDecoder):
    """Of recurrent networks, which read tokens in their order: a prompt stands between padding and text."""

    def hidden(self, input_ids: Tensor, *args: Any, **given: Any) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states of the text's tokens; arguments as the network's own `hidden` takes them."""
        mask, cache, prompt = given.get("attention_mask"), given.get("cache"), self.num_prompt_tokens
        if not prompt or mask is None or (cache is not None and cache.length):
            return super().hidden(input_ids, *args, **given)
        columns = torch.arange(prompt + input_ids.shape[1], device=input_ids.device)[None]
        padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)  # before each text
        order = torch.where(columns < padding, columns + prompt, columns)
        order = torch.where((columns >= padding) & (columns < padding + prompt), columns - padding, order)
        ids = self._with_prompt_ids(input_ids).gather(1, order)
        given |= {"attention_mask": _padded(mask, prompt, 1).gather(1, order), "positions": None}
        if cache is not None:
            given["cache"] = cache.inner
        out = super().hidden(ids, *args, **given)
        places = columns[:, : input_ids.shape[1]]
        places = torch.where(places < padding, places, places + prompt)
        return out.gather(1, places[:, :, None].expand(-1, -1, out.shape[2]))


class AdaptedEncoder(AdaptedNetwork):
    """Of encoders."""

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        **more: Any,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states of the text's tokens; arguments as `Encoder.hidden` takes them."""
        encoder = cast(Encoder, self)
        prompt, virtual = self.num_prompt_tokens, self.num_virtual_tokens
        if visible is not None and prompt:
            raise UserError(
                "A prompt before packed texts would see all of them.", hint="Use packing='joined'."
            )
        if visible is not None:
            visible = _padded(visible, virtual, True)
        if virtual and positions is None:
            counted = encoder.count_positions(input_ids, attention_mask)
            positions = (
                torch.arange(input_ids.shape[1], device=input_ids.device) if counted is None else counted
            )
        if virtual and positions is not None:
            first = torch.arange(virtual - prompt, virtual, device=input_ids.device).expand(
                len(input_ids), -1
            )
            positions = torch.cat((first, positions.expand(len(input_ids), -1) + virtual), dim=1)
        if token_types is not None:
            token_types = _padded(token_types, prompt, 0)
        if attention_mask is not None:
            attention_mask = _padded(attention_mask, virtual, 1)
        given = {
            "attention_mask": attention_mask, "token_types": token_types, "positions": positions, "visible": visible,
            "cache": self._prefixed(len(input_ids), None), **more,
        }  # fmt: skip
        ids = self._with_prompt_ids(input_ids) if prompt else input_ids
        out: Tensor = super().hidden(ids, **_without_none(given))  # type: ignore[misc]
        return out[:, prompt:]


class AdaptedEncoderDecoder(AdaptedNetwork):
    """Of encoder-decoders: a prompt stands before what the encoder reads, a prefix before what the decoder writes."""

    @property
    def num_cached_tokens(self) -> int:
        """How many of the virtual tokens the decoder's cache holds."""
        return self.num_prefix_tokens

    def forward(
        self, input_ids: Tensor | None, decoder_input_ids: Tensor, **given: Any
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of the next token at each position of the decoder; arguments as `hidden` takes them."""
        out: Tensor = cast(Any, self).logits(self.hidden(input_ids, decoder_input_ids, **given))
        return out

    def hidden(
        self,
        input_ids: Tensor | None,
        decoder_input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the decoder's hidden states; arguments as `EncoderDecoder.hidden` takes them."""
        prompt, prefix = self.num_prompt_tokens, self.num_prefix_tokens
        if prompt and input_ids is not None:
            input_ids = self._with_prompt_ids(input_ids)
            attention_mask = None if attention_mask is None else _padded(attention_mask, prompt, 1)
        if decoder_attention_mask is not None:
            decoder_attention_mask = _padded(decoder_attention_mask, prefix, 1)
        kept = self._prefixed(len(decoder_input_ids), cache) if prefix else cache
        own: Any = super().hidden  # type: ignore[misc]
        out: Tensor = own(
            input_ids, decoder_input_ids, attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask, cache=kept,
        )  # fmt: skip
        return out


def mixin_for(network: Network) -> type[AdaptedNetwork]:
    """Return what is mixed into the class of a network that has parts."""
    if isinstance(network, EncoderDecoder):
        return AdaptedEncoderDecoder
    if isinstance(network, RWKV):
        return AdaptedRecurrent
    return AdaptedEncoder if isinstance(network, Encoder) else AdaptedDecoder


def _has_prompt(input_ids: Tensor) -> bool:
    return bool((input_ids < 0).any())


def _padded(x: Tensor, count: int, value: bool | int) -> Tensor:
    """Return a tensor with so many columns of a value before the others."""
    return torch.cat((x.new_full((*x.shape[:-1], count), value), x), dim=-1)


def _seeing_prompt(visible: Tensor, prefix: int, prompt: int) -> Tensor:
    """Return what tokens see, with the virtual ones before them: a prompt's see those before them and themselves."""
    texts = _padded(visible, prefix + prompt, True)
    if not prompt:
        return texts
    own = causal_mask(prompt, prefix + prompt, device=visible.device)
    own = torch.cat((own, own.new_zeros(prompt, visible.shape[-1])), dim=1)
    return torch.cat((own.expand(*visible.shape[:-2], -1, -1), texts), dim=-2)


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
