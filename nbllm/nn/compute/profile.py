"""How fast this machine is: measured once, in a second or two, and kept in the cache folder."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nbllm.core.cache import cache_folder, make_folder
from nbllm.core.config import Config
from nbllm.core.errors import UserError
from nbllm.core.io import write_json
from nbllm.core.machine import gpus, machine_facts, usable_cores, versions

Subject = TypeVar("Subject")
Measured = TypeVar("Measured")

# How matrices may be multiplied: torch hands float32 to BLAS, and bfloat16 to oneDNN; oneDNN also takes float32.
MATMULS = ("float32", "float32_onednn", "bfloat16")
# Rows of the left matrix: a few tokens, a short prompt, a long one, a batch of training. A GPU needs more to be busy.
_ROWS = {"cpu": (8, 64, 256, 1024), "cuda": (8, 64, 512, 4096)}
_WIDTH = {"cpu": 1024, "cuda": 4096}  # of the square matrix of weights
_SECONDS = 0.05  # spent on one test, about; up to `_PATIENCE` times as much while its times do not agree
_PATIENCE = 5
_ROUNDS = 3  # of all tests in turn, at least; the first also warms up
_AGREEING = 1.25  # a test's two shortest times are at most this factor apart where nothing else is going on
_COPIED = 128 << 20  # bytes: more than the caches of most machines hold
_ACTIVATED = (512, 1536)  # the matrix that an activation is timed on
_PROMPT = (1, 512, 8, 64)  # batch, position, head, head_dim of what attention is timed on
_FORMAT = 3  # raised when what is measured changes, so that profiles of before are measured again

_known: dict[tuple[str, int], MachineProfile] = {}
_lock = threading.RLock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineProfile(Config):
    """What was measured, and on which machine.

    Attributes:
        device: "cpu" or "cuda".
        processor: Name of the processor, or of the GPU.
        versions: Of the packages that the measurements depend on.
        num_threads: Threads that torch computed with.
        cores: Cores that the process may use.
        rows: For which numbers of rows matmuls were timed, ascending.
        matmul_rates: FLOP/s by one of `MATMULS`, for each of `rows`: (rows, width) x (width, width). Without
            "float32_onednn" on a GPU, and where torch has no oneDNN.
        memory_bandwidth: Bytes/s that a copy moves, reads and writes counted.
        fused_speedups: By dtype, how many times as fast as torch's operations the compiled kernels are; a dtype
            whose kernels could not be compiled is left out.
        attention_times: By dtype, then by attention backend, seconds for a prompt of 512 tokens, forward only; the
            CPU's alone.
        steady: Whether repeated measurements agreed. If not, the machine was busy, and the profile is not kept.
    """

    device: str
    processor: str
    versions: dict[str, str]
    num_threads: int
    cores: int
    rows: tuple[int, ...]
    matmul_rates: dict[str, tuple[float, ...]]
    memory_bandwidth: float
    fused_speedups: dict[str, float]
    attention_times: dict[str, dict[str, float]]
    steady: bool

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_dict` returned, perhaps by way of JSON."""
        rates = {dtype: tuple(rates) for dtype, rates in values["matmul_rates"].items()}
        return super().from_dict({**values, "rows": tuple(values["rows"]), "matmul_rates": rates})

    def __post_init__(self) -> None:
        """Check that choices can be made from it.

        Raises:
            UserError: Something is missing, not a number or not positive.
        """
        measured = [
            self.memory_bandwidth,
            *self.fused_speedups.values(),
            *(seconds for times in self.attention_times.values() for seconds in times.values()),
            *(rate for rates in self.matmul_rates.values() for rate in rates),
        ]
        named = {"float32", "bfloat16"} <= self.matmul_rates.keys() <= set(MATMULS)
        whole = named and list(self.rows) == sorted(set(self.rows))
        whole = whole and all(len(rates) == len(self.rows) > 0 for rates in self.matmul_rates.values())
        counts = [self.num_threads, self.cores, *self.rows]
        if not whole or not all(type(count) is int and count > 0 for count in counts):
            raise UserError("A machine profile is incomplete.", where=self.processor)
        if not all(isinstance(value, float) and 0 < value < math.inf for value in measured):
            raise UserError(
                "A machine profile holds a value that is not a positive number.", where=self.processor
            )

    def matmul_rate(self, dtype: str, rows: int) -> float:
        """Return the FLOP/s in a dtype of matmuls with so many rows, by the library that is the faster.

        Args:
            dtype: "float32" or "bfloat16".
            rows: One of `self.rows`.
        """
        place = self.rows.index(rows)
        return max(rates[place] for name, rates in self.matmul_rates.items() if name.startswith(dtype))


