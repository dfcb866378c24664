"""The documents to measure, in any of the forms in which they can be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError
from nbllm.evaluation.examples import Source
from nbllm.evaluation.remote import Remote

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.run import Run

HELD_OUT = ("validation", "test")  # splits of a dictionary of data sets, the first that is there


def documents(source: Source) -> tuple[list[str], str]:
    """Return the documents that are not empty, and a description of where they come from.

    Args:
        source: Its data are a data set with a `text` column, a `DatasetDict` (its held-out split), a token store, or
            texts. `None`: what the run held out; without a run, or where it held nothing out, the held-out tenth of
            pydocs.

    Raises:
        DataError: The data are none of these, or have no held-out split.
    """
    from nbllm.data.provenance import source_of
    from nbllm.data.texts import iterate_texts
    from nbllm.data.token_store import TokenStore

    data, words = source.data, source_of(source.data) or "given as data"
    if data is None:
        data, words = _default(source.run)
    if isinstance(data, TokenStore):
        found = _decode(source.lm, data)
    else:
        columns = getattr(data, "column_names", None)
        if isinstance(columns, dict):
            split = _held_out(columns)
            data, words = data[split], f"the split {split!r} of what was given as data"
        found = list(iterate_texts(data))
    return [text for text in found if text], words


def _held_out(columns: dict[str, Any]) -> str:
    split = next((name for name in HELD_OUT if name in columns), None)
    if split is None:
        raise DataError(
            f"Of the splits {', '.join(columns)} none is held out.",
            hint="Give one: evaluate(..., data=dataset['test']).",
        )
    return split


def _default(run: Run | None) -> tuple[Any, str]:
    from nbllm.data import load, split
    from nbllm.training.validation import open_store

    record = run.record.get("data") if run is not None else None
    kept = record.get("validation") if isinstance(record, dict) else None
    if isinstance(kept, dict):
        return open_store(kept), "what the run held out"
    return split(load("pydocs"), 0.1, seed=0)[1], "pydocs, its held-out tenth (split by document, seed 0)"


def _decode(lm: LM | Remote, store: Any) -> list[str]:
    if isinstance(lm, Remote):
        raise DataError(
            "A token store has no texts, and a remote model no tokenizer here to make them.",
            where=store.path,
            hint="Give the text itself.",
        )
    if store.vocab_size > len(lm.tokenizer):
        raise DataError(
            f"The tokens come from a vocabulary of {store.vocab_size}, the model's has {len(lm.tokenizer)}.",
            where=store.path,
            hint="Give the text itself: data=...",
        )
    if store.record.num_conversations:
        raise DataError(
            f"{store.record.num_conversations:,} documents are conversations that a chat template rendered; "
            "decoded, its control tokens would be measured as plain text.",
            where=store.path,
            hint="Give the held-out conversations themselves: data=...; their plain rendering is measured.",
        )
    return [str(lm.tokenizer.decode(store.document(i).tolist())) for i in range(len(store))]
