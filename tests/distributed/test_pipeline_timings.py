"""The bubble of a pipeline: by formula, by the order that torch's schedules have, and measured."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET

import pytest
import torch
import torch.distributed as dist

from nbllm.core.errors import UserError
from nbllm.distributed import (
    PipelineTimings,
    Plan,
    bubble_share,
    lay_out,
    pipeline_timeline,
    pipeline_timings,
)
from nbllm.distributed.pipeline_schedule import SCHEDULES
from nbllm.distributed.pipeline_timings import Interval, planned
from tests.distributed.steps import Group, make_batch, make_network, make_objective


def test_the_figures_of_the_literature():
    assert bubble_share(4, 8) == pytest.approx(0.273, abs=5e-4)
    assert bubble_share(4, 8, chunks=2) == pytest.approx(0.158, abs=5e-4)
    assert bubble_share(1, 5) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 16), (8, 16)])
def test_the_order_of_torchs_schedule_has_the_bubble_of_the_formula(schedule, ranks, micro_batches):
    timings = planned(schedule, ranks, micro_batches)
    assert timings.idle_share == pytest.approx(timings.expected_idle_share, abs=1e-9)


def timed(schedule):
    layout = lay_out(make_network("decoder", num_layers=4), Plan(pipeline=2, schedule=schedule), Group())
    objective = make_objective("decoder")
    for _ in range(2):  # of the last step alone
        layout.forward_backward(
            [make_batch("decoder", n) for n in range(4)], lambda net, b: (*objective.loss(net, b), None), 1.0
        )
    return layout.timings()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_is_measured_on_all_ranks_on_one_clock(two_ranks, schedule):
    first, second = two_ranks(timed, schedule)
    assert (first.ranks, first.micro_batches) == (second.ranks, second.micro_batches) == (2, 4)
    chunks = SCHEDULES[schedule].chunks
    by_place = {(each.stage, each.kind, each.micro_batch): each for each in first.intervals}
    backward = "input gradient" if schedule == "zero_bubble" else "backward"
    assert len(by_place) == len(first.intervals) == 4 * 2 * chunks * (3 if schedule == "zero_bubble" else 2)
    for number in range(4):
        for stage in range(2 * chunks - 1):
            # What a stage sends is received after it was computed.
            sent, received = (by_place[at, "forward", number] for at in (stage, stage + 1))
            assert received.start >= sent.end
            assert by_place[stage, backward, number].start >= by_place[stage + 1, backward, number].end
    assert 0 < first.idle_share < 1
    assert PipelineTimings.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def offsets_of_two_machines():
    """Let the second rank think that it is on another machine, whose clock is an hour ahead."""
    rank = dist.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_timings, "_machine", lambda: rank)
        clock = time.perf_counter
        patch.setattr(time, "perf_counter", lambda: clock() + 3600 * rank)
        return pipeline_timings._clock_offset(dist.group.WORLD, torch.device("cpu"))


def test_clocks_of_two_machines_are_compared(two_ranks):
    first, second = two_ranks(offsets_of_two_machines)
    assert first == 0 and second == pytest.approx(-3600, abs=1)


def test_the_picture_is_legible_in_any_theme_and_has_every_interval():
    timings = planned("zero_bubble", 4, 8)
    shown = timings._repr_html_()
    svg = ET.fromstring(re.search(r"<svg.*</svg>", shown, re.DOTALL).group(0))
    names = {"svg": "http://www.w3.org/2000/svg"}
    tips = [tip.text for tip in svg.findall(".//svg:title", names)]
    assert len(tips) == len(timings.intervals) == 4 * 8 * 3
    assert "weight gradient, micro-batch 7, stage 3" in "".join(tips)
    assert {"forward", "input gradient", "weight gradient", "idle", "rank 3"} <= {
        t.text for t in svg.findall(".//svg:text", names)
    }
    colours = {rect.get("fill") for rect in svg.findall(".//svg:rect", names)}
    assert all(colour == "currentColor" or colour.startswith("var(--nbllm-") for colour in colours)
    assert f"{100 * timings.idle_share:.1f}%" in shown and "by the formula" in str(timings)


def test_a_plan_is_drawn_before_anything_runs():
    drawn = pipeline_timeline(Plan(pipeline=4, schedule="interleaved"), micro_batches=8)
    assert drawn.idle_share == pytest.approx(bubble_share(4, 8, chunks=2))
    with pytest.raises(UserError, match="no pipeline"):
        pipeline_timeline(Plan(tensor=2))


def test_text_of_others_is_escaped():
    hostile = PipelineTimings("gpipe", 1, 1, [Interval(0, 0, "<script>alert(1)</script>", 0, 0.0, 1.0)])
    assert "<script>" not in hostile._repr_html_()
