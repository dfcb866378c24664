"""An adapter on a model: attached, switched off and on, merged and taken away by exchanging modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nbllm.core.errors import UserError, WeightsError, listed
from nbllm.core.io import read_json, write_json
from nbllm.core.seeding import generator
from nbllm.models.peft.lora import LoRA
from nbllm.models.tensor_writing import write_tensors
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.linear import Linear
from nbllm.nn.lora import LoRALinear

SETTINGS_FILE, TENSORS_FILE = "adapter.json", "adapter.safetensors"  # in a checkpoint
ONLY_ADAPTER = ("!*.lora_a", "!*.lora_b")  # the patterns that freeze all but an adapter (`training.freezing`)
_MAX_JSON = 1 << 20  # bytes


class Adapter:
    """A LoRA adapter on a model.

    The layers that it changes are exchanged for others that hold the same parameters under the same names, and their
    low-rank updates beside them. Off, merged or detached, the model's own layers are back in place, so that nothing of
    it is slower or different from before.

    While it is on, the model's own parameters need no gradient.

    Args:
        model: The network; it has no other adapter that is on.
        config: The settings.
        layers: Rank and scale of each layer's update by the layer's name, where they are not those of `config`.
        guard: Called before anything is changed; it raises where the model must stay as it is.

    Attributes:
        config: The settings.
        state: "on", "off", "merged" or "detached".

    Raises:
        UserError: A target is no linear layer of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LoRA,
        *,
        layers: Mapping[str, tuple[int, float]] | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.state = "off"
        self._model = model
        self._guard = guard
        self._trained_before: dict[str, bool] = {}
        self._unmerged: dict[str, Tensor] = {}
        chosen = layers or dict.fromkeys(
            _targeted(model, tuple(config.targets)), (config.rank, config.scale())
        )
        self._base: dict[str, Linear] = {name: _linear(model, name) for name in chosen}
        self.layers = {
            name: LoRALinear(self._base[name], rank=rank, scale=scale)
            for name, (rank, scale) in chosen.items()
        }
        self._exchange(self.layers)
        self._freeze()
        self.state = "on"

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw new updates: `lora_a` uniformly, `lora_b` zero, so that the model computes what it did before.

        Source: peft's `LoraLayer.reset_lora_parameters` (Kaiming's bound for a = sqrt(5), 1 / sqrt(inputs)).
        """
        for name, layer in self.layers.items():
            bound = 1 / math.sqrt(layer.in_features)
            drawn = torch.empty(layer.lora_a.shape, dtype=torch.float32, device="cpu")
            layer.lora_a.copy_(drawn.uniform_(-bound, bound, generator=generator(seed, "lora", name)))
            layer.lora_b.zero_()

    @property
    def num_parameters(self) -> int:
        """How many elements its parameters have."""
        return sum(tensor.numel() for tensor in self.parameters().values())

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return its parameters by the names that they have in the model."""
        return {
            f"{name}.{kind}": getattr(layer, kind)
            for name, layer in self.layers.items()
            for kind in ("lora_a", "lora_b")
        }

    def shape(self) -> dict[str, tuple[int, float]]:
        """Return rank and scale of each layer's update by the layer's name."""
        return {name: (len(layer.lora_a), layer.scale) for name, layer in self.layers.items()}

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
        if self.state == "merged":
            return self.unmerge()
        if self.state == "off":
            self._guard()
            for name, layer in self.layers.items():
                base = self._base[name] = _linear(self._model, name)
                layer.weight = base.weight
                layer.register_parameter("bias", base.bias)
                layer.lora_a.data = layer.lora_a.data.to(base.weight)
                layer.lora_b.data = layer.lora_b.data.to(base.weight)
            self._exchange(self.layers)
            self._freeze()
            self.state = "on"
        return self

    def off(self) -> Adapter:
        """Let the model answer as it did without the adapter; unmerges it where it was merged."""
        self._check_attached()
        if self.state != "off":
            self._guard()
            if self.state == "merged":
                self._restore_weights()
            else:
                self._put_back()
            self.state = "off"
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
                self.on().merge()

    @torch.no_grad()
    def merge(self) -> Adapter:
        """Add the updates to the weights: computed in float32, and rounded once where the weights are narrower.

        The weights as they were are kept in memory, so that `unmerge` restores them to the bit.
        """
        self.on()
        self._guard()
        for name, layer in self.layers.items():
            self._unmerged[name] = layer.weight.detach().clone()
            layer.weight.copy_(layer.weight.float() + layer.delta())
        self._put_back()
        self.state = "merged"
        return self

    def unmerge(self) -> Adapter:
        """Restore the weights to the bit, and let the adapter act beside them again."""
        if self.state != "merged":
            raise UserError(f"The adapter is {self.state}, not merged.")
        return self.off().on()

    def detach(self) -> None:
        """Take the adapter away: the model is as it was. Merged updates stay in the weights for good."""
        self._check_attached()
        self._guard()
        if self.state == "on":
            self._put_back()
        self._unmerged.clear()
        self.state = "detached"

    def write(self, folder: Path) -> None:
        """Write settings and parameters as they are, as part of a checkpoint; for `read_adapter`."""
        write_json(folder / SETTINGS_FILE, {"lora": self.config.to_dict(), "layers": self.shape()})
        tensors = {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in self.parameters().items()
        }
        write_tensors(tensors, folder / TENSORS_FILE)

    def __repr__(self) -> str:
        own = self.num_parameters
        base = sum(
            each.numel() for name, each in self._model.named_parameters() if name not in self.parameters()
        )
        size = sum(tensor.nbytes for tensor in self.parameters().values())
        return (
            f"LoRA adapter, {self.state}: rank {self.config.rank}, alpha {self.config.alpha:g}, "
            f"{len(self.layers)} layers, {own:,} parameters ({own / base:.2%} of {base:,}; {size / 1e6:.1f} MB)"
        )

    def _check_attached(self) -> None:
        if self.state == "detached":
            raise UserError("The adapter was detached.", hint="Attach one: lm.attach(nb.LoRA(rank=8)).")

    def _exchange(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(self._model.get_submodule(parent), child, module)

    def _put_back(self) -> None:
        for name, layer in self.layers.items():  # the parameters may have been exchanged meanwhile
            self._base[name].weight = layer.weight
            self._base[name].register_parameter("bias", layer.bias)
        self._exchange(self._base)
        for module in self._model.modules():
            if isinstance(module, JoinedLinears):
                module.join()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._trained_before.get(name, True))

    def _freeze(self) -> None:
        own = self.parameters().keys()
        named = {name: p for name, p in self._model.named_parameters() if name not in own}
        self._trained_before = {name: p.requires_grad for name, p in named.items()}
        for parameter in named.values():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def _restore_weights(self) -> None:
        for name, weight in self._unmerged.items():
            _linear(self._model, name).weight.copy_(weight)
        self._unmerged.clear()


