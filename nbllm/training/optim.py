"""An optimizer over the float32 weights of a layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.distributed.layout import Layout
from nbllm.distributed.sharded_tensors import local_part, placed_like
from nbllm.training.optimizers.base import SteerableOptimizer


class Optimizer:
    """An optimizer over the float32 weights of a layout; of those that are laid over ranks, this rank's parts.

    Args:
        layout: What is trained.
        kind: One of `nbllm.training.optimizers.OPTIMIZERS`.

    Attributes:
        masters: The weights, by name.
    """

    def __init__(self, layout: Layout, kind: type[SteerableOptimizer]) -> None:
        self.layout = layout
        self.masters = layout.parameters()
        self.inner = kind(self.masters)

    @property
    def names(self) -> list[str]:
        """The names of all parameters, those of other ranks too."""
        return self.layout.names

    def configure(self, *, lr: float, **values: float) -> None:
        """Set what the next step uses: the learning rate, and the optimizer's own settings by name."""
        self.inner.configure(lr=lr, **values)

    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names."""
        self.layout.freeze(names)

    def gradients(self) -> list[Tensor]:
        """Return the gradients, where there are any."""
        return [m.grad for m in self.masters.values() if m.grad is not None]

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by `factor`."""
        torch._foreach_mul_([local_part(gradient) for gradient in self.gradients()], factor)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm` where their norm is larger; return the norm before."""
        norm = self.layout.norm(self.gradients())
        if not norm <= max_norm:  # else every gradient would be multiplied by one
            self.scale_gradients(min(1.0, max_norm / (norm + 1e-6)))
        return norm

    def step(self) -> None:
        """Update the weights, and let the network compute with them."""
        self.layout.step(self.inner)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.layout.drop_gradients()

    def held_bytes(self) -> tuple[int, int, int]:
        """Return the bytes that this rank holds: of weights (float32 and what is computed with), gradients, state."""
        weights = [*self.layout.network.parameters(), *self.masters.values()]
        return _memory_of(weights), _memory_of(self.gradients()), _memory_of(self.state().values())

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state by name, `<key>.<parameter>`: for AdamW the keys exp_avg, exp_avg_sq, step.

        Of what lies over ranks, this rank's parts.
        """
        return {
            f"{key}.{name}": value
            for name, master in self.masters.items()
            for key, value in self.inner.state.get(master, {}).items()
            if value is not None  # SGD's momentum, before the first step
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return `state` on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` returned; a parameter without an entry starts afresh.

        Raises:
            UserError: A tensor belongs to no parameter, or has another shape.
        """
        self.inner.state.clear()
        with self.layout.allocating():
            self._load(tensors)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        for full_name, value in tensors.items():
            key, _, name = full_name.partition(".")
            master = self.masters.get(name)
            if master is None or not self.inner.fits(master, key, value):
                raise UserError(f"The optimizer state {full_name!r} fits no parameter of this model.")
            # AdamW's fused form takes its step count from the parameter's device.
            value = value.to(master.device, copy=True)
            whole = self.inner.keeps_whole_state
            self.inner.state[master][key] = value if whole else placed_like(master, value)


def _memory_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of memory that tensors lie in, or this rank's parts of them; what several share counts once."""
    storages = (local_part(each).untyped_storage() for each in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
