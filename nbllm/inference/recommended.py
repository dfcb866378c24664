"""The settings of generation that a model's makers recommend, from the file beside its weights."""

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
SEARCH_SETTINGS = (
    "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size", "max_new_tokens", "min_new_tokens",
)  # fmt: skip
# Settings that would change a text and that there are not here, each with the values that change nothing.
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],), "begin_suppress_tokens": ([],), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "force_words_ids": ([],),
    "exponential_decay_length_penalty": (), "forced_decoder_ids": ([],), "guidance_scale": (1,), "penalty_alpha": (0,),
    "sequence_bias": ([], {}), "suppress_tokens": ([],), "typical_p": (1,),
}  # fmt: skip
_LEFT_OUT_OF_BEAMS: dict[str, tuple[Any, ...]] = {"num_beam_groups": (1,), "diversity_penalty": (0,)}


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


def warn_of_left_out(values: Mapping[str, Any], where: Path) -> None:
    """Warn of the settings of a generation configuration that would change a text and that there are not here."""
    beams = {} if values.get("num_beams") in (None, 1) else _LEFT_OUT_OF_BEAMS
    names = [
        name
        for name, unused in (_LEFT_OUT | beams).items()
        if values.get(name) is not None and values[name] not in unused
    ]
    if names:
        text = f"Of what {where} recommends, {', '.join(names)} is left out: nbllm has no such setting."
        warnings.warn(text, stacklevel=3)


def recommended_lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generation configuration with `max_new_tokens` and `min_new_tokens` for what it calls lengths.

    Those count all tokens of a text: in an encoder-decoder, the new ones and the one that the text begins with.
    """
    lengths = {
        f"{end}_new_tokens": values[f"{end}_length"] - 1
        for end in ("max", "min")
        if type(values.get(f"{end}_length")) is int and values[f"{end}_length"] > 1
    }
    return {**lengths, **{name: value for name, value in values.items() if value is not None}}


def recommended_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a generation configuration recommends, by the names of `SamplingConfig`: unchecked, None: nothing."""
    drawing = {name: values.get(name) for name in SETTINGS}
    if values.get("do_sample") is False:
        drawing = {"temperature": 0}
    searches = values.get("do_sample") is not True and values.get("num_beams") not in (None, 1)
    return drawing | ({name: values.get(name) for name in SEARCH_SETTINGS} if searches else {})


def recommended_search(sampling: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of beam search that a model's makers recommend.

    Args:
        sampling: What they recommend.
        given: What a person has set; nothing is returned where one of them says how tokens are chosen.
    """
    lengths = {"max_new_tokens", "min_new_tokens"}
    how = {*SETTINGS, *SEARCH_SETTINGS, "seed", "stop", "overflow", "num_return_sequences"} - lengths
    if how & {*given} or "num_beams" not in sampling:
        return {}
    unless_given = lengths if lengths & {*given} else set()
    return {name: sampling[name] for name in SEARCH_SETTINGS if name in sampling and name not in unless_given}


def generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return recommended settings in transformers' names, which `recommended_sampling` reads back."""
    drawing, searching = (
        {name: sampling[name] for name in names if sampling.get(name) is not None}
        for names in (SETTINGS, SEARCH_SETTINGS)
    )
    if not drawing:
        return searching
    if drawing.get("temperature", 1) <= 0:
        return {"do_sample": False, **searching}
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
            # The others of a beam search stand only with their number, and the fewest tokens with the most.
            others = {other: found[other] for other in SEARCH_SETTINGS if other in found}
            SamplingConfig.from_dict({**(others if name in SEARCH_SETTINGS else {}), name: value})
        except UserError as error:
            warnings.warn(f"Of what {where} recommends, one setting is left out: {error.what}", stacklevel=3)
        else:
            found[name] = value
    return found
