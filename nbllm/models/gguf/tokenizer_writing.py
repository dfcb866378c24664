"""A tokenizer as GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from nbllm.core.errors import UserError
from nbllm.models.gguf.pre_tokenizers import RECIPES, recipe_name
from nbllm.models.gguf.tokenizer import END_KEYS
from nbllm.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HINT = "Save the model as a directory: model.save('name')."


def write_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_tokens: Sequence[int] = ()
) -> None:
    """Add a byte-level BPE tokenizer's metadata: tokens, merges, special tokens, chat template.

    Args:
        writer: To which they are added.
        tokenizer: The tokenizer.
        vocab_size: Of the model; ids that the tokenizer lacks are named `[PAD<id>]`, as llama.cpp does.
        end_tokens: Those that end a text; GGUF has names for two besides the tokenizer's own.

    Raises:
        UserError: GGUF has no way to say how this tokenizer works.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("GGUF cannot hold a tokenizer of the slow kind.", hint=_HINT)
    check_vocabulary(tokenizer, vocab_size)
    parts = json.loads(backend.to_str())
    name = _recipe(parts)
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise UserError(
                f"GGUF cannot say that {added['content']!r} takes blanks or whole words alone.", hint=_HINT
            )
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = parts["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    _write_special(writer, tokenizer)
    _write_end_tokens(writer, [token for token in end_tokens if token != tokenizer.eos_token_id])
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": key, "template": value} for key, value in template.items()]
    if template:
        writer.add_chat_template(template)


def _recipe(parts: dict[str, Any]) -> str:
    """Return the name of the way in which a tokenizer cuts text."""
    model = parts["model"]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(option) for option in options if option != "unk_token"):
        raise UserError(
            "GGUF is written with byte-level BPE tokenizers only; this one is another kind.", hint=_HINT
        )
    name = recipe_name(parts)
    if name is None:
        raise UserError(
            "This tokenizer cuts text in a way that has no name in GGUF.",
            hint=f"Known ways: {', '.join(RECIPES)}. {_HINT}",
        )
    return name


def _write_end_tokens(writer: GGUFWriter, tokens: list[int]) -> None:
    if len(tokens) > len(END_KEYS):
        raise UserError(
            f"{len(tokens)} tokens end a text besides the tokenizer's own; GGUF has names for {len(END_KEYS)}.",
            hint=_HINT,
        )
    for key, token in zip(END_KEYS, tokens, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)


def _write_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add, index in (
        (writer.add_bos_token_id, bos),
        (writer.add_eos_token_id, eos),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
    bare = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a")
    add_bos = len(framed) > len(bare) and framed[0] == bos and framed[1:][: len(bare)] == bare
    add_eos = len(framed) > len(bare) + add_bos and framed[-1] == eos
    if framed != [bos] * add_bos + bare + [eos] * add_eos:
        raise UserError("GGUF cannot say what this tokenizer adds to a text.", hint=_HINT)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
