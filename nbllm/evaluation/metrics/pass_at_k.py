"""pass@k: how likely one of k samples passes the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import METRICS, PredictionMetric, RatioOfSums
from nbllm.evaluation.metrics.inputs import OUTCOMES


@METRICS.register("pass_at_k")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PassAtK(PredictionMetric, RatioOfSums):
    """The mean over problems of the probability that at least one of k samples passes, estimated without bias.

    Predictions are lists of true and false, one for each sample of a problem: whether it passed.

    Args:
        k: How many samples are drawn; several in a list. The figure of a report is that of the first.

    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """

    name = module = "pass_at_k"
    key = "pass@1"
    label = "pass@k"
    note = "probability that one of k samples passes"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("num_samples", "num_passed")
    inputs = MappingProxyType({"predictions": OUTCOMES})
    source = "Chen et al. 2021, arXiv:2107.03374"

    k: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        """Check the numbers of samples."""
        given: Any = self.k
        numbers = (given,) if isinstance(given, int) else tuple(given)
        for each in numbers:
            if isinstance(each, bool) or not isinstance(each, int) or each < 1:
                raise UserError(f"k must be a whole number from 1 on, not {each!r}.", where="pass_at_k")
        if not numbers:
            raise UserError("k is empty.", where="pass_at_k", hint="Give k=1, or several: k=[1, 10].")
        object.__setattr__(self, "k", numbers)

    def title(self, data: str) -> str:
        """Return the label with the number of samples: "pass@10"."""
        return f"pass@{self.k[0]} on {data}" if data else f"pass@{self.k[0]}"

    def row(self, prediction: Sequence[int]) -> Row:
        """Return how many samples of a problem there are, and how many passed."""
        return {"num_samples": len(prediction), "num_passed": int(sum(prediction))}

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the probability of each problem, and one for each."""
        found = self.probabilities(columns, self.k[0])
        return found, np.ones(len(found))

    def probabilities(self, columns: Columns, k: int) -> Array:
        """Return the probability that one of k samples passes, of each problem: (row).

        Raises:
            DataError: A problem has fewer than k samples, for which it is not defined.
        """
        samples, passed = columns["num_samples"], columns["num_passed"]
        if (samples < k).any():
            index = int(np.argmax(samples < k))
            raise DataError(
                f"Problem {index} has {int(samples[index])} samples: pass@{k} is not defined.",
                hint=f"Draw at least {k} samples of each problem, or give a smaller k.",
            )
        factors = 1 - k / np.maximum(samples[:, None] - np.arange(int(samples.max())), k)
        # The product over i from samples - passed + 1 to samples of (1 - k / i): the first `passed` factors.
        drawn = np.arange(factors.shape[1]) < passed[:, None]
        found: Array = 1 - np.where(drawn, factors, 1).prod(axis=1)
        return found

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the mean for each k."""
        return {f"pass@{k}": float(self.probabilities(columns, k).mean()) for k in self.k}
