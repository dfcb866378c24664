"""The settings of generation that a model's makers recommend, from the file beside its weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.io import read_json
from nbllm.core.terminal import shorten
from nbllm.inference.config import SamplingConfig

GENERATION_CONFIG = "generation_config.json"
MAX_BYTES = 16 << 20
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
BEAM_SETTINGS = ("num_beams", "length_penalty", "early_stopping")


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
    drawing = {name: values.get(name) for name in SETTINGS}
    if values.get("do_sample") is False:
        drawing = {"temperature": 0}
    searches = values.get("do_sample") is not True and values.get("num_beams") not in (None, 1)
    return drawing | ({name: values.get(name) for name in BEAM_SETTINGS} if searches else {})


def recommended_search(sampling: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the settings of beam search that a model's makers recommend.

    Args:
        sampling: What they recommend.
        given: Names of what a person has set; nothing is returned where one of them says how tokens are chosen.
    """
    if {*SETTINGS, *BEAM_SETTINGS, "seed", "stop", "overflow", "num_return_sequences"} & {*given}:
        return {}
    return {name: sampling[name] for name in BEAM_SETTINGS if name in sampling}


def generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return recommended settings in transformers' names, which `recommended_sampling` reads back."""
    drawing, searching = (
        {name: sampling[name] for name in names if sampling.get(name) is not None}
        for names in (SETTINGS, BEAM_SETTINGS)
    )
    if not drawing or drawing.get("temperature", 1) <= 0:
        return {"do_sample": False, **searching} if drawing or searching else {}
    return {**drawing, **searching} if searching else {"do_sample": True, **drawing}


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
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            # The others of a beam search stand only with their number.
            beams = {"num_beams": found["num_beams"]} if "num_beams" in found else {}
            SamplingConfig.from_dict({**(beams if name in BEAM_SETTINGS else {}), name: value})
        except UserError as error:
            warnings.warn(f"Of what {where} recommends, one setting is left out: {error.what}", stacklevel=3)
        else:
            found[name] = value
    return found
