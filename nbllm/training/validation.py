"""Loss and bits per byte on held-out text while a run goes on: quick, window by window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from nbllm.core.errors import DataError
from nbllm.data.token_store import TokenStore
from nbllm.objectives.causal_lm import HiddenAndHead, causal_lm_loss
from nbllm.training.config import TrainConfig

NO_VALIDATION = "this run was given no validation text"  # why it cannot evaluate


def limits(validation: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a run cannot do, by action, with the reason; `validation` as its record describes it."""
    return {} if validation is not None else {"evaluate": NO_VALIDATION}


def open_store(record: Mapping[str, Any]) -> TokenStore:
    """Open the packed text that a run's record describes.

    Raises:
        DataError: It is gone, damaged, or no longer what the run was started with.
    """
    store = TokenStore.open(Path(record["path"]))
    if store.fingerprint != record["fingerprint"]:
        raise DataError(
            "The packed text is not what this run was started with.",
            where=store.path,
            hint="Pack the same text with the same tokenizer again.",
        )
    return store


class Validation:
    """Measures a model on the windows of a token store that do not overlap.

    Every window starts without context, so the figure is a little higher than that of `nb.evaluate`, which slides
    its window; it is meant for comparing the steps of a run.
    """

    def __init__(self, store: TokenStore, config: TrainConfig) -> None:
        self.batch_size, self.length = config.batch_size, config.sequence_length
        self.tokens = store.tokens
        self.last = len(store.tokens) - 1  # what is predicted ends here
        windows = -(-self.last // self.length)
        # Where not all are measured, they are spread evenly: the beginning alone would be but a few documents.
        every = max(1, round(windows * self.length / config.validation_tokens))
        self.starts = [*range(0, self.last, self.length)][::every]
        self.count = sum(min(self.length, self.last - start) for start in self.starts)
        self.bytes_per_token = store.num_bytes / len(store.tokens)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None, config: TrainConfig) -> Self | None:
        """Open the store that a run's record names; `None` where it names none."""
        return None if record is None else cls(open_store(record), config)

    @torch.no_grad()
    def measure(self, model: HiddenAndHead, device: str) -> dict[str, float | int]:
        """Return `loss` (nats a token), `bits_per_byte` and `tokens`."""
        total = 0.0
        for first in range(0, len(self.starts), self.batch_size):
            inputs, targets = self._windows(self.starts[first : first + self.batch_size])
            batch = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
            total += float(causal_lm_loss(model, *batch))
        loss = total / self.count
        return {
            "loss": loss,
            "bits_per_byte": loss / self.bytes_per_token / math.log(2),
            "tokens": self.count,
        }

    def _windows(self, starts: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        inputs = np.zeros((len(starts), self.length), np.int64)
        targets = np.full((len(starts), self.length), -100, np.int64)  # what sticks out is not counted
        for row, start in enumerate(starts):
            piece = self.tokens[start : min(start + self.length, self.last) + 1].astype(np.int64)
            inputs[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = piece[1:]
        return inputs, targets
