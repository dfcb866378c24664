"""GGUF's names for architectures, settings and tensors, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.known import FAMILIES
from nbllm.models.gguf.header import Header, TensorInfo
from nbllm.models.gguf.rope_scaling import read_scaling, scaling_metadata

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of GGUF's architectures, whose name is that of our family.

    Attributes:
        id: Its number in the gguf package.
        eps: The setting of the normalizations' epsilon.
        fixed: Settings of `ModelConfig` that a GGUF of this architecture cannot vary.
        interleaved: Whether the rows of queries and keys are stored pair by pair, as llama.cpp rotates them; ours
            (and transformers') come half by half.
    """

    id: MODEL_ARCH
    eps: str
    fixed: Mapping[str, Any]
    interleaved: bool = False


_ROTARY = {"positions": "rotary", "norm": "rms_norm", "gated": True, "activation": "silu"}

ARCHITECTURES = {
    "gpt2": Architecture(
        MODEL_ARCH.GPT2,
        eps="attention.layer_norm_epsilon",
        fixed={"positions": "learned", "norm": "layer_norm", "activation": "gelu_tanh"},
    ),
    "llama": Architecture(
        MODEL_ARCH.LLAMA, eps="attention.layer_norm_rms_epsilon", fixed=_ROTARY, interleaved=True
    ),
    "qwen2": Architecture(
        MODEL_ARCH.QWEN2,
        eps="attention.layer_norm_rms_epsilon",
        fixed={**_ROTARY, "attention_output_bias": False},
    ),
}
assert all(MODEL_ARCH_NAMES[entry.id] == name for name, entry in ARCHITECTURES.items())


class Source(NamedTuple):
    """A tensor of the file.

    Attributes:
        name: Its name.
        targets: The parameters of ours that it holds; where there are several, its rows are theirs, in order.
        heads: Into how many heads its rows are interleaved; 0: they are in our order.
    """

    name: str
    targets: tuple[str, ...]
    heads: int

    def order(self, rows: int) -> Tensor | None:
        """Return our row of each of the file's rows; None where they are the same."""
        if not self.heads:
            return None
        return torch.arange(rows).view(self.heads, 2, -1).transpose(1, 2).reshape(-1)


def tensor_map(config: ModelConfig) -> list[Source]:
    """Return the tensors of a model's file, and which of our parameters each of them holds."""
    architecture = ARCHITECTURES[config.family]
    names = get_tensor_name_map(architecture.id, config.num_layers)
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if architecture.interleaved else {}
    out = []
    for rule in FAMILIES[config.family].rules(config):
        stem, kind = rule.source.rsplit(".", 1)
        found = names.get_name(stem)
        assert found is not None, rule.source
        out.append(Source(f"{found}.{kind}", rule.targets, heads.get(found.rsplit(".", 1)[-1], 0)))
    return out


# Settings that change nothing with these values, whichever the architecture; with others they are refused.
_NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.output_scale": 1.0,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 0.0,
    "use_parallel_residual": False,
}
# What describes the file or its making. The context that rotary frequencies were scaled from changes nothing where they
# are scaled linearly.
_REMARKS = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")


def read_config(header: Header) -> ModelConfig:
    """Return the model's shape as metadata and tensors state it.

    Raises:
        WeightsError: The architecture is not known, a setting is missing, out of range or not implemented.
    """
    path, name = header.path, header.metadata.get("general.architecture")
    kind = header.metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise WeightsError(f"The file holds no model: its general.type is {kind!r}.", where=path)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise WeightsError(
            f"The architecture is {name!r}.", where=path, hint=f"Known: {', '.join(ARCHITECTURES)}."
        )
    prefix = f"{name}."
    values = {
        key.removeprefix(prefix): _plain(value)
        for key, value in header.metadata.items()
        if key.startswith(prefix)
    }
    settings = ConfigReader(values, f"{path}, {name}.*")
    try:
        for key, value in _NEUTRAL.items():
            settings.only(key, value)
        for key in _REMARKS:
            settings.ignore(key)
        config = _READERS[name](settings, header)
        settings.finish()
    except WeightsError:
        raise
    except UserError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from None
    return config


