"""What each head attends to, computed again from the layers' inputs: the forward pass keeps no such weights."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError, nearest
from nbllm.inference.text import encode_prompt, encode_source
from nbllm.lm import LM
from nbllm.models.block import Block
from nbllm.models.decoder import Decoder
from nbllm.models.encoder import Encoder
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.network import Network
from nbllm.models.prefix_decoder import PrefixDecoder
from nbllm.nn.attention import Attention, AttentionContext
from nbllm.nn.attention_backends import eager
from nbllm.nn.cross_attention import CrossAttention

Chosen = int | Sequence[int] | None
Text = str | Sequence[int] | Int[Tensor, " position"]
PARTS = ("encoder", "decoder", "cross")


def attention_weights(
    source: LM | Network,
    text: Text,
    *,
    decoder_text: Text | None = None,
    part: str | None = None,
    layers: Chosen = None,
    heads: Chosen = None,
) -> Float[Tensor, "layer head query key"]:
    """Return how much each position takes from each one that it sees, in the asked layers and heads.

    One forward pass, in which each asked layer's queries and keys are projected a second time. Beside the result
    only one layer's weights are in memory at a time.

    Args:
        source: A language model, or its network alone.
        text: A text, as `generate` reads a prompt (a prefix decoder in both directions), or token ids; the network
            alone takes ids.
        decoder_text: Of an encoder-decoder: what its decoder writes, or the token ids that it reads, from the start
            token.
        part: Of an encoder-decoder: "encoder", "decoder" or "cross", from the decoder's tokens to the encoder's. None:
            "cross" where there is a `decoder_text`, else "encoder".
        layers: Which, from 0, in the order of the result; None: all.
        heads: As `layers`.

    Returns:
        (layer, head, query, key), float32 on the CPU; over the keys they sum to one.

    Raises:
        UserError: The model has no attention to be shown, there is no such part, layer or head, no token, or more
            tokens than the model has positions.
    """
    model = source.model if isinstance(source, LM) else source
    part = checked_part(model, part, has_decoder_text=decoder_text is not None)
    modules = _modules(model, part)
    ids, written = token_ids(source, text), []
    if part in ("decoder", "cross"):
        assert decoder_text is not None
        written = decoder_ids(source, decoder_text)
    kept_layers = chosen(layers, len(modules), "layer")
    kept_heads = chosen(heads, model.config.num_heads, "head")
    queries, keys = len(written or ids), len(written if part == "decoder" else ids)
    out = torch.empty(len(kept_layers), len(kept_heads), queries, keys)
    caller, layer_numbers = threading.get_ident(), itertools.count()

    def keep(attention: Attention | CrossAttention, given: tuple[Tensor, AttentionContext]) -> None:
        if threading.get_ident() != caller:  # somebody else uses the model at the same time
            return
        layer = next(layer_numbers)  # counted, because layers may share a block
        if layer in kept_layers:
            out[kept_layers.index(layer)] = _weights(attention, *given)[0, kept_heads]

    with ExitStack() as stack:
        stack.enter_context(source.lock if isinstance(source, LM) else contextlib.nullcontext())
        stack.enter_context(torch.inference_mode())
        for module in dict.fromkeys(modules):
            stack.callback(module.register_forward_pre_hook(keep).remove)
        _read(model, ids, written)
    return out


def checked_part(model: Network, part: str | None, *, has_decoder_text: bool) -> str | None:
    """Return which attention is asked, a name in `PARTS` for an encoder-decoder, None for what has but one.

    Raises:
        UserError: The model has no attention to be shown, or no such part, or the text of its decoder is missing.
    """
    if model.num_virtual_tokens:
        raise UserError(
            f"An adapter puts {model.num_virtual_tokens} tokens without a text before it, which cannot be shown.",
            hint="Switch it off: with lm.adapters[0].disabled(): ...",
        )
    if not isinstance(model, EncoderDecoder):
        if not isinstance(model, (Decoder, Encoder)):
            raise UserError(f"Attention is shown of transformers; this is {model.kind}.")
        if has_decoder_text or part is not None:
            what = "decoder_text" if has_decoder_text else "part"
            raise UserError(f"{what} is for encoder-decoders; this is {model.kind}.", hint="Leave it out.")
        return None
    part = part or ("cross" if has_decoder_text else "encoder")
    if part not in PARTS:
        raise UserError(f"There is no part {part!r}.", hint=nearest(str(part), PARTS))
    if part != "encoder" and not has_decoder_text:
        raise UserError(
            f"The {part} attention is of what the decoder writes.",
            hint='Give that, too: decoder_text="...", such as what lm.generate(text) returned.',
        )
    return part


def _modules(model: Network, part: str | None) -> list[Attention | CrossAttention]:
    """Return the attention of each layer, one that several share several times."""
    stack = cast(nn.Module, model if part is None else model.encoder if part == "encoder" else model.decoder)
    blocks = cast("list[Block]", list(cast(nn.ModuleList, stack.blocks)))
    if part == "cross":
        return [block.cross_attention for block in blocks if block.cross_attention is not None]
    each = model.config.num_layers / len(blocks) if part is None else 1
    return [blocks[int(layer / each)].attention for layer in range(int(len(blocks) * each))]


def _weights(attention: Attention | CrossAttention, x: Tensor, context: AttentionContext) -> Tensor:
    query, key, _ = attention.project(x, context)
    if isinstance(attention, CrossAttention):
        mask = None if context.source is None else context.source.mask
        return eager.attention_weights(query, key, mask, False, attention.scale)
    mask = attention.mask(query, context)
    return eager.attention_weights(query, key, mask, context.causal, attention.scale, attention.softcap)


def _read(model: Network, ids: list[int], written: list[int]) -> None:
    """Call the network."""
    tokens = torch.tensor([ids], device=model.device)
    if isinstance(model, PrefixDecoder):
        model.hidden(tokens, prefix_lengths=torch.tensor([len(ids)], device=model.device))
    elif not isinstance(model, EncoderDecoder):
        cast(Decoder | Encoder, model).hidden(tokens)
    elif written:
        model.hidden(tokens, torch.tensor([written], device=model.device))
    else:
        model.encode(tokens)


def decoder_ids(source: LM | Network, text: Text) -> list[int]:
    """Return the ids that the decoder of an encoder-decoder reads: its start token and a text, or given ids.

    Raises:
        UserError: As `token_ids`.
    """
    if isinstance(text, str) and isinstance(source, LM) and source.decoder_tokens is not None:
        # As the prompt is read: sentinels that it spells are tokens.
        written = source.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return token_ids(source, [source.decoder_tokens.decoder_start_token_id, *written])
    return token_ids(source, text)


def token_ids(source: LM | Network, text: Text) -> list[int]:
    """Return the ids of a text, or given ids, checked against the vocabulary.

    Raises:
        UserError: There is none, one is not in the vocabulary, or a text has no tokenizer.
    """
    if isinstance(text, str):
        if not isinstance(source, LM):
            raise UserError("A network alone reads no text.", hint="Give the LM, or token ids.")
        encode = encode_prompt if source.decoder_tokens is None else encode_source
        ids: Iterable[int] = encode(source.tokenizer, text)
    else:
        ids = text.tolist() if isinstance(text, Tensor) else text
    found = [int(token) for token in ids]
    if not found:
        raise UserError("The text has no token, so nothing attends.", hint="Give a longer text.")
    size = source.config.vocab_size
    for token in found:
        if not 0 <= token < size:
            raise UserError(f"Token {token} is not in the model's vocabulary of {size}.")
    return found


def chosen(asked: Chosen, count: int, what: str) -> list[int]:
    """Return the asked indices, each once; all when None.

    Args:
        asked: One, several or None.
        count: How many there are.
        what: What they number: "layer", "head".

    Raises:
        UserError: There is none of that number, or none is asked.
    """
    if asked is None:
        return list(range(count))
    indices = [asked] if isinstance(asked, int) else list(dict.fromkeys(asked))
    for index in indices:
        if not 0 <= index < count:
            raise UserError(f"There is no {what} {index}.", hint=f"The model's {what}s are 0 to {count - 1}.")
    if not indices:
        raise UserError(f"No {what} is asked.", hint=f"Name some, or leave {what}s out for all.")
    return indices
