"""`nb.data.dedup`: one entry to every kind of deduplication."""

from __future__ import annotations

from typing import Any

from nbllm.core.errors import UserError, nearest
from nbllm.data.deduplication.exact import ExactDuplicates
from nbllm.data.deduplication.near import NearDuplicates
from nbllm.data.deduplication.semantic import SemanticDuplicates
from nbllm.data.deduplication.substrings import RepeatedSubstrings
from nbllm.data.pipeline.step import CorpusStep

METHODS: dict[str, type[CorpusStep]] = {
    "exact": ExactDuplicates,
    "near": NearDuplicates,
    "substring": RepeatedSubstrings,
    "semantic": SemanticDuplicates,
}


def dedup(method: str = "near", **settings: Any) -> CorpusStep:
    """Return a step of data preparation that removes duplicates; of equal documents the first stays.

    Args:
        method: "exact", equal documents, paragraphs or lines; "near", documents that share most of their word 5-grams;
            "substring", runs of 50 and more tokens within documents; "semantic", documents that say the same, by the
            embeddings of an encoder (`model=lm`).
        settings: Those of the step: see `ExactDuplicates`, `NearDuplicates`, `RepeatedSubstrings`,
            `SemanticDuplicates`.

    Raises:
        UserError: There is no such method, or no such setting, or a setting makes no sense.

    >>> dedup(threshold=0.8, bands=14, rows=8).setting
    Bands(bands=14, rows=8)
    """
    if method not in METHODS:
        raise UserError(
            f"There is no method of deduplication named {method!r}.", hint=nearest(method, METHODS)
        )
    step = METHODS[method]
    known = [name for name, field in step.__dataclass_fields__.items() if field.init]
    for name in settings:
        if name not in known:
            raise UserError(f"dedup({method!r}) has no setting {name!r}.", hint=nearest(name, known))
    return step(**settings)
