"""NF4: numbers in 4 bits, at the quantiles of a normal distribution, in blocks that are scaled each by its largest.

The scales of the blocks can be quantized themselves ("double quantization"): less their mean, to 8 bits, in groups. A
weight of 64 to a block then takes 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits instead of 4.5.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

# The values of the 16 codes, as the paper's appendix has them.
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
GROUP = 256  # scales that are quantized together
_LEVELS = 127


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A tensor in NF4. Floating-point numbers are kept as the integers of the same bits, so that no `.to` rounds them.

    Attributes:
        codes: Two of them in a byte, the first in the upper half.
        scales: Of each block: float32, or with double quantization 8 bits.
        group_scales: With double quantization, of each group of scales, and after them their mean; else empty.
    """

    codes: UInt8[Tensor, " byte"]
    scales: Int32[Tensor, " block"] | Int8[Tensor, " block"]
    group_scales: Int32[Tensor, " _"]


@torch.no_grad()
def quantize(weight: Float[Tensor, ...], *, block_size: int, double: bool) -> Quantized:
    """Return a tensor in NF4.

    Args:
        weight: The tensor; its elements are taken in order, the last block being filled up with zeros.
        block_size: Elements of a block, an even number.
        double: Whether the scales are quantized.
    """
    flat = weight.detach().float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(1)
    values = _values(flat.device)
    middles = (values[1:] + values[:-1]) / 2  # nearer to the value above
    codes = torch.bucketize(blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None], middles)
    pairs = codes.to(torch.uint8).view(-1, 2)
    packed = pairs[:, 0] << 4 | pairs[:, 1]
    if not double:
        return Quantized(
            packed, absmax.view(torch.int32), torch.empty(0, dtype=torch.int32, device=flat.device)
        )
    mean = absmax.mean()
    groups = torch.nn.functional.pad(absmax - mean, (0, -len(absmax) % GROUP)).view(-1, GROUP)
    largest = groups.abs().amax(1)
    levels = (groups / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None] * _LEVELS).round()
    scales = levels.to(torch.int8).flatten()[: len(absmax)]
    return Quantized(packed, scales, torch.cat((largest, mean[None])).view(torch.int32))


@torch.no_grad()
def dequantize(
    held: Quantized, shape: tuple[int, ...], *, block_size: int, dtype: torch.dtype
) -> Float[Tensor, ...]:
    """Return the tensor of a shape that is held in NF4."""
    absmax = _absmax(held)
    pairs = _pairs(held.codes.device).index_select(0, held.codes.int())
    blocks = pairs.view(-1, block_size).mul_(absmax[:, None])
    count = 1
    for each in shape:
        count *= each
    return blocks.flatten()[:count].view(shape).to(dtype)


def _absmax(held: Quantized) -> Float[Tensor, " block"]:
    if held.scales.dtype == torch.int32:
        return held.scales.view(torch.float32)
    groups = held.group_scales.view(torch.float32)
    largest = groups[:-1].repeat_interleave(GROUP)[: len(held.scales)]
    return held.scales.float() / _LEVELS * largest + groups[-1]


@functools.lru_cache(maxsize=8)
def _values(device: torch.device) -> Float[Tensor, 16]:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Float[Tensor, "256 2"]:
    """Return the two values of each byte."""
    values = _values(device)
    return torch.cartesian_prod(values, values)
