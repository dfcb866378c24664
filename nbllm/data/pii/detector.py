"""What finds one kind of personal data: an expression and a proof."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nbllm.core.registry import Registry

CONTEXT = 32  # bytes before a find in which a word may say what it is


class Find(NamedTuple):
    """Something that was found in a document.

    Attributes:
        start: The first byte.
        stop: The byte behind the last one.
        proof: What shows that it is of its kind: "mod 97, 22 characters of DE".
    """

    start: int
    stop: int
    proof: str


@dataclasses.dataclass(frozen=True)
class Detector:
    """What finds one kind of personal data.

    Attributes:
        kind: "email", "card", ...
        family: The family of windows it looks at, as `nbllm.data.kernels.candidates` numbers them.
        find: Yields the finds of a document between two bytes; what lies beyond them is only context. Its time is
            linear in the bytes between.
    """

    kind: str
    family: int
    find: Callable[[bytes, int, int], Iterator[Find]]


DETECTORS: Registry[Detector] = Registry("kind of personal data")


def has_context(words: re.Pattern[bytes], document: bytes, start: int) -> bool:
    """Whether one of some words stands in the `CONTEXT` bytes before a find."""
    return words.search(document, max(0, start - CONTEXT), start) is not None
