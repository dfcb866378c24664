"""GGUF's tensor types: plain ones, and blocks that share a scale. The arithmetic is the gguf package's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class BlockType(NamedTuple):
    """How a type packs a tensor's elements.

    Attributes:
        name: Its name in llama.cpp.
        elements: Elements of a block.
        nbytes: Bytes of a block.
        expand: Turns blocks, (block, nbytes), into values, (block, elements).
    """

    name: str
    elements: int
    nbytes: int
    expand: Callable[[Bytes], Floats]


def type_name(kind: int) -> str:
    """Return the name of a type's number in `enum ggml_type`, or say that it has none."""
    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"{kind} (unknown)"


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


_EXPAND: dict[GGMLQuantizationType, Callable[[Bytes], Floats]] = {
    GGMLQuantizationType.F32: _f32,
    GGMLQuantizationType.F16: _f16,
    GGMLQuantizationType.BF16: quants.BF16.dequantize_blocks,
    GGMLQuantizationType.Q8_0: quants.Q8_0.dequantize_blocks,
    GGMLQuantizationType.Q4_0: quants.Q4_0.dequantize_blocks,
    GGMLQuantizationType.Q4_1: quants.Q4_1.dequantize_blocks,
    GGMLQuantizationType.Q5_0: quants.Q5_0.dequantize_blocks,
    GGMLQuantizationType.Q5_1: quants.Q5_1.dequantize_blocks,
    GGMLQuantizationType.Q4_K: quants.Q4_K.dequantize_blocks,
    GGMLQuantizationType.Q5_K: quants.Q5_K.dequantize_blocks,
    GGMLQuantizationType.Q6_K: quants.Q6_K.dequantize_blocks,
}

# Every type that is read, by its number in `enum ggml_type`.
BLOCKS = {
    int(kind): BlockType(kind.name, *GGML_QUANT_SIZES[kind], expand) for kind, expand in _EXPAND.items()
}
