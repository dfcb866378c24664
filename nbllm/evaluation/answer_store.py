"""Answers kept on disk, so that an evaluation that was interrupted, or is given another task, computes none twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from nbllm.core.cache import cache_folder, make_folder
from nbllm.core.errors import CacheError
from nbllm.data.document_bounds import document_bounds
from nbllm.evaluation.provenance import model_fingerprint
from nbllm.evaluation.remote import Remote
from nbllm.nn.hooks import has_hooks

if TYPE_CHECKING:
    from nbllm.lm import LM

_FORMAT = 1  # to be raised when the same request is answered otherwise than before
_OWN = ("nbllm.", "torch.")
_AT_ONCE = 500  # keys of one query
_KEPT_SECONDS = 30 * 24 * 3600.0  # since a model was last evaluated


def key_of_model(lm: LM | Remote) -> str | None:
    """Return what a model's answers depend on beside the request, as a SHA-256; `None` where that cannot be told.

    It holds the model's fingerprint, the class of every module, the tokens that end a text, the device and torch's
    version. A module with hooks, with a replaced `forward` or of a class that is neither ours nor torch's may compute
    what its weights do not say. Of a remote model it is endpoint, name and API.
    """
    if isinstance(lm, Remote):
        return lm.fingerprint
    modules = list(lm.model.named_modules())
    if _has_any_global_hook() or not all(_is_known(module) for _, module in modules):
        return None
    classes = [[name, type(module).__qualname__] for name, module in modules]
    ends = [*lm.end_tokens, *document_bounds(lm.tokenizer).end_tokens, lm.decoder_tokens]
    facts = [_FORMAT, model_fingerprint(lm), torch.__version__, lm.model.device.type, classes, ends]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def _is_known(module: torch.nn.Module) -> bool:
    own = type(module).__module__.startswith(_OWN)
    return own and not has_hooks(module) and "forward" not in vars(module)


class AnswerStore:
    """The answers of one model, by the key of the request, in a file of SQLite.

    What cannot be written is computed again the next time; a warning says so once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._open()
            os.utime(path)
        except sqlite3.DatabaseError:  # damaged; all of it can be computed again
            path.unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, timeout=30)
        with self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
            )

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """Return the answers that are known, by key: values that JSON holds."""
        found: dict[bytes, Any] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"  # noqa: S608 (question marks alone)
            with contextlib.suppress(sqlite3.Error, ValueError):
                found |= {key: json.loads(answer) for key, answer in self._database.execute(query, part)}
        return found

    def add(self, answers: Mapping[bytes, Any]) -> None:
        """Keep answers; all of them are on the disk when this returns."""
        rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            warnings.warn(f"Answers cannot be kept in {self._path}: {error}.", stacklevel=2)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


@contextlib.contextmanager
def answers_of(lm: LM | Remote) -> Iterator[AnswerStore | None]:
    """Open the answers of a model; `None` where they cannot be kept.

    They are in `$NBLLM_ANSWERS`, or the folder "answers" of the cache, until the model was not evaluated for a month.
    """
    key = key_of_model(lm)
    place = os.environ.get("NBLLM_ANSWERS")
    try:
        folder = None if key is None else make_folder(Path(place) if place else cache_folder() / "answers")
    except CacheError as error:
        warnings.warn(f"Answers are not kept: {error.one_line}", stacklevel=3)
        folder = None
    if folder is None:
        yield None
        return
    _remove_old(folder)
    store = AnswerStore(folder / f"{key}.sqlite")
    try:
        yield store
    finally:
        store.close()


def _remove_old(folder: Path) -> None:
    for file in folder.glob("*.sqlite"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                file.unlink()
