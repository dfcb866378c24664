"""Parallel text in two plain files: how they are named, and what is wrong with them."""

import gzip
import json
from pathlib import Path

import pytest

from nbllm.core.errors import DataError
from nbllm.evaluation import Source
from nbllm.evaluation.parallel import parallel_files
from nbllm.evaluation.tasks.translation import Translation

GERMAN, ENGLISH = ["Guten Tag.", "Er sagte \u2028 nichts.", "Wo?"], ["Hello.", "He said nothing.", "Where?"]
NAMES = [
    ("newstest2014.de", "newstest2014.en"),
    ("newstest2014.de.txt", "newstest2014.en.txt"),
    ("newstest2020-deen-src.de.txt", "newstest2020-deen-ref.en.txt"),
    ("newstest.src", "newstest.ref"),
    ("newstest14.de-en.src", "newstest14.de-en.ref"),
    ("newstest2014.de.gz", "newstest2014.en.gz"),
]


def write(folder, name, lines, end="\n"):
    data = "".join(line + end for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def examples(data, **settings):
    return list(Translation(**settings).examples(Source(None, data))[0])


@pytest.mark.parametrize("source, target", NAMES)
def test_two_files_are_read_line_by_line_as_the_rows_of_the_hub_are(source, target, tmp_path):
    one, two = write(tmp_path, source, GERMAN), write(tmp_path, target, ENGLISH, "\r\n")
    hub = [{"translation": {"de": a, "en": b}} for a, b in zip(GERMAN, ENGLISH, strict=True)]
    table = tmp_path / "hub" / "test.jsonl"
    table.parent.mkdir()
    table.write_text("".join(json.dumps(row) + "\n" for row in hub))
    expected = examples(table)
    assert [each["references"] for each in expected] == [[line] for line in ENGLISH]
    assert examples(one) == examples(two) == expected
    table.unlink()
    assert examples(tmp_path) == expected


def test_the_other_direction_reads_its_own_files(tmp_path):
    for name, lines in (
        ("newstest2020-deen-src.de", GERMAN), ("newstest2020-deen-ref.en", ENGLISH),
        ("newstest2020-ende-src.en", ENGLISH[:1]), ("newstest2020-ende-ref.de", GERMAN[:1]),
    ):  # fmt: skip
        write(tmp_path, name, lines)
    assert len(examples(tmp_path)) == 3
    (found,) = examples(tmp_path, source_language="en", target_language="de")
    assert found["question"] == "Hello." and found["references"] == ["Guten Tag."]


def test_worked_examples_come_from_the_files_of_their_split(tmp_path):
    for language, lines in (("de", GERMAN), ("en", ENGLISH)):
        write(tmp_path, f"newstest.{language}", lines)
        write(tmp_path, f"train.{language}", lines[::-1])
    for data in (tmp_path, tmp_path / "newstest.de", tmp_path / "newstest.en"):
        found = examples(data, shots=1)
        assert len(found) == 3 and found[0]["shots"][0]["references"] == ["Where?"]


def test_files_of_unequal_length_are_refused_with_both_numbers(tmp_path):
    write(tmp_path, "newstest.de", GERMAN)
    write(tmp_path, "newstest.en", ENGLISH[:1])
    for data in (tmp_path, tmp_path / "newstest.de", tmp_path / "newstest.en"):
        with pytest.raises(DataError, match=r"newstest\.de has 3 lines, and newstest\.en has 1 line\."):
            examples(data)


@pytest.mark.parametrize("there, missing", [("newstest.de", "newstest.en"), ("newstest.en", "newstest.de")])
def test_a_missing_file_is_named(there, missing, tmp_path):
    write(tmp_path, there, GERMAN)
    for data in (tmp_path, tmp_path / there):
        with pytest.raises(DataError, match=f"The other file of the pair, {missing}, is missing"):
            examples(data)


def test_what_else_is_wrong_is_named(tmp_path):
    one = write(tmp_path, "newstest.de", ["Guten Tag.", ""])
    two = write(tmp_path, "newstest.en", ["Hello.", "Where?"])
    with pytest.raises(DataError, match=r"'de' is empty(?s:.*)newstest\.de and newstest\.en, line 2"):
        examples(tmp_path)
    two.write_bytes(b"Hello.\n\xff\n")
    with pytest.raises(DataError, match=r"not UTF-8(?s:.*)newstest\.en, line 2"):
        examples(one)
    one.write_text("")
    with pytest.raises(DataError, match=r"empty: it has no line(?s:.*)newstest\.de"):
        examples(one)
    with pytest.raises(DataError, match=r"text in fr or its translation into en(?s:.*)newstest\.fr"):
        examples(one, source_language="fr")
    with pytest.raises(DataError, match=r"no file of a benchmark(?s:.*)\.cs and \.fr"):
        examples(tmp_path, source_language="cs", target_language="fr")


@pytest.mark.parametrize(
    "name", ["newstest.fr", "de", "newstest", "newstest-ref.de", "newstest-src.en", "wmt14.en-de.src", "a.DE"]
)
def test_other_names_are_of_no_pair(name):
    assert parallel_files(Path(name), ("de", "en")) is None
