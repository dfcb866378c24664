"""The processes of a run, as its newest report has them."""

from __future__ import annotations

import math

import pytest

from nbllm.runs.rank_states import rank_states
from nbllm.runs.timeline import Timeline


def report(**fields):
    return {"kind": "ranks", "step": 7, "time": 1.0, "memory": [1e9, 2e9], "seconds": [1.0, 1.0],
            "computing": [0.3, 0.9], **fields}  # fmt: skip


def test_the_rank_that_keeps_the_others_waiting_is_named():
    states = rank_states(report())
    assert [(s.rank, s.memory, s.is_slow) for s in states] == [(0, 1e9, False), (1, 2e9, True)]


@pytest.mark.parametrize("computing", [[0.9, 0.92], [0.01, 0.04], [None, None], [0.9, None]])
def test_nobody_is_slow_by_chance_or_where_nothing_is_known(computing):
    assert not any(state.is_slow for state in rank_states(report(computing=computing)))


@pytest.mark.parametrize(
    "hostile",
    [{"memory": None}, {"memory": "big"}, {"seconds": [1.0]}, {"memory": []}, {"computing": [1] * 9999}],
)
def test_a_report_that_makes_no_sense_is_none(hostile):
    assert rank_states(report(**hostile)) == []
    assert rank_states(None) == []


def test_entries_that_are_no_numbers_are_unknown():
    states = rank_states(report(memory=["<b>", -1], seconds=[True, 2.0]))
    assert math.isnan(states[0].memory) and math.isnan(states[1].memory) and math.isnan(states[0].seconds)


def test_what_is_held_may_be_told_or_not():
    assert math.isnan(rank_states(report(weights=[1.0]))[0].weights)
    states = rank_states(report(weights=[4, 4], gradients=[4, 2], optimizer=["x", 8]))
    assert [state.gradients for state in states] == [4, 2]
    assert math.isnan(states[0].optimizer) and states[1].optimizer == 8


def test_a_new_session_may_have_other_ranks():
    timeline = Timeline([report()])
    assert timeline.ranks["step"] == 7
    timeline.extend([{"kind": "start", "step": 7, "time": 2.0, "from_step": 7}])
    assert timeline.ranks is None