def read_adapter(
    model: nn.Module, folder: Path, *, guard: Callable[[], None] = lambda: None
) -> Adapter | None:
    """Attach the adapter that `Adapter.write` left in a checkpoint; None where there is none.

    Raises:
        WeightsError: It is damaged, or belongs to another model.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return None
    try:
        stored: Any = read_json(path, _MAX_JSON)
        layers = {str(name): (int(rank), float(scale)) for name, (rank, scale) in stored["layers"].items()}
        adapter = Adapter(model, LoRA.from_dict(stored["lora"]), layers=layers, guard=guard)
        adapter.load(read_tensors(folder), folder / TENSORS_FILE)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise WeightsError(f"The adapter cannot be read: {error}", where=path) from error
    return adapter


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the parameters in a checkpoint's adapter; none where it has no adapter."""
    path = folder / TENSORS_FILE
    return load_file(path) if path.exists() else {}


def _targeted(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    names = [name for name, module in model.named_modules() if type(module) is Linear]
    for target in targets:
        if not any(_is_named(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise UserError(
                f"The model has no linear layer {target!r}.",
                where="LoRA",
                hint=f"It has: {listed(known, quote=False)}.",
            )
    return [name for name in names if any(_is_named(name, target) for target in targets)]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _linear(model: nn.Module, name: str) -> Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise UserError(f"The model has no layer {name!r}.", where="LoRA") from None
    if isinstance(module, LoRALinear):
        raise UserError(
            "The model has an adapter already.", hint="Merge it (lm.merge()), or lm.adapters[0].detach()."
        )
    if type(module) is not Linear:
        raise UserError(
            f"{name} is no plain linear layer, but {type(module).__name__}: it was replaced or wrapped.",
            where="LoRA",
        )
    return module
