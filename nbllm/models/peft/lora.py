"""LoRA, rank-stabilized LoRA and DoRA, on linear layers, the embedding and the head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.families.known import FAMILIES
from nbllm.models.network import GenerativeNetwork, Network
from nbllm.models.peft.adapted import Call, Part, draw_normal, draw_uniform, empty
from nbllm.models.peft.adapted_network import NetworkPart
from nbllm.models.peft.head import EMBEDDING, HEAD
from nbllm.models.peft.method import (
    ADAPTERS,
    AdapterConfig,
    check_count,
    check_number,
    checked_targets,
    is_named,
    linear_layers,
)
from nbllm.nn.linear import linear


class LowRank(Part):
    """An update of low rank to a matrix of (output, input), scale * lora_b lora_a.

    With magnitudes (DoRA) the updated matrix has rows of these norms: magnitude (W + update) / |W + update|, by rows.
    As in the paper, section 4.3, the norm in the denominator gets no gradient.

    Args:
        weight: The matrix.
        rank: Rows of `lora_a`, columns of `lora_b`.
        scale: What the update is multiplied by.
        dora: Whether it has magnitudes.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; Liu et al. 2024, arXiv:2402.09353, equation 5.
    """

    can_merge = True

    def __init__(self, weight: Tensor, *, rank: int, scale: float, dora: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.lora_a = empty(rank, weight.shape[1], like=weight)
        self.lora_b = empty(weight.shape[0], rank, like=weight)
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.magnitude = nn.Parameter(weight.detach().norm(dim=1))

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Draw `lora_a` uniformly, and make `lora_b` zero, so that the update is zero.

        Source: peft's `LoraLayer.reset_lora_parameters` (Kaiming's bound for a = sqrt(5), 1 / sqrt(inputs)).
        """
        draw_uniform(self.lora_a, 1 / math.sqrt(self.lora_a.shape[1]), draw)
        self.lora_b.zero_()

    def forward(self, module: Any, inner: Call, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return what a linear layer and its update make of x."""
        out: Tensor = inner(x)
        update = linear(linear(x, self.lora_a), self.lora_b) * self.scale
        if self.magnitude is None:
            return out + update
        weight = module.weight
        is_first = next(iter(module.adapters.values())) is self
        if is_first:
            base = out if module.bias is None else out - module.bias
        else:
            base = linear(x, weight)
        factor = self._factor(weight)
        updated: Tensor = out + (factor - 1) * base + factor * update
        return updated

    @property
    def adds(self) -> bool:  # type: ignore[override]
        """Whether it adds the same to any matrix: not with magnitudes."""
        return self.magnitude is None

    def delta(self) -> Float[Tensor, "output input"]:
        """Return the update of low rank, without magnitudes, in float32."""
        return (self.lora_b.float() @ self.lora_a.float()) * self.scale

    def updated(self, weight: Float[Tensor, "output input"]) -> Float[Tensor, "output input"]:
        """Return the matrix with its update, in the matrix's dtype; differentiable."""
        if self.magnitude is None:
            return weight + ((self.lora_b @ self.lora_a) * self.scale).to(weight.dtype)
        whole = weight + (self.lora_b @ self.lora_a) * self.scale
        return (self._factor(weight)[:, None] * whole).to(weight.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the weight with the update added, and the same bias."""
        delta = self.delta()
        if self.magnitude is not None:
            base = base.float()
            whole = base + delta
            delta = (self.magnitude.float() / whole.norm(dim=1))[:, None] * whole - base
        return weight + delta, bias

    def _factor(self, weight: Tensor) -> Float[Tensor, " output"]:
        """Return what each row of the updated matrix is multiplied by."""
        assert self.magnitude is not None
        with torch.no_grad():
            norm: Tensor = (weight + (self.lora_b @ self.lora_a) * self.scale).norm(dim=1)
        return self.magnitude / norm.to(self.magnitude.dtype)


class LowRankEmbedding(LowRank):
    """The same for a token embedding, whose columns are the outputs: its rows are added lora_b lora_a[:, id].

    Args:
        weight: The embedding, (vocabulary, hidden).
        settings: As `LowRank` takes them.
    """

    def __init__(self, weight: Tensor, **settings: Any) -> None:
        super().__init__(weight.t(), **settings)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Make `lora_a` zero and draw `lora_b` normally, as peft does for embeddings."""
        self.lora_a.zero_()
        draw_normal(self.lora_b, 1.0, draw)

    def forward(self, module: Any, inner: Call, x: Int[Tensor, ...]) -> Float[Tensor, "... hidden"]:
        """Return the embeddings of token ids, with the update."""
        out: Tensor = inner(x)
        update = F.embedding(x, self.lora_a.t()) @ self.lora_b.t() * self.scale
        if self.magnitude is None:
            return out + update
        factor = self._factor(module.weight.t())
        shifted: Tensor = out + (factor - 1) * F.embedding(x, module.weight) + factor * update
        return shifted

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the embedding with the update added."""
        return super().merged(weight.t(), None, base.t())[0].t(), bias


class LowRankHead(LowRank, NetworkPart):
    """The same for the matrix of the head, which a network multiplies itself: (vocabulary, hidden).

    Where the head is tied to the embedding, the embedding stays as it is (peft#2018).
    """

    def head_weight(self, weight: Float[Tensor, "vocabulary hidden"]) -> Float[Tensor, "vocabulary hidden"]:
        """Return the matrix of the head, with the update."""
        return self.updated(weight)


@ADAPTERS.register("lora")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(AdapterConfig):
    """Low-rank adaptation: an update of low rank beside the weights of some layers, which stay as they are.

    Args:
        rank: Of the update of each layer.
        alpha: The update is multiplied by alpha / rank.
        targets: Which layers have one: their names in the model ("query", "key", "value", "output", "gate", "up",
            "down"), longer ends of them ("attention.query"), patterns ("blocks.0.*"), "all-linear" for all of the
            blocks, "embedding" and "head".
        rank_stabilized: Whether it is multiplied by alpha / sqrt(rank) instead.
        dora: Whether the updated rows have norms of their own, which are trained too.
        rank_pattern: Other ranks, by names, ends or patterns as in `targets`; the first that fits holds.
        alpha_pattern: The same of alpha.
        fused: Whether layers that the family's files hold as one tensor (GPT-2's c_attn: query, key and value) share
            `lora_a`, as peft trains them.

    Raises:
        UserError: A value is out of range.

    Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rank-stabilized); Liu et al. 2024,
        arXiv:2402.09353 (DoRA).
    """

    name: ClassVar[str] = "lora"
    label: ClassVar[str] = "LoRA"

    rank: int = 8
    alpha: float | int = 16
    targets: tuple[str, ...] | list[str] | str = ("query", "value")
    rank_stabilized: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    fused: bool = False

    def __post_init__(self) -> None:
        """Check every range."""
        check_count(self.rank, "rank", self.label)
        check_number(self.alpha, "alpha", self.label)
        object.__setattr__(self, "targets", checked_targets(self.targets, self.label))
        for name, check in (("rank_pattern", check_count), ("alpha_pattern", check_number)):
            pattern = getattr(self, name)
            if not isinstance(pattern, Mapping) or not all(isinstance(key, str) for key in pattern):
                raise UserError(
                    f"{name} must map names of layers to numbers, not {pattern!r}.", where=self.label
                )
            for key, value in pattern.items():
                check(value, f"{name}[{key!r}]", self.label)
            object.__setattr__(self, name, dict(pattern))

    def rank_of(self, layer: str) -> int:
        """Return the rank of a layer's update."""
        return next((each for key, each in self.rank_pattern.items() if is_named(layer, key)), self.rank)

    def scale_of(self, layer: str) -> float:
        """Return what a layer's update is multiplied by."""
        alpha = next((each for key, each in self.alpha_pattern.items() if is_named(layer, key)), self.alpha)
        rank = self.rank_of(layer)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return an update for each layer; that of the head belongs to the network."""
        targets = cast("tuple[str, ...]", self.targets)
        layers = [target for target in targets if target not in (EMBEDDING, HEAD)]
        out: dict[str, Part] = {
            name: LowRank(cast(nn.Linear, model.get_submodule(name)).weight, **self._settings(name))
            for name in (linear_layers(model, layers, self.label) if layers else [])
        }
        if EMBEDDING in targets or HEAD in targets:
            if not isinstance(model, Network) or not hasattr(model, "head_weight"):
                raise UserError("The model has no embedding and head of its own.", where=self.label)
            weight = cast(nn.Embedding, model.get_submodule(EMBEDDING)).weight
            if EMBEDDING in targets:
                out[EMBEDDING] = LowRankEmbedding(weight, **self._settings(EMBEDDING))
            if HEAD in targets:
                is_separate = isinstance(model, GenerativeNetwork) and model.head is not None
                matrix = cast(nn.Linear, model.head).weight if is_separate else weight
                out[""] = LowRankHead(matrix, **self._settings(HEAD))
        if self.fused:
            _share(model, out)
        return out

    def describe(self) -> str:
        """Return rank and alpha, and what kind it is."""
        kinds = [
            name for name, is_so in (("rank-stabilized", self.rank_stabilized), ("DoRA", self.dora)) if is_so
        ]
        return ", ".join([f"rank {self.rank}", f"alpha {self.alpha:g}", *kinds])

    def _settings(self, layer: str) -> dict[str, Any]:
        return {"rank": self.rank_of(layer), "scale": self.scale_of(layer), "dora": self.dora}


def _share(model: nn.Module, parts: Mapping[str, Part]) -> None:
    """Let the updates of layers that the family's files hold as one tensor share `lora_a`."""
    assert isinstance(model, Network)
    for rule in FAMILIES[model.config.family].rules(model.config):
        names = [target.removesuffix(".weight") for target in rule.targets if target.endswith(".weight")]
        held = [cast(LowRank, parts[name]) for name in names if name in parts]
        for part in held[1:]:
            if part.lora_a.shape != held[0].lora_a.shape:
                raise UserError("Layers of one tensor must have one rank.", where="LoRA")
            part.lora_a = held[0].lora_a
