"""How the figures of a report were made: what a program needs to make them again, and to tell what has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nbllm.core.report.values import Cell, Record, Value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRecord(Record):
    """What one task measured on one data set.

    Args:
        task: The task's registered name.
        settings: Its settings by name.
        data: The name of the data; "" where there is only one set of it.
        source: A description of where the data come from.
        location: The relative path or the hub name by which they were given; "" for the task's own data, `None` for
            what cannot be loaded again (objects in memory, absolute paths, which name folders of one machine).
        data_sha256: Of the examples, in hexadecimal.
        prompts_sha256: Of all requests to the model, in their order, in hexadecimal.
        num_examples: How many examples there were.
    """

    task: str
    settings: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    data: str = ""
    source: str = ""
    location: str | None = None
    data_sha256: str
    prompts_sha256: str
    num_examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """How one model was measured.

    Args:
        model: Its name in a report of several models; "" in a report of one.
        origin: The published name, folder or run that it was opened from; "" where that is not known.
        model_sha256: Of its weights and its tokenizer, in hexadecimal (`model_fingerprint`).
        dtype: Of the weights: "float32".
        device: What it computed on: "cpu", "cuda".
        tasks: What was measured.
        config: The settings of the evaluation, seeds included.
        versions: Of Python and packages.
        machine: Facts about it.
        started: When, as ISO 8601 in UTC.
        seconds: How long it took.
    """

    model: str = ""
    origin: str = ""
    model_sha256: str
    dtype: str = ""
    device: str = ""
    tasks: tuple[TaskRecord, ...]
    config: Mapping[str, Cell] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Cell] = dataclasses.field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
