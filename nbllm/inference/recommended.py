"""The sampling settings that a model's makers recommend, from the file beside its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.io import read_json
from nbllm.core.terminal import shorten
from nbllm.inference.config import SamplingConfig

GENERATION_CONFIG = "generation_config.json"
MAX_BYTES = 16 << 20
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Return what `generation_config.json` holds, unchecked; nothing where there is none.

    A file that cannot be read is ignored with a warning.
    """
    file = directory / GENERATION_CONFIG
    try:
        values = read_json(file, MAX_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"What {file} recommends cannot be read: {error}", stacklevel=3)
        return {}
    if not isinstance(values, dict):
        warnings.warn(f"What {file} recommends cannot be read: it is no object.", stacklevel=3)
        return {}
    return values


def recommended_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a generation configuration recommends, by the names of `SamplingConfig`: unchecked, None: nothing."""
    if values.get("do_sample") is False:
        return {"temperature": 0}
    return {name: values.get(name) for name in SETTINGS}


def generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return recommended settings in transformers' names, which `recommended_sampling` reads back."""
    stated = {name: sampling[name] for name in SETTINGS if sampling.get(name) is not None}
    if not stated:
        return {}
    return {"do_sample": True, **stated} if stated.get("temperature", 1) > 0 else {"do_sample": False}


def usable_end_tokens(value: object, vocab_size: int, where: Path | None) -> tuple[int, ...]:
    """Return the end tokens that a configuration states, a number or a list of them; warn of what is neither.

    Args:
        value: What it states; None: nothing.
        vocab_size: Of the model; each token is below it.
        where: The file, for warnings; None: without a warning.
    """
    stated = value if isinstance(value, list) else [] if value is None else [value]
    good = [type(token) is int and 0 <= token < vocab_size for token in stated]
    if where is not None and not all(good):
        wrong = stated[good.index(False)]
        text = shorten(repr(wrong), 100)
        warnings.warn(f"Of the end tokens that {where} states, {text} is left out: no token.", stacklevel=3)
    return tuple(dict.fromkeys(token for token, fine in zip(stated, good, strict=True) if fine))


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
