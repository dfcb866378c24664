"""Finding personal data in a batch of documents, with a proof of each find."""

from __future__ import annotations

import bisect
import functools
import importlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError, nearest
from nbllm.data.arrow_text import Texts
from nbllm.data.pii import phones, secret_keys
from nbllm.data.pii.detector import DETECTORS, Find

Names = Callable[
    [str], Iterable[tuple[int, int]]
]  # text -> first character of each name, and that behind its last

NAME = "name"
# Of finds that overlap, that of the kind named first is taken: the more a kind proves, the earlier it stands.
KINDS = ("secret", "credentials", "email", "iban", "card", "national_id", "ip", "phone", NAME)
for _module in ("accounts", "addresses", "emails", "national", "phones", "secret_keys"):
    importlib.import_module(f"nbllm.data.pii.{_module}")
_FIRST_WINDOWS = 1024
_ESCAPED = re.compile("[\udc80-\udcff]")


class Findings(NamedTuple):
    """What was found, ordered by (document, start); spans do not overlap.

    Attributes:
        document: int64 (finds,), the index of the document in the batch.
        start: int64 (finds,), the first byte within the document.
        stop: int64 (finds,), the byte behind the last one.
        kind: int32 (finds,), the index of the kind among those that were looked for.
        values: What stands there.
        proofs: What shows that each is of its kind.
    """

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    kind: NDArray[np.int32]
    values: list[bytes]
    proofs: list[str]


def check_kinds(kinds: Iterable[str] | None, *, names: bool) -> tuple[str, ...]:
    """Return the kinds to look for, in the order of `KINDS`.

    Args:
        kinds: Those that a person named; None: all that can be looked for here.
        names: Whether there is a function that finds names.

    Raises:
        UserError: There is no such kind, or what it needs is missing.
    """
    if kinds is None:
        return tuple(
            kind for kind in KINDS if (kind != NAME or names) and (kind != "phone" or phones.is_installed())
        )
    wanted = {kinds} if isinstance(kinds, str) else set(kinds)
    for kind in sorted(wanted, key=str):
        if kind not in KINDS:
            raise UserError(f"There is no kind of personal data {kind!r}.", hint=nearest(str(kind), KINDS))
    if NAME in wanted and not names:
        raise UserError(
            "Names are found by a function of yours, and there is none.",
            hint="privacy(names=function): it is given a text and returns the first and last places of names.",
        )
    if "phone" in wanted and not phones.is_installed():
        raise UserError(
            "Telephone numbers need the library of numbering plans, which is not installed.",
            hint=phones.INSTALL,
        )
    return tuple(kind for kind in KINDS if kind in wanted)


def find_personal_data(
    texts: Texts,
    kinds: Sequence[str],
    *,
    regions: tuple[str, ...] = phones.REGIONS,
    names: Names | None = None,
) -> Findings:
    """Find personal data in documents.

    Args:
        texts: The documents: any bytes.
        kinds: What to look for, as `check_kinds` returns them. Of finds that overlap the kind named first is taken.
        regions: Countries that telephone numbers without a prefix may be from.
        names: Finds names in a text.
    """
    found: list[tuple[int, int, int, int, bytes, str]] = []
    windows = _windows(texts)
    borders = np.flatnonzero(np.diff(windows[:, 0])) + 1
    by_document = {int(part[0, 0]): part for part in np.split(windows, borders) if len(part)}
    looked = range(texts.num_documents) if NAME in kinds else sorted(by_document)
    for number in looked:
        text = cast("bytes", texts[number])
        spans = _Spans()
        for kind, name in enumerate(kinds):
            for find in _finds(name, text, by_document.get(number), regions, names):
                if find.stop > find.start and spans.add(find.start, find.stop):
                    value = text[find.start : find.stop]
                    found.append((number, find.start, find.stop, kind, value, find.proof))
    found.sort()
    columns = np.array([each[:4] for each in found], np.int64).reshape(-1, 4)
    values, proofs = [each[4] for each in found], [each[5] for each in found]
    document, start, stop, number_of_kind = columns.T
    return Findings(document, start, stop, number_of_kind.astype(np.int32), values, proofs)


def _finds(
    kind: str,
    document: bytes,
    windows: NDArray[np.int64] | None,
    regions: tuple[str, ...],
    names: Names | None,
) -> Iterator[Find]:
    if kind == NAME:
        assert names is not None
        yield from _find_names(document, names)
        return
    detector = DETECTORS[kind]
    find = functools.partial(phones.find_phones, regions=regions) if kind == "phone" else detector.find
    for _, family, start, stop in [] if windows is None else windows.tolist():
        if family == detector.family:
            yield from find(document, start, stop)


def _find_names(document: bytes, names: Names) -> Iterator[Find]:
    # A byte that is no UTF-8 is one character for the function, and one byte again for us.
    text = document.decode("utf-8", "surrogateescape")
    for span in names(_ESCAPED.sub("\ufffd", text)):
        try:
            start, stop = (operator.index(place) for place in span)
        except (TypeError, ValueError):
            start, stop = 0, -1
        if not 0 <= start <= stop <= len(text):
            raise UserError(
                f"The function of names returned {span!r} for a text of {len(text)} characters.",
                hint="It must return pairs: the first character of a name, and the one behind its last.",
            )
        before = len(text[:start].encode("utf-8", "surrogateescape"))
        yield Find(before, before + len(text[start:stop].encode("utf-8", "surrogateescape")), "your function")


def _windows(texts: Texts) -> NDArray[np.int64]:
    from nbllm.data.kernels.candidates import candidate_windows

    marks = secret_keys.marks()
    capacity = max(_FIRST_WINDOWS, texts.data.size // 128)
    while True:
        windows = np.empty((capacity, 4), np.int64)
        count = candidate_windows(*texts, marks.letters, marks.offsets, marks.assigned, marks.begins, windows)
        if count <= capacity:
            windows = windows[:count]
            return windows[np.lexsort((windows[:, 2], windows[:, 0]))]
        capacity = count


class _Spans:
    """Spans of one document that do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> bool:
        """Add a span unless it overlaps one that is there; return whether it was added."""
        place = bisect.bisect_right(self._starts, start)
        if place and self._stops[place - 1] > start:
            return False
        if place < len(self._starts) and self._starts[place] < stop:
            return False
        self._starts.insert(place, start)
        self._stops.insert(place, stop)
        return True
