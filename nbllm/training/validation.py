"""The loss, and where it is a code length the bits per byte, on held-out text while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nbllm.core.errors import DataError
from nbllm.core.seeding import derive
from nbllm.data.sample_store import RECORD as SAMPLES, SampleStore
from nbllm.data.token_store import TokenStore
from nbllm.distributed.layout import Layout
from nbllm.distributed.loss_module import LossOutput
from nbllm.objectives import Objective
from nbllm.objectives.base import Batch, Rows
from nbllm.objectives.measures import means_of, recorded_measures, reported_by
from nbllm.training.config import TrainConfig
from nbllm.training.step import on_device

NO_VALIDATION = "this run was given no validation text"  # why it cannot evaluate


def limits(validation: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a run cannot do, by action, with the reason; `validation` as its record describes it."""
    return {} if validation is not None else {"evaluate": NO_VALIDATION}


def open_store(record: Mapping[str, Any]) -> TokenStore | SampleStore:
    """Open the packed text, or the examples, that a run's record describes.

    Raises:
        DataError: It is gone, damaged, or no longer what the run was started with.
    """
    path = record.get("path")
    if not isinstance(path, str):
        raise DataError("The run's record does not say where its packed text is.")
    store = SampleStore.open(path) if (Path(path) / SAMPLES).is_file() else TokenStore.open(path)
    store.verify()
    if store.fingerprint != record.get("fingerprint"):
        raise DataError(
            "The packed text is not what this run was started with.",
            where=store.path,
            hint="Pack the same text with the same tokenizer again.",
        )
    return store


class Validation:
    """Measures a network on windows of held-out text, each token of which is predicted at most once.

    Every window starts without context, so the figure is a little higher than that of `nb.evaluate`, which slides
    its window; it is meant for comparing the steps of a run. What an objective draws at random, such as which tokens
    are masked, is the same at every measurement.

    Args:
        store: The text.
        objective: What the network is trained for.
        config: The run's configuration.
    """

    def __init__(
        self, store: TokenStore | SampleStore, objective: Objective[Any], config: TrainConfig
    ) -> None:
        self.objective = objective
        self.config = config
        self.store = store = (
            store.with_sources(objective.sources) if isinstance(store, SampleStore) else store
        )
        self.length = objective.window_length(config.sequence_length)
        stride = self.length - objective.overlap
        starts = range(0, store.num_tokens - objective.overlap, stride)
        # Where not all are measured, they are spread evenly: the beginning alone would be but a few documents.
        every = max(1, round(len(starts) * stride / config.validation_tokens))
        self.starts = list(starts)[::every]
        self.bytes_per_token = store.num_bytes / store.num_tokens

    @classmethod
    def of(
        cls, record: Mapping[str, Any] | None, objective: Objective[Any], config: TrainConfig
    ) -> Self | None:
        """Open the store that a run's record names; `None` where it names none."""
        return None if record is None else cls(open_store(record), objective, config)

    def measure(self, layout: Layout, device: str) -> dict[str, float | int]:
        """Return "loss" (mean, nats), "tokens" (how many counted), of a code length "bits_per_byte", and metrics.

        Data ranks share out the batches.

        Args:
            layout: The network; all ranks call this at once.
            device: Where it computes.
        """
        windows = list(self._batches())
        own = range(layout.data_rank, len(windows), layout.data_size)
        total, count = 0.0, 0.0
        with recorded_measures() as measures:
            for number in own:
                loss, counted = layout.evaluate(self._batch(windows, number, device), self._loss)
                total += loss
                count += counted
        if len(own) < -(-len(windows) // layout.data_size):  # it takes part in what others compute
            layout.evaluate(self._batch(windows, len(windows) - 1, device), self._loss)
        sums = torch.tensor([total, count], dtype=torch.float64)
        measured = measures.to_tensor(names := reported_by(self.objective))
        layout.sum([sums, measured])
        total, count = sums.tolist()
        mean = total / count if count else math.nan
        found: dict[str, float | int] = {"loss": mean, "tokens": round(count), **means_of(measured, names)}
        if self.objective.counts_every_token:
            # Tokens that are known to come, such as the first of an isolated document, cost nothing.
            predictable = sum(
                each.size - self.objective.overlap * len(each)
                for each in windows
                if isinstance(each, np.ndarray)
            )
            found["bits_per_byte"] = total / predictable / self.bytes_per_token / math.log(2)
        return found

    def _batch(self, windows: list[NDArray[np.int64] | Rows], number: int, device: str) -> Batch:
        rng = np.random.default_rng(derive(self.config.seed, "validation", number))
        return on_device(self.objective.batch(windows[number], rng), device)

    def _loss(self, network: nn.Module, batch: Batch) -> LossOutput:
        return *self.objective.loss(network, batch), None

    def _batches(self) -> Iterator[NDArray[np.int64] | Rows]:
        """Yield windows, (batch, window), or rows; a window that the text's end cuts short is a batch of its own."""
        whole = [start for start in self.starts if start + self.length <= self.store.num_tokens]
        for first in range(0, len(whole), self.config.batch_size):
            yield self.store.windows(np.array(whole[first : first + self.config.batch_size]), self.length)
        for start in self.starts[len(whole) :]:
            assert isinstance(self.store, TokenStore)  # rows are never cut short
            yield self.store.read(start)[None]
