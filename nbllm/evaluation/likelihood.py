"""How probable a model finds each document of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import Progress
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.statistics import Array

if TYPE_CHECKING:
    from nbllm.lm import LM

# Documents are measured in groups of about so many batches: enough to sort windows by length within a group,
# few enough that progress shows and an interruption loses little.
_BATCHES_PER_GROUP = 4


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """What a model made of each document, in the order of the text.

    Attributes:
        nats: (document) minus the natural logarithm of the document's probability.
        num_tokens: (document) tokens predicted.
        num_bytes: (document) UTF-8 bytes of the text.
        num_documents: Documents that there were to measure; more than measured after an interruption.
    """

    nats: Array
    num_tokens: Array
    num_bytes: Array
    num_documents: int

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def interrupted(self) -> bool:
        """Whether not every document was measured."""
        return len(self) < self.num_documents


def measure_likelihoods(
    lm: LM, texts: Sequence[str], config: EvaluationConfig, *, show_progress: bool = True
) -> Likelihoods:
    """Return how probable a model finds each document, read in windows that slide over it.

    Every document stands alone, as in training between two end-of-text tokens: its first token is predicted
    from the one, and it is charged for predicting the other. So the figures are those of a lossless code of
    the documents, bounds between them included. A tokenizer without an end-of-text token predicts neither.

    Interrupting (KeyboardInterrupt) returns what was measured of the first documents; before the first group
    is done it is raised.

    Args:
        lm: The model and its tokenizer.
        texts: The documents; empty ones are left out.
        config: Stride and batch size.
        show_progress: Whether a line says how far it is.

    Raises:
        DataError: There is no text.
        UserError: The stride is longer than the context.
    """
    from nbllm.models.scoring import token_log_probabilities

    documents = [text for text in texts if text]
    if not documents:
        raise DataError("There is no text to measure.", hint="Give held-out documents: data=...")
    if config.stride is not None and config.stride > lm.config.max_positions:
        raise UserError(
            f"A stride of {config.stride} skips tokens: the context has {lm.config.max_positions}.",
            hint=f"Use stride={lm.config.max_positions} or less.",
        )
    nats: list[float] = []
    counts: list[int] = []
    sizes = [len(text.encode()) for text in documents]
    group_tokens = _BATCHES_PER_GROUP * config.batch_tokens
    # The lock is held throughout: a run in another thread must not change the weights between two documents.
    with lm.lock, Progress("likelihood", sum(sizes), "bytes", show=show_progress) as progress:
        try:
            for group in _groups(lm, documents, group_tokens):
                found = token_log_probabilities(
                    lm.model, group, stride=config.stride, max_batch_tokens=config.batch_tokens
                )
                nats += [-float(values.double().sum()) for values in found]
                counts += [len(values) for values in found]
                progress.advance(sum(sizes[len(nats) - len(group) : len(nats)]))
        except KeyboardInterrupt:
            if not nats:
                raise
            counts = counts[: len(nats)]
    return Likelihoods(
        np.array(nats), np.array(counts, float), np.array(sizes[: len(nats)], float), len(documents)
    )


def _groups(lm: LM, texts: Sequence[str], group_tokens: int) -> Iterator[list[list[int]]]:
    """Yield the token ids of consecutive documents, about `group_tokens` at a time."""
    end = lm.tokenizer.eos_token_id
    ends = [] if end is None else [end]
    group: list[list[int]] = []
    size = 0
    for text in texts:
        ids = ends + lm.tokenizer.encode(text, add_special_tokens=False, verbose=False) + ends
        group.append(ids)
        size += len(ids)
        if size >= group_tokens:
            yield group
            group, size = [], 0
    if group:
        yield group
