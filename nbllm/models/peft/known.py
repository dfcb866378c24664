"""All methods: importing this module registers each."""

from __future__ import annotations

from nbllm.models.peft import bitfit, bottleneck, ia3, lora, p_tuning, prefix_tuning, prompt_tuning, qlora
from nbllm.models.peft.method import ADAPTERS

__all__ = [
    "ADAPTERS",
    "bitfit",
    "bottleneck",
    "ia3",
    "lora",
    "p_tuning",
    "prefix_tuning",
    "prompt_tuning",
    "qlora",
]
