"""Recommended sampling settings in GGUF's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gguf import GGUFValueType

from nbllm.models.gguf.header import Header

if TYPE_CHECKING:
    from gguf import GGUFWriter

# GGUF's penalty looks back over a window, `SamplingConfig`'s over everything: that is another setting.
_KEYS = {
    "temperature": ("general.sampling.temp", GGUFValueType.FLOAT32),
    "top_k": ("general.sampling.top_k", GGUFValueType.INT32),
    "top_p": ("general.sampling.top_p", GGUFValueType.FLOAT32),
    "min_p": ("general.sampling.min_p", GGUFValueType.FLOAT32),
}


def read_sampling(header: Header) -> dict[str, Any]:
    """Return what a file states, by the names of `SamplingConfig`: unchecked, None where it states nothing."""
    stated = {name: header.metadata.get(key) for name, (key, _) in _KEYS.items()}
    return {name: _short(value) for name, value in stated.items()}


def write_sampling(writer: GGUFWriter, sampling: Mapping[str, Any]) -> None:
    """Write the settings of `SamplingConfig` that GGUF has names for."""
    for name, (key, kind) in _KEYS.items():
        if sampling.get(name) is not None:
            writer.add_key_value(key, sampling[name], kind)


def _short(value: Any) -> Any:
    """Return a number of 32 bits as the decimal that it was."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
