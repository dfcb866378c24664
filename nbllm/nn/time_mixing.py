"""The two parts of RWKV's block: time mixing in the place of attention, and channel mixing in that of feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear
from nbllm.nn.recurrent_state import RecurrentState
from nbllm.nn.wkv import LOWEST, empty_state, wkv

Stream = Float[Tensor, "batch position hidden"]
Real = Bool[Tensor, "batch position"]


def shifted(x: Stream, last: Float[Tensor, "batch hidden"] | None) -> Stream:
    """Return at each position what is at the one before; `last` at the first, or zeros where that is None."""
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x)
    return torch.cat((first, x[:, :-1]), dim=1)


@keep_methods
class TimeMixing(nn.Module):
    """Gathers the values of all tokens so far, weighted by keys that decay with the distance, and gates the result.

    Keys, values and receptance are of a mixture of each token with the one before it, in shares that are learned for
    each channel.

    Args:
        hidden_size: Width of the residual stream.
        layer: Which layer of the model this is; the state keeps layers apart by it.

    Attributes:
        decay: (hidden,), the logarithm of w in `nn.wkv.wkv`.
        bonus: (hidden,), u.
        mix_key, mix_value, mix_receptance: (1, 1, hidden), the newest token's share.

    Source: Peng et al. 2023, arXiv:2305.13048, section 3.1 and equation 16 (RWKV-4).
    """

    def __init__(self, hidden_size: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.decay, self.bonus = (nn.Parameter(torch.empty(hidden_size)) for _ in range(2))
        self.mix_key, self.mix_value, self.mix_receptance = (
            nn.Parameter(torch.empty(1, 1, hidden_size)) for _ in range(3)
        )
        self.key, self.value, self.receptance, self.output = (
            Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Stream, state: RecurrentState | None, real: Real | None) -> Stream:
        """Return what is added to the stream; `real` is False at padding, which is not read."""
        last = None if state is None else state.inputs[self.layer, 0]
        if real is not None:
            x = x * real[:, :, None]
        before = shifted(x, last)
        key = self.key(torch.lerp(before, x, self.mix_key)).float()
        value = self.value(torch.lerp(before, x, self.mix_value))
        receptance = self.receptance(torch.lerp(before, x, self.mix_receptance)).sigmoid()
        if real is not None:
            key = key.masked_fill(~real[:, :, None], LOWEST)
        sums = empty_state(len(x), x.shape[2], x.device) if state is None else state.sums[self.layer]
        mean, sums = wkv(self.decay.float().exp(), self.bonus.float(), key, value.float(), sums)
        if state is not None:
            with torch.no_grad():
                state.inputs[self.layer, 0] = x[:, -1]
                state.sums[self.layer] = sums
        out: Tensor = self.output(receptance * mean.to(x.dtype))
        return out


@keep_methods
class ChannelMixing(nn.Module):
    """A gated feed-forward part of a mixture of each token with the one before it; its activation is ReLU squared.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width between the two matrices.
        layer: Which layer of the model this is.

    Attributes:
        mix_key, mix_receptance: (1, 1, hidden), the newest token's share.

    Source: Peng et al. 2023, arXiv:2305.13048, section 3.1 and equation 18.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.mix_key, self.mix_receptance = (nn.Parameter(torch.empty(1, 1, hidden_size)) for _ in range(2))
        self.key = Linear(hidden_size, intermediate_size, bias=False)
        self.receptance = Linear(hidden_size, hidden_size, bias=False)
        self.value = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Stream, state: RecurrentState | None, real: Real | None) -> Stream:
        """Return what is added to the stream; `real` is False at padding, which is not read."""
        if real is not None:
            x = x * real[:, :, None]
        before = shifted(x, None if state is None else state.inputs[self.layer, 1])
        if state is not None:
            with torch.no_grad():
                state.inputs[self.layer, 1] = x[:, -1]
        value = self.value(F.relu(self.key(torch.lerp(before, x, self.mix_key))).square())
        gate = self.receptance(torch.lerp(before, x, self.mix_receptance)).sigmoid()
        out: Tensor = gate * value
        return out
