"""The record of an evaluation: fingerprints of model, data and prompts, and the signature of a figure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.machine import machine_facts, versions
from nbllm.core.report.provenance import Provenance, TaskRecord
from nbllm.core.report.values import plain
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.remote import Remote
from nbllm.evaluation.statistics import BOOTSTRAP

if TYPE_CHECKING:
    from nbllm.core.report.figures import Measurement
    from nbllm.evaluation.examples import Examples
    from nbllm.evaluation.requests import Request
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM

REMOTE = "remote"  # the device of a model behind an endpoint
_SHORT = 12  # hexadecimal digits of a digest in a signature


def model_fingerprint(lm: LM | Remote) -> str:
    """Return the SHA-256 of a model's weights and its tokenizer, in hexadecimal.

    It depends on each parameter's name, dtype, shape and bytes, on the configuration, on the adapter's scale and on the
    tokenizer, and on nothing else: a model saved and opened again has the same. That of a remote model
    depends on the endpoint's address, the model's name and the API, since no more is known of it.
    """
    if isinstance(lm, Remote):
        return lm.fingerprint
    import torch

    from nbllm.models.quantized import quantized_state

    digest = hashlib.sha256()
    with lm.lock, torch.no_grad():
        for name, parameter in sorted([*lm.model.named_parameters(), *quantized_state(lm.model)[0].items()]):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            flat = parameter.detach().to("cpu").reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
    digest.update(repr(lm.config).encode())
    for adapter in lm.adapters:
        if adapter.state == "on":  # by how much an update counts is no parameter
            digest.update(repr(adapter.config).encode())
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    tokenizer = sorted(lm.tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    digest.update(repr(tokenizer).encode())
    return digest.hexdigest()


def model_in_signature(lm: LM | Remote, fingerprint: str) -> str:
    """Return how signatures name a model: by its fingerprint, or where it is remote by its name and endpoint."""
    return f"{lm.name} ({lm.api})" if isinstance(lm, Remote) else fingerprint[:_SHORT]


def prompts_fingerprint(requests: Iterable[Request]) -> str:
    """Return the SHA-256 of requests to a model, in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for request in requests:
        values = {"kind": type(request).__name__, **dataclasses.asdict(request)}
        data = json.dumps(values, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def location_of(data: Any) -> str | None:
    """Return by what data can be loaded again, as `TaskRecord.location` says."""
    if data is None:
        return ""
    if isinstance(data, (str, os.PathLike)) and not Path(data).expanduser().is_absolute():
        return os.fspath(data) if isinstance(data, str) else Path(data).as_posix()
    return None


def task_record(task: Task, examples: Examples) -> TaskRecord:
    """Return what a task measured, as the report records it."""
    return TaskRecord(
        task=task.name,
        settings=task.to_dict(),
        data=examples.name,
        source=examples.source,
        location=examples.location,
        data_sha256=examples.fingerprint,
        prompts_sha256=prompts_fingerprint(
            request for example in examples.rows for request in task.requests(example)
        ),
        num_examples=len(examples.rows),
    )


def provenance(
    lm: LM | Remote,
    tasks: Sequence[TaskRecord],
    config: EvaluationConfig,
    fingerprint: str,
    started: str,
    seconds: float,
) -> Provenance:
    """Return how a model was measured, as the report records it.

    Args:
        lm: The model.
        tasks: What was measured.
        config: Of the evaluation.
        fingerprint: Of the model, when it was measured.
        started: When, as ISO 8601 in UTC.
        seconds: How long it took.
    """
    facts = (
        {"origin": model_in_signature(lm, fingerprint), "device": REMOTE}
        if isinstance(lm, Remote)
        else _facts(lm)
    )
    return Provenance(
        **facts,
        model_sha256=fingerprint,
        tasks=tuple(tasks),
        config=config.to_dict(),
        versions=versions(),
        machine={name: plain(value) for name, value in machine_facts().items()},
        started=started,
        seconds=seconds,
    )


def _facts(lm: LM) -> dict[str, str]:
    dtype, device = str(lm.model.dtype), str(lm.model.device)
    return {"origin": lm.origin, "dtype": dtype.removeprefix("torch."), "device": device.partition(":")[0]}


def signature(
    figure: Measurement, num_rows: int, config: EvaluationConfig, task: TaskRecord, model: str
) -> str:
    """Return how a figure was made, in one line: the metric's own signature, and what the metric does not know.

    "metric:accuracy|version:nbllm-0.1.0|task:mmlu|shots:5|n:200|data:1f2e...|prompts:...|model:...|ci:wilson-95".

    Two figures whose signatures differ in the model alone are comparable; where that is equal too, they are equal.

    Args:
        figure: With the metric's signature and the method of its interval.
        num_rows: Examples that were measured.
        config: Of the evaluation.
        task: What was measured.
        model: As `model_in_signature` returns it.

    Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores", arXiv:1804.08771 (the manner).
    """
    parts: dict[str, Any] = {"task": task.task, **task.settings}
    parts |= {"n": num_rows, "data": task.data_sha256[:_SHORT], "prompts": task.prompts_sha256[:_SHORT]}
    parts |= {"model": model}
    if figure.method:
        parts |= {"ci": f"{figure.method}-{100 * config.confidence:g}"}
    if figure.method == BOOTSTRAP:
        parts |= {"resamples": config.resamples, "seed": config.seed}
    parts |= {"nbllm": versions()["nbllm"]}
    own = (
        figure.signature
        if figure.signature.startswith("metric:")
        else f"metric:{figure.metric}|{figure.signature}"
    )
    return "|".join([own, *(f"{name}:{_word(value)}" for name, value in parts.items())])


def _word(value: Any) -> str:
    """Return a setting as a signature has it: without the characters that separate settings."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == ():
        return "none"
    return str(plain(value)).replace("|", "/").replace("\n", " ")
