"""The adapters on a model: one on the other, switched, and merged together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError, listed
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Adapted
from nbllm.models.peft.adapted_network import mixin_for
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.head import EMBEDDING, HEAD, tie_again, untie
from nbllm.models.peft.method import AdapterConfig
from nbllm.models.quantized import quantized_layers

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class AdapterStack:
    """The adapters on one model.

    Several can be on at once: each is computed around those that were attached before it. The newest is trained, the
    others are not unless their `trains` is set.

    Args:
        model: The network.
        guard: Called before anything is changed; it raises where the model must stay as it is.

    Attributes:
        adapters: Those that are attached, in order.
    """

    def __init__(self, model: nn.Module, guard: Callable[[], None] = lambda: None) -> None:
        self.model, self.guard = model, guard
        self.adapters: list[Adapter] = []
        self._trained_before: dict[str, bool] | None = None  # None: none is on
        self._unmerged: dict[str, Tensor] = {}
        self._untied = False  # whether merging has untied the head from the embedding

    def attach(self, config: AdapterConfig, *, name: str | None = None, seed: int | None = 0) -> Adapter:
        """Attach a new adapter and switch it on; those that are on stay on, and are no longer trained.

        Args:
            config: Its settings.
            name: Its name; None: "default", or "default-2" and so on.
            seed: Of its parameters; None: they are loaded next, and not drawn.

        Raises:
            UserError: The name is taken, or the method makes no sense for this model.
        """
        self.guard()
        name = self._free_name() if name is None else name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"An adapter's name has letters, digits, - and _; not {name!r}.")
        if any(each.name == name for each in self.adapters):
            raise UserError(
                f"There is an adapter {name!r} already.", hint="Detach it, or choose another name."
            )
        if any(each.state == "merged" for each in self.adapters):
            raise UserError(
                "A merged adapter is in the weights.",
                hint="Unmerge it, or detach it to keep it in the weights for good.",
            )
        adapter = Adapter(self, name, config, config.parts(self.model))
        if seed is not None and not any(each.is_meta for each in adapter.parameters().values()):
            adapter.initialize(seed)
        for other in self.adapters:
            other.trains = False
        self.adapters.append(adapter)
        adapter.on()
        return adapter

    def switch(self, *names: str) -> None:
        """Switch on just the adapters of these names.

        Raises:
            UserError: There is none of a name.
        """
        for name in names:
            self[name]
        for adapter in self.adapters:
            if adapter.name not in names:
                adapter.off()
        for adapter in self.adapters:
            if adapter.name in names:
                adapter.on()

    def merge(self, *adapters: Adapter) -> None:
        """Write adapters into the weights, together with those that are merged already.

        All are summed in float32 onto the weights as they were, and rounded once: one after the other, small updates
        would be lost in bfloat16 (peft#2321).

        Raises:
            UserError: The method of one cannot be written into weights, or there is none.
        """
        if not adapters:
            raise UserError("No adapter is on.", hint="Attach one: lm.attach(nb.LoRA(rank=8)).")
        for adapter in adapters:
            if not all(part.can_merge for part in adapter.parts.values()):
                raise UserError(
                    f"{adapter.config.label} adapters are no change of weights, and cannot be merged.",
                    hint="Keep the adapter beside the model: lm.save_adapter(path).",
                )
        self._check_apart({*self._merged(), *adapters})
        if quantized_layers(self.model):
            raise UserError(
                "Weights in 4 bits cannot take what an adapter adds to them.",
                hint="Hold them as ordinary numbers first: lm.dequantize().",
            )
        self.guard()
        if any(adapter.parts.keys() & {"", EMBEDDING} for adapter in adapters):
            self._untied = untie(self.model) or self._untied
        for adapter in adapters:
            if adapter.state == "on":
                adapter.remove_parts()
            adapter.state = "merged"
        self._write_merged()
        self.divide_training()

    def unmerge(self, *adapters: Adapter) -> None:
        """Take adapters out of the weights, and switch them off; with the last one these are restored to the bit.

        Raises:
            UserError: What stays in the weights would be computed in another order.
        """
        self._check_apart(set(self._merged()) - set(adapters))
        self.guard()
        for adapter in adapters:
            adapter.state = "off"
        self._write_merged()
        if self._untied and not any(each.parts.keys() & {"", EMBEDDING} for each in self._merged()):
            tie_again(self.model)
            self._untied = False

    def forget(self, adapter: Adapter) -> None:
        """Take an adapter off the list; if it was merged, its updates stay for good."""
        self.adapters.remove(adapter)
        if adapter.state != "merged":
            return
        self._untied = False  # for good
        others = self._merged()
        alone = self._computed([adapter]) if others else {}
        self._unmerged = (
            {name: alone.get(name, old) for name, old in self._unmerged.items()} if others else {}
        )

    def divide_training(self) -> None:
        """Let gradients reach the parameters of the adapters that are on and trained; without any, as it was before."""
        on = [adapter for adapter in self.adapters if adapter.state == "on"]
        own = {id(p): adapter for adapter in on for p in adapter.parameters().values()}
        base = {name: p for name, p in self.model.named_parameters() if id(p) not in own}
        if on and self._trained_before is None:
            self._trained_before = {name: p.requires_grad for name, p in base.items()}
        for name, parameter in base.items():
            before = True if self._trained_before is None else self._trained_before.get(name, True)
            parameter.requires_grad_(not on and before)
        if not on:
            self._trained_before = None
        for adapter in on:
            for parameter in adapter.parameters().values():
                parameter.requires_grad_(adapter.trains)

    def place(self, adapter: Adapter) -> int:
        """Return an adapter's place, in the order in which they were attached."""
        return self.adapters.index(adapter)

    def mixin(self, path: str) -> type[Adapted]:
        """Return what is mixed into the class of a module that gets parts."""
        return Adapted if path else mixin_for(cast(Network, self.model))

    @property
    def num_base_parameters(self) -> int:
        """How many elements the model's own parameters have."""
        own = {id(p) for adapter in self.adapters for p in adapter.parameters().values()}
        in_4_bits = sum(layer.num_weights for layer in quantized_layers(self.model).values())
        return in_4_bits + sum(p.numel() for p in self.model.parameters() if id(p) not in own)

    def __getitem__(self, name: str) -> Adapter:
        for adapter in self.adapters:
            if adapter.name == name:
                return adapter
        known = listed([each.name for each in self.adapters]) if self.adapters else "none"
        raise UserError(f"There is no adapter {name!r}.", hint=f"There is: {known}.")

    def _merged(self) -> list[Adapter]:
        return [adapter for adapter in self.adapters if adapter.state == "merged"]

    def _check_apart(self, merged: set[Adapter]) -> None:
        """Refuse to have adapters in the weights and others beside them that must be computed in their order.

        Raises:
            UserError: There are such.
        """
        for first in merged:
            for other in set(self.adapters) - merged:
                shared = first.parts.keys() & other.parts.keys()
                if other.state != "off" and not all(
                    each.parts[path].adds for path in shared for each in (first, other)
                ):
                    raise UserError(
                        f"{first.name!r} and {other.name!r} change the same layers, and not by adding to them: one "
                        "cannot be merged without the other.",
                        hint="Merge and unmerge them together: lm.merge(), lm.unmerge().",
                    )

    def _free_name(self) -> str:
        taken = {adapter.name for adapter in self.adapters}
        number = 2
        name = DEFAULT
        while name in taken:
            name, number = f"{DEFAULT}-{number}", number + 1
        return name

    @torch.no_grad()
    def _write_merged(self) -> None:
        """Compute the weights anew from those without adapters, with what is merged now."""
        new = self._computed(self._merged())
        kept: dict[str, Tensor] = {}
        for name in {**self._unmerged, **new}:
            parameter = self.model.get_parameter(name)
            old = self._unmerged.get(name, parameter.detach().clone())
            parameter.copy_(new.get(name, old))
            if name in new:
                kept[name] = old
        self._unmerged = kept

    @torch.no_grad()
    def _computed(self, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
        """Return the weights with some adapters merged, in float32, by name."""
        out: dict[str, Tensor] = {}
        for path in dict.fromkeys(path for adapter in adapters for path in adapter.parts):
            parts = [adapter.parts[path] for adapter in adapters if path in adapter.parts]
            path = path or HEAD
            module = cast(Any, self.model.get_submodule(path))
            names = [f"{path}.{kind}" for kind in ("weight", "bias")]
            bases = [getattr(module, kind, None) for kind in ("weight", "bias")]
            weight, bias = (
                None if now is None else self._unmerged.get(name, now).float()
                for name, now in zip(names, bases, strict=True)
            )
            assert weight is not None
            base = weight
            for part in parts:
                weight, bias = part.merged(weight, bias, base)
            out[names[0]] = weight
            if bias is not None:
                out[names[1]] = bias
        return out
