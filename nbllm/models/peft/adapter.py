"""An adapter on a model: attached, switched off and on, merged and taken away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError, WeightsError, listed
from nbllm.core.quantities import size
from nbllm.core.seeding import generator
from nbllm.models.peft.adapted import Part, add_part, remove_part
from nbllm.models.peft.method import AdapterConfig
from nbllm.nn.joined import JoinedLinears

if TYPE_CHECKING:
    from nbllm.models.peft.stack import AdapterStack


class Adapter:
    """Parameters beside a model's own, which are trained in their stead.

    The modules that it changes get parts (`models.peft.adapted`). Off, merged or detached, nothing of the model is
    slower or different from before. While an adapter is on, the model's own parameters need no gradient.

    `AdapterStack.attach` makes one.

    Attributes:
        name: Its name on the model.
        config: The settings.
        state: "on", "off", "merged" or "detached".
        trains: Whether its parameters are trained while it is on.
        parts: What it adds to each module, by the module's name; "": to the network.
    """

    def __init__(
        self, stack: AdapterStack, name: str, config: AdapterConfig, parts: Mapping[str, Part]
    ) -> None:
        self.name, self.config, self.parts = name, config, dict(parts)
        self.state, self.trains = "off", True
        self._stack = stack

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw new parameters, each by its name and the seed alone."""
        for path, part in self.parts.items():
            module = self._stack.model.get_submodule(path)
            part.initialize(generator(seed, self.config.name, path), module)

    @property
    def num_parameters(self) -> int:
        """How many elements its parameters have."""
        return sum(tensor.numel() for tensor in self.parameters().values())

    @property
    def num_bytes(self) -> int:
        """Memory of its parameters, in bytes."""
        return sum(tensor.nbytes for tensor in self.parameters().values())

    @property
    def freeze_pattern(self) -> str:
        """The pattern that freezes all but its parameters (`training.freezing`)."""
        return f"!*adapters.{self.name}.*"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return its parameters by the names that they have in the model; one that parts share is there once."""
        out: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for path, part in self.parts.items():
            for kind, parameter in part.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    out[self.full_name(f"{path}.{kind}" if path else kind, path)] = parameter
        return out

    def full_name(self, key: str, path: str | None = None) -> str:
        """Return the name in the model of a parameter.

        Args:
            key: Its module in the model and its name in the part: "blocks.0.attention.query.lora_a".
            path: The module; None: the longest that begins the key.
        """
        if path is None:
            path = max((each for each in self.parts if not each or key.startswith(f"{each}.")), key=len)
        kind = key.removeprefix(path).removeprefix(".")
        return ".".join(filter(None, (path, "adapters", self.name, kind)))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: Path | None = None) -> None:
        """Give its parameters other values.

        Raises:
            WeightsError: A tensor is missing, surplus or misshapen.
        """
        own = self.parameters()
        if tensors.keys() != own.keys():
            odd = sorted(tensors.keys() ^ own.keys())
            raise WeightsError(f"The adapter's file does not fit the model: {listed(odd[:4])}.", where=where)
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape or not tensors[name].isfinite().all():
                raise WeightsError(f"{name} has another shape, or is not finite.", where=where)
            parameter.copy_(tensors[name])

    def on(self) -> Adapter:
        """Let the model answer with the adapter; unmerges it where it was merged."""
        self._check_attached()
        if self.state != "on":
            self._stack.guard()
            if self.state == "merged":
                self._stack.unmerge(self)
            for path, part in self.parts.items():
                module = self._stack.model.get_submodule(path)
                tensors = itertools.chain(
                    module.parameters(), module.buffers()
                )  # weights in 4 bits are buffers
                part.to(next(each for each in tensors if each.is_floating_point()))
                part.order = self._stack.place(self)
                add_part(module, self.name, part, mixin=self._stack.mixin(path))
            self.state = "on"
            self._stack.divide_training()
        return self

    def off(self) -> Adapter:
        """Let the model answer as it did without the adapter; unmerges it where it was merged."""
        self._check_attached()
        if self.state != "off":
            self._stack.guard()
            if self.state == "merged":
                self._stack.unmerge(self)
            else:
                self.remove_parts()
            self.state = "off"
            self._stack.divide_training()
        return self

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the model answer without the adapter inside a `with` block."""
        before = self.state
        self.off()
        try:
            yield
        finally:
            if before == "on":
                self.on()
            elif before == "merged":
                self.merge()

    def merge(self) -> Adapter:
        """Write the adapter into the weights: computed in float32, and rounded once where the weights are narrower.

        The weights as they were are kept in memory, so that `unmerge` restores them to the bit.

        Raises:
            UserError: The method cannot be written into weights.
        """
        self._check_attached()
        self._stack.merge(self)
        return self

    def unmerge(self) -> Adapter:
        """Restore the weights to the bit, and let the adapter act beside them again."""
        if self.state != "merged":
            raise UserError(f"The adapter is {self.state}, not merged.")
        return self.on()

    def detach(self) -> None:
        """Take the adapter away: the model is as it was. Merged updates stay in the weights for good."""
        self._check_attached()
        self._stack.guard()
        if self.state == "on":
            self.remove_parts()
        self._stack.forget(self)
        self.state = "detached"
        self._stack.divide_training()

    def remove_parts(self) -> None:
        """Take its parts out of the model's modules; for the stack."""
        for path in self.parts:
            remove_part(self._stack.model.get_submodule(path), self.name)
        for module in self._stack.model.modules():
            if isinstance(module, JoinedLinears):
                module.join()

    def __repr__(self) -> str:
        base = self._stack.num_base_parameters
        trained = "" if self.trains else ", not trained"
        return (
            f"{self.config.label} adapter {self.name!r}, {self.state}{trained}: {self.config.describe()}, "
            f"{self.num_parameters:,} parameters ({self.num_parameters / base:.2%} of {base:,}; {size(self.num_bytes)})"
        )

    def _check_attached(self) -> None:
        if self.state == "detached":
            raise UserError("The adapter was detached.", hint="Attach one: lm.attach(nb.LoRA(rank=8)).")
