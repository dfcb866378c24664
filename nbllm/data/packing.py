"""Encode text once, keep the tokens on disk, and find them again by what they were made from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nbllm.core.cache import cache_folder, make_folder, remove_abandoned, unwritable
from nbllm.core.errors import DataError
from nbllm.core.io import atomic_directory, expand_user, sha256_file, write_json
from nbllm.core.progress import progress
from nbllm.core.terminal import say
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import DocumentEncoder
from nbllm.data.texts import as_dataset, iterate_documents
from nbllm.data.token_store import OFFSETS, RECORD, SCHEMA, StoreRecord, TokenStore, shard_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    from nbllm.data.sources.chats import Message

logger = logging.getLogger(__name__)
GROUP_CHARACTERS = 1 << 22  # text read at once
SHARD_BYTES = 1 << 30  # of a file of tokens


def pack(
    dataset: Dataset, tokenizer: PreTrainedTokenizerFast, *, folder: str | Path | None = None
) -> TokenStore:
    """Encode every document and write the tokens to disk, or find what was packed before.

    The store's name is a fingerprint of the texts, their order and the tokenizer, so the same text with the
    same tokenizer is encoded once; what is found is verified by checksum and made again when damaged. It is
    written aside and renamed, under a lock: several processes may pack the same text at once.

    Between documents stands the token that separated them in the model's training, or, where they began and ended with
    different ones, both (`nbllm.data.document_bounds`). A text that spells such a token is encoded as plain
    characters: only real ends are ends. Conversations (rows with `messages`) are rendered by the tokenizer's chat
    template, if it has one, which writes their beginning itself.

    While text is encoded a line says how much was; interrupting leaves nothing behind.

    Args:
        dataset: Documents in a column `text`, or anything else that `nbllm.data.load` takes.
        tokenizer: A fast tokenizer with an end-of-text token.
        folder: The cache; the store lies in `folder/tokens/<fingerprint>`. `$NBLLM_CACHE` or
            `~/.cache/nbllm` when not given.

    Raises:
        DataError: There is no text, or the tokenizer cannot be used.
        CacheError: The folder cannot be written.
    """
    encoder, start_id, eos_id = _encoder(tokenizer)
    vocab_size = len(tokenizer)
    template = tokenizer.chat_template and str(tokenizer.get_chat_template())
    dataset = as_dataset(dataset)
    fingerprint, num_bytes, num_conversations = _fingerprint(
        dataset, [start_id, eos_id, vocab_size, encoder.json], template
    )
    if num_conversations and template is None:
        say(
            f"The tokenizer has no chat template: of {num_conversations:,} conversations the roles are plain words."
        )
    parent = (cache_folder() if folder is None else expand_user(folder)) / "tokens"
    path = parent / fingerprint
    if (found := _find(path)) is not None:  # needs no lock, and so serves from a read-only cache too
        return found
    make_folder(parent)
    with FileLock(parent / f"{fingerprint}.lock"):
        if (found := _find(path)) is not None:
            return found
        remove_abandoned(parent)
        dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        record = StoreRecord(
            dtype=dtype,
            shard_tokens=SHARD_BYTES // np.dtype(dtype).itemsize,
            num_tokens=0,
            num_documents=len(dataset),
            num_bytes=num_bytes,
            num_conversations=0 if template is None else num_conversations,
            start_id=start_id,
            eos_id=eos_id,
            vocab_size=vocab_size,
            fingerprint=fingerprint,
            sha256={},
        )
        try:
            if path.exists():  # damaged; who reads it has its files open
                shutil.rmtree(path)
            with atomic_directory(path) as aside:
                offsets = _write_tokens(aside, dataset, encoder, template, record)
                offsets.astype("<i8").tofile(aside / OFFSETS)
                sums = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
                record = dataclasses.replace(record, num_tokens=int(offsets[-1]), sha256=sums)
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


def _encoder(tokenizer: PreTrainedTokenizerFast) -> tuple[DocumentEncoder, int | None, int]:
    """Return the encoder of documents, the token that begins each, unless the end of another does, and that ends it."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer.",
            hint="Use one from nbllm.data.train_tokenizer or a PreTrainedTokenizerFast.",
        )
    bounds = document_bounds(tokenizer)
    if bounds.end is None:
        raise DataError(
            "The tokenizer has no end-of-text token to put between documents.",
            hint='Set one: tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"}).',
        )
    return DocumentEncoder(tokenizer), None if bounds.start == bounds.end else bounds.start, bounds.end


