"""What is needed to reproduce an evaluation: data, settings, seeds, versions, the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.report.sections import KeyValues
from nbllm.core.report.values import Cell, plain
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.examples import Examples
from nbllm.evaluation.tasks.base import Task

if TYPE_CHECKING:
    from nbllm.runs.run import Run

REPRODUCTION = "Reproduction"  # the title of the section


def reproduction_section(
    jobs: Sequence[tuple[Task, Examples]], config: EvaluationConfig, run: Run | None = None
) -> KeyValues:
    """Return the facts that determine the figures of an evaluation.

    Args:
        jobs: Each task with what it measured.
        config: Of the evaluation.
        run: The run that made the model; its machine and versions are then those of the training.
    """
    entries: list[tuple[str, Cell]] = []
    for task, examples in jobs:
        entries += (entry for entry in _data(task, examples) if entry not in entries)
    entries += _flat(config.to_dict(), "evaluation")
    for task in dict.fromkeys(task for task, _ in jobs):
        entries += _flat(task.to_dict(), task.name)
    facts: Any
    packages: Any
    if run is None:
        from nbllm.core.machine import machine_facts, versions

        facts, packages = machine_facts(), versions()
    else:
        entries += [("run", run.name), *_flat(run.record.get("data"), "data")]
        entries += _flat(run.record.get("choices"), "chosen")
        facts, packages = run.record.get("machine"), run.record.get("versions")
    entries += _flat(packages, "version of")
    entries += _flat(facts, "machine")
    return KeyValues(
        title=REPRODUCTION,
        note=(
            "A run replays bit for bit by its recorded choices, on the same machine with the same versions: "
            "nb.replay(run)."
            if run is not None
            else "The same model and text give the same figures."
        ),
        entries=tuple(entries),
    )


def _data(task: Task, examples: Examples) -> Iterator[tuple[str, Cell]]:
    name = examples.name or task.noun
    yield name, examples.source
    yield f"{name}, SHA-256", examples.fingerprint


def _flat(values: Any, prefix: str) -> Iterator[tuple[str, Cell]]:
    """Yield the leaves of nested mappings, named by their path within them; file paths and sources are left out.

    A file path reveals folders of the person's own machine and is of no use to anybody else; where a text comes from is
    told where the training is.
    """
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if name in ("path", "source"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix} {name}")
        elif value is not None and value not in ("", [], ()):
            yield f"{prefix} {name}".replace("_", " "), plain(value)
