"""Equal documents, paragraphs and lines, against plain Python."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication import exact
from nbllm.data.deduplication.exact import ExactDuplicates

from .conftest import decide

LINES = ["the same line", "a  line\twith   spaces", "a line with spaces", "}", "", "  ", "cafe\u0301 noir"]
LINES += ["caf\u00e9 noir", "\u3000full width\u00a0", "full width", "x", "end.\r", "end."]


def is_blank(line):
    return not line.decode().strip()


def parts(text, level):
    """The spans of the parts of a text, in plain Python."""
    if level == "document":
        return [(0, len(text))]
    lines = [match.span() for match in re.finditer(rb"[^\n]*\n|[^\n]+", text)]
    if level == "line":
        return [span for span in lines if not is_blank(text[slice(*span)])]
    found = []
    fresh = True
    for start, stop in lines:
        if is_blank(text[start:stop]):
            fresh = True
            if found:
                found[-1] = (found[-1][0], stop)
        elif fresh:
            found.append((start, stop))
            fresh = False
        else:
            found[-1] = (found[-1][0], stop)
    return found


def reference(documents, level, normalize, least):
    seen, repeated = {}, []
    for number, document in enumerate(documents):
        if document is None:
            continue
        text = document.encode()
        for start, stop in parts(text, level):
            key = text[start:stop].decode()
            if normalize:
                key = " ".join(unicodedata.normalize("NFC", key).split())
            if level != "document" and len(key) < least:
                continue
            if key in seen:
                repeated.append(
                    {"id": number, "start": start, "stop": stop, "partner": seen[key], "jaccard": 1.0}
                )
            else:
                seen[key] = number
    return repeated


@pytest.mark.parametrize("level", ["document", "paragraph", "line"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_removed_equals_plain_python(level, normalize, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "MOST_AT_A_TIME", 500)  # several shares
    rng = random.Random(0)
    documents = [None]
    for _ in range(800):
        document = "\n".join(rng.choice(LINES) for _ in range(rng.randint(0, 6)))
        documents.append(document + rng.choice(["", "\n", "\n\n"]))
    step = ExactDuplicates(level=level, normalize=normalize, min_characters=2)
    expected = reference(documents, level, normalize, 2)
    assert len(expected) > 100
    assert decide(step, documents, tmp_path / "1").to_pylist() == expected
    assert decide(step, documents, tmp_path / "2", batches=3, order=[2, 0, 1]).to_pylist() == expected


def test_the_first_of_equal_documents_stays(tmp_path):
    """text-dedup#129."""
    decisions = decide(ExactDuplicates(), ["x", "x", "x", "y", "", " ", None, None], tmp_path)
    assert decisions["id"].to_pylist() == [1, 2, 5]
    assert decisions["partner"].to_pylist() == [0, 0, 4]


def test_lines_are_removed_with_their_break(tmp_path):
    documents = ["a licence that everybody has\nmine\n", "yours\na licence that everybody has\nmore"]
    step = ExactDuplicates(level="line", min_characters=10)
    decisions = decide(step, documents, tmp_path)
    edits = step.apply(Texts.of(pa.array(documents)), np.arange(2), decisions)
    assert edits.document.tolist() == [1]
    start, stop = edits.start[0], edits.stop[0]
    assert documents[1][:start] + documents[1][stop:] == "yours\nmore"
    assert edits.partner.tolist() == [0]


def test_short_lines_stay(tmp_path):
    assert decide(ExactDuplicates(level="line"), ["}\n}\n", "}\n"], tmp_path).num_rows == 0


def test_hostile_bytes(tmp_path):
    step = ExactDuplicates()
    column = pa.array(
        [
            b"\xff",
            b"\xfe",
            b"\xff",
            b"\x00" * 10,
            b"\x00" * 11,
            b"a" * 10**6,
            b"a" * 10**6,
            b"e\xcc\x81\xff",
            b"\xc3\xa9\xfe",
        ]
    )
    ids = np.arange(len(column))
    decisions = step.solve([step.scan(Texts.of(column), ids)], tmp_path)
    assert decisions["id"].to_pylist() == [2, 6]


def test_no_documents(tmp_path):
    assert decide(ExactDuplicates(), [], tmp_path).num_rows == 0
    assert ExactDuplicates().solve([], tmp_path).num_rows == 0


@pytest.mark.parametrize("settings", [{"level": "word"}, {"min_characters": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        ExactDuplicates(**settings)
