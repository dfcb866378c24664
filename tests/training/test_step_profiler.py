"""Steps that are profiled: what each rank did is found in the run's folder, and the training is the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

import nbllm as nb
from nbllm.core.errors import RefusedError
from nbllm.runs.step_profile import KINDS, StepProfile, step_profiles, union, without
from nbllm.training.step_profiler import summarize


def event(name, start, end, device=DeviceType.CPU):
    return SimpleNamespace(
        name=name, device_type=device, time_range=SimpleNamespace(start=start * 1e6, end=end * 1e6)
    )


def test_a_summary_tells_computing_communication_and_what_is_exposed_apart():
    events = [
        event("nbllm: step", 10, 20),
        event("nbllm: data", 10, 11), event("aten::add", 10.5, 10.6),
        event("aten::mm", 11, 14), event("aten::mm", 12, 13),
        event("gloo:all_reduce", 13, 16), event("c10d_functional::wait_tensor", 13.5, 14),
        event("nbllm: optimizer", 17, 19), event("aten::mul", 17, 18),
        event("before", 1, 2),
    ]  # fmt: skip
    found = summarize(events, on_gpu=False)
    assert found["seconds"] == pytest.approx(10)
    assert found["spans"]["data"] == [(0, 1)] and found["spans"]["optimizer"] == [(7, 9)]
    assert found["spans"]["computing"] == [pytest.approx((1, 3.5))]
    assert found["spans"]["communication"] == [pytest.approx((3, 6))]
    assert found["exposed"] == pytest.approx(2.5)


def test_on_a_gpu_computing_is_what_kernels_take():
    events = [
        event("nbllm: step", 0, 10), event("aten::mm", 0, 9), event("gemm", 2, 5, DeviceType.CUDA),
        event("ncclDevKernel_AllReduce", 4, 7, DeviceType.CUDA),
    ]  # fmt: skip
    found = summarize(events, on_gpu=True)
    assert found["spans"]["computing"] == [(2, 5)]
    assert found["exposed"] == pytest.approx(2)


def test_spans_are_joined_and_cut_as_sets_of_points():
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        one, other = (
            [(int(a), int(a + b)) for a, b in torch.randint(0, 9, (5, 2), generator=draw).tolist()]
            for _ in range(2)
        )
        points = [{p for a, b in spans for p in range(a, b)} for spans in (one, other)]
        joined = union(iter(one))
        assert {p for a, b in joined for p in range(a, b)} == points[0]
        left = without(joined, union(iter(other)))
        assert {p for a, b in left for p in range(a, b)} == points[0] - points[1]
        assert all(a < b for a, b in left)


def test_a_run_is_profiled_when_asked(lm, store, config, tmp_path):
    settings = {**config, "steps": 100_000, "checkpoint_interval": 0, "sample_interval": 0}
    run = nb.train(lm, store, folder=tmp_path, name="run", **settings)
    run.wait(step=2, progress=False)
    outcome = run.profile(steps=2)
    with pytest.raises(RefusedError, match="steps"):
        run.profile(steps=21)
    while not run.profiles or not run.profiles[0].ranks:
        run.wait(step=run.step + 1, progress=False)
    run.stop()
    run.wait(progress=False)
    (profile,) = run.profiles
    assert (outcome.outcome, profile.step) == ("applied", outcome.step)
    (rank,) = profile.ranks
    assert (rank.rank, rank.steps) == (0, 2) and 0 < rank.share("computing") < 1
    assert rank.share("data") > 0 and rank.share("optimizer") > 0 and rank.share("communication") == 0
    assert json.loads(profile.traces[0].read_text())["traceEvents"]
    assert "<svg" in profile._repr_html_() and "exposed" in repr(profile)


def test_what_others_left_in_the_folder_is_read_with_care(tmp_path):
    folder = tmp_path / "profiles" / "step-00000003"
    folder.mkdir(parents=True)
    spans = {kind: [[0.0, 0.5]] for kind in KINDS}
    good = {"rank": 0, "steps": 2, "seconds": 1.0, "spans": spans, "exposed": 0.0}
    hostile = [
        "no json", "[]", json.dumps(good | {"seconds": "<script>"}), json.dumps(good | {"seconds": 0}),
        json.dumps(good | {"spans": {kind: [["<b>", 1]] for kind in KINDS}}), json.dumps(good | {"exposed": -1}),
        json.dumps(good | {"spans": {kind: [[0, 1e9]] for kind in KINDS}}),
    ]  # fmt: skip
    for number, text in enumerate(hostile):
        (folder / f"summary-{number:05d}.json").write_text(text)
    (tmp_path / "profiles" / "step-x").mkdir()
    (profile,) = step_profiles(tmp_path)
    assert not profile.ranks and "Nothing of this profile" in profile._repr_html_()
    (folder / "summary-00009.json").write_text(json.dumps(good | {"rank": 9}))
    assert [each.rank for each in StepProfile(folder).ranks] == [9]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_picture_has_a_row_for_each_rank_and_names_what_each_bar_is(tmp_path, ranks):
    folder = tmp_path / "profiles" / "step-00000003"
    folder.mkdir(parents=True)
    for rank in range(ranks):
        spans = {kind: [[0.1 * rank, 0.1 * rank + 0.2]] for kind in KINDS}
        made = {"rank": rank, "steps": 2, "seconds": 1.0, "spans": spans, "exposed": 0.1}
        (folder / f"summary-{rank:05d}.json").write_text(json.dumps(made))
    picture = StepProfile(folder)._repr_html_()
    assert picture.count("<title>") == ranks * len(KINDS)
    assert all(f"rank {rank}</text>" in picture for rank in range(ranks))
    assert "communication, 200.00 ms, from 0.00 ms on" in picture
