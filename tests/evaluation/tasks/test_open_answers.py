"""Answers that a model writes: what is extracted of them, and when two are the same."""

import json
from pathlib import Path

import pytest

from nbllm.evaluation import Source, evaluate
from nbllm.evaluation.math_equality import equal, last_boxed
from nbllm.evaluation.tasks.bbh import BigBenchHard
from nbllm.evaluation.tasks.competition_math import CompetitionMath
from nbllm.evaluation.tasks.gsm8k import Gsm8k, flexible_number, strict_number
from nbllm.evaluation.tasks.nq_open import NqOpen
from nbllm.evaluation.tasks.squad import SquadV2, Xquad
from nbllm.evaluation.tasks.translation import Translation
from nbllm.evaluation.tasks.truthfulqa import TruthfulQA

SHARED = Path(__file__).parents[4] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data sets")
PUBLISHED = {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        ("is $29.00.", None, 29),  # EleutherAI/lm-evaluation-harness#3214
        ("#### 18 and then #### 42", 42, 42),  # EleutherAI/lm-evaluation-harness#3438
        ("so 7 + 5 = 12\n#### 1,500", 1500, 1500),
        ("The answer is -3", None, -3),
        ("A: $0.50.", 0.5, 0.5),
        ("There is none.", None, None),
        ("####", None, None),
    ],
)
def test_numbers_are_extracted_strictly_and_flexibly(text, strict, flexible):
    assert strict_number(text) == strict and flexible_number(text) == flexible


def test_what_cannot_be_read_is_wrong_and_not_equal_to_nothing():
    task = Gsm8k()
    assert (
        task.judged("no idea", ["#### 7"])["correct"]
        == task.judged("no idea", ["#### 7"])["correct_strict"]
        == 0
    )
    assert task.judged("It is 7.", ["#### 7"]) == {
        "expected": "7", "predicted": "7", "correct": 1.0, "correct_strict": 0.0,
    }  # fmt: skip


@real
@pytest.mark.realdata
def test_the_published_solutions_of_gsm8k_are_judged_as_published():
    lines = (SHARED / "gsm8k" / "example_model_solutions.jsonl").read_text("utf-8").splitlines()
    solutions = [json.loads(line) for line in lines]
    task = Gsm8k()
    for model, count in PUBLISHED.items():
        judged = [
            task.judged(each[model]["solution"], [each["ground_truth"]])["correct"] for each in solutions
        ]
        assert sum(judged) == count
        assert [bool(each) for each in judged] == [each[model]["is_correct"] for each in solutions]


@pytest.mark.parametrize(
    "one, two",
    [
        ("(2,4)", "(2,4)"),
        ("[2,5)", "[2,5)"),
        ("1/√3", "√3/3"),
        (r"\frac{1}{\sqrt{3}}", r"\dfrac{\sqrt3}{3}"),
        ("0.5", r"\frac12"),
        ("1,000", "1000"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("x=5", "5"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"90^\circ", "90"),
        (r"\text{yes}", r"\text{yes}"),
        (r"\left(\frac{1}{2}, 3\right)", "(0.5,3)"),
    ],
)
def test_answers_that_are_written_otherwise_are_the_same(one, two):
    """EleutherAI/lm-evaluation-harness#4030, huggingface/lighteval#170; and equality goes both ways."""
    assert equal(one, two) and equal(two, one) and equal(one, one)


@pytest.mark.parametrize(
    "one, two",
    [
        ("(2,4)", "(4,2)"),
        ("[2,5)", "(2,5)"),
        ("x+1", "x+2"),
        ("x", "y"),
        ("", "5"),
        ("1/0", "2/0"),
        ("9^{9^{9^9}}", "1"),
        ("(" * 5000, "1"),
        ("__import__('os').system('true')", "1"),
    ],
)
def test_other_answers_are_not_and_hostile_ones_harm_nothing(one, two):
    assert not equal(one, two) and not equal(two, one)


def test_the_last_box_is_the_answer():
    assert last_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed("none") is None and last_boxed(r"\boxed{1") is None
    assert CompetitionMath().judged(r"It is \boxed{0.5}.", [r"\boxed{\frac12}"])["correct"] == 1
    assert CompetitionMath().judged("It is 0.5.", [r"\boxed{\frac12}"])["correct"] == 0


def test_abstaining_is_right_where_there_is_no_answer_and_nowhere_else():
    """EleutherAI/lm-evaluation-harness#3212."""
    task = SquadV2()
    example = next(each for each in task.examples(Source(None))[0] if not each["references"])
    (request,) = task.requests(example)
    word = str(request.prompt).split('write "')[1].split('"')[0]
    for golds, expected in ((), 1.0), (("Paris",), 0.0):
        row = task.judged(f" {word}", golds)
        assert row["exact_match"] == row["f1"] == expected
    assert task.judged("Paris", ["Paris"])["f1"] == 1 and task.judged("Paris", [])["f1"] == 0


def test_answers_of_big_bench_hard_are_compared_without_case_and_full_stop():
    task = BigBenchHard(shots=1)
    assert task.judged(" true.", ["True"])["correct"] == 1 and task.judged("(A)", ["(B)"])["correct"] == 0
    examples, _ = task.examples(Source(None))
    assert {each["subject"] for each in examples} == {"boolean_expressions", "object_counting"}
    assert all(each["shots"][0]["subject"] == each["subject"] != each["shots"][0] for each in examples)


def test_translations_name_their_languages_and_are_scored_by_sacrebleu(lm):
    import sacrebleu

    report = evaluate(lm, Translation(), progress=False, resamples=20)
    rows = report.rows("translation").columns
    written, golds = rows["written"], [gold for (gold,) in rows["references"]]
    expected = sacrebleu.corpus_chrf([text.strip() for text in written], [golds]).score
    assert report.metric("chrf").value == pytest.approx(expected)
    task = Translation(source_language="en", target_language="de", shots=1)
    (request,) = task.requests(task.examples(Source(None))[0][0])
    assert str(request.prompt) == (
        "English: Good morning!\nGerman: Guten Morgen!\n\nEnglish: The weather is nice today.\nGerman:"
    )


@real
@pytest.mark.realdata
@pytest.mark.parametrize(
    "task, path, count",
    [
        (Gsm8k(), "gsm8k/test.jsonl", 1319),
        (NqOpen(), "nq_open/NQ-open.dev.jsonl", 3610),
        (NqOpen(), "nq_open/NQ-open.efficientqa.dev.1.1.jsonl", 1800),
        (Xquad(), "xquad", 1190),
        (Xquad(language="zh"), "xquad", 1190),
        (Xquad(language="zh"), "xquad/xquad.zh.json", 1190),
        (TruthfulQA(), "truthfulqa/TruthfulQA.csv", None),
        (TruthfulQA(), "truthfulqa", None),
    ],
)
def test_the_real_files_are_read(task, path, count):
    examples, _ = task.examples(Source(None, SHARED / path))
    assert len(examples) == count if count else len(examples) > 700
    assert all(task.requests(each) for each in examples[:20])
