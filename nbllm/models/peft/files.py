"""Adapters in peft's files: `adapter_config.json` and `adapter_model.safetensors`, both ways.

A family's tensor may hold several layers of ours (GPT-2's c_attn: query, key and value). The update of such a tensor is
read as one update of each layer; written, the updates of its layers become one, whose rank is the sum of theirs.

Source: github.com/huggingface/peft, docs "Checkpoint format".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError, listed
from nbllm.core.io import atomic_directory, atomic_files, read_json, write_json
from nbllm.models.families.base import WeightRule
from nbllm.models.families.known import FAMILIES
from nbllm.models.network import Network
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.lora import LoRA
from nbllm.models.tensor_file import TensorFile
from nbllm.models.tensor_writing import write_tensors
from nbllm.nn.compiled import plain_name

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MAX_JSON = 1 << 22  # bytes
_TASKS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
# Settings that say nothing of what the adapter computes beside its tensors.
_IGNORED = frozenset(
    """
    alpha_pattern auto_mapping base_model_name_or_path ensure_weight_tying eva_config exclude_modules fan_in_fan_out
    inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core
    peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type use_rslora
    """.split()
)
_PLAIN_STARTS = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # that leave the base's weights as they are


def read_peft(model: Network, folder: Path, *, guard: Callable[[], None]) -> Adapter:
    """Attach the adapter in a folder of peft's layout.

    Args:
        model: The network.
        folder: The folder.
        guard: As for `Adapter`.

    Raises:
        WeightsError: There is none, it is damaged, is of another kind, or a tensor of it belongs to no layer.
    """
    config = _read_config(folder)
    with ExitStack() as stack:
        if not (folder / TENSORS).is_file():
            raise WeightsError(f"The folder has no {TENSORS}.", where=folder)
        file = TensorFile(folder / TENSORS, stack)
        tensors = {name: file.read(name, _dtype(entry.dtype, file)) for name, entry in file.entries.items()}
    updates = _read_updates(model, config, tensors, folder / TENSORS)
    first = next(iter(updates.values()))
    rank = _whole(config.get("r", len(first[0])), folder)
    try:
        lora = LoRA(
            rank=rank,
            alpha=float(config.get("lora_alpha", rank)),
            targets=tuple(sorted({name.rpartition(".")[2] for name in updates})),
            rank_stabilized=config.get("use_rslora") is True,
        )
        layers = {name: (len(a), scale) for name, (a, _, scale) in updates.items()}
        adapter = Adapter(model, lora, layers=layers, guard=guard)
    except (UserError, TypeError, ValueError) as error:
        raise WeightsError(f"The adapter cannot be attached: {error}", where=folder) from error
    try:
        pairs = {
            f"{name}.lora_{kind}": each
            for name, (a, b, _) in updates.items()
            for kind, each in (("a", a), ("b", b))
        }
        adapter.load(pairs, folder / TENSORS)
    except WeightsError:
        adapter.detach()
        raise
    return adapter


def write_peft(model: Network, adapter: Adapter, path: Path, *, base: str) -> None:
    """Write an adapter as peft does.

    Args:
        model: The network that it is on.
        adapter: The adapter.
        path: A folder that does not exist, or holds an older adapter.
        base: What the model is called.

    Raises:
        UserError: The folder holds something else, or the family has no tensor for a layer.
        OSError: The disk is full or the path cannot be written.
    """
    updates = _joined(model, adapter)
    path = path.resolve()
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / CONFIG).is_file()):
            raise UserError(
                "There is something else of this name.", where=path, hint="Save under another name."
            )
        target = atomic_files(path, lambda folder: [])
    else:
        target = atomic_directory(path)
    with target as folder:
        write_json(folder / CONFIG, _config(model, adapter, updates, base))
        tensors = {
            f"{_PREFIX}{module}.lora_{kind}.weight": tensor.detach().cpu().contiguous()
            for module, (a, b) in updates.items()
            for kind, tensor in (("A", a), ("B", b))
        }
        write_tensors(tensors, folder / TENSORS, {"format": "pt"})


def _rules(model: Network) -> dict[str, WeightRule]:
    """Return the entries of the weight map for matrices, by the module of transformers that each belongs to."""
    rules = FAMILIES[model.config.family].rules(model.config)
    return {
        rule.source.removesuffix(".weight"): dataclasses.replace(rule, transposed=False)
        for rule in rules
        if all(target.endswith(".weight") for target in rule.targets)
    }


def _joined(model: Network, adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Return both matrices of the update of each of transformers' modules."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    found: set[str] = set()
    for module, rule in _rules(model).items():
        names = [target.removesuffix(".weight") for target in rule.targets]
        present = [name for name in names if name in adapter.layers]
        if not present:
            continue
        found |= set(present)
        parts = [adapter.layers[name] for name in present]
        ranks = [len(part.lora_a) for part in parts]
        rows = []
        for target, name in zip(rule.targets, names, strict=True):
            b = torch.zeros(len(model.get_parameter(target)), sum(ranks), dtype=parts[0].lora_b.dtype)
            if name in present:
                place = present.index(name)
                at = sum(ranks[:place])
                b[:, at : at + ranks[place]] = adapter.layers[name].lora_b.detach().cpu()
            rows.append(b)
        out[module] = torch.cat([part.lora_a.detach().cpu() for part in parts]), rule.join(rows)
    if missing := sorted(adapter.layers.keys() - found):
        raise UserError(f"The family has no layer of its own for {listed(missing)}; peft could not open it.")
    return out


def _config(
    model: Network, adapter: Adapter, updates: Mapping[str, tuple[Tensor, Tensor]], base: str
) -> dict[str, Any]:
    rules = _rules(model)
    ends = {module.rpartition(".")[2] for module in updates}
    by_end = updates.keys() == {module for module in rules if module.rpartition(".")[2] in ends}
    ranks = {module: len(a) for module, (a, _) in updates.items()}
    alphas = {}
    for module, rank in ranks.items():
        name = next(
            t for t in (t.removesuffix(".weight") for t in rules[module].targets) if t in adapter.layers
        )
        scale = adapter.layers[name].scale
        alpha = scale * (math.sqrt(rank) if adapter.config.rank_stabilized else rank)
        alphas[module] = round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
    first = next(iter(ranks))
    alike = len(set(ranks.values())) == 1 and len(set(alphas.values())) == 1
    transposed = any(
        rule.transposed
        for rule in FAMILIES[model.config.family].rules(model.config)
        if rule.source.removesuffix(".weight") in updates
    )
    return {
        "peft_type": "LORA",
        "task_type": _TASKS.get(model.config.network),
        "base_model_name_or_path": base or None,
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "use_rslora": adapter.config.rank_stabilized,
        "target_modules": sorted(ends if by_end else updates),
        "rank_pattern": {} if alike else ranks,
        "alpha_pattern": {} if alike else alphas,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = read_json(path, _MAX_JSON)
    except FileNotFoundError:
        raise WeightsError(f"The folder has no {CONFIG}: it holds no adapter.", where=folder) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{CONFIG} cannot be read: {error}.", where=path) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise WeightsError(f"The adapter is of the kind {kind!r}; only LORA is known.", where=path)
    for name, value in config.items():
        if name == "bias" and value == "none":
            continue
        if name not in _IGNORED and value:
            raise WeightsError(f"The adapter's setting {name} = {value!r} is not implemented.", where=path)
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise WeightsError(
            f"The adapter belongs to weights changed by init_lora_weights={config['init_lora_weights']!r}.",
            where=path,
        )
    return config


def _read_updates(
    model: Network, config: Mapping[str, Any], tensors: dict[str, Tensor], where: Path
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return both matrices and the scale of each layer's update by the layer's name."""
    rules = _rules(model)
    left = {plain_name(name).removeprefix(_PREFIX): name for name in tensors}
    out: dict[str, tuple[Tensor, Tensor, float]] = {}
    for module, rule in rules.items():
        pair = [left.pop(f"{module}.lora_{kind}.weight", None) for kind in "AB"]
        if pair == [None, None]:
            continue
        if pair[0] is None or pair[1] is None:
            raise WeightsError(f"Of {module} one of the two matrices is missing.", where=where)
        a, b = tensors[pair[0]], tensors[pair[1]]
        weights = [model.get_parameter(target) for target in rule.targets]
        rows = [len(weight) for weight in weights]
        rank = len(a)
        if a.shape != (rank, weights[0].shape[-1]) or b.shape != (sum(rows), rank) or rank == 0:
            raise WeightsError(
                f"The update of {module} has the shapes {tuple(a.shape)} and {tuple(b.shape)}, which do not fit.",
                where=where,
            )
        scale = _scale(config, module, rank, where)
        for target, part in zip(rule.targets, rule.split(b, rows), strict=True):
            out[target.removesuffix(".weight")] = (a, part, scale)
    if left or not out:
        names = listed(sorted(left.values())[:4]) if left else "nothing at all"
        raise WeightsError(
            f"The adapter does not belong to this model: it has {names}.",
            where=where,
            hint="Open the model that it was trained on.",
        )
    return out


def _scale(config: Mapping[str, Any], module: str, rank: int, where: Path) -> float:
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    stated = _of_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if stated != rank or isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise WeightsError(
            f"The update of {module} has rank {rank}; {CONFIG} says {stated!r}, and alpha {alpha!r}.",
            where=where,
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _of_pattern(pattern: object, module: str, usual: Any) -> Any:
    """Return what a pattern by module says of one: its keys are names or their ends."""
    if isinstance(pattern, Mapping):
        for key, value in pattern.items():
            end = str(key).lstrip("^").rstrip("$").replace("\\.", ".")
            if module == end or module.endswith(f".{end}"):
                return value
    return usual


def _dtype(name: str, file: TensorFile) -> torch.dtype:
    if name not in _DTYPES:
        raise WeightsError(f"A tensor is of the dtype {name}.", where=file.path)
    return _DTYPES[name]


def _whole(value: Any, folder: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"r must be a whole number above 0, not {value!r}.", where=folder / CONFIG)
    return value
