"""What this machine has, how fast it is, and what follows from it; measured once a process."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nbllm.core.html import fragment, key_values, table
from nbllm.core.machine import cpu_features, machine_facts as machine_facts, versions as versions
from nbllm.core.quantities import number, size

if TYPE_CHECKING:
    import torch

# bfloat16 also costs: rounding, master weights. It is chosen only where its products are this much faster.
WORTH_IT = 1.25
_MATRIX = 1024  # side of the matrices multiplied: 2 GFLOP a product
_SECONDS = 0.25  # spent on one rate, about
_COPIED = 128 << 20  # bytes: more than the caches of most machines hold
_GPU_FACTOR = 4  # a GPU needs larger matrices to be busy

_lock = threading.Lock()


def fast_dtype() -> torch.dtype:
    """Return the number format to compute in: bfloat16 where it measures fast enough, else float32.

    On the GPU where there is one, else on the CPU.
    """
    import torch

    rates = product_rates()
    return torch.bfloat16 if rates["bfloat16"] >= WORTH_IT * rates["float32"] else torch.float32


@functools.cache
def has_bfloat16_unit() -> bool:
    """Return whether this CPU has a matrix unit for bfloat16 (Intel AMX, Arm BF16) that torch uses.

    avx512_bf16 alone is none: its products are no faster than float32's. Unlike `product_rates` this is a
    fact, not a measurement: what depends on it is the same in every process on this machine.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.backends.mkldnn.is_available() and "bf16" in cpu_features()


def product_rates() -> dict[str, float]:
    """Return the measured rate of large matrix products by number format, in FLOP/s; takes half a second."""
    with _lock:  # two threads that measure at once would measure each other
        return dict(_product_rates())


def memory_bandwidth() -> float:
    """Return how many bytes/s the memory (the GPU's, where there is one) moves, reads and writes counted."""
    with _lock:
        return _memory_bandwidth()


@functools.cache
def _product_rates() -> dict[str, float]:
    import torch

    device = _device()
    side = _MATRIX * (_GPU_FACTOR if device == "cuda" else 1)
    left = torch.linspace(-1, 1, side * side, device=device).reshape(side, side)
    tests = {}
    for name in ("float32", "bfloat16"):
        matrix = left.to(getattr(torch, name))
        tests[name] = functools.partial(torch.mm, matrix, matrix.t(), out=torch.empty_like(matrix))
    return {name: 2 * side**3 / seconds for name, seconds in _best_times(tests).items()}


@functools.cache
def _memory_bandwidth() -> float:
    import torch

    # A container with little memory (Binder has 2 GB) must not be filled by being measured.
    numbers = min(_COPIED, machine_facts()["memory_bytes"] // 16) // 4
    source = torch.ones(numbers, device=_device())
    times = _best_times({"copy": functools.partial(torch.empty_like(source).copy_, source)})
    return 2 * source.nbytes / times["copy"]


def _best_times(tests: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Run the tests in turn for a while; return each one's shortest time: a busy moment decides nothing."""
    best = dict.fromkeys(tests, float("inf"))
    end = time.perf_counter() + _SECONDS * len(tests)
    rounds = 0
    while rounds < 2 or time.perf_counter() < end:  # the first round also warms up
        for name, test in tests.items():
            _wait()
            began = time.perf_counter()
            test()
            _wait()
            best[name] = min(best[name], time.perf_counter() - began)
        rounds += 1
    return best


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    """Wait until the GPU, where there is one, has done what it was asked."""
    import torch

    if _device() == "cuda":
        torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """What `doctor` found.

    Attributes:
        facts: Of the machine, as `machine_facts` returns them.
        packages: Versions, as `versions` returns them.
        num_threads: Threads that torch computes with.
        rates: FLOP/s by number format.
        bandwidth: Bytes/s of memory.
        choices: Pairs of a choice and its reason.
    """

    facts: dict[str, Any]
    packages: dict[str, str]
    num_threads: int
    rates: dict[str, float]
    bandwidth: float
    choices: list[tuple[str, str]]

    def _machine(self) -> list[tuple[str, object]]:
        gpus = [f"{gpu['name']}, {size(gpu['memory_bytes'])}" for gpu in self.facts["gpus"]]
        return [
            ("processor", self.facts["processor"]),
            ("cores", f"{self.facts['cores']}, torch computes with {self.num_threads} threads"),
            ("memory", size(self.facts["memory_bytes"])),
            ("GPU", "; ".join(gpus) or "none"),
            ("system", self.facts["system"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in self.packages.items())),
        ]

    def _speed(self) -> list[tuple[str, object]]:
        products = [
            (f"{name} products", f"{number(rate / 1e9, 3)} GFLOP/s") for name, rate in self.rates.items()
        ]
        return [*products, ("memory", f"{number(self.bandwidth / 1e9, 3)} GB/s")]

    def __repr__(self) -> str:
        lines = ["This machine"]
        lines += [f"  {name:<18}{value}" for name, value in self._machine()]
        lines += ["How fast it is"]
        lines += [f"  {name:<18}{value}" for name, value in self._speed()]
        lines += ["What follows"]
        lines += [f"  {choice}\n      {reason}" for choice, reason in self.choices]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = key_values([*self._machine(), *self._speed()])
        return fragment(body + table(self.choices, ("what follows", "because")))


def doctor() -> Doctor:
    """Look at this machine, measure it (about a second), and say which choices follow."""
    import torch

    facts, rates = machine_facts(), product_rates()
    return Doctor(
        facts=facts,
        packages=versions(),
        num_threads=torch.get_num_threads(),
        rates=rates,
        bandwidth=memory_bandwidth(),
        choices=_choices(facts, rates, torch.get_num_threads()),
    )


def _choices(facts: dict[str, Any], rates: dict[str, float], num_threads: int) -> list[tuple[str, str]]:
    ratio = number(rates["bfloat16"] / rates["float32"], 2)
    on_gpu = bool(facts["gpus"])
    choices = [
        (
            "Compute on the GPU" if on_gpu else "Compute on the CPU",
            "torch sees one" if on_gpu else "torch sees no GPU",
        ),
        (
            f"Train in {str(fast_dtype()).removeprefix('torch.')}",
            f"bfloat16 products run at {ratio} times the rate of float32; it pays from {WORTH_IT} on",
        ),
    ]
    if not on_gpu and not has_bfloat16_unit():
        choices.append(
            (
                "Multiply bfloat16 matrices in float32",
                "the processor has no matrix unit for bfloat16 (AMX, Arm BF16)",
            )
        )
    if num_threads > facts["cores"]:
        choices.append(
            (
                f"Set num_threads={facts['cores']}",
                f"torch computes with {num_threads} threads; this process may use {facts['cores']} cores",
            )
        )
    choices.append(
        (
            "The attention backend is chosen run by run",
            "it is measured at the run's own shapes and written in its events",
        )
    )
    return choices
