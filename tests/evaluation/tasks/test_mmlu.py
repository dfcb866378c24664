"""MMLU: each convention to the character, both published layouts, and data that are neither."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.core.proportions import wilson
from nbllm.evaluation import Source, evaluate
from nbllm.evaluation.examples import load_examples
from nbllm.evaluation.splits import EMBEDDED
from nbllm.evaluation.tasks.mmlu import MMLU
from nbllm.evaluation.tasks.mmlu_subjects import GROUP_OF
from nbllm.evaluation.tasks.multiple_choice import credit

REAL = Path(__file__).parents[4] / "shared" / "data" / "mmlu"
LETTERS = "ABCD"
ITEM = {
    "subject": "high_school_physics",
    "question": " Why? ",
    "choices": ["a", "None", "c ", "d"],
    "answer": 1,
}
SHOT = {**ITEM, "question": "How?", "answer": 3}
CHOICES = "\nA. a\nB. None\nC. c \nD. d\nAnswer:"
ABOUT = "The following are multiple choice questions (with answers) about"

# Each as its program writes it: lm_eval's mmlu and mmlu_continuation; evaluate.py of hendrycks/test, whose
# `format_subject` begins with a space; mmlu_prompt of lighteval, and mmlu_cloze_prompt of SmolLM's evaluation with it.
PROMPTS = {
    ("harness", "letters"): (
        f"{ABOUT} high school physics.\n\nHow?{CHOICES} D\n\nWhy?{CHOICES}", [" A", " B", " C", " D"]
    ),
    ("hendrycks", "letters"): (
        f"{ABOUT}  high school physics.\n\nHow?{CHOICES} D\n\n Why? {CHOICES}", [" A", " B", " C", " D"]
    ),
    ("lighteval", "letters"): (
        f"{ABOUT} high school physics.\n\nQuestion: How?{CHOICES} D\n\nQuestion:  Why? {CHOICES}",
        [" A", " B", " C", " D"],
    ),
    ("harness", "cloze"): (
        "The following are questions (with answers) about high school physics.\n\n"
        "Question: How?\nAnswer: d\n\nQuestion: Why?\nAnswer:",
        [" a", " None", " c ", " d"],
    ),
    ("lighteval", "cloze"): (
        "The following are questions about high school physics.\nQuestion: How?\nAnswer: d\n\n"
        "Question:  Why? \nAnswer:",
        [" a", " None", " c ", " d"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("convention, form", PROMPTS)
def test_a_convention_is_kept_to_the_character(convention, form):
    task = MMLU(convention=convention, form=form, shots=1)
    requests = task.requests({**ITEM, "shots": [SHOT]})
    prompt, continuations = PROMPTS[convention, form]
    assert [str(request.context) for request in requests] == [prompt] * 4
    assert [request.continuation for request in requests] == continuations


def rows(subject, split):
    with (EMBEDDED / "mmlu" / split / f"{subject}_{split}.csv").open(newline="") as file:
        return [
            {"subject": subject, "question": q, "choices": c, "answer": LETTERS.index(a)}
            for q, *c, a in csv.reader(file)
        ]


SUBJECTS = ("astronomy", "elementary_mathematics", "high_school_computer_science")


def write(folder, layout):
    """Write the embedded set as the hub exports it."""
    for split in ("dev", "test"):
        items = [row for subject in SUBJECTS for row in rows(subject, split)]
        if layout == "parquet":
            (folder / "all").mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(items), folder / "all" / f"{split}-00000-of-00001.parquet")
        elif layout == "jsonl":
            folder.mkdir(exist_ok=True)
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
        elif layout == "json.gz":
            folder.mkdir(exist_ok=True)
            with gzip.open(folder / f"{split}.json.gz", "wt") as file:
                json.dump(items, file)
        else:
            for subject in SUBJECTS:
                (folder / split).mkdir(parents=True, exist_ok=True)
                with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
                    writer.writerows(
                        [r["question"], *r["choices"], r["answer"]] for r in rows(subject, split)
                    )
    return folder


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "json.gz", "csv"])
def test_the_hubs_export_holds_what_hendrycks_files_hold(layout, tmp_path):
    task = MMLU(shots=5)
    ours, words = task.examples(Source(None))
    theirs, _ = task.examples(Source(None, write(tmp_path / "mmlu", layout)))
    assert list(ours) == list(theirs) and len(ours) == 36 and "comes with nbllm" in words
    assert all(len(each["shots"]) == 5 and each not in each["shots"] for each in ours)
    assert {shot["subject"] for each in ours for shot in each["shots"]} == set(SUBJECTS)
    only, _ = MMLU(subjects=["astronomy"]).examples(Source(None))
    assert [each["question"] for each in only] == [each["question"] for each in rows("astronomy", "test")]


def test_a_mixture_of_the_layouts_is_named(tmp_path):
    folder = write(tmp_path / "mmlu", "csv")
    (folder / "test" / "virology_test.csv").write_text("Why?,a,b,c,d,A\n")
    with pytest.raises(
        DataError, match=r"(?s)virology_test.csv, line 1 has no header.*astronomy_test.csv, line 2 has"
    ):
        MMLU().examples(Source(None, folder))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("astronomy_test.csv", "Why?,a,b,c,d,2\n", r"(?s)answer '2' is in the layout of the hub's.*mixture.*line 1"),
        ("astronomy_test.csv", "question,choices,answer\nWhy?,['a' 'b'],1\n", r"(?s)must be a list of texts.*line 2"),
        ("astronomy_test.csv", "Why?,a,b,c,d,E\n", r"(?s)'E'.*line 1"),
        ("astronomy_test.csv", "Why?,a,b,c,d,A\nHow?,a,b\n", r"(?s)row has 3 fields; there are 6.*line 2"),
        ("astronomy_test.csv", 'Why?,a,b,c,d,A\n"How?,a,b,c,d,A\n', r"(?s)not CSV.*line 2"),
        ("astronomy_test.csv", "Why?,a,,c,d,A\n", r"(?s)column 'B' is empty.*line 1"),
        ("astronomy_test.csv", "", "file is empty"),
        ("cooking_test.csv", "Why?,a,b,c,d,A\n", "'cooking' is none of MMLU's 57 subjects"),
        ("test.jsonl", '{"question": "Why?"}\n{"question": \n', r"(?s)This is not JSON.*test.jsonl, line 2"),
        ("test.jsonl", '{"question": "Why?"}\n[]\n', r"(?s)This is a list, not an object.*line 2"),
        ("test.jsonl", '\n{"subject": "astronomy", "prompt": 1}\n', r"(?s)no column 'question'.*line 2"),
        (
            "test.jsonl",
            '{"subject": "astronomy", "question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 4}',
            r"(?s)'answer' is 4; it must be one of 0, 1, 2, 3.*line 1",
        ),
        (
            "test.jsonl",
            '{"subject": "astronomy", "question": "Why?", "choices": ["a", null, "c", "d"], "answer": 1}',
            r"(?s)'choices' is nothing, not a text.*line 1",
        ),
        (
            "test.jsonl",
            '{"subject": "astronomy", "question": "Why?", "choices": ["a", "b", "c", "d"], "answer": "B"}',
            r"(?s)mixture.*line 1",
        ),
        ("test.parquet", "PAR1", "not Parquet"),
        ("train.jsonl", "{}", r"(?s)No file is of the split test: 'train.jsonl'"),
        ("test.txt", "Why?", "no file of a benchmark"),
    ],
)  # fmt: skip
def test_bad_data_are_named_with_file_and_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        MMLU().examples(Source(None, tmp_path))


def test_a_choice_that_spells_a_missing_value_is_a_text(tmp_path):
    (tmp_path / "astronomy_test.csv").write_text("Why?,None,NA,nan,null,A\n")
    (only,), _ = MMLU().examples(Source(None, tmp_path))
    assert only["choices"] == ["None", "NA", "nan", "null"] and only["answer"] == 0


def test_too_few_worked_examples_are_an_error(tmp_path):
    (tmp_path / "astronomy_test.csv").write_text("Why?,a,b,c,d,A\n")
    with pytest.raises(
        DataError, match=r"(?s)0 worked examples of the subject 'astronomy'; shots=2.*split dev"
    ):
        MMLU(shots=2).examples(Source(None, tmp_path))


def test_drawn_shots_depend_on_the_seed_alone_and_leave_the_pool_as_it_was():
    """huggingface/lighteval#1307: drawing the shots of one item changed the pool of the next."""
    first, again, other, plain = (
        MMLU(shots=3, shots_seed=seed).examples(Source(None))[0] for seed in (1, 1, 2, None)
    )
    assert first == again and first != other != plain
    for subject in SUBJECTS:
        shots = [each["shots"] for each in first if each["subject"] == subject]
        assert all(each == shots[0] for each in shots) and len({s["question"] for s in shots[0]}) == 3


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"(?s)no subject 'astronom'.*Did you mean 'astronomy'"):
        MMLU(subjects=["astronom"])
    with pytest.raises(UserError, match="5 worked examples"):
        MMLU(shots=6)
    with pytest.raises(UserError, match="no cloze form"):
        MMLU(convention="hendrycks", form="cloze")
    assert MMLU(subjects="astronomy").subjects == ("astronomy",)
    assert len(GROUP_OF) == 57 and len(set(GROUP_OF.values())) == 4


