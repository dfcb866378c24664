import pytest
from datasets import Dataset

from nbllm.core.errors import DataError, UserError
from nbllm.data import load, split
from nbllm.data.sources.repeats import word_ngrams


def make(texts):
    return Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})


def test_every_document_falls_on_one_side_in_order():
    data = make([f"text {n} " * (n + 1) for n in range(40)])
    training, held = split(data, 0.2, seed=3)
    assert sorted([*training["row"], *held["row"]]) == list(range(40))
    assert list(training["row"]) == sorted(training["row"])
    share = sum(map(len, held["text"])) / sum(map(len, data["text"]))
    assert 0.15 < share < 0.25


def test_the_same_text_is_never_on_both_sides():
    data = make([f"text {n % 10}" for n in range(100)])
    for seed in range(5):
        training, held = split(data, 0.3, seed=seed)
        assert not set(training["text"]) & set(held["text"])
        assert len(held) % 10 == 0


def test_the_split_depends_on_seed_and_texts_not_on_order():
    texts = [f"text {n}" for n in range(50)]
    _, held = split(make(texts), seed=1)
    _, turned = split(make(texts[::-1]), seed=1)
    _, other = split(make(texts), seed=2)
    assert set(held["text"]) == set(turned["text"]) != set(other["text"])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_side_is_empty(share):
    training, held = split(make(["a", "b" * 1000, "c" * 10]), share)
    assert len(training) >= 1
    assert len(held) >= 1


def test_held_out_pydocs_are_not_in_the_training_text():
    """Why `pydocs` drops topics: with all of them a quarter of the held-out 13-grams is trained on."""

    def overlap(name, seed):
        training, held = split(load(name), seed=seed)
        known = set().union(*map(word_ngrams, training["text"]))
        asked = [ngram for text in held["text"] for ngram in word_ngrams(text)]
        return sum(ngram in known for ngram in asked) / len(asked)

    assert max(overlap("pydocs", seed) for seed in range(3)) < 0.01
    assert min(overlap("pydocs-all", seed) for seed in range(3)) > 0.2


def test_bad_requests_are_named():
    with pytest.raises(UserError, match="between 0 and 1"):
        split(make(["a", "b"]), 1.0)
    with pytest.raises(DataError, match="sample_by='paragraph'"):
        split(make(["a", "a"]))
    with pytest.raises(UserError, match="between 0 and 1"):
        split(make(["a", "b"]), "a tenth")
    with pytest.raises(DataError, match="no column 'text'"):
        split(Dataset.from_dict({"body": ["a", "b"], "title": ["a", "b"]}))
    with pytest.raises(DataError, match="too short"):
        split(["a"])


def test_whatever_load_takes_is_split(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    for source in (str(tmp_path / "a.jsonl"), [tmp_path / "a.jsonl"], ["one", "two"]):
        training, held = split(source, 0.5)
        assert sorted([*training["text"], *held["text"]]) == ["one", "two"]


@pytest.mark.parametrize(("boundary", "share"), [("\n\n", 0.1), ("\n", 0.25), (" ", 0.5), ("", 0.1)])
def test_a_single_text_is_split_by_position_and_that_is_said(tmp_path, capsys, boundary, share):
    words = [f"word{n:04}" for n in range(2000)]
    text = boundary.join(words)
    path = tmp_path / "input.txt"
    path.write_text(text)
    training, held = split(path, share)
    assert training["text"][0] + held["text"][0] == text
    assert abs(len(held["text"][0]) / len(text) - share) < 0.2 * share
    if boundary:
        assert held["text"][0].startswith("word")
        assert training["text"][0].endswith(boundary)
    said = capsys.readouterr().out
    assert "input.txt is one document, so it is split by position" in said
    assert f"{len(held['text'][0]):,} of {len(text):,} characters" in said
    assert held["source"][0] == f"input.txt, characters {len(training['text'][0])} to {len(text)}"
