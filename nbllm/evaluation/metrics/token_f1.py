"""F1 of the tokens of an answer: how much of it is in a gold answer, and how much of that is in it."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation.metrics.answers import AnswerMetric
from nbllm.evaluation.metrics.base import METRICS


@METRICS.register("token_f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenF1(AnswerMetric):
    """The mean F1 of the tokens that an answer shares with its gold answer; the best of several counts.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
    """

    name = key = module = "token_f1"
    label = "token F1"
    note = "tokens shared with the best gold answer"
    scale = (0.0, 1.0)
    columns = ("f1",)
    source = "Rajpurkar et al. 2016, arXiv:1606.05250"
