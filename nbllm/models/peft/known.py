"""All methods: importing this module registers each."""

from __future__ import annotations

from nbllm.models.peft import bitfit, ia3, lora
from nbllm.models.peft.method import ADAPTERS

__all__ = ["ADAPTERS", "bitfit", "ia3", "lora"]
