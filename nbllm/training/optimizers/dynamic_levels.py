"""Eight bits that hold seven orders of magnitude: the dynamic data type of 8-bit optimizers."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_DECADES = 7


class DynamicLevels:
    """The 256 values between -1 (or 0) and 1 that a code can stand for, dense near zero.

    The leading zeros of a code give a power of ten, the bits that remain a fraction of it; a bit is the sign, or one
    more for the fraction.

    Args:
        signed: Whether there are negative values. Without a sign, no value above zero is rounded to zero: as a second
            moment it would make the next update far too large.
        device: Where tensors are encoded.

    Attributes:
        values: (256,), ascending, float32.

    Source: Dettmers et al. 2021, arXiv:2110.02861, section 1.3 and appendix F.
    """

    def __init__(self, signed: bool, device: torch.device) -> None:
        values = [0.0, 1.0]
        for decade in range(_DECADES):
            edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
            magnitudes = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - _DECADES + 1)
            values += magnitudes.tolist() + ((-magnitudes).tolist() if signed else [])
        exact = torch.tensor(sorted(values), dtype=torch.float64)
        middles = (exact[1:] + exact[:-1]) / 2
        if not signed:
            middles[0] = 0.0
        self.values = exact.float().to(device)
        self._middles = torch.cat([middles, middles.new_tensor([torch.inf])]).float().to(device)
        # Of all numbers whose first 16 bits are given, the code of the smallest. There is one middle at most among
        # them, so that one comparison more gives the code: far faster than a search.
        firsts = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).roll(1 << 15) << 16
        smallest = torch.where(firsts < 0, firsts | 0xFFFF, firsts).view(torch.float32).nan_to_num()
        self._codes = torch.bucketize(smallest, middles.float(), out_int32=True).to(device)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (blocks, elements) in uint8, and the scale of each block (blocks, 1), its largest magnitude."""
        scales = x.abs().amax(-1, keepdim=True)
        x = x / scales.where(scales > 0, 1.0)
        first_bits = (x.view(torch.int32) >> 16) & 0xFFFF
        codes = torch.index_select(self._codes, 0, first_bits.view(-1))
        codes += x.view(-1) > torch.index_select(self._middles, 0, codes)
        return codes.to(torch.uint8).view(x.shape), scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the values (blocks, elements) that codes and scales stand for, in float32."""
        return torch.index_select(self.values, 0, codes.reshape(-1).int()).view(codes.shape).mul_(scales)


@functools.cache
def dynamic_levels(signed: bool, device: torch.device) -> DynamicLevels:
    """Return them, made once for each device."""
    return DynamicLevels(signed, device)
