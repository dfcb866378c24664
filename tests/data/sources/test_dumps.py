"""Books of Project Gutenberg, dumps of Reddit, source trees."""

import json

import pytest
import zstandard

from nbllm.core.errors import DataError, UserError
from nbllm.data import load
from nbllm.data.sources.licences import allows

BOOK = """The Project Gutenberg eBook of A Book

This ebook is for the use of anyone anywhere.

*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***


Chapter one.

It begins.

*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***

Updated editions will replace the previous one: the full license.
"""
OLDER = """Header of an old file
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*
An old book.
End of the Project Gutenberg EBook of Something
the licence
"""
COMMENTS = [
    {"subreddit": "a", "link_id": "t3_1", "body": "good comment", "score": 5},
    {"subreddit": "a", "link_id": "t3_1", "body": "[deleted]", "score": 9},
    {"subreddit": "a", "link_id": "t3_1", "body": "unpopular", "score": -2},
]
SUBMISSIONS = [
    {"subreddit": "a", "title": "A title", "selftext": "and its text", "score": 4, "url": "x"},
    {"subreddit": "a", "title": "A link", "selftext": "", "score": 40, "url": "x"},
]
MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy\nof this software.\n"
    "The above copyright notice and this permission notice shall be included in all copies."
)


def test_a_book_loses_its_licence(tmp_path):
    (tmp_path / "a.txt").write_text(BOOK)
    (tmp_path / "b.txt").write_text(OLDER)
    data = load(tmp_path)
    assert data["text"][:] == ["Chapter one.\n\nIt begins.\n", "An old book.\n"]
    assert "licence was left out" in data.info.description
    assert load(tmp_path / "a.txt", sample_by="paragraph")["text"][:] == ["Chapter one.", "It begins."]
    (tmp_path / "c.txt").write_text("A text about *** START OF THE PROJECT GUTENBERG marks\nkept")
    assert load(tmp_path / "c.txt")["text"][0].endswith("kept")


def test_dumps_of_reddit_are_read_by_score(tmp_path):
    def write(name, rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        parameters = zstandard.ZstdCompressionParameters(window_log=31)
        (tmp_path / name).write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(lines))

    write("RC_2019-01.zst", COMMENTS)
    write("RS_2019-01.zst", SUBMISSIONS)
    assert load(tmp_path / "RC_2019-01.zst")["text"][:] == ["good comment", "unpopular"]
    assert load(tmp_path / "RC_2019-01.zst", min_score=1)["text"][:] == ["good comment"]
    assert load(tmp_path / "RS_2019-01.zst", min_score=4)["text"][:] == ["A title\n\nand its text"]
    assert load(tmp_path / "RC_2019-01.zst", column="subreddit")["text"][:] == ["a", "a", "a"]


def test_rows_with_a_score_are_chosen_by_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "score": 1}\n{"text": "b", "score": 2.5}\n{"text": "c"}\n'
    )
    with pytest.raises(DataError, match="no number 'score'"):
        load(tmp_path / "a.jsonl", min_score=2)
    with pytest.warns(UserWarning, match="no score"):
        assert load(tmp_path / "a.jsonl", min_score=2, on_error="skip")["text"][:] == ["b"]


def test_a_source_tree_is_read_under_the_licences_that_are_wanted(tmp_path):
    for name, content in {
        "LICENSE": MIT,
        "a.py": "a = 1",
        "b.c": "// SPDX-License-Identifier: GPL-2.0-only\nint b;",
        "c.rs": "// SPDX-License-Identifier: MIT OR Apache-2.0\n",
        "vendor/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007",
        "vendor/d.go": "package d",
        "vendor/inner/e.js": "/* SPDX-License-Identifier: BSD-3-Clause */",
        "own/LICENSE.md": "All rights reserved.",
        "own/f.kt": "val f",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    data = load(tmp_path, licences="permissive")
    assert [name for name in data["source"] if "LICENSE" not in name] == ["a.py", "c.rs", "vendor/inner/e.js"]
    assert "GPL-3.0" in data.info.description
    assert "GPL-2.0-only" in data.info.description
    assert "vendor/d.go" in load(tmp_path, licences=["GPL-3.0"])["source"]
    assert "own/f.kt" in load(tmp_path)["source"]
    with pytest.raises(UserError, match="licences"):
        load(tmp_path / "a.py", licences="permissive")
    with pytest.raises(UserError, match="SPDX"):
        load(tmp_path, licences=[])


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MIT OR GPL-3.0-only)", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-or-later", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_expressions(expression, allowed):
    assert allows(expression, frozenset({"MIT", "Apache-2.0"})) is allowed
