import itertools
import json
import os
import threading

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.nn.compute import profile
from nbllm.nn.compute.profile import MachineProfile, machine_profile, profile_path

from .machines import machine


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Small matrices for a short while, a cache of its own, and nothing known."""
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile, "_known", {})
    monkeypatch.setattr(profile, "_SECONDS", 0.001)
    monkeypatch.setattr(profile, "_AGREEING", 1e9)  # however busy the machine is
    monkeypatch.setattr(profile, "_WIDTH", {"cpu": 64})
    monkeypatch.setattr(profile, "_COPIED", 1 << 16)
    monkeypatch.setattr(profile, "_PROMPT", (1, 64, 2, 8))


@pytest.fixture
def measured(monkeypatch):
    """How often the machine was measured."""
    calls, measure = [], profile._measure

    def watch(subject):
        calls.append(subject)
        return measure(subject)

    monkeypatch.setattr(profile, "_measure", watch)
    return calls


def forget(monkeypatch):
    """Be another process."""
    monkeypatch.setattr(profile, "_known", {})


def test_what_is_measured():
    found = machine_profile()
    assert found.num_threads == torch.get_num_threads() and found.versions["torch"] == torch.__version__
    assert {"float32", "bfloat16"} <= set(found.matmul_rates)
    assert all(1e5 < rate < 1e15 for rates in found.matmul_rates.values() for rate in rates)
    assert 1e6 < found.memory_bandwidth < 1e14
    assert all({"sdpa", "blocked"} <= set(times) for times in found.attention_times.values())
    assert found.matmul_rate("float32", 64) >= found.matmul_rates["float32"][1]


def test_rates_are_operations_by_time(monkeypatch):
    monkeypatch.setattr(profile._Watch, "best_times", lambda self, tests: dict.fromkeys(tests, 0.5))
    found = machine_profile()
    assert found.matmul_rates["float32"] == tuple(2 * rows * 64**2 / 0.5 for rows in found.rows)
    assert found.memory_bandwidth == 2 * (1 << 16) / 0.5


def test_it_is_measured_once_and_kept(measured, monkeypatch):
    first = machine_profile()
    assert machine_profile() is first
    forget(monkeypatch)
    assert machine_profile() == first
    assert len(measured) == 1 and profile_path(first).exists()


def test_it_can_be_measured_again(measured, monkeypatch):
    first = machine_profile()
    second = machine_profile(measure_again=True)
    assert len(measured) == 2 and machine_profile() is second and second != first
    forget(monkeypatch)
    assert machine_profile() == second


def test_another_number_of_threads_is_another_profile(measured):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        machine_profile()
        torch.set_num_threads(before + 1)
        assert machine_profile().num_threads == before + 1
    finally:
        torch.set_num_threads(before)
    assert machine_profile().num_threads == before
    assert len(measured) == 2


def without(field):
    return lambda values: {name: value for name, value in values.items() if name != field}


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: "{",
        lambda values: [],
        lambda values: {},
        without("rows"),
        without("fused_speedups"),
        lambda values: {**values, "surplus": 1},
        lambda values: {**values, "rows": "abc"},
        lambda values: {**values, "memory_bandwidth": "fast"},
        lambda values: {**values, "memory_bandwidth": 0.0},
        lambda values: {**values, "matmul_rates": {**values["matmul_rates"], "float32": [1e9]}},
        lambda values: {**values, "matmul_rates": {"float32": values["matmul_rates"]["float32"]}},
        lambda values: {**values, "fused_speedups": []},
        lambda values: {**values, "attention_times": {"float32": {"sdpa": -1.0}}},
        lambda values: {**values, "processor": "another"},
        lambda values: {**values, "num_threads": 77},
    ],
)
def test_what_is_damaged_is_measured_again(damage, measured, monkeypatch):
    path = profile_path(machine_profile())
    damaged = damage(json.loads(path.read_text()))
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    forget(monkeypatch)
    found = machine_profile()
    assert len(measured) == 2
    forget(monkeypatch)
    assert machine_profile() == found and len(measured) == 2


def test_bytes_that_are_no_text_are_measured_again(measured, monkeypatch):
    path = profile_path(machine_profile())
    path.write_bytes(b"\xff\xfe\x00")
    forget(monkeypatch)
    machine_profile()
    assert len(measured) == 2


def test_a_cache_that_cannot_be_written_leaves_it_in_memory(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "file"))  # no folder, for root as for others
    first = machine_profile()
    assert machine_profile() is first and len(measured) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_leaves_it_in_memory(measured, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    assert machine_profile() is machine_profile() and len(measured) == 1


def test_two_threads_measure_once(measured):
    threads = [threading.Thread(target=machine_profile) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 1


def test_the_best_of_several_times_counts(monkeypatch):
    clock = itertools.count(step=0.1)
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(clock))
    calls = []
    watch = profile._Watch("cpu")
    times = watch.best_times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls[:4] == ["a", "b", "a", "b"] and times == pytest.approx({"a": 0.1, "b": 0.1})


def test_a_busy_machine_is_measured_longer_and_not_remembered(measured, monkeypatch):
    monkeypatch.setattr(profile, "_AGREEING", 0.0)  # no two times agree
    found = machine_profile()
    assert not found.steady and machine_profile() is found
    assert not profile_path(found).exists()
    monkeypatch.setattr(profile, "_AGREEING", 1e9)
    forget(monkeypatch)
    assert machine_profile().steady and len(measured) == 2


def test_it_is_measured_the_same_way_whatever_is_set_around():
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            found = machine_profile()
    finally:
        torch.set_default_dtype(default)
    assert MachineProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_nonsense_is_refused():
    good = machine(1, 2).to_dict()
    for change in ({"rows": (8, 8, 64, 256)}, {"cores": 0}, {"memory_bandwidth": float("nan")}):
        with pytest.raises(UserError):
            MachineProfile.from_dict({**good, **change})