def machine_profile(device: str = "cpu", *, measure_again: bool = False) -> MachineProfile:
    """Return this machine's profile for torch's current number of threads, from the cache or measured now.

    If the file is absent, damaged or for another subject, the machine is measured again. If the cache cannot be
    written, or the machine was too busy for a good measurement, the profile is kept for this process only.

    Args:
        device: "cpu" or "cuda".
        measure_again: Whether to measure even though a profile is there, and keep the new one.
    """
    key = (device, torch.get_num_threads())
    known = _known.get(key)
    if known is not None and not measure_again:
        return known
    with _lock:  # two threads that measure at once would measure each other
        if key not in _known or measure_again:
            subject = _subject(*key)
            kept = None if measure_again else _read(subject)
            _known[key] = kept or (
                measure_unseen(_measure, subject) if device == "cpu" else _measure(subject)
            )
            if kept is None and _known[key].steady:
                _keep(_known[key])
        return _known[key]


def measure_unseen(measure: Callable[[Subject], Measured], subject: Subject) -> Measured:
    """Measure in a thread of its own, where nothing watches what is computed.

    Activation checkpointing, for one, keeps the results of a thread's operations and counts them: those of a
    measurement, which is made once, must not be among them.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, measure, subject).result()


def profile_path(profile: MachineProfile) -> Path:
    """Return the file that keeps a profile."""
    return _path({name: getattr(profile, name) for name in _subject(profile.device, profile.num_threads)})


def _subject(device: str, num_threads: int) -> dict[str, Any]:
    """What a profile depends on: if any of these changes, another one is needed."""
    packages = {name: version for name, version in versions().items() if name in ("torch", "numba", "nbllm")}
    return {
        "device": device,
        "processor": gpus()[0]["name"] if device == "cuda" else machine_facts()["processor"],
        "versions": packages,
        "num_threads": num_threads,
        "cores": usable_cores(),
    }


def _path(subject: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps([_FORMAT, subject], sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "machine-profiles" / f"{subject['device']}-{digest}.json"


def _read(subject: dict[str, Any]) -> MachineProfile | None:
    try:
        values = json.loads(_path(subject).read_text())
        profile = MachineProfile.from_dict(values)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ):  # absent, no JSON, or not what was written
        return None
    return profile if all(getattr(profile, name) == value for name, value in subject.items()) else None


def _keep(profile: MachineProfile) -> None:
    path = profile_path(profile)
    try:
        make_folder(path.parent)
        write_json(path, profile.to_dict())
    except (OSError, UserError):  # a cache that cannot be written: the next process measures for itself
        pass


def _measure(subject: dict[str, Any]) -> MachineProfile:
    device = subject["device"]
    rows, width = _ROWS[device], _WIDTH[device]
    watch = _Watch(device)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        tests = _matmuls(device)
        times = watch.best_times(tests)
        profile = MachineProfile(
            **subject,
            rows=rows,
            matmul_rates={
                name: tuple(2 * count * width**2 / times[name, count] for count in rows)
                for name in dict.fromkeys(name for name, _ in tests)
            },
            memory_bandwidth=_memory_bandwidth(watch),
            fused_speedups=_fused_speedups(watch) if device == "cpu" else {},
            attention_times={},
            steady=watch.steady,
        )
        if device == "cpu":
            profile = profile.replace(attention_times=_attention_times(profile, watch), steady=watch.steady)
    return profile


def _matmuls(device: str) -> dict[tuple[str, int], Callable[[], Any]]:
    """Return what to time, by one of `MATMULS` and the number of rows."""
    rows, width = _ROWS[device], _WIDTH[device]
    values = torch.linspace(-1, 1, max(*rows, width) * width, dtype=torch.float32, device=device)
    tests: dict[tuple[str, int], Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = values.view(-1, width).to(dtype)
        weight, name = matrix[:width].t(), str(dtype).removeprefix("torch.")
        for count in rows:
            out = matrix.new_empty(count, width)
            tests[name, count] = functools.partial(torch.mm, matrix[:count], weight, out=out)
            if name == "float32" and device == "cpu" and torch.backends.mkldnn.is_available():
                tests["float32_onednn", count] = functools.partial(onednn_matmul, matrix[:count], weight)
    return tests


def onednn_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return left right by oneDNN, of float32 matrices on the CPU; gradients do not flow through it."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
    return out


def _memory_bandwidth(watch: _Watch) -> float:
    # A container with little memory (Binder has 2 GB) must not be filled by being measured.
    elements = min(_COPIED, machine_facts()["memory_bytes"] // 16) // 4
    source = torch.ones(elements, dtype=torch.float32, device=watch.device)
    copy = functools.partial(torch.empty_like(source).copy_, source)
    return 2 * source.nbytes / watch.best_times({"copy": copy})["copy"]


def _fused_speedups(watch: _Watch) -> dict[str, float]:
    """Time an activation with its bias, its derivative and the bias's gradient: by a kernel, and by torch."""
    from nbllm.nn import kernels  # loads Numba, and on a new machine compiles for some seconds

    if kernels.compiled("activations") is None:
        return {}
    found = {}
    for name in kernels.FUSED_DTYPES:
        dtype = getattr(torch, name)
        x = torch.linspace(-3, 3, math.prod(_ACTIVATED), dtype=torch.float32).view(_ACTIVATED).to(dtype)
        blocks = kernels.num_blocks(len(x))
        bias, totals = x[0].float(), x.new_empty(blocks, x.shape[1], dtype=torch.float32)
        gelu = x.clone(), bias, torch.empty_like(x)
        slopes = x.clone(), x.clone(), totals

        def fused(dtype: Any = dtype, blocks: int = blocks, gelu: Any = gelu, slopes: Any = slopes) -> None:
            kernels.run_for(dtype, "activations", "gelu", blocks, *gelu)
            kernels.run_for(dtype, "activations", "multiply_and_sum", blocks, *slopes)

        def plain(x: Any = x) -> None:
            active = F.gelu(x + x[0], approximate="tanh")
            torch.ops.aten.gelu_backward(active, x, approximate="tanh").sum(0)

        times = watch.best_times({"fused": fused, "plain": plain})
        found[name] = times["plain"] / times["fused"]
    return found


