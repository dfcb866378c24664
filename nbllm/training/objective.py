"""The objective of a run, as its configuration has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.data.document_bounds import document_bounds
from nbllm.objectives import OBJECTIVES, Objective
from nbllm.objectives.text_to_text import TextToText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.training.config import TrainConfig


def make_objective(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, *, start: int | None = None
) -> Objective[Any]:
    """Return the objective for text of this tokenizer.

    Args:
        config: The run's configuration.
        tokenizer: The model's.
        start: The token that the model's decoder begins with when it generates; None: the objective's usual one.

    Raises:
        UserError: The tokenizer lacks a token that it needs, a setting of it makes no sense, or documents are to be
            isolated and cannot be.
    """
    objective = OBJECTIVES[config.objective].for_tokenizer(tokenizer)
    objective.configure(config.objective_settings)
    if start is not None and isinstance(objective, TextToText):
        objective.start = start
    if config.packing == "isolated":
        bounds = document_bounds(tokenizer)
        if bounds.end is None:
            raise UserError(
                "Documents cannot be told apart: the tokenizer has no end-of-text token.",
                hint='Leave packing="isolated".',
            )
        if not objective.can_isolate:
            raise UserError(
                f"The objective {config.objective!r} cannot isolate documents: it reads each window as one text.",
                hint='Leave packing="isolated".',
            )
        objective.isolate(bounds.end, begins_next=bounds.start == bounds.end)
    return objective
