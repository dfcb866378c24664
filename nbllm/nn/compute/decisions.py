"""What follows from a machine's profile: pure functions of it, and the value that a run records and computes by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Self

from nbllm.core.config import Config
from nbllm.core.quantities import number
from nbllm.nn.compute.profile import MachineProfile, machine_profile

# Training in bfloat16 also costs: rounding, master weights. It is chosen only where matmuls are this much faster.
WORTH_IT = 1.25
_CONVERTED_BYTES = 2 + 4  # of an element: read as bfloat16, written as float32, or the other way round
_TYPICAL_WIDTH = 1024  # of a weight; what converting costs beside multiplying hardly depends on it

_set: ContextVar[ComputeChoices | None] = ContextVar("compute choices", default=None)
_default: tuple[MachineProfile, ComputeChoices] | None = (
    None  # the latest, for it is asked for at every matmul
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeChoices(Config):
    """How the CPU computes the parts of a network.

    Attributes:
        float32_matmuls_from: Matrices of bfloat16 are multiplied in float32 from so many rows on; None: never.
        onednn_matmuls_from: Matrices of float32 are multiplied by oneDNN from so many rows on; None: never.
        fused_kernels: The dtypes for which compiled kernels take the place of several of torch's operations.
        prompt_attention: By dtype, the attention backend for a prompt.
    """

    float32_matmuls_from: int | None
    onednn_matmuls_from: int | None
    fused_kernels: tuple[str, ...]
    prompt_attention: dict[str, str]

    @classmethod
    def from_record(cls, choices: Mapping[str, Any]) -> Self:
        """Read what a run recorded among its choices."""
        return cls(
            float32_matmuls_from=choices["float32_matmuls_from"],
            onednn_matmuls_from=choices["onednn_matmuls_from"],
            fused_kernels=tuple(choices["fused_kernels"]),
            prompt_attention=choices["prompt_attention"],
        )


# What a GPU run computes on the CPU is too little to be worth a choice.
PLAIN = ComputeChoices(
    float32_matmuls_from=None, onednn_matmuls_from=None, fused_kernels=(), prompt_attention={}
)


def training_dtype(profile: MachineProfile) -> str:
    """Return the dtype to train in: "bfloat16" where its matmuls are `WORTH_IT` times as fast as float32's."""
    return "bfloat16" if bfloat16_ratio(profile) >= WORTH_IT else "float32"


def bfloat16_ratio(profile: MachineProfile) -> float:
    """Return how many times as fast as in float32 a batch of training is multiplied in bfloat16."""
    rows = profile.rows[-1]
    return profile.matmul_rate("bfloat16", rows) / profile.matmul_rate("float32", rows)


def num_threads(profile: MachineProfile) -> int:
    """Return how many threads to compute with: torch's, but no more than the process may use cores."""
    return min(profile.num_threads, profile.cores)


def compute_choices(profile: MachineProfile) -> ComputeChoices:
    """Return how to compute on a machine's CPU."""
    return ComputeChoices(
        float32_matmuls_from=_always_from(profile, _conversion_speedup),
        onednn_matmuls_from=_always_from(profile, _onednn_speedup),
        fused_kernels=tuple(dtype for dtype, speedup in profile.fused_speedups.items() if speedup > 1),
        prompt_attention={
            dtype: min(times, key=times.__getitem__) for dtype, times in profile.attention_times.items()
        },
    )


def _always_from(profile: MachineProfile, speedup: Callable[[MachineProfile, int], float]) -> int | None:
    """Return the number of rows from which on something always pays; None where it does not at the largest."""
    fewest = None
    for rows in reversed(profile.rows):
        if speedup(profile, rows) <= 1:
            break
        fewest = rows
    return fewest


