"""Encode text once, keep the tokens on disk, and find them again by what they were made from."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock

from nbllm.core.cache import cache_folder, make_folder, remove_abandoned, unwritable
from nbllm.core.errors import DataError
from nbllm.core.io import atomic_directory, sha256_file, write_json
from nbllm.core.progress import progress
from nbllm.data.texts import iterate_texts
from nbllm.data.token_store import OFFSETS, RECORD, SCHEMA, TOKENS, StoreRecord, TokenStore

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
GROUP_CHARACTERS = 1 << 22  # text encoded at once: enough to keep the tokenizer's threads busy


def pack(
    dataset: Dataset, tokenizer: PreTrainedTokenizerFast, *, folder: str | Path | None = None
) -> TokenStore:
    """Encode every document and lay the tokens on disk; or find what was packed before.

    The store's name is a fingerprint of the texts, their order and the tokenizer, so the same text with the
    same tokenizer is encoded once; what is found is verified by checksum and made again when damaged. It is
    written aside and renamed, under a lock: several processes may pack the same text at once.

    A text that spells the end-of-text token is encoded as plain characters: only real ends are ends.

    Args:
        dataset: Documents in a column `text`.
        tokenizer: A fast tokenizer with an end-of-text token.
        folder: The cache; the store lies in `folder/tokens/<fingerprint>`. `$NBLLM_CACHE` or
            `~/.cache/nbllm` when not given.

    Raises:
        DataError: There is no text, or the tokenizer cannot be used.
        CacheError: The folder cannot be written.
    """
    backend, eos_id = _plain_backend(tokenizer)
    vocab_size = len(tokenizer)
    fingerprint, num_bytes = _fingerprint(dataset, backend.to_str(), eos_id, vocab_size)
    parent = (cache_folder() if folder is None else Path(folder)) / "tokens"
    path = parent / fingerprint
    if (found := _find(path)) is not None:  # needs no lock, and so serves from a read-only cache too
        return found
    make_folder(parent)
    with FileLock(parent / f"{fingerprint}.lock"):
        if (found := _find(path)) is not None:
            return found
        remove_abandoned(parent)
        try:
            with atomic_directory(path) as aside:
                dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
                offsets = _write_tokens(aside / TOKENS, dataset, backend, eos_id, vocab_size)
                offsets.astype("<i8").tofile(aside / OFFSETS)
                record = StoreRecord(
                    dtype=dtype,
                    num_tokens=int(offsets[-1]),
                    num_documents=len(offsets) - 1,
                    num_bytes=num_bytes,
                    eos_id=eos_id,
                    vocab_size=vocab_size,
                    fingerprint=fingerprint,
                    sha256={name: sha256_file(aside / name) for name in (TOKENS, OFFSETS)},
                )
                write_json(aside / RECORD, dataclasses.asdict(record))
        except OSError as error:
            raise unwritable(parent, error) from error
    return TokenStore.open(path)


def _find(path: Path) -> TokenStore | None:
    if not path.exists():
        return None
    try:
        store = TokenStore.open(path)
        store.verify()
    except (DataError, OSError) as error:
        logger.warning("Packing again: %s", error)
        return None
    return store


def _plain_backend(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, int]:
    """Return a copy of the Rust tokenizer that neither cuts, pads nor takes text for special tokens."""
    from tokenizers import Tokenizer

    source = getattr(tokenizer, "backend_tokenizer", None)
    if source is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer.",
            hint="Use one from nbllm.data.train_tokenizer or a PreTrainedTokenizerFast.",
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token to put between documents.",
            hint='Set one: tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"}).',
        )
    backend = Tokenizer.from_str(source.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend, int(tokenizer.eos_token_id)


def _fingerprint(dataset: Dataset, tokenizer_json: str, eos_id: int, vocab_size: int) -> tuple[str, int]:
    """Return the name of text + tokenizer and the number of UTF-8 bytes of the text."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([SCHEMA, eos_id, vocab_size]).encode() + tokenizer_json.encode())
    num_bytes = num_documents = 0
    for text in iterate_texts(dataset):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length: ["ab", ""] is not ["a", "b"]
        num_bytes += len(data)
        num_documents += 1
    if num_documents == 0 or num_bytes == 0:
        raise DataError("There is no text to pack.", hint="Load a source that has text.")
    return digest.hexdigest(), num_bytes


def _groups(dataset: Dataset) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in iterate_texts(dataset):
        group.append(text)
        size += len(text) + 1
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_tokens(
    path: Path, dataset: Dataset, backend: Any, eos_id: int, vocab_size: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Encode group by group into `path`; return the offsets, (document + 1)."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    offsets = [np.zeros(1, np.int64)]
    with open(path, "wb") as file, progress("encoding the text", len(dataset), " documents") as bar:
        for group in _groups(dataset):
            encodings = backend.encode_batch_fast(group, add_special_tokens=False)
            ends = _write_group(file, encodings, dtype, eos_id, vocab_size)
            offsets.append(ends + offsets[-1][-1])
            bar.update(len(group))
    return np.concatenate(offsets)


def _write_group(
    file: BinaryIO, encodings: list[Any], dtype: type[np.unsignedinteger], eos_id: int, vocab_size: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Write the tokens of some documents; return where each ends, counted from the first of them."""
    from nbllm.data.kernels.packing import append_documents

    lists = [encoding.ids for encoding in encodings]
    lengths = np.array([len(ids) for ids in lists], np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(lengths.sum()))
    tokens = np.empty(len(ids) + len(lengths), dtype)
    ends = np.empty(len(lengths), np.int64)
    wrong = append_documents(ids, lengths, eos_id, vocab_size, tokens, ends)
    if wrong >= 0:
        raise DataError(
            f"The tokenizer gave the id {ids[wrong]}, but says that it has {vocab_size:,} tokens.",
            hint="The tokenizer's files do not belong together; load it again.",
        )
    tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tofile(file)
    return ends
