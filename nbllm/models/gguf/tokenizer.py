"""The tokenizer that a GGUF file's metadata describe."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from nbllm.core.errors import WeightsError
from nbllm.core.terminal import shorten
from nbllm.models.gguf.header import Header
from nbllm.models.gguf.pre_tokenizers import RECIPES

# Tokens that end a text besides the end token: the end of a turn and the end of a message, in this order.
END_KEYS = ("eot", "eom")
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TEMPLATE = "tokenizer.chat_template"
# Before `tokenizer.ggml.pre` was invented, these architectures had one way to cut text each.
_BEFORE_PRE = {"gpt2": "gpt-2", "qwen2": "qwen2"}
_PREFIX = "tokenizer.ggml."
# The entries that are read, and those that say nothing of the kinds of tokenizers that are built here: llama.cpp reads
# them for others alone. What ends in _token_id names a token's part.
_READ = frozenset(
    "model pre tokens token_type scores merges add_bos_token add_eos_token add_space_prefix".split()
)
_OF_OTHER_KINDS = frozenset("token_type_count remove_extra_whitespaces precompiled_charsmap".split())
_LONGEST_PIECE = 256  # characters; SentencePiece's own limit is 16
_SPACE = "\u2581"


def read_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with special tokens and chat template.

    Vocabularies of `tokenizer.ggml.model` "gpt2" (byte-level BPE, cut as `tokenizer.ggml.pre` says) and
    "llama" (SentencePiece's BPE with bytes to fall back to) are built. The template is only kept here;
    transformers renders it in jinja2's sandbox.

    Raises:
        WeightsError: There is no tokenizer, it is of an unknown kind, or its parts do not fit together.
    """
    metadata = _Metadata(header)
    kind = metadata.text("model", "")
    if kind not in _BUILDERS:
        raise metadata.error(
            f"The file describes the tokenizer {kind!r}." if kind else "The file describes no tokenizer.",
            f"Known: {', '.join(_BUILDERS)}. Or give one: load(path, tokenizer=...).",
        )
    metadata.check_all_known()
    try:
        tokenizer, add_bos = _BUILDERS[kind](metadata)
        tokenizer.add_tokens(metadata.added)
        add = metadata.flag("add_bos_token", add_bos), metadata.flag("add_eos_token", False)
        _frame(tokenizer, metadata, *add)
    except WeightsError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise metadata.error(f"The tokenizer's parts do not fit together: {error}.", None) from None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_template(header),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{role: metadata.special(key) for role, key in SPECIAL.items()},
    )


def read_end_tokens(header: Header) -> list[Any]:
    """Return the ids of the tokens that end a text besides the end token, unchecked."""
    stated = (header.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS)
    return [token for token in stated if token is not None]


class _Metadata:
    """The entries `tokenizer.ggml.*`, each checked to be of its type."""

    def __init__(self, header: Header) -> None:
        self._header = header
        tokens = self._list("tokens")
        # A model's vocabulary may be larger than its tokenizer's: the rest are names that stand for nothing.
        types = [int(kind) for kind in self._numbers("token_type", len(tokens), int(TokenType.NORMAL))]
        count = len(tokens)
        while count and types[count - 1] == TokenType.UNUSED and tokens[count - 1] == f"[PAD{count - 1}]":
            count -= 1
        self.tokens, self._types = tokens[:count], types[:count]
        self.vocab = {token: index for index, token in enumerate(self.tokens)}
        if len(self.vocab) < count:
            raise self.error("A token is listed twice.", None)

    def check_all_known(self) -> None:
        """Refuse entries that are not read and could change how text is cut."""
        for key, value in self._header.metadata.items():
            name = key.removeprefix(_PREFIX)
            known = name in _READ | _OF_OTHER_KINDS or name.endswith("_token_id")
            if key.startswith(_PREFIX) and not known and value is not False:
                raise self.error(
                    f"The entry {name!r} ({shorten(repr(value), 100)}) is not implemented.",
                    "It is refused because to drop it could give other tokens. Or give the tokenizer: "
                    "load(path, tokenizer=...).",
                )

    @property
    def added(self) -> list[AddedToken]:
        """The tokens that are found whole in a text: control tokens and those of the user."""
        special = (TokenType.CONTROL, TokenType.UNKNOWN)
        return [
            AddedToken(token, special=kind in special, normalized=False)
            for token, kind in zip(self.tokens, self._types, strict=True)
            if kind in special or kind == TokenType.USER_DEFINED
        ]

    @property
    def merges(self) -> list[tuple[str, str]] | None:
        """The merges, the first to be made first; None where the file lists none."""
        if "tokenizer.ggml.merges" not in self._header.metadata:
            return None
        pairs = []
        for merge in self._list("merges"):
            left, _, right = merge.partition(" ")
            if not left or not right or " " in right:
                raise self.error(f"The merge {merge!r} does not join two parts.", None)
            pairs.append((left, right))
        return pairs

    @property
    def scores(self) -> list[float]:
        """A score a token: the higher, the sooner it is merged."""
        return [float(score) for score in self._numbers("scores", len(self.tokens), 0.0)]

    def special(self, key: str) -> str | None:
        """Return the token whose id an entry states; None where it states none."""
        index = self._header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise self.error(f"{key}_token_id is {index!r}; there are {len(self.tokens)} tokens.", None)
        return self.tokens[index]

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; `default` where the entry is absent."""
        value = self._header.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; it must be true or false.", None)
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text; `default` where the entry is absent."""
        value = self._header.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, str):
            raise self.error(f"{key} is {value!r}; it must be a text.", None)
        return value

    @property
    def architecture(self) -> str:
        """The model's architecture."""
        return str(self._header.metadata.get("general.architecture"))

    def error(self, what: str, hint: str | None) -> WeightsError:
        """Return an error about these entries."""
        return WeightsError(what, where=f"{self._header.path}, tokenizer.ggml.*", hint=hint)

    def _list(self, key: str) -> list[str]:
        value = self._header.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(value, list):
            raise self.error(f"{key} is no list of texts.", None)
        return value

    def _numbers(self, key: str, count: int, default: int | float) -> list[Any]:
        value = self._header.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return [default] * count
        if not isinstance(value, np.ndarray) or len(value) < count:
            raise self.error(f"{key} does not hold a number for each of the {count} tokens.", None)
        return list(value[:count].tolist())


