"""`nb.doctor()`: what this machine has, how fast it is, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from nbllm.core.html import fragment, key_values, table
from nbllm.core.machine import machine_facts, versions
from nbllm.core.quantities import number, size
from nbllm.nn import kernels
from nbllm.nn.compute.decisions import conclusions
from nbllm.nn.compute.profile import MachineProfile, machine_profile, profile_path

_LABELS = {
    "float32": "float32 matmuls",
    "float32_onednn": "the same by oneDNN",
    "bfloat16": "bfloat16 matmuls",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """What `doctor` found.

    Attributes:
        facts: Of the machine, as `machine_facts` returns them.
        packages: Versions, as `versions` returns them.
        profiles: Of the CPU, and of the GPU where there is one.
        kernel_errors: Why a kernel could not be compiled, by its name.
    """

    facts: dict[str, Any]
    packages: dict[str, str]
    profiles: tuple[MachineProfile, ...]
    kernel_errors: dict[str, str]

    @property
    def conclusions(self) -> list[tuple[str, str]]:
        """Pairs of a choice and its reason: of a GPU what is trained on it, of the CPU all."""
        on_gpu = len(self.profiles) > 1
        found = [
            ("Compute on the GPU", "torch sees one")
            if on_gpu
            else ("Compute on the CPU", "torch sees no GPU")
        ]
        for profile in reversed(self.profiles):
            where = " on the CPU" if on_gpu and profile.device == "cpu" else ""
            found += [(choice + where, reason) for choice, reason in conclusions(profile)]
        found.append(
            (
                "Measure the attention backends for training at a run's start",
                "which is fastest depends on the run's shapes; the record says which it was",
            )
        )
        return found

    def _machine(self) -> list[tuple[str, object]]:
        gpus = [f"{gpu['name']}, {size(gpu['memory_bytes'])}" for gpu in self.facts["gpus"]]
        threads = self.profiles[0].num_threads
        return [
            ("processor", self.facts["processor"]),
            ("cores", f"{self.facts['cores']}, torch has {threads} threads"),
            ("memory", size(self.facts["memory_bytes"])),
            ("GPU", "; ".join(gpus) or "none"),
            ("system", self.facts["system"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in self.packages.items())),
        ]

    def _speed(self) -> list[tuple[str, object]]:
        lines: list[tuple[str, object]] = []
        for profile in self.profiles:
            lines.append(("rows", ", ".join(map(str, profile.rows)) + f" ({profile.processor})"))
            for name, rates in profile.matmul_rates.items():
                speeds = ", ".join(number(rate / 1e9, 3) for rate in rates)
                lines.append((_LABELS[name], f"{speeds} GFLOP/s"))
            lines.append(("memory", f"{number(profile.memory_bandwidth / 1e9, 3)} GB/s"))
            lines += [
                (f"{dtype} kernels", f"{number(speedup, 2)} times as fast as torch's operations")
                for dtype, speedup in profile.fused_speedups.items()
            ]
        if all(profile.steady for profile in self.profiles):
            return [*lines, ("measured once, in", profile_path(self.profiles[0]).parent)]
        return [*lines, ("measured", "while the machine was busy; it will be measured again")]

    def _kernels(self) -> list[tuple[str, object]]:
        return [(name, f"could not be compiled: {error}") for name, error in self.kernel_errors.items()]

    def __repr__(self) -> str:
        parts = {"This machine": self._machine(), "How fast it is": self._speed()}
        if self.kernel_errors:
            parts["Kernels that are missing; torch's own operations do their work"] = self._kernels()
        lines = []
        for title, entries in parts.items():
            lines += [title, *(f"  {name:<20}{value}" for name, value in entries)]
        lines += ["What follows"]
        lines += [f"  {choice}\n      {reason}" for choice, reason in self.conclusions]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = key_values([*self._machine(), *self._speed(), *self._kernels()])
        return fragment(body + table(self.conclusions, ("what follows", "because")))


def doctor(*, measure_again: bool = False) -> Doctor:
    """Look at this machine, and say how fast it is and which choices follow.

    It is measured the first time, for a second or two; the profile is kept in nbllm's cache folder.

    Args:
        measure_again: Whether to measure once more, such as when the machine was busy, and keep the new profile.
            Existing runs keep the choices that they recorded.
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Doctor(
        facts=machine_facts(),
        packages=versions(),
        profiles=tuple(machine_profile(device, measure_again=measure_again) for device in devices),
        kernel_errors=kernels.why_not_compiled(),
    )
