"""The task "perplexity": how well a model predicts held-out text, beside a compressor that people know."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbllm.core.quantities import fixed, size
from nbllm.core.report.figures import Metric, Subject
from nbllm.core.report.sections import Metrics, Section, Table
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.likelihood import Likelihoods, measure_likelihoods
from nbllm.evaluation.metrics.catalogue import METRICS
from nbllm.evaluation.metrics.compression import xz_bits_per_byte
from nbllm.evaluation.tasks.base import TASKS, TaskResult

if TYPE_CHECKING:
    from nbllm.lm import LM

_EXTREMES = 3  # documents named at either end
_LABEL = 60  # characters of a document's first line


@TASKS.register("perplexity")
def perplexity(
    lm: LM, texts: Sequence[str], config: EvaluationConfig, *, subject: Subject, show_progress: bool
) -> TaskResult:
    """Measure bits per byte, perplexity per token and bytes per token, and `xz -9` on the same text."""
    documents = [text for text in texts if text]
    found = measure_likelihoods(lm, documents, config, show_progress=show_progress)
    documents = documents[: len(found)]
    figures = [
        METRICS[name].measure(found, config, subject)
        for name in ("bits_per_byte", "perplexity", "bytes_per_token")
    ]
    yardstick = Metric(
        name=f"xz -9 on {subject.text or 'the same text'}",
        value=xz_bits_per_byte(documents),
        unit="bits per byte",
        note="a general-purpose compressor, all documents as one file",
    )
    figures.insert(1, yardstick)
    section = Metrics(
        title=f"Prediction of {subject.text or 'held-out text'}",
        note=_how(lm, found, config),
        metrics=tuple(figures),
    )
    sections: list[Section] = [section]
    if len(found) > 2 * _EXTREMES:
        sections.append(_extremes(documents, found))
    return TaskResult(
        headline=tuple(dataclasses.replace(figure, note="", per_document=None) for figure in figures[:3]),
        sentence=_sentence(figures[0], yardstick, found, subject),
        sections=tuple(sections),
    )


def _sentence(ours: Metric, yardstick: Metric, found: Likelihoods, subject: Subject) -> str:
    assert ours.value is not None and yardstick.value is not None
    text = (
        f"The model needs {fixed(ours.value)} bits for each byte of {size(float(found.num_bytes.sum()))} of "
        f"{subject.text or 'held-out text'}; xz -9 needs {fixed(yardstick.value)}"
    )
    share = ours.value / yardstick.value - 1
    if math.isfinite(share):
        text += f", so the model's code is {abs(share):.1%} {'longer' if share > 0 else 'shorter'}"
    if found.interrupted:
        text += f". The measurement was interrupted after {len(found)} of {found.num_documents} documents"
    return text + "."


def _how(lm: LM, found: Likelihoods, config: EvaluationConfig) -> str:
    context = lm.config.max_positions
    stride = config.stride or context // 2 or 1
    part = f"the first {len(found)} of {found.num_documents}" if found.interrupted else f"{len(found):,}"
    return (
        f"Measured on {part} documents, each on its own: {int(found.num_bytes.sum()):,} bytes, "
        f"{int(found.num_tokens.sum()):,} tokens. A document longer than the context of {context} tokens is "
        f"read in windows that move on by {stride}, so that every token is predicted once, from at least "
        f"{context - stride} tokens before it where there are as many. Intervals are percentiles of "
        f"{config.resamples:,} bootstrap resamples of the documents."
    )


def _extremes(documents: Sequence[str], found: Likelihoods) -> Table:
    """Return the documents that the model predicts best and worst."""
    bits = found.nats / math.log(2) / found.num_bytes
    order = sorted(range(len(documents)), key=lambda i: float(bits[i]))
    rows = [
        (_first_line(documents[i]), int(found.num_bytes[i]), float(bits[i]))
        for i in (*order[:_EXTREMES], *order[-_EXTREMES:])
    ]
    return Table(
        header=("document begins", "bytes", "bits per byte"),
        rows=tuple(rows),
        caption=f"The {_EXTREMES} documents that the model predicts best, and the {_EXTREMES} worst.",
    )


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip(" \t-=*#~^\"'")), "")
    return line if len(line) <= _LABEL else f"{line[: _LABEL - 1]}…"
