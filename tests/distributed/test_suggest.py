"""The plan that is suggested fits, and is the fastest by the estimate."""

from __future__ import annotations

import pytest

from nbllm.core.errors import UserError
from nbllm.distributed import Plan
from nbllm.distributed.explain import short
from nbllm.distributed.step_time import Hardware
from nbllm.distributed.suggest import memory_bytes, suggest_plan
from nbllm.models import make_config


@pytest.fixture(scope="module")
def found():
    return suggest_plan("llama-7b", devices=8, memory="24GB")


def test_what_is_suggested_fits_and_is_the_fastest(found):
    assert all(report.peak <= 0.9 * 24e9 for report in found.reports)
    times = [report.time.total for report in found.reports]
    assert times == sorted(times) and found.plan == found.reports[0].plan
    assert len({report.plan for report in found.reports}) == len(found.reports) > 3


def test_the_settings_make_the_step_that_was_asked_for(found):
    assert found.settings["batch_size"] * found.settings["accumulation"] * found.plan.data == 64
    asked = suggest_plan("gpt2", devices=4, memory=80e9, sequences=12, sequence_length=512)
    assert asked.best.tokens == 12 * 512


def test_a_small_model_is_just_replicated():
    assert suggest_plan("gpt2", devices=8, memory="80GB").plan == Plan(data=8)


def test_the_table_says_why_others_are_slower(found):
    text, html = str(found), found._repr_html_()
    for report in found.reports:
        assert short(report.plan) in text
    assert "computing" in text and "times the best" in html and "<details>" in html


def test_over_slow_links_little_is_sent():
    fast, slow = (
        suggest_plan("llama-7b", devices=8, memory="80GB", hardware=Hardware(bandwidth=speed, network=speed))
        for speed in (200, 2)
    )
    assert fast.plan.pipeline == 1 and slow.plan.pipeline > 1

    def most_sent(report):
        return max(sum(each.num_bytes for each in stage) for stage in report.traffic)

    assert most_sent(slow.best) < most_sent(fast.best) / 10


def test_what_fits_nowhere_is_said_with_a_way_out():
    with pytest.raises(UserError, match="No plan for 2 devices fits in 24 GB each") as raised:
        suggest_plan("llama-7b", devices=2, memory="24GB")
    assert "It fits on 8 such devices" in raised.value.hint
    assert "needs" in raised.value.what


def test_a_step_that_no_plan_divides_is_refused():
    with pytest.raises(UserError, match="a step of 3 sequences") as raised:
        suggest_plan(make_config("gpt2", num_layers=1, num_heads=1), devices=5, memory="24GB", sequences=3)
    assert "multiple" in raised.value.hint


@pytest.mark.parametrize("memory", ["24", "much", "24GBps", -1, 0, True, ""])
def test_what_is_no_size_is_refused(memory):
    with pytest.raises(UserError, match="memory is"):
        memory_bytes(memory)


def test_sizes():
    assert (
        memory_bytes("24GB") == 24e9 and memory_bytes(" 1.5 gib ") == 1.5 * 2**30 and memory_bytes(5) == 5.0
    )
