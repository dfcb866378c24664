"""Models in Hugging Face directories: `config.json` and safetensors, whole or in shards, both ways."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.core.io import check_utf8, expand_user, read_json, write_json
from nbllm.core.progress import progress
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import SCORING, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.known import FAMILIES
from nbllm.models.families.own import OWN
from nbllm.models.foreign.finding import foreign_config
from nbllm.models.network import Network, build_without_weights
from nbllm.models.quantized import weights_by_name, write_quantized
from nbllm.models.tensor_files import TensorFiles
from nbllm.models.tensor_shards import (
    CONFIG as SHARDS_CONFIG,
    FOLDER as SHARDS,
    MODEL,
    TensorShards,
    is_sharded,
)
from nbllm.models.tensor_writing import write_in_files
from nbllm.nn.compiled import parameters_by_name
from nbllm.nn.joined import empty_parameters, side_by_side

CONFIG = "config.json"
EMBEDDING = "embedding.weight"
MAX_SHARD_BYTES = 5_000_000_000
_MAX_JSON = 64 << 20  # bytes


def load_model(directory: Path | str, *, dtype: torch.dtype | None = None) -> Network:
    """Open a model directory: ours or transformers', or one with a checkpoint of DeepSpeed or Megatron-LM.

    Dropout, if the configuration has any, is for training and not applied here. Settings that nbllm does not
    implement are refused by name.

    Args:
        directory: A folder with `config.json` and `model.safetensors`, or shards and their index.
        dtype: What to hold the weights in; None: as stored (the widest, where the file mixes).

    Raises:
        WeightsError: The configuration cannot be used, or a tensor is missing, surplus, misshapen, not
            floating, not finite or damaged; the tensor and the file are named.
    """
    if is_sharded(expand_user(directory)):
        return _load_sharded(expand_user(directory), dtype)
    with _opened(expand_user(directory)) as (files, family, rules, model):
        sizes = {rule.source: files.num_bytes(rule.source) for rule in rules}
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for rule in rules:  # before memory for all of them is allocated
            rows = sum(shapes[name][0] for name in rule.targets)
            files.check_shape(rule.source, rule.shape(rows, shapes[rule.targets[0]][1:]))
        state = empty_parameters(model, dtype=dtype or files.widest_dtype(), device="cpu")
        assert state.keys() == {name for rule in rules for name in rule.targets}  # none stays as it is
        with progress(f"opening {files.main.parent.name}", sum(sizes.values()), "B") as bar:
            for rule in rules:
                _fill(files, rule, [state[name].detach() for name in rule.targets])
                if EMBEDDING in rule.targets and model.config.tie_embeddings and family.head in files:
                    _check_tied(files, state[EMBEDDING], family.head)
                bar.update(sizes[rule.source])
    model.load_state_dict(state, assign=True)
    return model


def read_parameters(
    directory: Path | str, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield a model directory's parameters by our names, one at a time; arguments and errors as `load_model`."""
    if is_sharded(expand_user(directory)):
        shards, model = open_shards(expand_user(directory))
        for full, tensor in shards.read_all(f"{MODEL}{name}" for name, _ in model.named_parameters()):
            yield full.removeprefix(MODEL), torch.nn.Parameter(tensor.to(dtype or tensor.dtype))
        return
    with _opened(expand_user(directory)) as (files, family, rules, model):
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for rule in rules:
            parameters = [
                torch.empty(shapes[name], dtype=dtype or files.widest_dtype()) for name in rule.targets
            ]
            _fill(files, rule, parameters)
            if EMBEDDING in rule.targets and model.config.tie_embeddings and family.head in files:
                _check_tied(files, parameters[rule.targets.index(EMBEDDING)], family.head)
            yield from zip(rule.targets, map(torch.nn.Parameter, parameters), strict=True)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[tuple[TensorFiles, Family, list[WeightRule], Network]]:
    """Yield files, family, weight map and the network without weights, once the files hold what the map names."""
    family, config = read_config(directory)
    with TensorFiles(directory, family, config) as files:
        _check_counts(config, len(files.names), files.main)
        rules = _rules(family, config, files)
        _check_names(files, rules, family, config)
        try:
            model = build_without_weights(config)
        except UserError as error:
            raise WeightsError(error.what, where=directory / CONFIG, hint=error.hint) from None
        yield files, family, rules, model


def _load_sharded(directory: Path, dtype: torch.dtype | None) -> Network:
    """Open a checkpoint whose tensors lie in parts; arguments and errors as `load_model`."""
    shards, model = open_shards(directory)
    state = empty_parameters(model, dtype=dtype or torch.float32, device="cpu")
    tensors = {f"{MODEL}{name}": parameter.detach() for name, parameter in state.items()}
    shards.fill(tensors)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{name} has values that are not finite.", where=shards.folder)
    model.load_state_dict(state, assign=True)
    return model


