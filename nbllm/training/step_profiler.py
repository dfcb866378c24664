"""Some steps watched by torch's profiler on one rank, and what it did in them: written into the run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from nbllm.core.io import write_json
from nbllm.runs.step_profile import KINDS, union, without

DATA, OPTIMIZER = "nbllm: data", "nbllm: optimizer"  # names of what `Stepper` records
MOST_STEPS = 20  # a trace of more is too large to be opened
_STEP = "nbllm: step"
_COLLECTIVES = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel")
_WAITING = ("wait_tensor", "Optimizer.step", "nbllm: ", "ProfilerStep")


class StepProfiler:
    """Watches the next steps of this rank; all ranks begin and end at the same ones.

    Args:
        folder: The run's.
        step: Steps done so far.
        steps: How many to watch.
        rank: This rank.
        on_gpu: Whether what is computed on a GPU is watched too.
    """

    def __init__(self, folder: Path, *, step: int, steps: int, rank: int, on_gpu: bool) -> None:
        self._folder, self._rank, self._steps = folder / "profiles" / f"step-{step:08d}", rank, steps
        self._on_gpu, self._done = on_gpu, 0
        gpu = [ProfilerActivity.CUDA] if on_gpu else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.__enter__()
        self._current = record_function(_STEP)
        self._current.__enter__()

    def end_step(self) -> bool:
        """Note that a step is done; return whether it was the last one, so that all is written."""
        self._current.__exit__(None, None, None)
        self._done += 1
        if self._done == self._steps:
            self.close()
            return True
        self._current = record_function(_STEP)
        self._current.__enter__()
        return False

    def close(self) -> None:
        """Stop watching, and write what was seen of whole steps; nothing where there was none."""
        self._profile.__exit__(None, None, None)
        if not self._done:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / f"trace-{self._rank:05d}.json"))
        summary = summarize(self._profile.events() or [], on_gpu=self._on_gpu)
        write_json(
            self._folder / f"summary-{self._rank:05d}.json",
            {"rank": self._rank, "steps": self._done, **summary},
        )


def summarize(events: Iterable[Any], *, on_gpu: bool) -> dict[str, Any]:
    """Return what a rank did, as `runs.step_profile.RankProfile` has it.

    Computing is what operations (on a GPU: kernels) take, but for those of data and optimizer; waiting for others is
    not computing.

    Args:
        events: Of torch's profiler, times in microseconds.
        on_gpu: Whether it computed on a GPU.
    """
    of: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*KINDS, "step", "waiting")}
    for event in events:
        span = (event.time_range.start / 1e6, event.time_range.end / 1e6)
        on_device = event.device_type != DeviceType.CPU
        if event.name in (_STEP, DATA, OPTIMIZER):
            if not on_device:
                of[{_STEP: "step", DATA: "data", OPTIMIZER: "optimizer"}[event.name]].append(span)
        elif event.name.startswith(_COLLECTIVES):
            of["communication"].append(span)
        elif any(each in event.name for each in _WAITING):
            of["waiting"].append(span)
        elif on_device == on_gpu:
            of["computing"].append(span)
    spans = {kind: union(iter(found)) for kind, found in of.items()}
    first, last = spans["step"][0][0], spans["step"][-1][1]
    computing = spans["computing"]
    for other in ("waiting", "data", "optimizer"):
        computing = without(computing, spans[other])
    spans["computing"] = computing
    exposed = spans["communication"]
    for other in ("computing", "data", "optimizer"):
        exposed = without(exposed, spans[other])
    cut = {
        kind: [
            (max(a, first) - first, min(b, last) - first) for a, b in spans[kind] if b > first and a < last
        ]
        for kind in KINDS
    }
    return {
        "seconds": last - first,
        "spans": cut,
        "exposed": sum(min(b, last) - max(a, first) for a, b in exposed if b > first and a < last),
    }
