"""Examples that stand in the training text are found, and the figures without them are those of the others."""

from __future__ import annotations

import random

import datasets
import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import Table
from nbllm.data import pack
from nbllm.data.overlap import texts_of
from nbllm.evaluation import TASKS, evaluate, find_overlap, reproduce
from nbllm.runs.run import Run
from nbllm.runs.store import create
from tests.evaluation.questions import Choosing, questions

WORDS = [f"word{i}" for i in range(400)]


def sentence(seed, count=30):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def plant(text, start, stop):
    """Part of a text with other words around it, in capitals and with other punctuation."""
    words = text.split()[start:stop]
    return f"{sentence(900, 20)}! {', '.join(words).upper()}; {sentence(901, 20)}"


def overlap_of(example, *texts):
    found = find_overlap([[sentence(1)], [example], [sentence(2)]], texts)
    assert not found.touched[[0, 2]].any()
    return bool(found.words[1]), bool(found.characters[1])


def test_a_planted_example_is_found_whatever_case_and_punctuation():
    example = sentence(0)
    assert overlap_of(example, sentence(3), plant(example, 5, 18)) == (True, True)
    found = find_overlap([[example]], [sentence(3), plant(example, 5, 18)])
    run, number = found.runs[0]
    assert number == 2 and run.split() == example.split()[5:18] and found.num_documents == 2


def test_thirteen_words_are_needed_and_fifty_characters():
    example = sentence(0)
    assert overlap_of(example, plant(example, 5, 17)) == (False, True)  # 12 words, of about 80 characters
    assert overlap_of(example, plant(example, 5, 11)) == (False, False)  # 6 words, of less than 50
    short = " ".join("a b c d e f g h i j k l m n o p".split())
    assert overlap_of(short, plant(short, 0, 13)) == (True, False)
    for length, expected in ((49, False), (50, True)):
        runs = "".join(random.Random(1).choices("abcdefgh", k=60))
        assert overlap_of(runs, f"zz {runs[3 : 3 + length]}zz")[1] is expected


def test_an_example_of_few_words_must_stand_there_whole():
    example = "one two three four five six seven eight nine"
    assert overlap_of(example, f"so {example}.") == (True, False)
    assert overlap_of(example, "so one two three four five six seven eight.") == (False, False)
    assert overlap_of("one two three", "one two three") == (False, False)


def test_a_text_of_an_example_may_stand_there_without_the_others():
    question, choices = "which of these nine planets is the very nearest", ["one", "two", "three four"]
    assert find_overlap([[question, *choices]], [f"so {question}."]).words[0]
    assert not find_overlap([[question, *choices]], ["so one two three four."]).touched[0]
    together = "is the very nearest one two three four"  # of two texts: 13 words are needed
    assert not find_overlap([[question, *choices]], [together]).touched[0]
    assert find_overlap([[question, *choices]], [f"{question} one two three four"]).words[0]


def test_worked_examples_are_not_looked_for(tmp_path):
    mmlu = TASKS["mmlu"](shots=2)
    example = {"question": "a", "shots": [{"question": "b"}]}
    assert texts_of(mmlu.asked(example)) == ["a"]


def test_runs_are_those_of_a_plain_search():
    chooser = random.Random(0)
    examples = [
        " ".join(chooser.choices("ab", k=25)) for _ in range(40)
    ]  # so alike that many runs are shared
    texts = [" ".join(chooser.choices("ab", k=120)) for _ in range(4)]
    found = find_overlap([[example] for example in examples], texts)
    for example, words in zip(examples, found.words, strict=True):
        parts = example.split()
        runs = {" ".join(parts[i : i + 13]) for i in range(13)}
        assert words == any(run in text for run in runs for text in texts)
    assert 0 < found.words.sum() < 40


@pytest.fixture(scope="module")
def data():
    rows = questions(30)
    for i, row in enumerate(rows):
        row["question"] = f"{sentence(i, 14)} {row['question']}"
    return rows


@pytest.fixture(scope="module")
def texts(data):
    planted = [f"before {data[i]['question']} after" for i in (2, 7, 11)]
    return [sentence(100), *planted, sentence(101)]


def test_every_figure_is_given_with_and_without_the_touched_examples(lm, data, texts):
    report = evaluate(lm, Choosing(), data=data, training=texts, resamples=50, progress=False)
    plain = evaluate(lm, Choosing(), data=data, resamples=50, progress=False)
    correct = np.array(report.rows().columns["correct"], float)
    touched = np.isin(np.arange(30), [2, 7, 11])
    assert report.metric("accuracy") == plain.metric("accuracy")
    assert report.metric("accuracy, 27 untouched").value == pytest.approx(correct[~touched].mean())
    assert report.metric("accuracy, 3 touched").value == pytest.approx(correct[touched].mean())
    assert report.metric("accuracy, all questions").value == pytest.approx(correct.mean())
    assert report.metric("accuracy, 27 untouched").signature.endswith("|subset:untouched")
    (listed,) = [part for part in report.sections if isinstance(part, Table) and "in common" in part.folded]
    assert [row[:2] for row in listed.rows] == [(3, 2), (8, 3), (12, 4)]
    assert "3 (10.0%) have text in common" in str(report)
    assert reproduce(report, progress=False).agrees  # by the figures of all examples


def test_the_training_text_of_a_run_is_read_back(lm, data, texts, tmp_path):
    store = pack(
        datasets.Dataset.from_list([{"text": text} for text in texts]), lm.tokenizer, folder=tmp_path
    )
    kept = {"path": str(store.path), "fingerprint": store.fingerprint}
    run = Run(create(tmp_path / "runs", "tour", {"data": {"train": kept}}))
    report = evaluate(lm, Choosing(), data=data, training=run, resamples=50, progress=False)
    assert report.metric("accuracy, 3 touched").value is not None
    bare = Run(create(tmp_path / "runs", "bare", {}))
    with pytest.raises(UserError, match=r"(?s)does not say what it was trained on.*training=dataset"):
        evaluate(lm, Choosing(), data=data, training=bare, progress=False)


def test_nothing_in_common_is_said(lm, data):
    report = evaluate(lm, Choosing(), data=data, training=[sentence(500)], resamples=50, progress=False)
    assert "0 (0.0%) have text in common with 1 document" in str(report)
    with pytest.raises(UserError):
        report.metric("accuracy, 30 untouched")
