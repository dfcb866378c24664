"""Every family, found by its file."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from nbllm.models.families.registry import FAMILIES as FAMILIES

for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"{__package__}.{_module.name}")
