"""Checkpoints of Megatron-LM (Megatron core's format torch_dist): a GPT's weights and, from its arguments, its shape.

Source: Shoeybi et al. 2019, arXiv:1909.08053; names and layouts as in github.com/NVIDIA/Megatron-LM, megatron/core.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nbllm.core.errors import WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family, WeightRule
from nbllm.models.foreign.archive import read_archive
from nbllm.models.foreign.dcp import METADATA, DcpTensors
from nbllm.models.foreign.inert import Inert
from nbllm.models.foreign.sources import Source

_LATEST = "latest_checkpointed_iteration.txt"
_COMMON = "common.pt"
_LAYERS = "decoder.layers"
_OF_LAYERS = re.compile(r"decoder\.layers\.(\d{1,6}(?=\.))?")
_PREFIX = re.compile(r"^(module|model)\.")
_NOT_OF_MODEL = re.compile(
    r"(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state|chained_\d+)\b.*"
)

# By the end of our parameters' names what a layer of Megatron's calls them; the first that is there is meant.
_IN_LAYER = {
    "attention_norm": ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    "feed_forward_norm": ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
    "attention.query": ("self_attention.linear_qkv.",),
    "attention.key": ("self_attention.linear_qkv.",),
    "attention.value": ("self_attention.linear_qkv.",),
    "attention.query_norm": ("self_attention.q_layernorm.",),
    "attention.key_norm": ("self_attention.k_layernorm.",),
    "attention.output": ("self_attention.linear_proj.",),
    "feed_forward.gate": ("mlp.linear_fc1.",),
    "feed_forward.up": ("mlp.linear_fc1.",),
    "feed_forward.down": ("mlp.linear_fc2.",),
}
_OUTSIDE = {
    "embedding": "embedding.word_embeddings.",
    "positions": "embedding.position_embeddings.",
    "norm": "decoder.final_layernorm.",
    "head": "output_layer.",
}


def folder_of(directory: Path) -> Path | None:
    """Return the folder of a directory's newest Megatron checkpoint, or itself; None where it has none."""
    if (directory / METADATA).is_file():
        return directory
    try:
        said = (directory / _LATEST).read_bytes()[:100].decode().strip()
    except (OSError, ValueError):
        return None
    folder = directory / (f"iter_{int(said):07d}" if said.isascii() and said.isdigit() else "release")
    if not (folder / METADATA).is_file():
        raise WeightsError(
            f"The checkpoint {folder.name}, which {_LATEST} names, is not there or not of the format torch_dist.",
            where=directory,
            hint="Save it with --ckpt-format torch_dist, or copy it too.",
        )
    return folder


def arguments_of(folder: Path) -> dict[str, Any]:
    """Return the arguments that a checkpoint was trained with; none where it holds none.

    Raises:
        WeightsError: `common.pt` is damaged or hostile.
    """
    path = folder / _COMMON
    common = read_archive(path) if path.is_file() else {}
    arguments = common.get("args") if isinstance(common, dict) else None
    return dict(arguments.state) if isinstance(arguments, Inert) and isinstance(arguments.state, dict) else {}


def read_megatron(folder: Path, family: Family, config: ModelConfig) -> dict[str, Source]:
    """Return a checkpoint's weights under a family's names.

    Args:
        folder: Of one step: "iter_0005000".
        family: The family.
        config: The model's configuration. Rows of the vocabulary beyond its size are Megatron's padding, left out.

    Raises:
        WeightsError: A weight is missing, surplus or of another shape than the configuration has.
    """
    parameters = _Parameters(DcpTensors(folder), config, arguments_of(folder))
    sources = {}
    for rule in family.rules(config):
        parts = [parameters.find(name) for name in rule.targets]
        rows = sum(part.shape[0] for part in parts)
        sources[rule.source] = Source(
            parts[0].dtype, rule.shape(rows, parts[0].shape[1:]), functools.partial(_join, rule, parts)
        )
    parameters.check_all_read()
    return sources


def _join(rule: WeightRule, parts: Iterable[Source]) -> Tensor:
    return rule.join([part.read() for part in parts])


class _Stored(NamedTuple):
    """A tensor of Megatron's: of all layers in one, or of a single one."""

    name: str
    layer: int | None
    shape: tuple[int, ...]


