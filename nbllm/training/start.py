"""`nb.train` and `nb.attach`: a run is a directory; these make one, or open one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, RunError, UserError
from nbllm.data.token_store import TokenStore
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.training.config import TrainConfig
from nbllm.training.launcher import PLACES, Launcher
from nbllm.training.settings import SETTINGS, initial_values

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

    from nbllm.lm import LM


def train(
    lm: LM,
    data: Dataset | DatasetDict | tuple[Dataset, Dataset] | TokenStore,
    *,
    validation: Dataset | TokenStore | None = None,
    name: str | None = None,
    folder: str | Path = "runs",
    where: str = "thread",
    **config: Any,
) -> Run:
    """Start training a model on text, and return a handle on the run at once.

    Args:
        lm: The model. A thread's run gives it the new weights at each checkpoint and at the end; a process's run
            leaves it as it is: `nb.load(run.path)`.
        data: Documents with a `text` column; a pair (training, validation); a `DatasetDict` with `train` and
            perhaps `validation`; or a packed `TokenStore`.
        validation: Held-out documents, measured at intervals.
        name: The run's name; made from the family and the time when not given.
        folder: Where runs are kept.
        where: "thread" (of this kernel) or "process" (which goes on when the kernel ends).
        config: Fields of `TrainConfig`.

    Raises:
        UserError: A setting is unknown or out of range, or the text is too short for one batch.
        RunError: The name is taken or the folder cannot be written.
    """
    settings = TrainConfig.from_dict(config)
    if where not in PLACES:
        raise UserError(f"where is {where!r}; it must be 'thread' or 'process'.")
    _check_fits(lm, settings)
    training, held_out = _stores(lm, data, validation)
    _check_long_enough(training, settings)
    path = create(
        Path(folder),
        name or f"{lm.config.family}-{time.strftime('%m%d-%H%M%S')}",
        _record(lm, settings, training, held_out, where),
    )
    _first_checkpoint(path, lm, settings)
    return Launcher(lm).start(path)


def attach(path: str | Path, *, actor: str = "person") -> Run:
    """Open any run, live or ended, of this kernel or another.

    Args:
        path: The run's directory, or its name in `runs/`.
        actor: Who acts through this handle: "person", "rule:<name>" or "agent:<name>".

    Raises:
        RunError: There is no run.
    """
    place = Path(path)
    if not (place / "run.json").exists() and (Path("runs") / place / "run.json").exists():
        place = Path("runs") / place
    return Run(place, actor=actor, launcher=Launcher())


def _check_fits(lm: LM, settings: TrainConfig) -> None:
    longest = lm.config.max_positions
    if settings.sequence_length > longest:
        raise UserError(
            f"sequence_length is {settings.sequence_length}, but the model has {longest} positions.",
            mend=f"Use sequence_length={longest} or less, or a model with more max_positions.",
        )


def _check_long_enough(store: TokenStore, settings: TrainConfig) -> None:
    if len(store.tokens) <= settings.sequence_length:
        raise DataError(
            f"The text has {len(store.tokens)} tokens, too few for one sequence of {settings.sequence_length}.",
            where=store.path,
            mend="Give more text, or a shorter sequence_length.",
        )


def _stores(lm: LM, data: Any, validation: Any) -> tuple[TokenStore, TokenStore | None]:
    if isinstance(data, tuple):
        data, validation = data
    elif isinstance(data, Mapping):
        validation = data.get("validation") if validation is None else validation
        data = data["train"]
    return _store(lm, data), None if validation is None else _store(lm, validation)


def _store(lm: LM, data: Any) -> TokenStore:
    from nbllm.data.packing import pack

    store = data if isinstance(data, TokenStore) else pack(data, lm.tokenizer)
    if store.vocab_size > lm.config.vocab_size:
        raise DataError(
            f"The tokens come from a vocabulary of {store.vocab_size}, the model has {lm.config.vocab_size}.",
            where=store.path,
            mend="Pack the text with the model's own tokenizer.",
        )
    return store


def _record(
    lm: LM, settings: TrainConfig, training: TokenStore, held_out: TokenStore | None, where: str
) -> dict[str, Any]:
    import torch

    from nbllm.core.device import machine_facts, versions
    from nbllm.training.precision import DTYPES, choose_device, choose_precision

    device = choose_device(settings.device)
    precision, why = choose_precision(settings.precision, device)
    attention = _attention(lm, settings, device, DTYPES[precision])
    return {
        "config": settings.to_dict(),
        "model": lm.config.to_dict(),
        "data": {
            "train": _describe(training),
            "validation": None if held_out is None else _describe(held_out),
        },
        "settings": [setting.to_dict() for setting in SETTINGS],
        "choices": {
            "device": device,
            "precision": precision,
            "precision_because": why,
            "attention": attention,
            "num_threads": settings.num_threads or torch.get_num_threads(),
        },
        "where": where,
        "parent": None,
        "replay": None,
        "machine": machine_facts(),
        "versions": versions(),
    }


def _describe(store: TokenStore) -> dict[str, Any]:
    return {
        "path": str(store.path.resolve()),
        "fingerprint": store.fingerprint,
        "num_documents": len(store),
        "num_tokens": store.num_tokens,
        "num_bytes": store.num_bytes,
    }


def _attention(lm: LM, settings: TrainConfig, device: str, dtype: torch.dtype) -> str:
    """Measure which attention backend trains these shapes fastest."""
    import torch

    from nbllm.nn.attention_backends import choose

    shape = lm.config
    query, key = (
        torch.zeros(
            settings.batch_size, heads, settings.sequence_length, shape.head_dim, dtype=dtype, device=device
        ).requires_grad_()
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    return choose(query, key, causal=True, mask=None)


def _first_checkpoint(path: Path, lm: LM, settings: TrainConfig) -> None:
    from nbllm.training.state import TrainState

    state = TrainState(values=initial_values(settings))
    try:
        checkpoints.save(path, 0, lm.write_files, state.to_dict())
    except OSError as error:
        raise RunError(
            f"The first checkpoint could not be written: {error.strerror or error}.", where=path
        ) from error