def _fingerprint(dataset: Dataset, settings: list[object], template: str | None) -> tuple[str, int, int]:
    """Return the name of text + tokenizer, the UTF-8 bytes of the text and the number of conversations."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([SCHEMA, *settings]).encode())
    num_bytes = num_documents = num_conversations = 0
    for text, messages in iterate_documents(dataset):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length: ["ab", ""] is not ["a", "b"]
        if messages is not None and template is not None:
            digest.update(json.dumps([template, messages]).encode())
        num_bytes += len(data)
        num_documents += 1
        num_conversations += messages is not None
    if num_documents == 0 or num_bytes == 0:
        raise DataError("There is no text to pack.", hint="Load a source that has text.")
    return digest.hexdigest(), num_bytes, num_conversations


def _groups(dataset: Dataset) -> Iterator[list[tuple[str, list[Message] | None]]]:
    group: list[tuple[str, list[Message] | None]] = []
    size = 0
    for text, messages in iterate_documents(dataset):
        group.append((text, messages))
        size += len(text) + 1
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_tokens(
    folder: Path, dataset: Dataset, encoder: DocumentEncoder, template: str | None, record: StoreRecord
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Encode group by group into the files of `folder`; return the offsets, (document + 1)."""
    offsets = [np.zeros(1, np.int64)]
    with (
        contextlib.closing(_Shards(folder, record)) as shards,
        progress("encoding the text", record.num_bytes, "B") as bar,
    ):
        for group in _groups(dataset):
            plain = [text for text, messages in group if messages is None or template is None]
            size = sum(len(text.encode()) for text, _ in group) / max(sum(len(text) for text, _ in group), 1)

            def advance(count: int, size: float = size) -> None:
                bar.update(count * size)

            encoded = iter(encoder.encode(plain, advance))
            start = np.array([] if record.start_id is None else [record.start_id], np.int64)
            documents = []
            for text, messages in group:
                if messages is None or template is None:
                    documents.append(np.concatenate([start, next(encoded)]))
                else:
                    ids = encoder.encode_conversation(messages)
                    # The end that the template writes is the end of the document, which is written for all.
                    documents.append(ids[:-1] if len(ids) and ids[-1] == record.eos_id else ids)
                    advance(len(text))
            ends = _write_group(shards, documents, record)
            offsets.append(ends + offsets[-1][-1])
    return np.concatenate(offsets)


def _write_group(
    shards: _Shards, documents: list[NDArray[np.int64]], record: StoreRecord
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Write the tokens of some documents; return where each ends, counted from the first of them."""
    from nbllm.data.kernels.packing import append_documents

    lengths = np.array([len(ids) for ids in documents], np.int64)
    ids = np.concatenate(documents)
    tokens = np.empty(len(ids) + len(lengths), record.dtype)
    ends = np.empty(len(lengths), np.int64)
    wrong = append_documents(ids, lengths, record.eos_id, record.vocab_size, tokens, ends)
    if wrong >= 0:
        raise DataError(
            f"The tokenizer gave the id {ids[wrong]}, but says that it has {record.vocab_size:,} tokens.",
            hint="The tokenizer's files do not belong together; load it again.",
        )
    shards.write(tokens)
    return ends


class _Shards:
    """Writes tokens into files of equal length, one after the other."""

    def __init__(self, folder: Path, record: StoreRecord) -> None:
        self._folder, self._most = folder, record.shard_tokens
        self._number, self._space = 0, record.shard_tokens
        self._file: BinaryIO = open(folder / shard_name(0), "wb")

    def write(self, tokens: NDArray[np.integer]) -> None:
        tokens = tokens.astype(tokens.dtype.newbyteorder("<"), copy=False)
        while len(tokens):
            if not self._space:
                self.close()
                self._number, self._space = self._number + 1, self._most
                self._file = open(self._folder / shard_name(self._number), "wb")
            part, tokens = tokens[: self._space], tokens[self._space :]
            part.tofile(self._file)
            self._space -= len(part)

    def close(self) -> None:
        self._file.close()
