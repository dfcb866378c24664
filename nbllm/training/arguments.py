"""The names of training's settings in other libraries: ours that mean the same, or what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nbllm.core.dtypes import dtype_name
from nbllm.core.errors import UserError, closest, listed

SAME = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "max_iters": "steps",
    "num_steps": "steps",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "grad_accum_steps": "accumulation",
    "accumulate_grad_batches": "accumulation",
    "max_seq_length": "sequence_length",
    "max_seq_len": "sequence_length",
    "max_length": "sequence_length",
    "seq_length": "sequence_length",
    "seq_len": "sequence_length",
    "block_size": "sequence_length",
    "context_length": "sequence_length",
    "num_warmup_steps": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "optim": "optimizer",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "wd": "weight_decay",
    "max_grad_norm": "clip",
    "grad_clip": "clip",
    "gradient_clip_val": "clip",
    "dtype": "precision",
    "torch_dtype": "precision",
    "eval_steps": "validation_interval",
    "eval_interval": "validation_interval",
    "save_steps": "checkpoint_interval",
    "save_total_limit": "keep_checkpoints",
    "random_seed": "seed",
}
"""Names in transformers, trl, PyTorch Lightning and nanoGPT, and ours of the same meaning."""

SAME_VALUES = {
    "schedule": {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"},
    "optimizer": {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"},
}
"""By our name of a setting: names of its values in transformers, and ours."""

INSTEAD = {
    "epochs": "nb.train(epochs=...) counts the steps of its text; here give steps.",
    "betas": "Give beta1 and beta2.",
    "min_lr": "Give min_lr_ratio, the share of lr that the schedule ends at.",
    "warmup": "Give warmup_steps.",
    "warmup_ratio": "Give warmup_steps: so many steps.",
    "bf16": 'Give precision="bfloat16".',
    "fp16": 'Give precision="float16"; bfloat16 needs no scaled loss.',
    "no_cuda": 'Give device="cpu".',
    "use_cpu": 'Give device="cpu".',
    "gradient_checkpointing": 'Give plan=nb.Plan(activation_checkpointing="full").',
    "logging_steps": "Leave it out: every step is recorded.",
    "log_interval": "Leave it out: every step is recorded.",
    "report_to": "Leave it out: the run's folder holds everything; nb.attach(run) shows it.",
    "output_dir": "Give folder, where runs are kept, and name, what this one is called.",
    "run_name": "Give name.",
    "train_dataset": "Give the text as the second argument: nb.train(lm, text).",
    "eval_dataset": "Give validation.",
    "per_device_eval_batch_size": "Leave it out, or give validation_tokens: how much text is measured.",
    "eval_iters": "Give validation_tokens: how much text is measured.",
    "eval_strategy": "Give validation_interval: steps between measurements.",
    "save_strategy": "Give checkpoint_interval: steps between checkpoints.",
    "callbacks": "Give rules, as in rules=[nb.rules.nan()]; nb.RunCallback is for transformers' Trainer.",
    "resume_from_checkpoint": "nb.attach(run).resume() goes on; nb.attach(run).fork(name, step=...) branches off.",
}  # fmt: skip
"""Names that have no counterpart of the same meaning, and what to do."""


def our_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under our names; what is not known elsewhere either stays as it is.

    Raises:
        UserError: A setting is given under two names.
    """
    found: dict[str, Any] = {}
    for given, value in values.items():
        name = SAME.get(given, given)
        if name in found:
            both = [other for other in values if SAME.get(other, other) == name]
            raise UserError(f"{name} is given more than once: as {listed(both, quote=False)}.")
        found[name] = dtype_name(value) if name == "precision" else _our_value(name, value)
    return found


def _our_value(name: str, value: Any) -> Any:
    values = SAME_VALUES.get(name, {})
    return values.get(value, value) if isinstance(value, str) else value


def instead_of(name: str, known: Iterable[str]) -> str:
    """Return the hint for a name that is not known: what to write instead.

    Args:
        name: What was given.
        known: Our names.
    """
    if name in INSTEAD:
        return INSTEAD[name]
    known = sorted(known)
    match = closest(name, [*known, *SAME])
    return (
        f"Known: {listed(known, quote=False)}."
        if match is None
        else f"Did you mean {SAME.get(match, match)!r}?"
    )
