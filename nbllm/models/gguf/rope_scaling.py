"""Scalings of rotary frequencies in GGUF: "linear" by metadata, LLaMA 3's by a tensor of divisors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.gguf.blocks import BLOCKS
from nbllm.models.gguf.header import Header
from nbllm.nn.positions import RopeScaling
from nbllm.nn.positions.scaling import frequencies

FREQUENCIES = "rope_freqs.weight"
_WITH_TENSOR = ("llama",)  # the architectures in which llama.cpp reads it
_CONTEXTS = [1 << power for power in range(4, 21)]  # tokens: where LLaMA 3's scaling is looked for


def read_scaling(
    settings: ConfigReader, header: Header, *, theta: float, head_dim: int
) -> RopeScaling | None:
    """Return the scaling that metadata and tensors state; None: there is none.

    Raises:
        WeightsError: It is one that nbllm does not read: YaRN, LongRoPE, or divisors that are not LLaMA 3's.
    """
    kind = settings.choice("rope.scaling.type", "linear", {"none": "none", "linear": "linear"})
    factor = settings.number("rope.scaling.factor", 1.0)
    linear = factor if kind == "linear" else 1.0
    if FREQUENCIES not in header.tensors:
        return None if linear == 1 else RopeScaling(kind="linear", factor=linear)
    divisors = _read_divisors(header, head_dim // 2)
    if bool((divisors == 1).all()):
        return None if linear == 1 else RopeScaling(kind="linear", factor=linear)
    if linear == 1 and header.metadata["general.architecture"] in _WITH_TENSOR:
        factor = float(divisors.max())
        for original in _CONTEXTS if 1 < factor <= 1e6 else ():
            scaling = RopeScaling(kind="llama3", factor=factor, original_max_positions=original)
            if torch.allclose(_divisors(scaling, theta, head_dim), divisors, rtol=1e-4):
                return scaling
    raise WeightsError(
        f"The rotary frequencies in {FREQUENCIES} are scaled in a way that is not implemented.",
        where=header.path,
        hint="Known: that of LLaMA 3.",
    )


def scaling_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return the metadata that state a model's scaling, without the architecture's prefix.

    Raises:
        UserError: GGUF has no way to state it that nbllm knows.
    """
    scaling = config.rope_scaling
    if scaling is None or (scaling.kind == "llama3" and config.family in _WITH_TENSOR):
        return {}
    if scaling.kind != "linear":
        raise UserError(
            f"A GGUF of {config.family} is not written with rotary positions {scaling.label}.",
            hint="Save it as a directory.",
        )
    return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}


def scaling_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors that state a model's scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return {}
    return {FREQUENCIES: _divisors(scaling, config.rope_theta, config.head_dim)}


def _divisors(scaling: RopeScaling, theta: float, head_dim: int) -> Float[Tensor, " half"]:
    return frequencies(theta, head_dim) / scaling.frequencies(theta, head_dim)


def _read_divisors(header: Header, count: int) -> Float[Tensor, " half"]:
    info = header.tensors[FREQUENCIES]
    if BLOCKS[info.type].name != "F32" or info.shape != (count,):
        raise WeightsError(
            f"{FREQUENCIES} is {BLOCKS[info.type].name} of the shape {list(info.shape)}; it must be F32 of {[count]}.",
            where=header.path,
        )
    with open(header.path, "rb") as file:
        file.seek(info.offset)
        found = np.fromfile(file, "<f4", count)
    if len(found) < count or not bool((np.isfinite(found) & (found > 0)).all()):
        raise WeightsError(f"{FREQUENCIES} must hold {count} positive numbers.", where=header.path)
    return torch.from_numpy(found)