def _conversion_speedup(profile: MachineProfile, rows: int) -> float:
    """Return how many times as fast bfloat16 matrices are multiplied in float32, conversions included."""
    operations = 2 * rows * _TYPICAL_WIDTH**2
    converted = _CONVERTED_BYTES * (_TYPICAL_WIDTH**2 + 2 * rows * _TYPICAL_WIDTH)
    in_float32 = operations / profile.matmul_rate("float32", rows) + converted / profile.memory_bandwidth
    return operations / profile.matmul_rate("bfloat16", rows) / in_float32


def _onednn_speedup(profile: MachineProfile, rows: int) -> float:
    """Return how many times as fast as by BLAS float32 matrices are multiplied by oneDNN; 0 without that."""
    rates, place = profile.matmul_rates, profile.rows.index(rows)
    return rates["float32_onednn"][place] / rates["float32"][place] if "float32_onednn" in rates else 0.0


def conclusions(profile: MachineProfile) -> list[tuple[str, str]]:
    """Return pairs of a choice and its reason, as `doctor` shows them: from the functions that make the choices."""
    dtype, ratio = training_dtype(profile), number(bfloat16_ratio(profile), 2)
    found = [
        (
            f"Train in {dtype}",
            f"bfloat16 matmuls run at {ratio} times the rate of float32; it pays from {WORTH_IT} on",
        )
    ]
    if profile.device == "cpu":
        choices = compute_choices(profile)
        found += _matmul_conclusions(profile, choices)
        found += _kernel_conclusions(profile, choices)
        for dtype, name in choices.prompt_attention.items():
            times = profile.attention_times[dtype]
            shares = ", ".join(f"{other} {number(1e3 * seconds, 3)} ms" for other, seconds in times.items())
            found.append((f"Read prompts in {dtype} by the attention backend {name!r}", shares))
        threads = f"torch has {profile.num_threads}, and this process may use {profile.cores} cores"
        found.append((f"Compute with {num_threads(profile)} threads", threads))
    return found


def _matmul_conclusions(profile: MachineProfile, choices: ComputeChoices) -> Iterator[tuple[str, str]]:
    largest = profile.rows[-1]
    rows, speedup = choices.float32_matmuls_from, _conversion_speedup(profile, largest)
    if rows is None:
        slowdown = f"converted to float32 they would take {number(1 / speedup, 2)} times as long"
        yield "Multiply bfloat16 matrices as they are", slowdown
    else:
        faster = f"converted, they are multiplied {number(speedup, 2)} times as fast"
        yield f"Multiply bfloat16 matrices of {rows} rows or more in float32", faster
    rows, speedup = choices.onednn_matmuls_from, _onednn_speedup(profile, largest)
    if rows is not None:
        faster = f"it is {number(speedup, 2)} times as fast as the BLAS that torch takes"
        yield f"Multiply float32 matrices of {rows} rows or more by oneDNN", faster


def _kernel_conclusions(profile: MachineProfile, choices: ComputeChoices) -> Iterator[tuple[str, str]]:
    for dtype, speedup in profile.fused_speedups.items():
        which = "compiled kernels" if dtype in choices.fused_kernels else "torch's own operations"
        reason = f"a compiled activation takes {number(1 / speedup, 2)} of the time of torch's operations"
        yield f"Use {which} in {dtype}", reason
    if not profile.fused_speedups:
        yield "Use torch's own operations", "no kernels could be compiled"


@contextlib.contextmanager
def use_choices(choices: ComputeChoices) -> Iterator[None]:
    """Within the block, in this thread, compute by `choices` instead of by this machine's profile."""
    token = _set.set(choices)
    try:
        yield
    finally:
        _set.reset(token)


def current_choices() -> ComputeChoices:
    """Return the choices that `use_choices` has set, else those that follow from this machine's profile."""
    global _default
    choices = _set.get()
    if choices is not None:
        return choices
    profile, known = machine_profile(), _default
    if known is None or known[0] is not profile:
        known = _default = profile, compute_choices(profile)
    return known[1]
