import json
import subprocess
import sys
import threading

import pytest
import torch

from nbllm.core import device
from nbllm.core.device import Doctor, doctor, fast_dtype, has_bfloat16_unit, memory_bandwidth, product_rates


@pytest.fixture
def quick(monkeypatch):
    """Small matrices for a short while, and nothing remembered from other tests, nor for them."""
    monkeypatch.setattr(device, "_MATRIX", 64)
    monkeypatch.setattr(device, "_SECONDS", 0.01)
    monkeypatch.setattr(device, "_COPIED", 1 << 16)
    caches = [device._product_rates, device._memory_bandwidth, device.has_bfloat16_unit]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_rates_are_measured_once(quick, monkeypatch):
    first = product_rates()
    assert set(first) == {"float32", "bfloat16"}
    assert all(1e6 < rate < 1e15 for rate in first.values())
    bandwidth = memory_bandwidth()
    assert 1e6 < bandwidth < 1e14
    monkeypatch.setattr(device, "_best_times", lambda tests: pytest.fail("measured again"))
    assert product_rates() == first
    assert memory_bandwidth() == bandwidth


def test_a_rate_is_operations_by_time(quick, monkeypatch):
    monkeypatch.setattr(device, "_best_times", lambda tests: dict.fromkeys(tests, 0.5))
    assert product_rates()["float32"] == 2 * 64**3 / 0.5
    assert memory_bandwidth() == 2 * (1 << 16) / 0.5


def test_the_best_of_several_times_counts(quick):
    calls = []
    times = device._best_times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert len(calls) >= 4
    assert calls[:4] == ["a", "b", "a", "b"]
    assert 0 < times["a"] < 0.01


def test_two_threads_measure_once(quick, monkeypatch):
    calls = []
    best = device._best_times

    def watch(tests):
        calls.append(tests)
        return best(tests)

    monkeypatch.setattr(device, "_best_times", watch)
    threads = [threading.Thread(target=product_rates) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("ratio", "expected"), [(2.0, torch.bfloat16), (1.1, torch.float32), (0.5, torch.float32)]
)
def test_bfloat16_only_where_it_pays(monkeypatch, ratio, expected):
    monkeypatch.setattr(device, "_product_rates", lambda: {"float32": 1e11, "bfloat16": ratio * 1e11})
    assert fast_dtype() == expected


@pytest.mark.parametrize(
    ("amx", "features", "expected"),
    [(True, "", True), (False, "fp bf16", True), (False, "fma avx512_bf16", False), (False, "", False)],
)
def test_which_processors_have_a_bfloat16_unit(quick, monkeypatch, amx, features, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset(features.split()))
    assert has_bfloat16_unit() is expected


def test_doctor_says_what_there_is_and_what_follows(quick):
    found = doctor()
    assert found.facts["cores"] >= 1
    for text in (repr(found), found._repr_html_()):
        for expected in ("GFLOP/s", "GB/s", f"torch {torch.__version__}", "Train in", "threads"):
            assert expected in text


def example(**changes):
    facts = {"processor": "x", "system": "Linux", "cores": 2, "memory_bytes": 10**9, "gpus": []}
    rates = {"float32": 1e11, "bfloat16": 3e11}
    values = {"facts": facts, "packages": {"torch": "2"}, "num_threads": 2, "rates": rates, "bandwidth": 1e10}
    return Doctor(**{**values, "choices": [], **changes})


def test_what_the_machine_calls_itself_is_escaped():
    facts = {**example().facts, "processor": "<script>alert(1)</script>"}
    html = example(facts=facts, choices=[("<b>", "<i>")])._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "<i>" not in html
    assert "&lt;script&gt;" in html


def test_more_threads_than_cores_are_pointed_out(monkeypatch):
    monkeypatch.setattr(device, "_product_rates", lambda: example().rates)
    choices = device._choices(example().facts, example().rates, 16)
    assert any(choice == "Set num_threads=2" for choice, _ in choices)
    assert not any(
        "num_threads" in choice for choice, _ in device._choices(example().facts, example().rates, 2)
    )
    assert (
        "Train in bfloat16",
        "bfloat16 products run at 3 times the rate of float32; it pays from 1.25 on",
    ) in choices


def test_a_gpu_is_named():
    gpu = {"name": "Some GPU", "memory_bytes": 80 * 10**9}
    assert "Some GPU, 80 GB" in repr(example(facts={**example().facts, "gpus": [gpu]}))


def test_facts_and_versions_are_plain_values():
    assert (
        json.loads(json.dumps([device.machine_facts(), device.versions()]))[1]["torch"] == torch.__version__
    )


def test_importing_it_imports_no_torch():
    code = "import sys, nbllm.core.device, nbllm.core.allocator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