def test_a_tie_counts_for_its_share():
    """stanford-crfm/helm#737."""
    assert credit([-1.0, -2.0, -1.0, -3.0], 0) == credit([-1.0, -2.0, -1.0, -3.0], 2) == 0.5
    assert credit([-1.0, -2.0], 0) == 1 and credit([-1.0, -2.0], 1) == 0


@pytest.mark.parametrize("normalizer, chosen", [("characters", 0), ("bytes", 1), ("tokens", 1)])
def test_the_unit_of_length_is_declared(normalizer, chosen):
    """EleutherAI/lm-evaluation-harness#3278: 東京 -6, Tokyo -10."""
    from nbllm.lm import Score

    task = MMLU(form="cloze", normalizer=normalizer)
    example = {**ITEM, "choices": ["Tokyo", "東京"], "answer": chosen, "shots": []}
    row = task.score(example, [Score(-10.0, 4, 6), Score(-6.0, 3, 7)])
    assert row["predicted"] == 1 and row["correct_normalized"] == 1 and row["correct"] == float(chosen == 1)
    assert np.allclose(row["log_probabilities"], (-10, -6)) and row["margin"] == 4


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real MMLU")
def test_the_whole_of_mmlu_is_read():
    examples, words = MMLU(shots=5).examples(Source(None, REAL))
    assert len(examples) == 14_042 and "57 files" in words
    assert {each["subject"] for each in examples} == set(GROUP_OF)
    assert {each["answer"] for each in examples} == {0, 1, 2, 3}


def test_a_limit_takes_as_many_of_each_subject():
    rows = load_examples(MMLU(), Source(None), limit=7).rows
    counts = [sum(row["subject"] == subject for row in rows) for subject in SUBJECTS]
    assert counts == [3, 2, 2]
    assert [row["question"] for row in rows[:3]] == [
        row["question"] for row in MMLU().examples(Source(None))[0][:3]
    ]


def test_a_single_subject_has_an_interval_of_its_questions(lm):
    report = evaluate(lm, MMLU(subjects=["astronomy"]), progress=False, resamples=20, reuse=False)
    correct = np.array(report.rows("mmlu").columns["correct"])
    found = report.metric("mmlu")
    assert found.interval == pytest.approx(wilson(correct.sum(), len(correct), 0.95))


def test_rows_without_a_subject_are_refused():
    with pytest.raises(DataError, match=r"(?s)no column 'subject'.*row 1"):
        MMLU().examples(Source(None, [{"question": "Why?", "choices": [*"abcd"], "answer": 1}]))