def _attention_times(profile: MachineProfile, watch: _Watch) -> dict[str, dict[str, float]]:
    """Time the attention backends, which multiply as a profile without these times says."""
    from nbllm.nn.attention_backends.measuring import candidates
    from nbllm.nn.attention_backends.registry import BACKENDS
    from nbllm.nn.compute.decisions import compute_choices, use_choices

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        heads = torch.linspace(-1, 1, math.prod(_PROMPT), dtype=torch.float32).view(_PROMPT).to(dtype)
        operands = (*[heads.transpose(1, 2)] * 3, None, True, _PROMPT[-1] ** -0.5)
        tests = {name: functools.partial(BACKENDS[name], *operands) for name in candidates(dtype)}
        with use_choices(compute_choices(profile)):
            found[str(dtype).removeprefix("torch.")] = watch.best_times(tests)
    return found


class _Watch:
    """Times tests on a device.

    Attributes:
        device: "cpu" or "cuda".
        steady: Whether the times of all tests so far agreed.
    """

    def __init__(self, device: str) -> None:
        self.device, self.steady = device, True

    def best_times(self, tests: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
        """Run the tests in turn for a while; return each one's shortest time, so that a busy moment does not matter."""
        times: dict[Any, list[float]] = {name: [] for name in tests}
        began, budget, agreeing = time.perf_counter(), _SECONDS * len(tests), False
        while True:
            for name, test in tests.items():
                times[name].append(self._time(test))
            spent, rounds = time.perf_counter() - began, len(next(iter(times.values())))
            agreeing = all(map(_agree, times.values()))
            if rounds >= _ROUNDS and spent >= budget * (1 if agreeing else _PATIENCE):
                break
        self.steady = self.steady and agreeing
        return {name: min(each) for name, each in times.items()}

    def _time(self, test: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        test()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        """Wait until a GPU has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def _agree(times: list[float]) -> bool:
    return len(times) > 1 and sorted(times)[1] <= _AGREEING * min(times)
