"""`nb.finetune`: a run that trains a model, or an adapter on it, on examples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.finetuning.preparing import prepare
from nbllm.lm import LM
from nbllm.models.peft.lora import LoRA
from nbllm.runs.locating import FOLDER
from nbllm.runs.run import Run
from nbllm.training.arguments import our_names
from nbllm.training.start import train

METHODS = ("sft",)
LEARNING_RATES = {"adapter": 2e-4, "all": 2e-5}
LONGEST = 1024  # tokens in a row, unless another length is asked for
BATCH_TOKENS = 2048


def finetune(
    lm: LM,
    data: Any,
    *,
    method: str = "sft",
    adapter: LoRA | None = None,
    validation: Any = None,
    train_on: str = "assistant",
    name: str | None = None,
    folder: str | Path = FOLDER,
    **config: Any,
) -> Run:
    """Start training a model on examples, and return a handle on the run at once.

    Args:
        lm: The model; with an adapter that is on, that alone is trained.
        data: Examples: conversations in OpenAI's or ShareGPT's layout, instruction/input/output, prompt/completion or
            text; a list, a data set, a JSON or JSON Lines file, or what `nb.data.load` takes by name.
        method: "sft", supervised fine-tuning.
        adapter: An adapter to attach and train, such as nb.LoRA(rank=8); None: that of the model, or all parameters.
        validation: Held-out examples, measured at intervals.
        train_on: "assistant": what the assistant says in all turns; "answer": in the last; "everything".
        name: The run's name.
        folder: Where runs are kept.
        **config: As for `nb.train`: steps, lr (2e-4 with an adapter, else 2e-5), batch_size, sequence_length, ...

    Raises:
        UserError: A setting is unknown or out of range, or the model cannot learn so.
        DataError: Nothing is left to train on.
        RunError: A run is training the model, or the folder cannot be written.
    """
    if method not in METHODS:
        raise UserError(f"method is {method!r}; known: {', '.join(METHODS)}.")
    if not isinstance(lm, LM):
        raise UserError(f"The first argument must be a model, not {type(lm).__name__}.")
    config = our_names(config)
    for taken in ("objective", "packing"):
        if taken in config:
            raise UserError(f"{taken} is settled by the method.", hint="nb.train takes it.")
    network = lm.causal_network_for("score")
    length = config.setdefault("sequence_length", min(LONGEST, lm.config.max_positions))
    if type(length) is not int or not 1 <= length <= lm.config.max_positions:
        raise UserError(
            f"sequence_length must be from 1 to {lm.config.max_positions}, the model's positions; not {length!r}."
        )
    stores = []
    for what, examples in (("training", data), ("validation", validation)):
        if examples is not None:
            prepared = prepare(
                examples, lm.tokenizer, length=length, train_on=train_on, pack=network.takes_mask
            )
            sys.stdout.write(f"{what}: {prepared}\n")
            stores.append(prepared.store)
    attached = None if adapter is None else lm.attach(adapter, seed=int(config.get("seed", 0)))
    is_adapted = any(each.state == "on" for each in lm.adapters)
    config.setdefault("lr", LEARNING_RATES["adapter" if is_adapted else "all"])
    config.setdefault("batch_size", max(1, min(8, BATCH_TOKENS // length)))
    try:
        return train(lm, tuple(stores), name=name, folder=folder, objective="sft", **config)
    except BaseException:
        if attached is not None and attached.state == "on":
            attached.detach()
        raise
