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
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.inference.text import encode_prompt
from nbllm.lm import LM
from nbllm.models.block import Block
from nbllm.models.decoder import Decoder
from nbllm.models.encoder import Encoder
from nbllm.models.network import Network
from nbllm.models.prefix_decoder import PrefixDecoder
from nbllm.nn.attention import Attention, AttentionContext
from nbllm.nn.attention_backends import eager

Chosen = int | Sequence[int] | None


def attention_weights(
    source: LM | Network,
    text: str | Sequence[int] | Int[Tensor, " position"],
    *,
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
        layers: Which, from 0, in the order of the result; None: all.
        heads: As `layers`.

    Returns:
        (layer, head, query, key), float32 on the CPU; over the keys they sum to one.

    Raises:
        UserError: The model has no attention to be shown, there is no such layer or head, no token, or more tokens than
            the model has positions.
    """
    model = source.model if isinstance(source, LM) else source
    if not isinstance(model, (Decoder, Encoder)):
        raise UserError(f"Attention is shown of decoders and encoders; this is {model.kind}.")
    ids = token_ids(source, text)
    kept_layers = chosen(layers, model.config.num_layers, "layer")
    kept_heads = chosen(heads, model.config.num_heads, "head")
    out = torch.empty(len(kept_layers), len(kept_heads), len(ids), len(ids))
    caller, layer_numbers = threading.get_ident(), itertools.count()

    def keep(attention: Attention, given: tuple[Tensor, AttentionContext]) -> None:
        if threading.get_ident() != caller:  # somebody else uses the model at the same time
            return
        layer = next(layer_numbers)  # counted, because layers may share a block
        if layer not in kept_layers:
            return
        x, context = given
        query, key, _ = attention.project(x, context)
        weights = eager.attention_weights(
            query, key, attention.mask(query, context), context.causal, attention.scale, attention.softcap
        )
        out[kept_layers.index(layer)] = weights[0, kept_heads]

    with ExitStack() as stack:
        stack.enter_context(source.lock if isinstance(source, LM) else contextlib.nullcontext())
        stack.enter_context(torch.inference_mode())
        for block in model.blocks:
            stack.callback(cast(Block, block).attention.register_forward_pre_hook(keep).remove)
        tokens = torch.tensor([ids], device=model.device)
        if isinstance(model, PrefixDecoder):
            model.hidden(tokens, prefix_lengths=torch.tensor([len(ids)], device=model.device))
        else:
            model.hidden(tokens)
    return out


def token_ids(source: LM | Network, text: str | Sequence[int] | Int[Tensor, " position"]) -> list[int]:
    """Return the ids of a text, or given ids, checked against the vocabulary.

    Raises:
        UserError: There is none, one is not in the vocabulary, or a text has no tokenizer.
    """
    if isinstance(text, str):
        if not isinstance(source, LM):
            raise UserError("A network alone reads no text.", hint="Give the LM, or token ids.")
        ids: Iterable[int] = encode_prompt(source.tokenizer, text)
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
