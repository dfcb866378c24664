"""The sampling settings that a model's makers recommend, from the file beside its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig

GENERATION_CONFIG = "generation_config.json"
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_recommended(directory: Path) -> dict[str, Any]:
    """Return the settings that a model directory recommends, named as in `SamplingConfig`; unchecked, some may be None.

    A file that cannot be read is ignored with a warning.
    """
    file = directory / GENERATION_CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"What {file} recommends cannot be read: {error}", stacklevel=3)
        return {}
    if not isinstance(values, dict):
        warnings.warn(f"What {file} recommends cannot be read: it is no object.", stacklevel=3)
        return {}
    if values.get("do_sample") is False:
        return {"temperature": 0}
    return {name: values.get(name) for name in SETTINGS}


def generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return recommended settings in transformers' names, which `read_recommended` reads back."""
    stated = {name: sampling[name] for name in SETTINGS if sampling.get(name) is not None}
    if not stated:
        return {}
    return {"do_sample": True, **stated} if stated.get("temperature", 1) > 0 else {"do_sample": False}


def usable(values: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Return the settings that are stated (not None) and that `SamplingConfig` accepts; warn of the others."""
    found = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            SamplingConfig.from_dict({name: value})
        except UserError as error:
            warnings.warn(f"Of what {where} recommends, one setting is left out: {error.what}", stacklevel=3)
        else:
            found[name] = value
    return found
