"""Documents that hold evaluation examples are found, with the example and the place."""

import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import decontaminate
from nbllm.data.arrow_text import Texts
from nbllm.evaluation import task_texts

WORDS = [f"word{i}" for i in range(400)]


def sentence(seed, count=30):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


EXAMPLES = [sentence(number) for number in range(5)]


def texts_of(*texts):
    column = [text.encode() if isinstance(text, str) else text for text in texts]
    return Texts.of(pa.array(column, pa.binary()))


def plant(example, start, stop, joint=",\n"):
    words = joint.join(EXAMPLES[example].split()[start:stop]).upper()
    return f"{sentence(900, 20)} ({words}) {sentence(901, 20)}"


def test_what_is_found_names_the_example_and_the_place():
    step = decontaminate({"mine": EXAMPLES[:2], "other": EXAMPLES[2:]})
    clean, dirty = sentence(800), plant(3, 5, 18)
    found = step.find(texts_of(clean, None, dirty))
    assert {(each.document, each.evaluation, each.example, each.kind) for each in found} == {
        (2, "other", 2, "words"),
        (2, "other", 2, "characters"),
    }
    (words,) = [each for each in found if each.kind == "words"]
    place = dirty.encode()[words.start : words.stop].decode()
    assert place == "(" + ",\n".join(EXAMPLES[3].split()[5:18]).upper() + ")"
    assert words.run.split() == EXAMPLES[3].split()[5:18]
    edits = step.edits(texts_of(clean, None, dirty))
    assert (edits.document.tolist(), edits.rule.tolist(), edits.value.tolist()) == ([2], [1], [2.0])
    assert [rule.name for rule in step.rules] == ["decontaminate: mine", "decontaminate: other"]
    assert {name: column.tolist() for name, column in edits.signals.items()} == {
        "decontaminate/words": [0, 0, 1],
        "decontaminate/characters": [0, 0, 1],
    }


def test_line_breaks_and_hyphenation_hide_nothing():
    step = decontaminate(EXAMPLES)
    broken = EXAMPLES[0].replace("word", "wo-\nrd")  # 50 characters in a row are the same, words are not
    kinds = [
        {each.kind for each in step.find(texts_of(text))}
        for text in (EXAMPLES[0].replace(" ", "\r\n\t"), broken)
    ]
    assert kinds == [{"words", "characters"}, {"characters"}]


def test_places_are_right_in_any_script():
    words = (
        "größe straße ﬁnal ½ naïve 世界 данные café résumé übung ΑΒΓ größer coöperate façade jalapeño".split()
    )
    step = decontaminate([" ".join(words)])
    text = f"ß x {' — '.join(word.upper() for word in words)}\u3000y".encode() + b" \xff"
    (found,) = [each for each in step.find(texts_of(text)) if each.kind == "words"]
    assert text[found.start : found.stop].decode().split(" — ")[0].endswith(words[0].upper())
    assert len(text[found.start : found.stop].decode().split(" — ")) == 12  # 13 words: a half is 1 and 2


def test_equal_to_a_plain_search():
    chooser = random.Random(0)
    examples = [" ".join(chooser.choices("ab", k=14)) for _ in range(60)]
    texts = [" ".join(chooser.choices("ab", k=150)) for _ in range(60)]
    step = decontaminate(examples, action="tag")
    signals = step.edits(texts_of(*texts)).signals
    expected = [sum(any(e[i : i + 25] in text for i in (0, 2)) for e in examples) for text in texts]
    assert signals["decontaminate/words"].tolist() == expected and 0 < sum(expected) < 3600
    assert len(step.edits(texts_of(*texts)).document) == 0 and step.rules == ()


def test_dropped_spans_do_not_overlap_and_steps_are_pickled():
    step = decontaminate({name: [EXAMPLES[0]] for name in "abc"})
    edits = pickle.loads(pickle.dumps(step)).edits(texts_of(EXAMPLES[0] + " " + EXAMPLES[0]))
    assert edits.document.tolist() == [0, 0, 0] and edits.rule.tolist() == [0, 1, 2]
    assert (np.diff(edits.start) >= 0).all() and (edits.start[1:] >= edits.stop[:-1]).all()
    assert step.describe() == decontaminate({name: [EXAMPLES[0]] for name in "abc"}).describe()
    assert EXAMPLES[0] not in repr(step) + str(step.describe())


def test_rows_data_sets_and_files_are_examples(tmp_path):
    from datasets import Dataset

    question, choices = " ".join(EXAMPLES[0].split()[:8]), ["alpha", "beta gamma"]
    rows = [{"question": question, "choices": choices, "answer": 1}]
    (tmp_path / "mine.txt").write_text(EXAMPLES[0])
    for source in (rows, Dataset.from_list(rows), str(tmp_path / "mine.txt"), [[question, *choices]]):
        assert decontaminate(source).find(texts_of(EXAMPLES[0]))
    whole = decontaminate(rows).find(texts_of(f"{question}: alpha, beta gamma."))
    assert whole and whole[0].example == 1


def test_examples_of_tasks_are_found():
    texts = task_texts("mmlu")
    longest = max(texts["mmlu"], key=lambda parts: len(parts[0]))
    found = decontaminate(texts).find(texts_of("before " + " ".join(longest) + " after"))
    assert found[0].evaluation == "mmlu" and texts["mmlu"][found[0].example - 1] == longest


def test_what_cannot_be_is_refused():
    for wrong, message in [
        ([], "no evaluation example"),
        ({"x": ["", 3]}, "in 'x'"),
        ({}, "no evaluation"),
        (3, "not int"),
    ]:
        with pytest.raises(DataError, match=message):
            decontaminate(wrong)
    with pytest.raises(UserError, match="no action 'remove'"):
        decontaminate(EXAMPLES, action="remove")


def test_hostile_bytes():
    step = decontaminate(EXAMPLES)
    edits = step.edits(texts_of("", None, b"\xff" * 5000, "a" * 200_000, "\x00\u202e", b"\xe4 \xb8 " * 3000))
    assert len(edits.document) == 0 and set(edits.signals["decontaminate/characters"].tolist()) == {0}
