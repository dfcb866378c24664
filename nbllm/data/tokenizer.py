"""Train a tokenizer: byte-level BPE, or the two that need no training, of bytes and of characters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.progress import waiting
from nbllm.core.terminal import say
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"  # Unicode's own character for one that cannot be shown
NUM_BYTES = 256
VOCAB_SIZE = 4096
MAX_VOCAB_SIZE = 10_000_000  # memory is reserved for all of them before the training begins
KINDS = ("bpe", "byte", "character")


def train_tokenizer(
    texts: Dataset | str | os.PathLike[str] | Iterable[str],
    vocab_size: int | None = None,
    *,
    kind: str = "bpe",
) -> PreTrainedTokenizerFast:
    """Make a tokenizer for the given texts.

    Same texts, same tokenizer. Nothing is added to an encoded text. `<|endoftext|>` is beginning, end and padding at
    once.

    Pre-training tasks need special tokens besides, such as masks: `nbllm.objectives.add_tokens` adds them.

    - "bpe": byte-level BPE. All 256 bytes are tokens, so any text whatever is encoded without an unknown token and
      decoded to exactly what it was.
    - "byte": the 256 bytes and `<|endoftext|>`; the same holds. Nothing is learned from the texts.
    - "character": each character of the texts, the most frequent where `vocab_size` is given. Others are encoded as
      U+FFFD, the replacement character; they are lost.

    Args:
        texts: Documents with a column `text`, strings, or anything else that `nbllm.data.load` takes.
        vocab_size: Number of tokens wanted. For "bpe" 4096 if not given, at least 257 (the bytes and the special
            token). That the texts give fewer is said: `len(tokenizer)` is what it has.
        kind: "bpe", "byte" or "character".

    Raises:
        UserError: There is no such kind, or `vocab_size` is too small or has no meaning for it.
        DataError: There is no text.

    Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019, "Language models are
        unsupervised multitask learners", section 2.2 (on bytes).
    """
    from transformers import PreTrainedTokenizerFast

    if kind not in KINDS:
        raise UserError(f"There is no kind of tokenizer {kind!r}.", hint=nearest(str(kind), KINDS))
    if vocab_size is not None and (isinstance(vocab_size, bool) or not isinstance(vocab_size, int)):
        raise UserError(f"vocab_size must be a whole number, not {vocab_size!r}.")
    if vocab_size is not None and vocab_size > MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size is {vocab_size:,}; it must be at most {MAX_VOCAB_SIZE:,}.")
    if kind == "byte" and vocab_size not in (None, NUM_BYTES + 1):
        raise UserError(
            f"A tokenizer of bytes has {NUM_BYTES + 1} tokens, not {vocab_size}.",
            hint="Leave vocab_size out.",
        )
    with waiting("Training the tokenizer"):
        if kind == "character":
            backend = _character_level(texts, vocab_size)
        else:
            backend = _byte_level(texts, NUM_BYTES + 1 if kind == "byte" else vocab_size or VOCAB_SIZE)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        **({"unk_token": UNKNOWN} if kind == "character" else {}),
        clean_up_tokenization_spaces=False,
    )
    if vocab_size is not None and len(tokenizer) < vocab_size:
        say(f"The vocabulary has {len(tokenizer):,} tokens, not {vocab_size:,}: the text gives no more.")
    return tokenizer


def _byte_level(texts: Any, vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < NUM_BYTES + 1:
        raise UserError(
            f"vocab_size is {vocab_size}; the 256 bytes and {END_OF_TEXT} need at least {NUM_BYTES + 1}.",
            hint="For a small vocabulary: kind='character'.",
        )
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in iterate_texts(texts):
            seen += len(text)
            yield text

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # sorted: alphabet() comes in a random order, and the ids of the bytes follow it
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(counted(), trainer)
    if seen == 0:
        raise _no_text()
    return backend


def _character_level(texts: Any, vocab_size: int | None) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    least = 3  # the special token, the unknown one and a character
    if vocab_size is not None and vocab_size < least:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least {least}.")
    counts: Counter[str] = Counter()
    for text in iterate_texts(texts):
        counts.update(text)
    if not counts:
        raise _no_text()
    counts.pop(UNKNOWN, None)
    # By frequency, then by code point: the same whatever the order of the texts.
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    kept = by_frequency[: None if vocab_size is None else vocab_size - 2]
    vocabulary = {token: number for number, token in enumerate((END_OF_TEXT, UNKNOWN, *sorted(kept)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.add_special_tokens([END_OF_TEXT])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _no_text() -> DataError:
    return DataError("There is no text to train a tokenizer on.", hint="Load a source that has text.")
