"""`nb.data.prepare`: from raw text to a data set, in one call."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.cache import cache_folder, make_folder
from nbllm.core.errors import UserError, nearest
from nbllm.data.deduplication.methods import dedup
from nbllm.data.harm.toxicity import toxicity
from nbllm.data.pii.step import privacy
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.shards import dataset_digest
from nbllm.data.pipeline.step import Step
from nbllm.data.quality.presets import PRESETS, quality
from nbllm.data.sources.paths import paths_of, paths_of_list
from nbllm.data.texts import as_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.data.pipeline.prepared_dataset import PreparedDataset


def prepare(
    text: Any,
    steps: str | Iterable[Step | Iterable[Step]] = "fineweb",
    *,
    out: str | os.PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    on: Any = None,
    workers: int | None = None,
    on_error: str = "raise",
    **reading: Any,
) -> PreparedDataset:
    """Prepare text for training, and return what is kept.

    In a notebook the result shows its funnel: what each step kept, and why it removed the rest. `result.ledger` has
    everything that was removed, `result.signals` what was measured, and `result.at({rule: threshold})` tells what
    other thresholds would keep. Whatever was prepared before in the same way is found again.

    Args:
        text: A data set, a file, a folder of them, or anything else that `nbllm.data.load` takes.
        steps: Steps, or the name of a set of quality rules ("gopher", "c4", "fineweb", "refinedweb", see
            `nbllm.data.quality`); near-duplicates are then removed, toxic words counted, and personal data is replaced.
        out: The folder to write, as `Pipeline.run` describes it; in the cache if not given.
        tokenizer: Counts the tokens of the funnel; without one they are estimated.
        on: A `distributed.Client` that does the work.
        workers: How many threads.
        on_error: "raise" stops at what cannot be read, "skip" leaves it out and warns.
        **reading: `column`, `sample_by`, `encoding`, `split` and `subset` of `nbllm.data.load`.

    Raises:
        DataError: The text cannot be read, or the disk is full.
        UserError: There are no such rules, or a setting is wrong.
    """
    pipeline = Pipeline(recipe(steps) if isinstance(steps, str) else steps, tokenizer=tokenizer)
    paths = paths_of_list(text) if isinstance(text, list | tuple) else paths_of(text)
    if not paths:
        text, reading = as_dataset(text) if not reading else _loaded(text, reading), {}
    if out is None:
        out = _own_folder(text, paths, pipeline, reading)
    return pipeline.run(text, out, on=on, workers=workers, on_error=on_error, **reading).dataset()


def recipe(name: str) -> list[Step]:
    """Return the steps that a name stands for: its rules of quality, then deduplication, tags of toxicity and privacy.

    Raises:
        UserError: There are no rules of that name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preparation named {name!r}.", hint=nearest(name, PRESETS))
    return [*quality(name), dedup(), toxicity(), privacy()]


def _loaded(text: Any, reading: dict[str, Any]) -> Any:
    from nbllm.data.sources.loading import load

    return load(text, **reading)


def _own_folder(
    text: Any, paths: list[tuple[Path, str]], pipeline: Pipeline, reading: dict[str, Any]
) -> Path:
    """Return the folder in the cache for this text and these steps."""
    source = [str(path.absolute()) for path, _ in paths] if paths else dataset_digest(text)
    said = json.dumps(
        [source, pipeline.describe(), pipeline.counter.how, reading], sort_keys=True, default=repr
    )
    name = hashlib.sha256(said.encode()).hexdigest()[:32]
    return make_folder(cache_folder() / "prepared") / name
