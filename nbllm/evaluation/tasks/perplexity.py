"""The task "perplexity": how well a model predicts held-out text, compared with a well-known compressor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.config import check_positive
from nbllm.core.quantities import fixed, size
from nbllm.core.report.sections import Measurements, Section, Table
from nbllm.evaluation.columns import Row
from nbllm.evaluation.documents import documents
from nbllm.evaluation.examples import Source
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.bits_per_byte import BitsPerByte
from nbllm.evaluation.metrics.compression import XzBitsPerByte
from nbllm.evaluation.metrics.perplexity import Perplexity
from nbllm.evaluation.metrics.token_length import BytesPerToken
from nbllm.evaluation.requests import DocumentLikelihood
from nbllm.evaluation.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured

_EXTREMES = 3  # documents named at either end
_LABEL = 60  # characters of a document's first line


@TASKS.register("perplexity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictText(Task):
    """How well a model predicts documents.

    Args:
        stride: Tokens by which the window moves over a document longer than the context; `None` is half the
            context. Smaller gives every token more context and takes longer.
    """

    name = "perplexity"
    label = "prediction"
    noun = "held-out text"
    unit = "documents"
    shown = 0  # the documents that are predicted best and worst are shown instead

    stride: int | None = None

    def __post_init__(self) -> None:
        """Check the stride."""
        if self.stride is not None:
            check_positive(self, "stride")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Bits per byte, `xz -9` on the same text, perplexity per token and bytes per token."""
        return BitsPerByte(), XzBitsPerByte(), Perplexity(), BytesPerToken()

    def examples(self, source: Source) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return the documents that are not empty."""
        texts, words = documents(source)
        return [{"text": text} for text in texts], words

    def requests(self, example: Mapping[str, Any]) -> Sequence[DocumentLikelihood]:
        """Return the document."""
        return [DocumentLikelihood(example["text"], self.stride)]

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return the document's minus log-probability in nats, its predicted tokens and its UTF-8 bytes."""
        (found,) = answers
        return {
            "text": example["text"],
            "nats": -found.log_probability,
            "num_tokens": found.num_tokens,
            "num_bytes": found.num_bytes,
        }

    def sentence(self, measured: Measured) -> str:
        """Return how the model compares with the compressor."""
        ours, yardstick = (each.value for each in measured.measurements[:2])
        if ours is None or yardstick is None:
            return f"The likelihood of {_text(measured)} is not finite"
        text = (
            f"The model needs {fixed(ours)} bits for each byte of "
            f"{size(float(measured.columns['num_bytes'].sum()))} of {_text(measured)}; xz -9 needs {fixed(yardstick)}"
        )
        share = ours / yardstick - 1
        if math.isfinite(share):
            text += f", so the model's code is {abs(share):.1%} {'longer' if share > 0 else 'shorter'}"
        return text

    def sections(self, measured: Measured) -> list[Section]:
        """Return the figures, and the documents that the model predicts best and worst."""
        figures = Measurements(
            title=f"Prediction of {_text(measured)}",
            note=self._how(measured),
            measurements=measured.measurements,
        )
        return [figures, _extremes(measured)] if len(measured) > 2 * _EXTREMES else [figures]

    def _how(self, measured: Measured) -> str:
        context = measured.context
        stride = self.stride or context // 2 or 1
        num_bytes, num_tokens = (int(measured.columns[name].sum()) for name in ("num_bytes", "num_tokens"))
        return (
            f"Measured on {measured.extent}, each on its own: {num_bytes:,} bytes, {num_tokens:,} tokens. A document "
            f"longer than the context of {context} tokens is read in windows that move on by {stride}, so that every "
            f"token is predicted once, from at least {context - stride} tokens before it where there are as many. "
            f"{_first_token(measured)} "
            f"{measured.intervals}"
        )


def _text(measured: Measured) -> str:
    return measured.subject.data or PredictText.noun


def _first_token(measured: Measured) -> str:
    bounds = measured.bounds
    if not bounds.start_token:
        return "The first token of a document is not predicted: the tokenizer has none for documents to begin with."
    return f"The first is predicted from {bounds.start_token} ({bounds.reason})."


def _extremes(measured: Measured) -> Table:
    """Return the documents that the model predicts best and worst."""
    texts, num_bytes = measured.columns["text"], measured.columns["num_bytes"]
    bits = measured.columns["nats"] / math.log(2) / num_bytes
    order = sorted(range(len(bits)), key=lambda i: float(bits[i]))
    rows = [
        (_first_line(texts[i]), int(num_bytes[i]), float(bits[i]))
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
