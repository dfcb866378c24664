"""Text of data, models and people, where a terminal, an editor or a browser would obey it instead of showing it."""

from __future__ import annotations

import math
import re
import sys
from typing import Any, TextIO

# C0 and C1 controls but tab and newline (escape sequences, window titles, backspaces), the marks that reorder
# text (Boucher and Anderson 2021, arXiv:2111.00169), the line and paragraph separators, lone surrogates (they
# cannot be written as UTF-8) and the two non-characters that XML forbids.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def visible(text: object) -> str:
    """Return `text` with every control and reordering character replaced by U+FFFD, CRLF by a newline."""
    return _UNSEEN.sub(REPLACEMENT, str(text).replace("\r\n", "\n"))


def visible_line(text: object) -> str:
    """Return `visible` text in which newlines and tabs are replaced too: a name cannot imitate another line."""
    return visible(text).replace("\n", REPLACEMENT).replace("\t", REPLACEMENT)


def json_only(value: Any) -> Any:
    """Return a value of texts, numbers, lists and dicts with what a JSON message cannot hold replaced.

    Half of a surrogate pair, such as half an emoji, is no Unicode text and becomes U+FFFD, in keys too; NaN and
    infinity become null: a browser would refuse the whole message.
    """
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {json_only(name): json_only(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_only(item) for item in value]
    return value


def shorten(text: str, most: int) -> str:
    """Return at most about `most` characters of `text`: its beginning and end, and how many are left out."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end]} ... ({len(text) - most:,} characters left out) ... {text[-end:]}"


def say(text: object, *, error: bool = False, end: str = "\n") -> None:
    """Print `visible` text on standard output or standard error, whatever characters it can encode."""
    stream: TextIO = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write((visible(text) + end).encode(encoding, "replace").decode(encoding))
    stream.flush()
