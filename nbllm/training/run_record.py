"""What a trainer, a fork and a replay need of a run's record, checked: `run.json` may come from anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbllm.core.config import Config
from nbllm.core.errors import RunError, UserError
from nbllm.distributed.launch import Launch
from nbllm.distributed.plan import Plan
from nbllm.distributed.slurm import SlurmJob
from nbllm.models.config import ModelConfig
from nbllm.runs.arguments import short
from nbllm.runs.events import is_count
from nbllm.runs.store import RECORD
from nbllm.training.config import MAX_THREADS, TrainConfig
from nbllm.training.precision import DTYPES

Check = Callable[[Any], bool]


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Check that a run can be trained as its record says.

    Raises:
        RunError: An entry is missing or makes no sense.
        UserError: A setting is unknown or out of range.
    """
    for name, (wanted, check) in _ENTRIES.items():
        value = _entry(record, name)
        if not check(value):
            raise _unusable(path, f"{name} must be {wanted}, not {short(value)}")
    try:
        TrainConfig.from_dict(record["config"])
        ModelConfig.from_dict(record["model"])
    except UserError as error:
        raise _unusable(path, error.one_line.rstrip(".")) from error
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error


def _entry(record: Mapping[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _unusable(path: Path, reason: str) -> RunError:
    return RunError(
        f"The run cannot be trained by its record: {reason}.",
        where=path / RECORD,
        hint="Its checkpoints are model directories: nb.load opens one, and nb.train trains it further.",
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_store(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    sources = value.get("sources", [])
    named = isinstance(sources, list) and all(map(_is_text, sources))
    return named and _is_text(value.get("path")) and _is_text(value.get("fingerprint"))


def _is_replay(value: Any) -> bool:
    script = value.get("script") if isinstance(value, Mapping) else None
    return isinstance(script, list) and all(
        isinstance(entry, Mapping)
        and entry.keys() == {"step", "action", "args", "actor"}
        and is_count(entry["step"])
        and _is_text(entry["action"])
        and _is_mapping(entry["args"])
        and _is_text(entry["actor"])
        for entry in script
    )


def _is_config(kind: type[Config], value: Any) -> bool:
    try:
        kind.from_dict(value)
    except (UserError, TypeError):
        return False
    return True


def _is_plan(value: Any) -> bool:
    try:
        Plan.from_dict(value)
    except (UserError, TypeError):
        return False
    return True


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


_ENTRIES: dict[str, tuple[str, Check]] = {
    "where": ("'thread' or 'process'", lambda value: value in ("thread", "process")),
    "launch": ("null, or the settings of a Launch", _or_none(functools.partial(_is_config, Launch))),
    "plan": ("the settings of a Plan, or null", _or_none(_is_plan)),
    "slurm": ("null, or the settings of a Slurm job", _or_none(functools.partial(_is_config, SlurmJob))),
    "config": ("settings by name", _is_mapping),
    "model": ("settings by name", _is_mapping),
    "data.train": ("a packed text", _is_store),
    "data.validation": ("a packed text, or null", _or_none(_is_store)),
    "choices.device": ("a device", _is_text),
    "choices.precision": (f"one of {', '.join(DTYPES)}", lambda value: _is_text(value) and value in DTYPES),
    "choices.attention": ("the name of a backend", _is_text),
    "choices.num_threads": (
        f"a number of threads up to {MAX_THREADS:,}",
        lambda value: is_count(value) and 1 <= value <= MAX_THREADS,
    ),
    "choices.float32_matmuls_from": ("a number of rows, or null", _or_none(is_count)),
    "choices.onednn_matmuls_from": ("a number of rows, or null", _or_none(is_count)),
    "choices.fused_kernels": (
        "a list of names",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    "choices.prompt_attention": (
        "backends by dtype",
        lambda value: isinstance(value, Mapping) and all(map(_is_text, value.values())),
    ),
    "replay": ("null, or a script of actions", _or_none(_is_replay)),
}
