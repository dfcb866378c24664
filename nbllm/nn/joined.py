"""Linear layers that read the same input: parameters of their own, one matmul for all.

The weights of such layers are slices of one storage, side by side, so that a view of it is one large matrix. Names,
shapes, gradients and files are those of separate layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.hooks import is_plain, keep_methods
from nbllm.nn.linear import Linear, linear


@keep_methods
class JoinedLinears(nn.Module):
    """Base of a module with linear layers that read the same input.

    A layer that was replaced, wrapped or hooked is called; so are all of them where their weights are not side by
    side in memory, or some are frozen: `multiply_joined` then returns None. Moving, loading and copying the module
    joins the weights again.

    Args:
        joined: Names of the layers, in the order in which their weights lie.
    """

    def __init__(self, *joined: str) -> None:
        super().__init__()
        self.joined = joined
        self.register_load_state_dict_post_hook(_join_after_loading)

    def join(self) -> None:
        """Lay the weights, and the biases, side by side in one storage each, unless they already are."""
        layers = [getattr(self, name) for name in self.joined]
        if layers and all(type(layer) is Linear for layer in layers):
            for kind in ("weight", "bias"):
                _lay_side_by_side(*[getattr(layer, kind) for layer in layers])

    def multiply_joined(self, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"] | None:
        """Return what the joined layers make of `x`, one beside the other, or None where each must be called."""
        layers = [getattr(self, name) for name in self.joined]
        if not layers or torch.compiler.is_compiling() or not all(is_plain(each, Linear) for each in layers):
            return None
        weight = joined(*[layer.weight for layer in layers])
        if weight is None:
            return None
        biases = [layer.bias for layer in layers]
        if all(bias is None for bias in biases):
            return linear(x, weight)
        bias = joined(*biases)
        return None if bias is None else linear(x, weight, bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> JoinedLinears:
        super()._apply(fn, recurse)
        self.join()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.join()


def joined(*parts: Tensor | None) -> Tensor | None:
    """Return one tensor of which `parts` are the rows, in order, or None where they are not side by side in memory.

    It is a view; its gradient reaches each part as a slice of one buffer. Parts of which some are frozen are not
    joined, so that no gradient is computed for these.
    """
    view = side_by_side(*parts)
    if view is None or len({part.requires_grad for part in parts if part is not None}) > 1:
        return None
    out: Tensor = _Join.apply(view, *parts)
    return out


def side_by_side(*parts: Tensor | None) -> Tensor | None:
    """Return the memory of `parts` as one tensor without gradient, or None where it is not contiguous."""
    first = parts[0]
    if first is None:
        return None
    end = first.data_ptr() if _has_memory(first) else 0
    rows = 0
    for part in parts:
        fits = part is not None and _has_memory(part) and part.dtype == first.dtype and part.is_contiguous()
        if part is None or not fits or part.device != first.device or part.data_ptr() != end:
            return None
        end += part.nbytes
        rows += len(part)
    storage = first.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():  # neighbours by chance
        return None
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def empty_parameters(
    model: nn.Module, *, dtype: torch.dtype | None = None, device: torch.device | str
) -> dict[str, nn.Parameter]:
    """Return uninitialised parameters of a model's names and shapes; those of joined layers lie side by side.

    Args:
        model: The model; it may be on the device "meta".
        dtype: Of all; None: each as the model has it.
        device: Where they are.
    """
    like = dict(model.named_parameters())
    groups = [[name] for name in like]
    for path, module in model.named_modules():
        if isinstance(module, JoinedLinears):
            layers = [f"{path}.{name}" if path else name for name in module.joined]
            groups += [[f"{layer}.{kind}" for layer in layers] for kind in ("weight", "bias")]
    out: dict[str, nn.Parameter] = {}
    for group in reversed(groups):  # the joined ones first
        if group and all(name in like and name not in out for name in group):
            rows = [len(like[name]) for name in group]
            first = like[group[0]]
            whole = torch.empty((sum(rows), *first.shape[1:]), dtype=dtype or first.dtype, device=device)
            out |= zip(group, map(nn.Parameter, whole.split(rows)), strict=True)
    return {name: out[name] for name in like}


def _has_memory(x: Tensor) -> bool:
    """Return whether a tensor is just elements in some device's memory; a distributed or a fake one is not."""
    return type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and x.device.type != "meta"


def _lay_side_by_side(*parameters: nn.Parameter | None) -> None:
    first = parameters[0]
    if first is None or side_by_side(*parameters) is not None:
        return
    present = [each for each in parameters if each is not None and _has_memory(each)]
    alike = {(each.dtype, each.device, each.shape[1:]) for each in present}
    if len(present) < len(parameters) or len(alike) > 1:
        return
    rows = [len(each) for each in present]
    with torch.no_grad():
        whole = torch.empty((sum(rows), *first.shape[1:]), dtype=first.dtype, device=first.device)
        for parameter, part in zip(present, whole.split(rows), strict=True):
            part.copy_(parameter)
            parameter.data = part


def _join_after_loading(module: JoinedLinears, keys: object) -> None:
    """Join what `load_state_dict(assign=True)` put in the place of the parameters."""
    module.join()


class _Join(torch.autograd.Function):
    """The identity, from the parts of a tensor to the whole."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors  # an error where one was changed since: `whole` would not notice
        return None, *grad.split([len(part) for part in parts])
