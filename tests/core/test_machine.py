import os

import pytest

from nbllm.core import machine


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A made-up tree of control groups; returns a function that puts limits into it."""
    root, own = tmp_path / "cgroup", tmp_path / "self"
    original = machine._control_groups
    monkeypatch.setattr(machine, "_control_groups", lambda controller: original(controller, root, own))

    def place(line, **files):
        own.write_text(line + "\n")
        for path, text in files.items():
            file = root / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return place


def test_without_limits_all_is_ours(group):
    group("0::/a/b", a__b__memory_dot_max="max", a__b__cpu_dot_max="max 100000")
    import psutil

    assert machine.memory_limit() == psutil.virtual_memory().total
    assert machine.usable_cores() == len(os.sched_getaffinity(0))


def test_the_lowest_limit_of_all_groups_above_counts(group):
    group("0::/a/b", a__b__memory_dot_max="max", a__memory_dot_max="2000000", memory_dot_max="3000000")
    assert machine.memory_limit() == 2_000_000


def test_version_one_has_a_tree_a_controller(group):
    group("3:cpu,cpuacct:/x\n4:memory:/y", memory__y__memory_dot_limit_in_bytes="5000")
    assert machine.memory_limit() == 5000
    group("4:memory:/y", memory__y__memory_dot_limit_in_bytes=str(2**63 - 4096))
    assert machine.memory_limit() > 5000


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("nonsense", None)]
)
def test_a_quota_of_processor_time(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert machine._cpu_quota(tmp_path) == cores


def test_a_quota_of_version_one(tmp_path):
    (tmp_path / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert machine._cpu_quota(tmp_path) is None
    (tmp_path / "cpu.cfs_quota_us").write_text("50000")
    assert machine._cpu_quota(tmp_path) == 0.5


def test_half_a_core_is_still_one(group):
    group("0::/", cpu_dot_max="50000 100000")
    assert machine.usable_cores() == 1


def test_a_processor_that_says_nothing(monkeypatch):
    def refuse(*args):
        raise OSError

    monkeypatch.setattr("builtins.open", refuse)
    assert machine.processor()
