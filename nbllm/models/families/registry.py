"""Where families enter themselves."""

from __future__ import annotations

from nbllm.core.registry import Registry
from nbllm.models.families.base import Family

FAMILIES: Registry[Family] = Registry("model family")
