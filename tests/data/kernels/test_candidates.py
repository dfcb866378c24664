"""The windows that expressions are run on, against plain Python on random bytes."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest

from nbllm.data.arrow_text import Texts
from nbllm.data.kernels import candidates

MARKS = {b"akia": False, b"secret": True, b"sec": True, b"sk-": False}


def windows(texts, capacity=10_000):
    words = sorted(MARKS)
    begins = np.full((256, 256), -1, np.int16)
    for number, word in reversed([*enumerate(words)]):
        for first in word[:1] + word[:1].upper():
            for second in word[1:2] + word[1:2].upper():
                begins[first, second] = number
    marks = np.frombuffer(b"".join(words), np.uint8)
    offsets = np.cumsum([0, *map(len, words)], dtype=np.int64)
    assigned = np.array([MARKS[word] for word in words])
    out = np.full((capacity, 4), -7, np.int64)
    return candidates.candidate_windows(*texts, marks, offsets, assigned, begins.ravel(), out), out


def candidate_places(text):
    """Return (place, family) of every candidate, as the words of the module say it."""
    found = []
    for match in re.finditer(b"@", text):
        found.append((match.start(), candidates.AT))
    digits = [match.start() for match in re.finditer(rb"\d", text)]
    for first, last in zip(digits, digits[candidates.NUM_DIGITS - 1 :], strict=False):
        if last - first < candidates.DIGITS_WITHIN:
            found.append((last, candidates.DIGITS))
    colons = [match.start() for match in re.finditer(b":", text)]
    found += [
        (second, candidates.ADDRESS)
        for first, second in itertools.pairwise(colons)
        if second - first <= candidates.COLONS_WITHIN
    ]
    dots = [match.start() for match in re.finditer(rb"\.", text)]
    found += [
        (three, candidates.ADDRESS)
        for one, two, three in zip(dots, dots[1:], dots[2:], strict=False)
        if max(three - two, two - one) <= candidates.DOTS_WITHIN
    ]
    for word, assigned in MARKS.items():
        for match in re.finditer(b"(?=" + word + b")", text.lower()):
            behind = match.start() + len(word)
            if not assigned or re.search(b"[:=]", text[behind : behind + candidates.ASSIGNED_WITHIN]):
                found.append((match.start(), candidates.MARK))
    return found


def merged(text):
    out = []
    for family in range(candidates.NUM_FAMILIES):
        places = sorted(place for place, kind in candidate_places(text) if kind == family)
        before, after = candidates.BEFORE[family], candidates.AFTER[family]
        for place in places:
            if out and out[-1][0] == family and place - before <= out[-1][2]:
                out[-1][2] = min(len(text), place + after)
            else:
                out.append([family, max(0, place - before), min(len(text), place + after)])
    return out


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_those_of_plain_python(seed):
    rng = np.random.default_rng(seed)
    pieces = [
        b"@",
        b"1",
        b"23",
        b".",
        b":",
        b"word ",
        b"AKIA",
        b"Secret ",
        b"sk-",
        b"= ",
        b"\xff",
        b" " * 150,
        b"x" * 99,
    ]
    documents = [
        b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(0, 60))) for _ in range(200)
    ]
    documents[3] = None
    count, out = windows(Texts.of(pa.array(documents, pa.binary()).slice(1)))
    expected = [[n, *each] for n, text in enumerate(documents[1:]) for each in merged(text or b"")]
    # A mark at a byte that completes another candidate has the place alone; here no mark begins with such a byte.
    assert sorted(out[:count].tolist()) == sorted(expected)
    assert count > 300


def test_what_does_not_fit_is_counted_and_not_written():
    count, out = windows(Texts.of(pa.array([b"a@b", b"c@d", b"e@f"], pa.binary())), capacity=2)
    assert count == 3 and out.tolist() == [[0, 0, 0, 3], [1, 0, 0, 3]]
