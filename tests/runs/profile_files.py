"""Profiles as the ranks of a run write them, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbllm.runs.step_profile import KINDS


def summary(rank: int = 0, **fields: Any) -> dict[str, Any]:
    """Return what a rank writes: in 30 ms, three steps, in each data, computing, communication, the optimizer."""
    spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for step in range(3):
        at = 0.01 * step
        spans["data"].append((at, at + 0.001))
        spans["computing"] += [(at + 0.001, at + 0.003), (at + 0.0032, at + 0.005 + 0.0004 * (rank % 4))]
        spans["communication"].append((at + 0.004, at + 0.0065))
        spans["optimizer"].append((at + 0.0065, at + 0.0085))
    return {"rank": rank, "steps": 3, "seconds": 0.03, "spans": spans, "exposed": 0.0045, **fields}


def write_profile(run_folder: Path, step: int, *summaries: Any) -> Path:
    """Write the summaries and empty traces of a profile that began after `step`; return its folder."""
    folder = run_folder / "profiles" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(summaries):
        (folder / f"trace-{number:05d}.json").write_text("{}")
        text = found if isinstance(found, str) else json.dumps(found)
        (folder / f"summary-{number:05d}.json").write_text(text)
    return folder
