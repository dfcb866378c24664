"""QLoRA: LoRA on a model whose own weights are held in 4 bits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import nn

from nbllm.core.errors import UserError
from nbllm.models.peft.adapted import Part
from nbllm.models.peft.lora import LoRA
from nbllm.models.peft.method import ADAPTERS
from nbllm.models.quantized import quantize_layers, quantized_layers


@ADAPTERS.register("qlora")
@dataclasses.dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """Low-rank adaptation of a model whose linear layers are held in 4 bits (NF4), which takes an eighth of float32.

    Where they are not yet, attaching it quantizes them; they stay so when the adapter is detached, until
    `lm.dequantize()`.

    Args:
        rank: As for `LoRA`.
        alpha: As for `LoRA`.
        targets: As for `LoRA`; all linear layers, as in the paper.
        rank_stabilized: As for `LoRA`.
        dora: As for `LoRA`.
        rank_pattern: As for `LoRA`.
        alpha_pattern: As for `LoRA`.
        fused: As for `LoRA`.
        block_size: Weights that share a scale.
        double_quantization: Whether the scales are quantized too.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """

    name: ClassVar[str] = "qlora"
    label: ClassVar[str] = "QLoRA"

    targets: tuple[str, ...] | list[str] | str = "all-linear"
    block_size: int = 64
    double_quantization: bool = True

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        if type(self.block_size) is not int or self.block_size < 2 or self.block_size % 2:
            raise UserError(
                f"block_size must be an even number above 0, not {self.block_size!r}.", where=self.label
            )

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return an update for each layer; quantize the layers first where they are not."""
        made = super().parts(model)  # which refuses targets that the model lacks, before anything is changed
        if quantized_layers(model):
            return made
        quantize_layers(model, block_size=self.block_size, double_quantization=self.double_quantization)
        return super().parts(model)

    def describe(self) -> str:
        """Return rank and alpha, and how the model is held."""
        return f"{super().describe()}, on weights in 4 bits"
