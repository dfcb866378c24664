import sys

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import SOURCES, load
from nbllm.data.sources.repeats import repeated, word_ngrams


def test_pydocs_are_the_installed_topics():
    from pydoc_data.topics import topics

    every = load("pydocs-all")
    assert dict(zip(every["source"], every["text"], strict=True)) == topics
    kept = load("pydocs")
    assert set(kept["source"]) < set(topics)
    assert all(topics[name] == text for name, text in zip(kept["source"], kept["text"], strict=True))


def test_pydocs_leave_out_what_other_topics_hold_and_say_so():
    kept = load("pydocs")
    names = set(kept["source"])
    assert "compound" in names  # holds the chapters on if, while, for, try, with
    assert not {"if", "else", "while", "for", "customization"} & names
    assert "topics repeat others and were dropped" in kept.info.description
    assert "customization" in kept.info.description
    texts = dict(zip(kept["source"], kept["text"], strict=True))
    assert repeated(texts) == {}


def test_nothing_unique_is_dropped_from_pydocs():
    kept = set().union(*(word_ngrams(text) for text in load("pydocs")["text"]))
    every = [ngram for text in load("pydocs-all")["text"] for ngram in word_ngrams(text)]
    assert sum(ngram in kept for ngram in every) / len(every) > 0.98


def test_repeated_keeps_one_of_equals_and_the_book_of_the_chapter():
    words = [f"w{n}" for n in range(300)]
    texts = {
        "book": " ".join(words[:200]),
        "chapter": " ".join(words[20:80]),
        "twin 1": " ".join(words[200:250]),
        "twin 2": " ".join(words[200:250]),
        "alone": " ".join(words[250:]),
        "short": "one two",
        "empty": "",
    }
    assert repeated(texts) == {"chapter": 1.0, "twin 1": 1.0}


def test_pystdlib_is_the_source_without_tests_and_without_pydocs():
    data = load("pystdlib")
    names = set(data["source"])
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not [name for name in names if name.split("/")[0] in ("test", "pydoc_data", "site-packages")]
    import argparse

    with open(argparse.__file__, encoding="utf-8") as file:
        assert file.read() == data["text"][list(data["source"]).index("argparse.py")]


def test_every_source_loads_and_names_its_documents_once():
    assert set(SOURCES) >= {"pydocs", "pydocs-all", "pystdlib"}
    for name in SOURCES:
        data = load(name)
        assert data.column_names == ["text", "source"]
        assert len(set(data["source"])) == len(data) > 20
        assert all(text.strip() for text in data["text"])


def test_an_installation_without_topics_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="installed without its reference topics"):
        load("pydocs")


def test_a_setting_without_meaning_is_refused():
    with pytest.raises(UserError, match="column='text' has no meaning"):
        load("pydocs", column="text")
    with pytest.raises(DataError, match="Did you mean 'pydocs'"):
        load("pydoc")
