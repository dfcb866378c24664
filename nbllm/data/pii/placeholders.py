"""What stands in the place of personal data: the same for the same, and nothing that tells what it was."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path

from nbllm.core.cache import cache_folder, make_folder, unwritable
from nbllm.core.io import ASIDE, read_regular

_LETTERS = 6  # of 5 bits each: two of a thousand persons share one by a chance of 1 in 2,000
KEY_BYTES = 32
_SEPARATORS = re.compile(rb"[\s().\-/]")
_SHOWN_TOO = frozenset("@.-+/:() ")
_MOST_SHOWN = 40


def placeholder(kind: str, value: bytes, key: bytes) -> bytes:
    """Return what replaces a value, as b"[EMAIL-K3V9Q2]".

    It depends on kind, value and key alone: in all documents, on any number of workers, in any order, the same person
    stays one, and different ones stay different. Without the key it cannot be found out by trying all numbers.

    Args:
        kind: "email", "name", ...
        value: What was found; case of addresses and the separators of numbers make no difference.
        key: The secret of whoever prepares the text.

    Source: RFC 7693 (keyed BLAKE2).
    """
    same = value.lower() if kind in ("email", "name") else value
    if kind in ("phone", "card", "iban", "national_id"):
        same = _SEPARATORS.sub(b"", value).upper()
    digest = hashlib.blake2b(same, key=key, digest_size=5, person=kind.encode()[:16]).digest()
    letters = base64.b32encode(digest).decode()[:_LETTERS]
    return f"[{kind.upper()}-{letters}]".encode()


def mask(value: bytes) -> str:
    """Return a value for displays: its first character and its form, as "a••@•••••••.•••"."""
    text = value.decode("utf-8", "replace")
    shown = "".join(
        character if place == 0 or character in _SHOWN_TOO else "•" for place, character in enumerate(text)
    )
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[: _MOST_SHOWN - 1]}…"


def own_key() -> bytes:
    """Return this user's key, which is made at random when it is first needed, and kept where only they can read it.

    Raises:
        CacheError: It cannot be written.
    """
    path = make_folder(cache_folder()) / "privacy.key"
    try:
        if not path.exists():
            _make(path)
        key = read_regular(path, 2 * KEY_BYTES)
    except OSError as error:
        raise unwritable(path, error) from error
    if len(key) != KEY_BYTES:
        raise unwritable(path, "the key of placeholders in it is damaged")
    return key


def _make(path: Path) -> None:
    aside = path.with_name(f"{ASIDE}{secrets.token_hex(16)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)  # of two processes that make one, the first has it
    finally:
        aside.unlink(missing_ok=True)


def fingerprint(key: bytes) -> str:
    """Return what tells one key from another, and nothing else of it."""
    return hashlib.blake2b(b"fingerprint", key=key, digest_size=8).hexdigest()
