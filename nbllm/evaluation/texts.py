"""The documents that an evaluation measures, and where they are from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.run import Run

HELD_OUT = ("validation", "test")  # splits of a dictionary of data sets, the first that is there


def held_out_texts(lm: LM, data: Any, run: Run | None) -> tuple[list[str], str]:
    """Return the documents to measure and where they are from, in words.

    Args:
        lm: Whose tokenizer turns a run's token store back into text.
        data: A data set with a `text` column, a dictionary of splits, a token store, or documents. `None`:
            what the run held out; without a run, or where it held nothing out, the held-out tenth of pydocs.
        run: The run that made the model.

    Raises:
        DataError: There is no text.
    """
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
                mend="Give one: evaluate(..., data=dataset['test']).",
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
            mend="Give the text itself: data=...",
        )
    return [str(lm.tokenizer.decode(store.document(i).tolist())) for i in range(len(store))]
