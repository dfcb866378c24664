"""Which rank is said to have failed: the cause, not what followed from it."""

from __future__ import annotations

import json
import time

import pytest

from nbllm.distributed.ranks import RankZeroError
from nbllm.training.failures import Failure, described, first_cause, read_failures, report_failure

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4321"


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_the_first_error_of_the_program_is_the_cause_whoever_reports_first(tmp_path):
    for rank, error in enumerate(
        [RuntimeError(CLOSED), RankZeroError("Rank 0 has failed"), KeyError("a"), KeyError("b")]
    ):
        report_failure(tmp_path, rank, raised(error), step=7)
        time.sleep(0.01)
    found = read_failures(tmp_path, {0: 1, 2: 1})
    assert [(each.rank, each.follows) for each in found] == [(0, True), (1, True), (2, False), (3, False)]
    cause = first_cause(found)
    assert described(cause)["rank"] == cause.rank == 2
    assert cause.reason.startswith("KeyError: 'a' (in raised, test_failures.py:")
    assert cause.step == 7


def test_a_killed_rank_is_the_cause_of_lost_connections_and_not_of_an_error(tmp_path):
    report_failure(tmp_path, 0, raised(RuntimeError(CLOSED)), step=3)
    cause = first_cause(read_failures(tmp_path, {0: 1, 1: -9}))
    assert (cause.rank, cause.is_error, cause.reason) == (1, False, "it was killed by SIGKILL")
    report_failure(tmp_path, 2, raised(ValueError("wrong")), step=3)
    assert first_cause(read_failures(tmp_path, {0: 1, 1: -9, 2: 1})).rank == 2


def test_a_rank_that_ends_without_a_word_would_again(tmp_path):
    cause = first_cause(read_failures(tmp_path, {1: 3}))
    assert (cause.is_error, cause.reason) == (True, "it ended with exit code 3")
    assert first_cause([]) is None


@pytest.mark.parametrize("text", ["", "[]", '{"rank": 1}', json.dumps({"rank": 0, "surprise": 1})])
def test_a_report_that_makes_no_sense_is_not_believed(tmp_path, text):
    (tmp_path / "rank-0.json").write_text(text)
    assert read_failures(tmp_path, {}) == []
    failure = Failure(rank=1, reason="x", step=1, time=1.0)
    assert Failure.from_dict(failure.to_dict()) == failure
