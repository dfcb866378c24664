from __future__ import annotations

import itertools
import json
import os
import random

import pytest

from nbllm.runs.step_profile import KINDS, Bar, StepProfile, bars, newest_profile, step_profiles
from tests.runs.profile_files import summary, write_profile


def test_bars_keep_the_largest_gaps_and_all_the_time():
    draw = random.Random(0)
    edges = sorted(draw.random() for _ in range(400))
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    for most in (1, 2, 7, 199, 200, 1000):
        made = bars(spans, most)
        assert len(made) == min(most, 200)
        assert sum(bar.spans for bar in made) == 200
        assert sum(bar.busy for bar in made) == pytest.approx(sum(end - start for start, end in spans))
        assert (made[0].start, made[-1].end) == (spans[0][0], spans[-1][1])
        gaps = sorted((after[0] - before[1] for before, after in itertools.pairwise(spans)), reverse=True)
        between = [after.start - before.end for before, after in itertools.pairwise(made)]
        assert sorted(between, reverse=True) == gaps[: len(made) - 1]
    assert bars([], 5) == []
    assert bars([(1.0, 2.0)], 5) == [Bar(1.0, 2.0, 1.0, 1)]


def test_shares_and_idle_time_follow_from_the_spans(tmp_path):
    (rank,) = StepProfile(write_profile(tmp_path, 5, summary())).ranks
    assert rank.shares == pytest.approx(
        {
            "computing": 0.38,
            "communication": 0.25,
            "exposed": 0.15,
            "data": 0.1,
            "optimizer": 0.2,
            "idle": 0.17,
        }
    )
    assert sum(end - start for start, end in rank.idle_spans) == pytest.approx(0.17 * 0.03)


def test_the_newest_profile_is_the_one_that_was_written_last(tmp_path):
    assert newest_profile(tmp_path) is None
    late = write_profile(tmp_path, 500, summary(), summary(1))
    early = write_profile(tmp_path, 20, summary())  # after a rewind
    os.utime(late, ns=(10**18, 10**18))
    os.utime(early, ns=(2 * 10**18, 2 * 10**18))
    write_profile(tmp_path, 900)  # of which there is no summary yet
    profile, stamp = newest_profile(tmp_path)
    assert profile.step == 20 and profile.title == "3 steps from step 20 on, 1 rank"
    assert newest_profile(tmp_path)[1] == stamp
    write_profile(tmp_path, 20, summary(), summary(1))
    os.utime(early, ns=(2 * 10**18, 2 * 10**18))  # in the same tick of the file system's clock
    assert newest_profile(tmp_path)[1] != stamp
    assert [each.step for each in step_profiles(tmp_path)] == [20, 500, 900]


@pytest.mark.parametrize(
    "text",
    [
        '{"rank": 1e999, "steps": 1, "seconds": 1, "spans": {}, "exposed": 0}',
        json.dumps(summary(seconds=10**400)),
        json.dumps(summary(seconds=1e-320, spans={kind: [] for kind in KINDS}, exposed=0)),
        json.dumps(summary(seconds=1e300)),
        json.dumps(summary(seconds=float("nan"))),
        json.dumps(summary(exposed=float("nan"))),
        json.dumps(summary(rank=-1)),
        json.dumps(summary(rank=10**30)),
        json.dumps(summary(steps=10**30)),
        "[" * 100_000,
    ],
)
def test_a_summary_that_makes_no_sense_is_left_out(tmp_path, text):
    profile = StepProfile(write_profile(tmp_path, 5, summary(), text))
    assert [each.rank for each in profile.ranks] == [0]


def test_spans_in_any_order_that_overlap_count_once(tmp_path):
    spans = {kind: [] for kind in KINDS} | {
        "computing": [[0.02, 0.03], [0.0, 0.02], [0.01, 0.005], [0.0, 0.01]]
    }
    (rank,) = StepProfile(write_profile(tmp_path, 5, summary(spans=spans, exposed=0))).ranks
    assert rank.spans["computing"] == [(0.0, 0.03)] and rank.shares["computing"] == 1


def test_a_picture_of_very_many_spans_stays_small(tmp_path):
    many = [[k * 1e-7, k * 1e-7 + 5e-8] for k in range(100_000)]
    made = [summary(rank, spans={kind: many for kind in KINDS}) for rank in (0, 1)]
    profile = StepProfile(write_profile(tmp_path, 5, *made))
    assert profile.svg().count("<title>") == 2000
    assert profile.svg(most=100).count("<title>") <= 100
    assert "in 250 pieces" not in profile.svg(most=100) and "pieces, from" in profile.svg(most=100)