def write_config(config: ModelConfig) -> dict[str, int | float | str]:
    """Return the metadata that states a model's shape, without the architecture's prefix.

    Raises:
        UserError: GGUF's architecture cannot express this model.
    """
    if config.family not in ARCHITECTURES:
        raise UserError(
            f"GGUF is not written for the family {config.family!r}.",
            hint=f"Known: {', '.join(ARCHITECTURES)}.",
        )
    FAMILIES[config.family].check(config)
    if config.score_head:
        raise UserError("A GGUF has no place for a score head.", hint="Save it as a directory.")
    architecture = ARCHITECTURES[config.family]
    for name, value in architecture.fixed.items():
        if getattr(config, name) != value:
            raise UserError(
                f"A GGUF of {config.family} means {name}={value!r}; this model has {getattr(config, name)!r}.",
                hint="Save it as a directory.",
            )
    values: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        architecture.eps: config.norm_eps,
    }
    if config.positions == "rotary":
        values |= {
            "attention.head_count_kv": config.num_kv_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": config.rope_theta,
            **scaling_metadata(config),
        }
    return values


def _plain(value: Any) -> Any:
    """Return a metadata value as Python's own; a float32 as the shortest number that it rounds."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _common(settings: ConfigReader, header: Header, name: str) -> dict[str, Any]:
    """Return what every architecture states, as settings of `ModelConfig`."""
    architecture = ARCHITECTURES[name]
    for key in ("context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        _require(f"{name}.{key}", header)
    _require(f"{name}.block_count", header)
    _require(f"{name}.{architecture.eps}", header)
    embedding = _tensor(EMBEDDING, header)
    settings.only("vocab_size", embedding.shape[0])
    return {
        "family": name,
        "vocab_size": embedding.shape[0],
        "hidden_size": settings.integer("embedding_length", 0),
        "num_layers": _num_layers(settings, header),
        "num_heads": settings.integer("attention.head_count", 0),
        "intermediate_size": settings.integer("feed_forward_length", 0),
        "max_positions": settings.integer("context_length", 0),
        "norm_eps": settings.number(architecture.eps, 0.0),
        "tie_embeddings": HEAD not in header.tensors,
        **architecture.fixed,
    }


def _num_layers(settings: ConfigReader, header: Header) -> int:
    """Return the number of blocks, which would be costly to believe without counting them."""
    count = settings.integer("block_count", 0)
    held = sum(name.startswith("blk.") and name.endswith(".attn_norm.weight") for name in header.tensors)
    if count != held:
        raise WeightsError(f"block_count is {count}; the file has {held} blocks.", where=header.path)
    return count


def _read_gpt2(settings: ConfigReader, header: Header) -> ModelConfig:
    common = _common(settings, header, "gpt2")
    settings.only("attention.head_count_kv", common["num_heads"])
    settings.only("rope.scaling.type", "none")
    settings.only("rope.scaling.factor", 1.0)
    return ModelConfig(**common)


def _read_rotary(settings: ConfigReader, header: Header) -> dict[str, Any]:
    """Return what the architectures with rotary positions state."""
    common = _common(settings, header, header.metadata["general.architecture"])
    heads, hidden = common["num_heads"], common["hidden_size"]
    head_dim = settings.integer("attention.key_length", max(hidden // heads, 1))
    settings.only("attention.value_length", head_dim)
    settings.only("rope.dimension_count", head_dim)
    theta = settings.number("rope.freq_base", 10000.0)
    return {
        **common,
        "num_kv_heads": settings.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_theta": theta,
        "rope_scaling": read_scaling(settings, header, theta=theta, head_dim=head_dim),
    }


def _read_llama(settings: ConfigReader, header: Header) -> ModelConfig:
    return ModelConfig(
        **_read_rotary(settings, header),
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        feed_forward_bias="blk.0.ffn_up.bias" in header.tensors,
    )


def _read_qwen2(settings: ConfigReader, header: Header) -> ModelConfig:
    return ModelConfig(**_read_rotary(settings, header), attention_bias=True, feed_forward_bias=False)


_READERS: dict[str, Callable[[ConfigReader, Header], ModelConfig]] = {
    "gpt2": _read_gpt2,
    "llama": _read_llama,
    "qwen2": _read_qwen2,
}


def _require(key: str, header: Header) -> None:
    if key not in header.metadata:
        raise WeightsError(f"The metadata lacks {key}.", where=header.path)


def _tensor(name: str, header: Header) -> TensorInfo:
    if name not in header.tensors:
        raise WeightsError(f"The file lacks the tensor {name}.", where=header.path)
    return header.tensors[name]
