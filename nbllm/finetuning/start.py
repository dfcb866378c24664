"""`nb.finetune`: a run that trains a model, or an adapter on it, on examples."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.finetuning.method import METHODS, Method
from nbllm.lm import LM
from nbllm.models.peft.method import AdapterConfig
from nbllm.runs.locating import FOLDER
from nbllm.runs.run import Run
from nbllm.training.arguments import our_names
from nbllm.training.config import TrainConfig
from nbllm.training.start import train

LONGEST = 1024  # tokens in a row, unless another length is asked for
_OF_TRAIN = ("where", "replace", "epochs")  # what `nb.train` takes beside settings
_SETTLED = ("objective", "packing")  # by the method


def finetune(
    lm: LM,
    data: Any,
    *,
    method: str = "sft",
    adapter: AdapterConfig | None = None,
    validation: Any = None,
    name: str | None = None,
    folder: str | Path = FOLDER,
    **config: Any,
) -> Run:
    """Start training a model on examples, and return a handle on the run at once.

    Args:
        lm: The model; with an adapter that is on, that alone is trained.
        data: Examples: conversations in OpenAI's or ShareGPT's layout, instruction/input/output, prompt/completion or
            text, or another layout of `nbllm.finetuning.layouts`; a list, a data set, a file, a folder, a name; a
            mapping of names to such, or a `Mixture` with weights, has the loss of each reported.
        method: "sft", supervised fine-tuning; "continued", pre-training that goes on with text of a domain; from pairs
            of answers "dpo", "ipo", "orpo" or "simpo", from answers with labels "kto", and "reward", a reward model
            (`nbllm.finetuning.alignment.preferences` has the layouts); from prompts (`alignment.prompts`) and reward=,
            a function or a reward model, "ppo", "grpo" or "rloo"; or another of `nbllm.finetuning.METHODS`.
        adapter: An adapter to attach and train, such as nb.LoRA(rank=8) or nb.PrefixTuning(); None: that of the
            model, or all parameters.
        validation: Held-out examples, measured at intervals; a mapping of names to data sets has each measured.
        name: The run's name.
        folder: Where runs are kept.
        **config: The method's own arguments, such as train_on of "sft" ("assistant", "answer" or "everything") and beta
            of "dpo"; and as for `nb.train`: steps, lr, batch_size, sequence_length, ...

    Raises:
        UserError: A setting is unknown or out of range, or the model cannot learn so.
        DataError: Nothing is left to train on.
        RunError: A run is training the model, or the folder cannot be written.
    """
    if not isinstance(lm, LM):
        raise UserError(f"The first argument must be a model, not {type(lm).__name__}.")
    if adapter is not None and not isinstance(adapter, AdapterConfig):
        raise UserError(f"adapter must be settings such as nb.LoRA(rank=8), not {adapter!r}.")
    kind = METHODS[method]
    config = our_names(config)
    for taken in _SETTLED:
        if taken in config:
            raise UserError(f"{taken} is settled by the method.", hint="nb.train takes it.")
    own = {field.name: config.pop(field.name) for field in dataclasses.fields(kind) if field.name in config}
    chosen = kind.from_dict(own)
    config = {**chosen.options(), **config}
    others = {each: config.pop(each) for each in _OF_TRAIN if each in config}
    trained = chosen.trained(lm)
    settings = _settings(chosen, trained, config, adapter)
    data, validation = _parts(data, validation)
    prepared = [chosen.prepare(data, trained, settings)]
    if validation is not None:
        prepared.append(chosen.prepare_validation(validation, trained, settings))
    for what, each in zip(("training", "validation"), prepared, strict=False):
        sys.stdout.write(f"{what}: {each}\n")
    stores = [each.store for each in prepared]
    config.setdefault("sample_prompts", chosen.sample_prompts(stores[-1], trained))
    attached = None if adapter is None else trained.attach(adapter, seed=settings.seed)
    config |= {name: getattr(settings, name) for name in ("objective", "lr", "batch_size", "sequence_length")}
    try:
        return train(trained, tuple(stores), name=name, folder=folder, **others, **config)
    except BaseException:
        if attached is not None and attached.state == "on":
            attached.detach()
        raise


def _parts(data: Any, validation: Any) -> tuple[Any, Any]:
    """Return training and held-out data; of a `DatasetDict` these are its splits."""
    if isinstance(data, Mapping) and "train" in data and data.keys() <= {"train", "validation", "test"}:
        return data["train"], data.get("validation") if validation is None else validation
    return data, validation


def _settings(method: Method, lm: LM, given: dict[str, Any], adapter: AdapterConfig | None) -> TrainConfig:
    """Return the run's settings, with those that the method chooses where they are not given.

    Raises:
        UserError: One is unknown or out of range.
    """
    positions = lm.model.context_length - (0 if adapter is None else adapter.num_positions)
    length = given.get("sequence_length", min(LONGEST, positions))
    if type(length) is not int or not 1 <= length <= positions:
        raise UserError(
            f"sequence_length must be from 1 to {positions}, the model's positions; not {length!r}."
        )
    of_adapter, of_all = method.learning_rates
    on = [each.config for each in lm.adapters if each.state == "on" and each.trains]
    adapters = on if adapter is None else [adapter]
    chosen = {
        "objective": method.objective_for(lm),
        "sequence_length": length,
        "batch_size": max(1, min(8, method.batch_tokens // length)),
        "lr": of_adapter * max(each.relative_learning_rate for each in adapters) if adapters else of_all,
    }
    return TrainConfig.from_dict({**chosen, **given})
