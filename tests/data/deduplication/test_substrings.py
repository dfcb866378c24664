"""Repeated runs of tokens against brute force, in one piece and in many."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
import regex

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication import substrings
from nbllm.data.deduplication.substrings import RepeatedSubstrings, sort_windows, tokens_of

from .conftest import WORDS, decide


def brute_force(documents, length):
    """Marked by looking for each window among all that end before it begins."""
    seen, found, position = {}, [], 0
    for number, words in enumerate(documents):
        covered = -1
        for place in range(len(words) - length + 1):
            window, here = tuple(words[place : place + length]), position + place
            first = seen.setdefault(window, (here, number))
            if first[0] + length <= here:
                if place > covered:
                    found.append([number, place, place + length, first[1]])
                found[-1][2] = covered = place + length
        position += len(words) + 1
    return found


def as_lists(decisions):
    return [[row["id"], row["start"], row["stop"], row["partner"]] for row in decisions.to_pylist()]


@pytest.mark.parametrize("piece", [10**6, 300, 41])
@pytest.mark.parametrize(("length", "alphabet"), [(2, 6), (5, 2), (7, 2), (8, 3)])
def test_spans_equal_brute_force(length, alphabet, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(substrings, "PIECE", piece)
    rng = random.Random(length)
    documents = []
    for _ in range(150):
        words = [WORDS[rng.randrange(alphabet)] for _ in range(rng.randint(0, 20))]
        if documents and rng.random() < 0.3:
            words += rng.choice(documents)[rng.randint(0, 5) :]
        documents.append(words)
    expected = brute_force(documents, length)
    assert len(expected) > 20
    texts = [" ".join(words) for words in documents]
    step = RepeatedSubstrings(length=length)
    assert as_lists(decide(step, texts, tmp_path / "1")) == expected
    assert as_lists(decide(step, texts, tmp_path / "2", batches=4, order=[3, 1, 0, 2])) == expected


def test_runs_of_fifty_words_in_longer_texts(tmp_path):
    """Planted runs of 30 to 80 words, of which those of 50 and more are removed."""
    rng = random.Random(8)
    documents = [[rng.choice(WORDS) for _ in range(300)] for _ in range(60)]
    for number in range(1, 60):
        run = documents[rng.randrange(number)][100 : 100 + rng.randint(30, 80)]
        documents[number][200 : 200 + len(run)] = run
    expected = brute_force(documents, 50)
    assert 10 < len(expected) < 59
    assert (
        as_lists(decide(RepeatedSubstrings(), [" ".join(words) for words in documents], tmp_path)) == expected
    )


def test_windows_are_sorted():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 3, 500, dtype=np.uint32)
    tokens[rng.integers(0, 500, 20)] = 0
    order = sort_windows(tokens, 400, 6)
    windows = [tuple(tokens[i : i + 6]) for i in range(400) if 0 not in tokens[i : i + 6] and i + 6 <= 500]
    found = [tuple(tokens[i : i + 6]) for i in np.where(order < 0, -1 - order, order)]
    assert found == sorted(windows)
    assert (order < 0).tolist() == [False, *(one == other for one, other in itertools.pairwise(found))]


def test_edits_cut_the_bytes_of_the_run(tmp_path):
    documents = [
        "Of the  people, by the people.",
        "Einmal: of the people, by the\npeople. Done é",
        "of the people ,by the people",
    ]
    step = RepeatedSubstrings(length=5)
    decisions = decide(step, documents, tmp_path)
    edits = step.apply(Texts.of(pa.array(documents)), np.arange(3), decisions)
    left = [text.encode() for text in documents]
    for document, start, stop in zip(edits.document, edits.start, edits.stop, strict=True):
        left[document] = left[document][:start] + left[document][stop:]
    assert [text.decode() for text in left] == [documents[0], "Einmal: of Done é", ""]
    assert edits.partner.tolist() == [0, 1] and edits.value.tolist() == [7, 7]


def test_tokens_equal_plain_python():
    pattern = regex.compile(
        r"(?:(?!\p{Han})[\p{L}\p{N}_])(?:(?!\p{Han})[\p{L}\p{N}\p{M}_])*|\p{Han}\p{M}*|[^\s]"
    )
    documents = ["Héllo, wörld! 中文字 mixed中a", "", None, "e\u0301a \u0301x 😀😀 \t\u3000z", "a_b-c 12.5"]
    tokens, spans, ends = tokens_of(Texts.of(pa.array(documents)))
    known = {}
    for number, text in enumerate(documents):
        data = (text or "").encode()
        expected = [match.group() for match in pattern.finditer(text or "")]
        part = spans[ends[number] : ends[number + 1]]
        assert [data[start:stop].decode() for start, stop in part] == expected
        for token, value in zip(expected, tokens[ends[number] : ends[number + 1]].tolist(), strict=True):
            assert known.setdefault(token, value) == value
    assert len(set(known.values())) == len(known) and 0 not in known.values()


def test_hostile_bytes(tmp_path):
    """Each invalid byte, and each zero, is a token; a row of equal ones keeps its first fifty."""
    step = RepeatedSubstrings(length=50)
    column = pa.array([b"\xff" * 300, b"\x00" * 120, b"", None, b"a" * 10**6], pa.binary())
    ids = np.arange(len(column))
    decisions = step.solve([step.scan(Texts.of(column), ids)], tmp_path)
    assert as_lists(decisions) == [[0, 50, 300, 0], [1, 50, 120, 1]]
    edits = step.apply(Texts.of(column), ids, decisions)
    assert edits.start.tolist() == [50, 50] and edits.stop.tolist() == [300, 120]


def test_no_documents(tmp_path):
    assert decide(RepeatedSubstrings(), [], tmp_path / "1").num_rows == 0
    assert decide(RepeatedSubstrings(), ["", None, "a"], tmp_path / "2").num_rows == 0


@pytest.mark.parametrize("length", [0, 1, 20_000])
def test_lengths_that_make_no_sense_are_refused(length):
    with pytest.raises(UserError):
        RepeatedSubstrings(length=length)
