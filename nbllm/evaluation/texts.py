"""The documents that an evaluation measures, and where they are from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError
from nbllm.core.report.figures import Subject
from nbllm.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.run import Run

HELD_OUT = ("validation", "test")  # splits of a dictionary of data sets, the first that is there


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A text to measure.

    Attributes:
        name: "" where it is the only one and was given none.
        documents: Its documents.
        source: Where they are from, in words.
        fingerprint: SHA-256 of the documents, in hexadecimal.
    """

    name: str
    documents: Sequence[str]
    source: str
    fingerprint: str

    def subject(self, task: str, config: EvaluationConfig) -> Subject:
        """Return what a task measures on this text."""
        return Subject(task=task, text=self.name, fingerprint=self.fingerprint, stride=config.stride)


def held_out_texts(lm: LM, data: Any, run: Run | None, config: EvaluationConfig) -> list[HeldOut]:
    """Return the texts to measure.

    Args:
        lm: Whose tokenizer turns a run's token store back into text.
        data: A data set with a `text` column, a `DatasetDict` (its held-out split), a token store, or documents; or a
            dictionary of names and such. `None`: what the run held out; without a run, or where it held nothing
            out, the held-out tenth of pydocs.
        run: The run that made the model.
        config: How many documents of each.

    Raises:
        DataError: There is no text, or a name is none.
    """
    found = []
    for name, value in _named(data):
        documents, source = _documents(lm, value, run)
        documents = documents[: config.max_documents]
        found.append(HeldOut(name, documents, source, fingerprint(documents)))
    return found


def fingerprint(documents: Sequence[str]) -> str:
    """Return a name in hexadecimal for exactly these documents in this order."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _named(data: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, Mapping) or hasattr(data, "column_names"):
        yield "", data
        return
    if not data:
        raise DataError("There is no text to measure.", hint='Name one: data={"held out": dataset}.')
    for name, value in data.items():
        if not isinstance(name, str) or not name.strip() or value is None:
            raise DataError(f"{name!r} names no text.", hint='Name each: data={"held out": dataset}.')
        yield name, value


def _documents(lm: LM, data: Any, run: Run | None) -> tuple[list[str], str]:
    from nbllm.data.texts import iterate_texts
    from nbllm.data.token_store import TokenStore

    source = "given as data"
    if data is None:
        data, source = _default(run)
    if isinstance(data, TokenStore):
        return _decode(lm, data), source
    columns = getattr(data, "column_names", None)
    if isinstance(columns, dict):
        split = next((name for name in HELD_OUT if name in columns), None)
        if split is None:
            raise DataError(
                f"Of the splits {', '.join(columns)} none is held out.",
                hint="Give one: evaluate(..., data=dataset['test']).",
            )
        data, source = data[split], f"the split {split!r} of what was given as data"
    return list(iterate_texts(data)), source


def _default(run: Run | None) -> tuple[Any, str]:
    from nbllm.data import load, split
    from nbllm.data.token_store import TokenStore

    record = run.record.get("data") if run is not None else None
    kept = record.get("validation") if isinstance(record, dict) else None
    if isinstance(kept, dict) and "path" in kept:
        return TokenStore.open(Path(kept["path"])), "what the run held out"
    return split(load("pydocs"), 0.1, seed=0)[1], "pydocs, its held-out tenth (split by document, seed 0)"


def _decode(lm: LM, store: Any) -> list[str]:
    if store.vocab_size > len(lm.tokenizer):
        raise DataError(
            f"The tokens come from a vocabulary of {store.vocab_size}, the model's has {len(lm.tokenizer)}.",
            where=store.path,
            hint="Give the text itself: data=...",
        )
    return [str(lm.tokenizer.decode(store.document(i).tolist())) for i in range(len(store))]
