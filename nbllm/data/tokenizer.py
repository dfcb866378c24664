"""Train a tokenizer: byte-level BPE or Unigram, WordPiece, or one that needs no training, of bytes or characters."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.progress import waiting
from nbllm.core.terminal import say
from nbllm.data.texts import as_dataset, iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"  # Unicode's own character for one that cannot be shown
NUM_BYTES = 256
VOCAB_SIZE = 4096
MAX_VOCAB_SIZE = 10_000_000  # memory is reserved for all of them before the training begins
KINDS = ("bpe", "unigram", "wordpiece", "byte", "character")
MOST_BYTES = 1 << 29  # of text to train on: the words of more do not fit into the memory of small machines
_PIECE = 50_000  # characters that are counted at once: a document without a space would be one word
_SCORE_DIGITS, _SCORE_STEP = 3, 1e-4  # of Unigram's logarithms; between the scores that its trainer makes up
_BERT = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


def train_tokenizer(
    texts: Dataset | str | os.PathLike[str] | Iterable[str],
    vocab_size: int | None = None,
    *,
    kind: str = "bpe",
    max_bytes: int = MOST_BYTES,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer for the given texts.

    Same texts, same tokenizer. Nothing is added to an encoded text. `<|endoftext|>` is beginning, end and padding at
    once (but for "wordpiece").

    Pre-training tasks need special tokens besides, such as masks: `nbllm.objectives.add_tokens` adds them.

    - "bpe": byte-level BPE. All 256 bytes are tokens, so any text whatever is encoded without an unknown token and
      decoded to exactly what it was.
    - "unigram": pieces of the same 256 bytes, those under which the texts are likeliest; nothing is lost either.
    - "wordpiece": BERT's: words and their parts, the latter with "##". Spaces and line breaks are not kept, and a word
      with a character that no text has is `[UNK]`. It has BERT's special tokens.
    - "byte": the 256 bytes and `<|endoftext|>`; the same holds. Nothing is learned from the texts.
    - "character": each character of the texts, the most frequent where `vocab_size` is given. Others are encoded as
      U+FFFD, the replacement character; they are lost.

    Args:
        texts: Documents with a column `text`, strings, or anything else that `nbllm.data.load` takes.
        vocab_size: Number of tokens wanted; 4096 if not given. For "bpe" and "unigram" at least 257 (the bytes and the
            special token). That the texts give fewer is said: `len(tokenizer)` is what it has.
        kind: "bpe", "unigram", "wordpiece", "byte" or "character".
        max_bytes: Of text to train on, so that the memory is bounded. Of more, every so many-th document is read, and
            this is said; of an iterator, which is read only once, the first ones.

    Raises:
        UserError: There is no such kind, or `vocab_size` is too small or has no meaning for it.
        DataError: There is no text.

    Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019, "Language models are
        unsupervised multitask learners", section 2.2 (on bytes); Kudo 2018, arXiv:1804.10959 (Unigram); Schuster and
        Nakajima 2012, "Japanese and Korean Voice Search" (WordPiece).
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
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
        raise UserError(f"max_bytes must be a whole number of at least 1, not {max_bytes!r}.")
    with waiting("Training the tokenizer"):
        if kind == "character":
            backend = _character_level(texts, vocab_size)
        else:
            backend = _learned(
                kind,
                _Portion(texts, max_bytes),
                NUM_BYTES + 1 if kind == "byte" else vocab_size or VOCAB_SIZE,
            )
    one_for_all = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **(_BERT if kind == "wordpiece" else one_for_all),
        **({"unk_token": UNKNOWN} if kind == "character" else {}),
        clean_up_tokenization_spaces=False,
    )
    if vocab_size is not None and len(tokenizer) < vocab_size:
        say(f"The vocabulary has {len(tokenizer):,} tokens, not {vocab_size:,}: the text gives no more.")
    return tokenizer


class _Portion:
    """So much of some texts as is trained on, in pieces of bounded length.

    Args:
        texts: Anything that `train_tokenizer` takes.
        max_bytes: About how many UTF-8 bytes.
    """

    def __init__(self, texts: Any, max_bytes: int) -> None:
        self.texts = as_dataset(texts) if isinstance(texts, str | os.PathLike) else texts
        self._most = max_bytes
        self.is_empty = True
        self._every = 1
        if not isinstance(texts, Iterator):  # which could be read only once
            total = sum(_num_bytes(text) for text in iterate_texts(self.texts))
            self._every = -(-total // max_bytes) or 1
            if self._every > 1:
                say(
                    f"The tokenizer is trained on one document in {self._every:,}: max_bytes is {max_bytes:,}."
                )

    def __iter__(self) -> Iterator[str]:
        read = 0
        for number, text in enumerate(iterate_texts(self.texts)):
            if number % self._every:
                continue
            if read and read + _num_bytes(text) > self._most and isinstance(self.texts, Iterator):
                say(
                    f"The tokenizer is trained on the first {number:,} documents: max_bytes is {self._most:,}."
                )
                break
            read += _num_bytes(text)
            self.is_empty = self.is_empty and not text
            yield from (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _learned(kind: str, texts: _Portion, vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = len(_BERT) + 1 if kind == "wordpiece" else NUM_BYTES + 1
    if vocab_size < least:
        what = "BERT's special tokens" if kind == "wordpiece" else f"the {NUM_BYTES} bytes and {END_OF_TEXT}"
        raise UserError(
            f"vocab_size is {vocab_size}; {what} need at least {least}.",
            hint="For a small vocabulary: kind='character'.",
        )
    if kind == "wordpiece":
        return _wordpiece(texts, vocab_size)
    backend = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    make = trainers.UnigramTrainer if kind == "unigram" else trainers.BpeTrainer
    trainer = make(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # sorted: alphabet() comes in a random order, and the ids of the bytes follow it
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if texts.is_empty:
        raise _no_text()
    return _in_order(backend) if kind == "unigram" else backend


def _wordpiece(texts: _Portion, vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    pieces = [*texts] if isinstance(texts.texts, Iterator) else texts
    characters = {character for piece in pieces for character in set(piece)}
    if texts.is_empty:
        raise _no_text()
    # The trainer numbers "##a", "##b", ... in the order of a hash table, and ties between pairs follow these numbers;
    # what is called special it numbers first.
    inner = [f"##{character}" for character in sorted(characters) if _is_inner(character)]
    inner = inner[: vocab_size - len(_BERT)]
    backend = Tokenizer(models.WordPiece(unk_token=_BERT["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*_BERT.values(), *inner], show_progress=False
    )
    backend.train_from_iterator(pieces, trainer)
    saved = json.loads(backend.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in inner]
    return Tokenizer.from_str(json.dumps(saved))


def _is_inner(character: str) -> bool:
    """Whether a character can stand within a word: punctuation, spaces and Chinese characters are words alone."""
    if character.isascii():
        return character.isalnum()
    return unicodedata.category(character)[0] in "LMNS" and not unicodedata.name(character, "").startswith(
        "CJK"
    )


def _in_order(backend: Tokenizer) -> Tokenizer:
    """Return a Unigram tokenizer whose scores do not depend on the order of a hash table.

    Characters of the alphabet that the texts lack get the lowest scores, one a little above the other, in whatever
    order the trainer's table has them. Sums of probabilities differ in their last digits.
    """
    from tokenizers import Tokenizer

    saved = json.loads(backend.to_str())
    vocabulary = {piece: round(score, _SCORE_DIGITS) for piece, score in saved["model"]["vocab"]}
    lowest = min(vocabulary.values()) + NUM_BYTES * _SCORE_STEP
    rare = sorted(piece for piece, score in vocabulary.items() if len(piece) == 1 and score <= lowest)
    vocabulary |= zip(rare, sorted((vocabulary[piece] for piece in rare), reverse=True), strict=True)
    first, *others = vocabulary
    ordered = [first, *sorted(others, key=lambda piece: (-vocabulary[piece], piece))]
    saved["model"]["vocab"] = [[piece, vocabulary[piece]] for piece in ordered]
    return Tokenizer.from_str(json.dumps(saved))


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
