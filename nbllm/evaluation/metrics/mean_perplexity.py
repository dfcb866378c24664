"""Perplexity of texts as the module of `evaluate` has it: the mean over texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation.columns import Columns, Row
from nbllm.evaluation.metrics.base import METRICS, PredictionMetric, RatioOfSums
from nbllm.evaluation.metrics.inputs import TEXT

if TYPE_CHECKING:
    from nbllm.evaluation.columns import Array
    from nbllm.lm import LM


@METRICS.register("mean_perplexity")
class MeanPerplexity(PredictionMetric, RatioOfSums):
    """The mean over texts of the perplexity that a model finds in each.

    A text whose tokens are few weighs as much as a long one; the metric `perplexity` of a report is that of all tokens
    together. A text longer than the context is read in overlapping windows.
    """

    name = "mean_perplexity"
    key = "mean_perplexity"
    module = "perplexity"
    label = "mean perplexity"
    note = "mean over texts; comparable only between models of one tokenizer"
    better = "lower"
    scale = (1.0, math.inf)
    columns = ("perplexity",)
    inputs = MappingProxyType({"predictions": TEXT})
    source = "Jelinek et al. 1977; the module perplexity of Hugging Face's evaluate"

    def conventions(self, columns: Columns | None = None) -> dict[str, object]:
        """Return the model and what texts begin with, where rows are there."""
        if columns is None:
            return {}
        return {name: columns[name][0] for name in ("model", "start")}

    def row(self, prediction: str) -> Row:
        """Refuse: the rows of several texts are made at once, with a model."""
        raise UserError("A perplexity needs a model.", hint="rows(texts, model_id=lm)")

    def rows(
        self,
        predictions: Sequence[str],
        *,
        model_id: LM | str | None = None,
        add_start_token: bool = True,
        max_length: int | None = None,
        batch_size: int | None = None,
    ) -> list[Row]:
        """Return the perplexity of each text, the model and what texts begin with.

        Args:
            predictions: (row).
            model_id: The model: an `LM`, its folder or its name.
            add_start_token: Whether the first token is predicted too, from what documents begin with.
            max_length: Tokens after which a text is cut, the first one included; `None` is not at all.
            batch_size: Of no effect: texts are read in batches of like length, which changes no figure.

        Raises:
            UserError: No model is given, or it has no token that documents begin with.
            DataError: A text has no token to predict.
        """
        from nbllm.data.encoding import encode_text
        from nbllm.evaluation.provenance import model_fingerprint

        lm = _model(model_id)
        start = _start(lm) if add_start_token else []
        sequences = [(start + encode_text(lm.tokenizer, text))[:max_length] for text in predictions]
        for index, ids in enumerate(sequences):
            if len(ids) < 2:
                raise DataError(
                    f"predictions[{index}] is {predictions[index]!r}, which has no token to predict.",
                    hint="Leave out empty texts; without a start token, a text needs two tokens.",
                )
        found = lm.score_tokens(sequences)
        model = f"{lm.config.family}-{model_fingerprint(lm)[:12]}"
        return [
            {
                "perplexity": math.exp(-float(values.double().mean())),
                "model": model,
                "start": "document" if add_start_token else "none",
            }
            for values in found
        ]

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the perplexities, and one for each text."""
        found = columns["perplexity"]
        return found, found * 0 + 1

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the perplexity of each text, and their mean."""
        return {"perplexities": columns["perplexity"].tolist(), "mean_perplexity": self.compute(columns)}


def _model(model: LM | str | None) -> LM:
    from nbllm.lm import LM
    from nbllm.opening import load

    if model is None:
        raise UserError("No model is given.", where="perplexity", hint="model_id=lm, its folder or its name")
    return model if isinstance(model, LM) else load(model)


def _start(lm: LM) -> list[int]:
    from nbllm.data.document_bounds import document_bounds

    start = document_bounds(lm.tokenizer).start_tokens
    if not start:
        raise UserError(
            "The tokenizer has no token that documents begin with.",
            where="add_start_token",
            hint="Give add_start_token=False: the first token is then not predicted.",
        )
    return start
