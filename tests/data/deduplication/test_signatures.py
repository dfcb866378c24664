"""Shingles against plain Python, MinHash against theory and datasketch, hostile bytes."""

from __future__ import annotations

import math
import random
import unicodedata

import datasketch
import numpy as np
import pyarrow as pa
import pytest
import regex

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.characters import UNSPACED
from nbllm.data.deduplication.signatures import shingles_of, signatures_of

SCRIPTS = "".join(rf"\p{{Script={script}}}" for script in UNSPACED)
TOKEN = regex.compile(
    rf"(?P<character>[[{SCRIPTS}\u30fc]&&[\p{{L}}\p{{N}}]]\p{{M}}*)"
    rf"|(?P<word>(?:(?![[{SCRIPTS}\u30fc]&&[\p{{L}}\p{{N}}]]|\p{{M}})\w)(?:(?![[{SCRIPTS}\u30fc]&&[\p{{L}}\p{{N}}]])[\w\p{{M}}])*)",
    flags=regex.V1,
)
ALPHABETS = [
    "abcXYZ",
    "éàñÅ",
    "привет",
    "中文字かなー",
    "กิน้ำ",
    "한국어",
    "ab12_",
    " \n,.-!",
    "\u0301\u0327",
    "😀\x00",
]


def reference(text, words, characters):
    """The shingles of a text in plain Python, as tuples of tokens."""
    text = unicodedata.normalize("NFC", text)
    tokens = [
        ("".join(c.lower()[0] for c in m.group()), characters if m.lastgroup == "character" else words)
        for m in TOKEN.finditer(text)
    ]
    found, covered = [], 0
    for place, (_, length) in enumerate(tokens):
        if place + length <= len(tokens):
            found.append(tuple(token for token, _ in tokens[place : place + length]))
            covered = max(covered, place + length)
    if covered < len(tokens):
        first = next(place for place, (_, length) in enumerate(tokens) if place + length > len(tokens))
        found.append(tuple(token for token, _ in tokens[first:]))
    return found


def random_text(rng):
    parts = []
    for _ in range(rng.randint(0, 25)):
        alphabet = rng.choice(ALPHABETS)
        parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 6))))
        parts.append(rng.choice(["", " ", " "]))
    return "".join(parts)


@pytest.mark.parametrize(("words", "characters"), [(5, 2), (1, 1), (2, 4)])
def test_shingles_equal_plain_python(words, characters):
    rng = random.Random(3)
    documents = [random_text(rng) for _ in range(3000)]
    shingles, ends = shingles_of(Texts.of(pa.array(documents)), words=words, characters=characters)
    hashes: dict[tuple[str, ...], int] = {}
    for document, text in enumerate(documents):
        expected = reference(text, words, characters)
        found = shingles[ends[document] : ends[document + 1]].tolist()
        assert len(found) == len(expected), text
        for shingle in expected:
            hashes.setdefault(shingle, -1)
        assert len(set(found)) == len(set(expected)), text
    assert len(hashes) > 5000
    assert len(np.unique(shingles)) == pytest.approx(len(hashes), abs=2)  # but for a collision of 32 bits


def test_a_long_text_is_read_block_by_block():
    """More tokens than are held at a time give the same shingles as the pieces that cover them."""
    words = [f"w{i}" for i in range(10_000)]
    shingles, ends = shingles_of(
        Texts.of(pa.array([" ".join(words), *(" ".join(words[i : i + 5]) for i in range(9996))]))
    )
    assert ends[1] == 9996
    assert np.array_equal(shingles[:9996], shingles[9996:])


def pair(size, similarity, rng):
    """Two texts of `size` distinct words each, and their similarity as words."""
    shared = round(size * 2 * similarity / (1 + similarity))
    words = [f"w{number}" for number in rng.sample(range(10**9), 2 * size - shared)]
    return " ".join(words[:size]), " ".join(words[:shared] + words[size:]), shared / (2 * size - shared)


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_the_error_of_the_estimate_is_that_of_theory(similarity):
    """Without bias, with variance J (1 - J) / permutations; over pairs as over permutations."""
    rng = random.Random(4)
    errors = []
    for trial in range(400):
        one, other, true = pair(rng.choice([20, 200]), similarity, rng)
        rows = signatures_of(Texts.of(pa.array([one, other])), words=1, seed=trial)
        errors.append(((rows[0] == rows[1]).mean() - true) / math.sqrt(true * (1 - true) / 128))
    assert abs(np.mean(errors)) < 4 / math.sqrt(len(errors))
    assert np.std(errors) == pytest.approx(1, abs=4 / math.sqrt(2 * len(errors)))


def test_the_error_is_no_larger_than_that_of_datasketch():
    rng = random.Random(5)
    ours, theirs = [], []
    for trial in range(150):
        one, other, true = pair(100, 0.5, rng)
        rows = signatures_of(Texts.of(pa.array([one, other])), words=1, seed=trial)
        ours.append((rows[0] == rows[1]).mean() - true)
        sketches = [datasketch.MinHash(num_perm=128, seed=trial + 1) for _ in range(2)]
        for sketch, text in zip(sketches, (one, other), strict=True):
            sketch.update_batch([word.encode() for word in text.split()])
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    assert np.std(ours) < 1.3 * np.std(theirs)


def test_a_signature_is_the_minimum_of_each_permutation():
    from nbllm.data.deduplication.signatures import permutations

    texts = Texts.of(pa.array(["a b c d e f g h", "one", "", None]))
    shingles, ends = shingles_of(texts)
    factors, terms = permutations(40, seed=9)
    rows = signatures_of(texts, num_permutations=40, seed=9)
    for document in range(2):
        part = shingles[ends[document] : ends[document + 1]].astype(object)
        expected = [
            min((int(a) * x + int(b)) % 2**32 for x in part) for a, b in zip(factors, terms, strict=True)
        ]
        assert rows[document].tolist() == expected
    assert (rows[2:] == 2**32 - 1).all()
    assert np.array_equal(permutations(10, 9)[0], factors[:10])


def test_hostile_bytes_each_get_a_verdict():
    hostile = [
        b"\xff\xfe bad \xc0\xaf bytes \xed\xa0\x80",
        b"\x00" * 50,
        b"a" * 100_000,
        b"\xe4\xb8",
        b"",
        None,
        b"ok",
    ]
    texts = Texts.of(pa.array([*hostile, b"\xe4\xb8 ok"], pa.binary()))
    shingles, ends = shingles_of(texts)
    assert np.diff(ends).tolist() == [1, 0, 1, 0, 0, 0, 1, 1]
    assert shingles[ends[6]] == shingles[ends[7]]
    spaced, _ = shingles_of(Texts.of(pa.array(["bad bytes"])))
    assert shingles[0] == spaced[0]


def test_the_bytes_below_a_null_are_not_read():
    column = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.array([0, 5, 8], np.int32)), pa.py_buffer(b"helloabc"), pa.py_buffer(bytes([0b10]))
    )
    _, ends = shingles_of(Texts.of(column))
    assert np.diff(ends).tolist() == [0, 1]


@pytest.mark.parametrize("settings", [{"words": 0}, {"characters": 5000}])
def test_lengths_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        shingles_of(Texts.of(pa.array(["a"])), **settings)
