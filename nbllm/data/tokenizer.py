"""Train a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import waiting
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256


def train_tokenizer(texts: Dataset | Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the given texts.

    All 256 bytes are words, so any text whatever is encoded without an unknown token and decoded to exactly
    what it was. The only special token is `<|endoftext|>`: beginning, end and padding at once. Nothing is
    added to an encoded text. Same texts, same tokenizer.

    Args:
        texts: A data set with a column `text`, or strings.
        vocab_size: Number of tokens wanted, at least 257 (the bytes and the special token). A text too
            small for so many merges gives fewer: `len(tokenizer)` is what it has.

    Raises:
        UserError: `vocab_size` is too small.
        DataError: There is no text.

    Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019, "Language models are
        unsupervised multitask learners", section 2.2 (on bytes).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < NUM_BYTES + 1:
        raise UserError(
            f"vocab_size is {vocab_size}; the 256 bytes and {END_OF_TEXT} need at least {NUM_BYTES + 1}."
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
    with waiting("Training the tokenizer"):
        backend.train_from_iterator(counted(), trainer)
    if seen == 0:
        raise DataError("There is no text to train a tokenizer on.", hint="Load a source that has text.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
