"""RWKV's time mixing of values: a mean of all earlier ones, whose weights decay with the distance."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.kernels import run, serves

LOWEST = -1e38  # the exponent of what has no weight: the key of padding, and the state before the first token
_CHUNK = 16  # tokens whose weights for each other are computed together
_CHANNELS = 64  # that a thread computes together, about


def empty_state(batch: int, channels: int, device: torch.device) -> Float[Tensor, "3 {batch} {channels}"]:
    """Return the state before the first token: numerator, denominator, and the exponent of their scale."""
    state = torch.zeros(3, batch, channels, device=device)
    state[2] = LOWEST
    return state


def wkv(
    decay: Float[Tensor, " channel"],
    bonus: Float[Tensor, " channel"],
    key: Float[Tensor, "batch position channel"],
    value: Float[Tensor, "batch position channel"],
    state: Float[Tensor, "3 batch channel"],
) -> tuple[Float[Tensor, "batch position channel"], Float[Tensor, "3 batch channel"]]:
    """Return, at each token t, the mean of the values up to it with the weights e^(k_i - (t - 1 - i) decay).

    The token's own value has the weight e^(k_t + bonus). All exponentials are relative to the largest, so that keys may
    be of any size. On the CPU a compiled kernel goes token by token; elsewhere, chunks of 16 tokens are computed
    together. Reading a text in parts, each with the state after the last, gives the same as reading it whole.

    Args:
        decay: (channel,), positive: w, by how much the logarithm of a weight falls with each token.
        bonus: (channel,): u, added to the key of the newest token.
        key: (batch, position, channel), k.
        value: (batch, position, channel).
        state: (3, batch, channel), numerator and denominator of what came before, and the exponent of their scale; it
            gets no gradient.

    Returns:
        The means, and the state after the last token.

    Source: Peng et al. 2023, arXiv:2305.13048, equation 16 and appendix D (the stable form).
    """
    if serves("wkv", key, value, decay, bonus, state, elements=key.numel()):
        out, after = _WKV.apply(decay, bonus, key, value, state)
        return out, after
    return _by_chunks(decay, bonus, key, value, state)


def _by_chunks(
    decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `wkv` in torch's operations, whose gradients autograd knows."""
    outs = []
    numerator, denominator, top = state.unbind()
    places = torch.arange(min(_CHUNK, key.shape[1]), device=key.device, dtype=key.dtype)
    for k, v in zip(key.split(_CHUNK, dim=1), value.split(_CHUNK, dim=1), strict=True):
        length = k.shape[1]
        here = places[:length]
        age = here[:, None, None] - here[:, None]  # (to, from, 1)
        # Exponents are relative to the largest key: differences of large ones would have few exact digits.
        largest = k.amax(1).detach()
        k, top = k - largest[:, None], top - largest
        exponents = k[:, None] - (age - 1) * decay
        exponents = torch.where(age == 0, (k + bonus)[:, None], exponents).masked_fill(age < 0, -torch.inf)
        of_state = top[:, None] - here[:, None] * decay
        # The scale is any number: it cancels in the quotient, and has no gradient.
        scale = torch.maximum(exponents.amax(2), of_state).detach()
        weights, before = (exponents - scale[:, :, None]).exp(), (of_state - scale).exp()
        mixed = before * numerator[:, None] + (weights * v[:, None]).sum(2)
        outs.append(mixed / (before * denominator[:, None] + weights.sum(2)))
        last, aged = k - here.flip(0)[:, None] * decay, top - length * decay
        scale = torch.maximum(last.amax(1), aged).detach()
        weights, before = (last - scale[:, None]).exp(), (aged - scale).exp()
        numerator = before * numerator + (weights * v).sum(1)
        denominator = before * denominator + weights.sum(1)
        top = scale + largest
    return torch.cat(outs, dim=1), torch.stack((numerator, denominator, top)).detach()


class _WKV(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, length, channels = key.shape
        rows = state.transpose(0, 1).contiguous()
        operands = key.contiguous(), value.contiguous(), decay.contiguous(), bonus.contiguous()
        out = torch.empty_like(operands[0])
        kept = key.new_empty(batch, length, 3, channels) if any(ctx.needs_input_grad) else None
        run("wkv", "forward", _shares(key), *operands, rows, out, kept, batch)
        ctx.save_for_backward(*operands, kept)
        after = rows.transpose(0, 1)
        ctx.mark_non_differentiable(after)
        return out, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        key, value, decay, bonus, kept = ctx.saved_tensors
        grad_key, grad_value = key.clone(), value.clone()
        sums = key.new_empty(len(key), 2, key.shape[2])
        run(
            "wkv", "backward", _shares(key), grad_key, grad_value, decay, bonus, kept, grad.contiguous(), sums,
            len(key),
        )  # fmt: skip
        grad_decay, grad_bonus = sums.sum(0)
        return grad_decay, grad_bonus, grad_key, grad_value, None


def _shares(key: Tensor) -> int:
    """Return into how many shares the kernel's work is split: some channels of a sequence each."""
    return len(key) * max(1, key.shape[2] // _CHANNELS)