def open_shards(directory: Path) -> tuple[TensorShards, Network]:
    """Return the tensors of a checkpoint that lie in parts, and its network without weights; errors as `load_model`."""
    shards, (_, config) = TensorShards(directory / SHARDS), read_config(directory)
    _check_counts(config, len(shards.shapes), shards.folder)
    return shards, build_without_weights(config)


def write_sharded_config(config: ModelConfig, directory: Path) -> None:
    """Write a model's configuration where its tensors will lie in parts: all of it, which `config.json` may not hold.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    (directory / SHARDS).mkdir()
    write_json(directory / SHARDS / SHARDS_CONFIG, config.to_dict())


def _check_counts(config: ModelConfig, num_tensors: int, where: Path) -> None:
    """Refuse a configuration with more layers or experts than tensors, before anything is made for each of them."""
    layers = (
        config.num_layer_groups or config.num_layers
    ) + config.num_decoder_layers  # with parameters of their own
    for count, what in ((layers, "layers"), (config.num_experts, "experts")):
        if count > num_tensors:
            raise WeightsError(
                f"{CONFIG} asks for {count:,} {what}; the file holds {num_tensors} tensors.",
                where=where,
                hint=f"{CONFIG} belongs to another model.",
            )


def read_config(directory: Path | str) -> tuple[Family, ModelConfig]:
    """Read a directory's `config.json`; of which optional parts a model consists, its weights say.

    Raises:
        WeightsError: It is absent, no JSON, of an unknown family, or has a setting that is not implemented.
    """
    if is_sharded(expand_user(directory)):
        return _read_sharded_config(expand_user(directory) / SHARDS / SHARDS_CONFIG)
    path = expand_user(directory) / CONFIG
    values = read_config_file(directory)
    if not isinstance(values.get("model_type"), str):
        raise WeightsError(f"{CONFIG} names no model_type.", where=path)
    name = values["model_type"]
    if name not in FAMILIES:
        raise WeightsError(
            f"The model family (model_type) {name!r} is not implemented.",
            where=path,
            hint=f"Known: {', '.join(FAMILIES)}.",
        )
    settings = ConfigReader(values, path)
    try:
        config = FAMILIES[name].read(settings)
        settings.finish()
    except WeightsError:
        raise
    except UserError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from None
    family = FAMILIES[name]
    if family.optional:
        with TensorFiles(expand_user(directory), family, config) as files:
            has: dict[str, Any] = {name: find(config, files) for name, find in family.optional.items()}
        config = dataclasses.replace(config, **has)
    if family.name != OWN and _is_scoring(values):
        config = _with_score_head(family, config, values, path)
    return family, config


def _read_sharded_config(path: Path) -> tuple[Family, ModelConfig]:
    try:
        config = ModelConfig.from_dict(read_json(path, _MAX_JSON))
        return FAMILIES[config.family], config
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"The model's configuration cannot be read: {error}", where=path) from error


def _is_scoring(values: Mapping[str, Any]) -> bool:
    names = values.get("architectures")
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(SCORING) for name in names)


def _with_score_head(
    family: Family, config: ModelConfig, values: Mapping[str, Any], path: Path
) -> ModelConfig:
    """Return the configuration of a model for sequence classification, which must give a single score."""
    labels = values.get("id2label")
    count = (
        len(labels) if isinstance(labels, Mapping) else values.get("num_labels", 2)
    )  # transformers' default
    if not family.scoring or count != 1:
        raise WeightsError(
            f"The model classifies texts into {count} labels; only a single score is implemented, and not for every "
            "family.",
            where=path,
            hint="A reward model has num_labels=1.",
        )
    is_encoder = config.network == "encoder"
    return dataclasses.replace(config, score_head=True, mask_head=False, pooler=is_encoder)


def read_config_file(directory: Path | str) -> dict[str, Any]:
    """Return what a directory's `config.json` holds, unchecked, or says, of a Megatron-LM checkpoint without one.

    Raises:
        WeightsError: It is absent or no JSON object.
    """
    directory = expand_user(directory)
    path = directory / CONFIG
    check_utf8(directory)
    if not directory.is_dir():
        raise WeightsError("There is no such model directory.", where=directory)
    try:
        values = read_json(path, _MAX_JSON)
    except FileNotFoundError:
        if (values := foreign_config(directory)) is not None:
            return values
        raise WeightsError(
            f"The directory has no {CONFIG}.", where=directory, hint="Give the folder that holds it."
        ) from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise WeightsError(f"{CONFIG} is not valid JSON: {error}.", where=path) from None
    except OSError as error:
        raise WeightsError(f"{CONFIG} cannot be read: {error.strerror}.", where=path) from None
    if not isinstance(values, dict):
        raise WeightsError(f"{CONFIG} is no object; it names no model_type.", where=path)
    return values


def save_model(
    model: Network,
    directory: Path | str,
    *,
    token_ids: Mapping[str, int | list[int] | None] | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    weights: bool = True,
) -> None:
    """Write a model's files into a folder, in the layout of its family, readable by transformers.

    The folder is filled as it is; for all or nothing, fill one of `models.replacing.replacing_model`.

    Args:
        model: The model.
        directory: An existing folder.
        token_ids: Values of `bos_token_id`, `eos_token_id`, `pad_token_id` for the configuration; several end tokens
            are a list.
        generation: What `generation_config.json` states besides.
        max_shard_bytes: Weights larger than this are split into files of at most this size.
        weights: Whether the weights are written, and not the configuration alone.

    Raises:
        UserError: The family cannot express this model.
        OSError: The disk is full or the folder cannot be written.
    """
    directory = expand_user(directory)
    family = FAMILIES[model.config.family]
    family.check(model.config)
    dtype = str(model.dtype).removeprefix("torch.")
    ids: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(token_ids or {}),
    }
    values: dict[str, Any] = {
        "architectures": [family.architecture_of(model.config)],
        "model_type": family.name,
        "dtype": dtype,
    }
    if model.config.score_head and family.name != OWN:
        values |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        if ids["pad_token_id"] in _as_list(
            ids["eos_token_id"]
        ):  # transformers looks for the last token that is none
            ids["pad_token_id"] = None
    write_json(directory / CONFIG, {**values, **ids, **family.write(model.config), "use_cache": True})
    if "generate" in model.can:
        stated = {name: value for name, value in ids.items() if value is not None}
        write_json(directory / "generation_config.json", {**stated, **(generation or {})})
    if weights:
        tensors = _family_tensors(model, family)
        sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
        write_in_files(
            sizes, lambda names: {name: tensors[name] for name in names}, directory, max_shard_bytes
        )
        write_quantized(model, directory)


def _as_list(ids: int | list[int] | None) -> list[int | None]:
    return [*ids] if isinstance(ids, list) else [ids]


def _rules(family: Family, config: ModelConfig, files: TensorFiles) -> list[WeightRule]:
    """Return the weight map; of a tied pair the file may hold either."""
    rules = family.rules(config)
    if config.tie_embeddings and family.head in files:
        either = WeightRule(family.head, (EMBEDDING,))
        rules = [
            either if rule.targets == (EMBEDDING,) and rule.source not in files else rule for rule in rules
        ]
    return rules


def _check_names(files: TensorFiles, rules: list[WeightRule], family: Family, config: ModelConfig) -> None:
    """Refuse missing and surplus tensors by name; warn of the heads for other tasks."""
    wanted = {rule.source for rule in rules}
    allowed = wanted | ({family.head} if config.tie_embeddings else set())
    if family.other_heads is not None:
        others = {name for name in files.names if family.other_heads.fullmatch(name)}
        allowed |= others
        if others:
            text = f"Left out, for nbllm has no such head: {', '.join(sorted(others))} in {files.main}"
            warnings.warn(text, stacklevel=5)
    if family.unless_zero in files.names - wanted and files.is_zero(family.unless_zero):
        allowed.add(family.unless_zero)
    missing = sorted(wanted - files.names)
    if missing:
        hint = "The file is incomplete, or config.json belongs to another model."
        if missing == [family.head]:
            hint = "If the head is the embedding, set tie_word_embeddings to true in config.json."
        raise WeightsError(_list("missing", missing), where=files.main, hint=hint)
    surplus = sorted(files.names - allowed)
    if surplus:
        raise WeightsError(
            _list("surplus", surplus),
            where=files.file_of(surplus[0]),
            hint="config.json belongs to another model, or the model has parts that nbllm lacks.",
        )


def _list(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} {kind}: {shown}."


def _fill(files: TensorFiles, rule: WeightRule, parameters: Sequence[Tensor]) -> None:
    """Read one of the family's tensors into the memory of the parameters that it holds."""
    rows = [len(parameter) for parameter in parameters]
    expected = rule.shape(sum(rows), tuple(parameters[0].shape[1:]))
    whole = side_by_side(*parameters) if not rule.transposed and rule.heads == 1 else None
    stored = files.read(rule.source, expected, whole)
    if whole is None or stored.data_ptr() != whole.data_ptr():
        for parameter, part in zip(parameters, rule.split(stored, rows), strict=True):
            parameter.copy_(part)


def _check_tied(files: TensorFiles, embedding: Tensor, name: str) -> None:
    """Refuse a stored head that is not the embedding it is said to be."""
    head = files.read(name, tuple(embedding.shape)).to(embedding.dtype)
    if not torch.equal(head, embedding):
        raise WeightsError(
            f"{name} differs from the embedding, but config.json ties them.",
            where=files.file_of(name),
            hint="Set tie_word_embeddings to false in config.json if the head is a matrix of its own.",
        )


def _family_tensors(model: Network, family: Family) -> dict[str, Tensor]:
    """Return the weights under the family's names and in its shapes."""
    state: dict[str, Tensor] = {name: p.detach() for name, p in parameters_by_name(model).items()}
    state |= weights_by_name(model)
    tensors = {}
    for rule in family.rules(model.config):
        tensors[rule.source] = rule.join([state[name] for name in rule.targets])
    return tensors