class _Parameters:
    """Finds our parameters in a checkpoint's tensors."""

    def __init__(self, files: DcpTensors, config: ModelConfig, arguments: Mapping[str, Any]) -> None:
        self._files, self._config = files, config
        self._centred = bool(arguments.get("apply_layernorm_1p"))  # gains are stored minus 1
        self._by_name = {
            _PREFIX.sub("", name): name
            for name in files.shapes
            if not _NOT_OF_MODEL.fullmatch(name) and "_extra_state" not in name
        }
        self._read: set[str] = set()
        self._check_layers()

    def find(self, ours: str) -> Source:
        """Return one of our parameters."""
        module, _, kind = ours.rpartition(".")
        layer, names = self._candidates(module, kind)
        if not names:
            raise WeightsError(
                f"Models with the parameter {ours} cannot be read from Megatron's checkpoints.",
                where=self._files.folder,
                hint="Readable: decoders of one norm before attention and before a dense feed-forward network.",
            )
        whole = next((found for name in names if (found := self._stored(name, layer))), None)
        if whole is None:
            return self._half(ours, module, layer, names[0])
        return self._part(module, kind, whole)

    def _check_layers(self) -> None:
        """Refuse a configuration of another number of layers, before anything is made for each of them."""
        counts = {0}
        for short, name in self._by_name.items():
            if match := _OF_LAYERS.match(short):
                counts.add(int(match[1]) + 1 if match[1] else self._files.shapes[name][0])
        if max(counts) != self._config.num_layers:
            raise WeightsError(
                f"The checkpoint has {max(counts)} layers; the configuration has {self._config.num_layers:,}.",
                where=self._files.folder,
                hint="config.json belongs to another model, or the checkpoint is not one of a GPT.",
            )

    def check_all_read(self) -> None:
        """Refuse tensors that the configuration has no place for."""
        surplus = sorted(self._by_name.keys() - self._read)
        if surplus:
            shown = ", ".join(surplus[:5]) + (f" and {len(surplus) - 5} more" if len(surplus) > 5 else "")
            raise WeightsError(
                f"{len(surplus)} of the checkpoint's tensors are surplus: {shown}.",
                where=self._files.folder,
                hint="config.json belongs to another model, or the model has parts that nbllm lacks (experts, other "
                "modalities).",
            )

    def _candidates(self, module: str, kind: str) -> tuple[int | None, list[str]]:
        parts = module.split(".", 2)
        if parts[0] != "blocks":
            return None, [f"{_OUTSIDE[module]}{kind}"] if module in _OUTSIDE else []
        return int(parts[1]), [f"{name}{kind}" for name in _IN_LAYER.get(parts[2], ())]

    def _stored(self, name: str, layer: int | None) -> _Stored | None:
        """Return a tensor by its name within its layer: layers lie in one tensor where all are alike."""
        single = name if layer is None else f"{_LAYERS}.{layer}.{name}"
        if single in self._by_name:
            self._read.add(single)
            return _Stored(self._by_name[single], None, self._files.shapes[self._by_name[single]])
        together = f"{_LAYERS}.{name}"
        if layer is None or together not in self._by_name:
            return None
        self._read.add(together)
        return _Stored(self._by_name[together], layer, self._files.shapes[self._by_name[together]][1:])

    def _half(self, ours: str, module: str, layer: int | None, name: str) -> Source:
        """Return a half of a gated projection that is stored as two tensors, or say that it is missing."""
        half = {"gate": "_w", "up": "_v"}.get(module.rpartition(".")[2], "")
        stored = self._stored(name + half, layer) if half and self._config.gated else None
        if stored is None:
            raise WeightsError(
                f"{name} is missing; it holds {ours}.",
                where=self._files.folder,
                hint="config.json belongs to another model, or the checkpoint is not one of a GPT.",
            )
        return self._source(stored, stored.shape, lambda tensor: tensor)

    def _part(self, module: str, kind: str, stored: _Stored) -> Source:
        """Return the part of a tensor that one of our parameters is."""
        config, last = self._config, module.rpartition(".")[2]
        rows = stored.shape[0]
        if last in ("query", "key", "value"):
            pick = {"query": slice(0, -2), "key": slice(-2, -1), "value": slice(-1, None)}[last]
            groups, width = config.num_kv_heads, config.head_dim
            each = config.num_heads // groups + 2
            self._check(stored, groups * each * width, "heads")
            count = groups * (each - 2 if last == "query" else 1) * width
            return self._source(
                stored,
                (count, *stored.shape[1:]),
                lambda tensor: tensor.unflatten(0, (groups, each, width))[:, pick].flatten(0, 2),
            )
        if last in ("gate", "up") and config.gated:
            self._check(stored, 2 * config.intermediate_size, "intermediate_size")
            begin = 0 if last == "gate" else rows // 2
            return self._source(
                stored, (rows // 2, *stored.shape[1:]), lambda tensor: tensor[begin : begin + rows // 2]
            )
        if module in ("embedding", "head"):
            count = min(rows, config.vocab_size)
            return self._source(stored, (count, *stored.shape[1:]), lambda tensor: tensor[:count])
        if kind == "weight" and last.endswith("norm") and self._centred:
            return self._source(stored, stored.shape, lambda tensor: tensor + 1)
        return self._source(stored, stored.shape, lambda tensor: tensor)

    def _check(self, stored: _Stored, rows: int, what: str) -> None:
        if stored.shape[0] != rows:
            raise WeightsError(
                f"{stored.name} has {stored.shape[0]} rows; by the configuration's {what} it should have {rows}.",
                where=self._files.folder,
                hint="config.json belongs to another model.",
            )

    def _source(self, stored: _Stored, shape: tuple[int, ...], pick: Callable[[Tensor], Tensor]) -> Source:
        return Source(
            self._files.dtypes[stored.name],
            shape,
            lambda: pick(self._files.read(stored.name, stored.layer)).contiguous(),
        )