def _byte_level(metadata: _Metadata) -> tuple[Tokenizer, bool]:
    """Return byte-level BPE, and whether its texts begin with the beginning token."""
    name = metadata.text("pre", _BEFORE_PRE.get(metadata.architecture, ""))
    if name not in RECIPES:
        raise metadata.error(
            f"The pre-tokenizer is {name!r}; to guess how it cuts text would give other tokens.",
            f"Known: {', '.join(RECIPES)}. Or give the tokenizer: load(path, tokenizer=...).",
        )
    recipe = RECIPES[name]
    merges = metadata.merges
    if merges is None:
        raise metadata.error("The tokenizer has no merges.", None)
    tokenizer = Tokenizer(models.BPE(metadata.vocab, merges, ignore_merges=recipe.ignore_merges))
    recipe.apply(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, recipe.add_bos


def _sentencepiece(metadata: _Metadata) -> tuple[Tokenizer, bool]:
    """Return SentencePiece's BPE, and that its texts begin with the beginning token."""
    merges = metadata.merges
    if merges is None:
        merges = _merges_of_scores(metadata)
    model = models.BPE(
        metadata.vocab, merges, unk_token=metadata.special("unknown"), fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = metadata.flag("add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return tokenizer, True


def _merges_of_scores(metadata: _Metadata) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece's scores imply: whichever pair makes the best token comes first."""
    vocab = metadata.vocab
    found = []
    for token, score in zip(metadata.tokens, metadata.scores, strict=True):
        if len(token) > _LONGEST_PIECE:
            raise metadata.error(f"A token has {len(token)} characters.", None)
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _frame(tokenizer: Tokenizer, metadata: _Metadata, add_bos: bool, add_eos: bool) -> None:
    """Let a text begin and end with its special tokens."""
    tokens = []
    for wanted, key in ((add_bos, "bos"), (add_eos, "eos")):
        token = metadata.special(key)
        if wanted and token is None:
            raise metadata.error(f"add_{key}_token is true, but there is no {key}_token_id.", None)
        tokens.append(token if wanted else None)
    bos, eos = tokens
    if bos is None and eos is None:
        return
    one = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    two = [*([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])]
    special = [(token, metadata.vocab[token]) for token in {bos, eos} if token]
    tokenizer.post_processor = processors.TemplateProcessing(one, one + two, special)


def _template(header: Header) -> str | dict[str, str] | None:
    """Return the chat template; where there are others with names, all by their names."""
    templates = {"default": header.metadata.get(TEMPLATE)}
    for key, value in header.metadata.items():
        if key.startswith(f"{TEMPLATE}."):
            templates[key.removeprefix(f"{TEMPLATE}.")] = value
    kept = {name: value for name, value in templates.items() if isinstance(value, str)}
    return kept.get("default") if kept.keys() <= {"default"} else kept
