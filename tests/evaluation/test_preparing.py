"""What becomes of a prompt that is longer than the context."""

import pytest

from nbllm.core.errors import UserError
from nbllm.evaluation import Generate, Likelihood, evaluate, prepare
from nbllm.evaluation.requests import Prompt
from nbllm.evaluation.tasks.mmlu import MMLU
from nbllm.inference.config import SamplingConfig

CONTEXT = 16
SHOTS = ("the cat sat ", "the dog ran ", "a mat and ")


def asked(text="x = 1", shots=SHOTS):
    return Likelihood(Prompt(text, shots, "if "), " return")


def test_whole_worked_examples_are_left_out_first(lm, tokenizer):
    (whole,) = prepare(lm, [asked(shots=())])
    (some,) = prepare(lm, [asked(shots=SHOTS * 2)])
    assert whole.dropped_shots == whole.dropped_tokens == some.dropped_tokens == 0
    kept = 6 - some.dropped_shots
    assert 0 < kept < 6
    assert some.before == tokenizer.encode("if " + "".join((SHOTS * 2)[:kept]) + "x = 1")
    assert len(some.before) + len(some.after) <= CONTEXT + 1
    (more,) = prepare(lm, [Likelihood(Prompt("x = 1", (SHOTS * 2)[: kept + 1], "if "), " return")])
    assert more.dropped_shots == 1  # none was left out that would have fitted


def test_then_the_beginning_is_cut_off(lm, tokenizer):
    long = "the dog ran to see the cat sat on a mat and the dog ran to see the cat sat on a mat"
    (found,) = prepare(lm, [asked(long)])
    assert found.dropped_shots == 3 and found.dropped_tokens > 0
    assert found.before == tokenizer.encode(f"if {long}")[found.dropped_tokens :]
    assert len(found.before) + len(found.after) == CONTEXT + 1


def test_left_cuts_as_lm_eval_does_and_error_refuses(lm, tokenizer):
    whole = tokenizer.encode(f"if {''.join(SHOTS * 2)}x = 1 return")
    (found,) = prepare(lm, [asked(shots=SHOTS * 2)], truncation="left")
    assert found.dropped_shots == 0 and [*found.before, *found.after] == whole[-(CONTEXT + 1) :]
    with pytest.raises(
        UserError, match=r"(?s)longer than the context by.*the prompt that begins 'if the cat"
    ):
        prepare(lm, [asked(shots=SHOTS * 2)], truncation="error")


def test_a_prompt_to_be_continued_leaves_room_for_the_answer(lm):
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=6)
    (found,) = prepare(lm, [Generate(Prompt("x = 1", SHOTS * 2), sampling)])
    assert found.dropped_shots and len(found.before) <= CONTEXT - 6


def test_the_report_says_what_was_left_out(lm):
    report = evaluate(
        lm, MMLU(shots=2, subjects=["astronomy"]), progress=False, resamples=50, limit=3, reuse=False
    )
    rows = report.rows("mmlu").columns
    assert rows["dropped_shots"] == (2, 2, 2) and all(count > 0 for count in rows["dropped_tokens"])
    notes = " ".join(section.note for section in report.sections)
    assert "longer than the context of 16 tokens were shortened: 3 lost 6 worked examples, 3 lost" in notes
    with pytest.raises(UserError, match="longer than the context"):
        evaluate(lm, MMLU(), truncation="error", progress=False)
    with pytest.raises(UserError, match="truncation is 'shot'"):
        evaluate(lm, "mmlu", truncation="shot", progress=False)
