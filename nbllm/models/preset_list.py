"""The presets as a table: every shape that `LM.new` knows by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import overload

from nbllm.core.errors import UserError, nearest
from nbllm.core.text_table import text_table
from nbllm.models.config import ModelConfig
from nbllm.models.network import count_parameters
from nbllm.models.presets import PRESETS, make_config

HEADER = ("name", "family", "architecture", "layers", "width", "heads", "context", "parameters", "source")
# By the beginning of a name; the longest that fits.
SOURCES = {
    "albert": "Lan et al. 2020, arXiv:1909.11942",
    "bart": "Lewis et al. 2020, arXiv:1910.13461",
    "bert": "Devlin et al. 2019, arXiv:1810.04805",
    "bloom": "BigScience 2022, arXiv:2211.05100",
    "distilbert": "Sanh et al. 2019, arXiv:1910.01108",
    "flan-t5": "Chung et al. 2022, arXiv:2210.11416",
    "gemma2": "Gemma Team 2024, arXiv:2408.00118",
    "gemma-2": "Gemma Team 2024, arXiv:2408.00118",
    "gemma3": "Gemma Team 2025, arXiv:2503.19786",
    "gemma-3": "Gemma Team 2025, arXiv:2503.19786",
    "glm": "GLM Team 2024, arXiv:2406.12793",
    "glm-base": "Du et al. 2022, arXiv:2103.10360",
    "glm-large": "Du et al. 2022, arXiv:2103.10360",
    "glm-10b": "Du et al. 2022, arXiv:2103.10360",
    "glm-130b": "Zeng et al. 2022, arXiv:2210.02414",
    "gopher": "Rae et al. 2021, arXiv:2112.11446",
    "gpt2": "Radford et al. 2019 (GPT-2)",
    "gpt-j": "Wang and Komatsuzaki 2021",
    "gptj": "Wang and Komatsuzaki 2021",
    "gpt_neox": "Biderman et al. 2023, arXiv:2304.01373",
    "llama": "none: the parts of LLaMA in GPT-2's size",
    "llama-7b": "Touvron et al. 2023, arXiv:2302.13971",
    "llama-3": "Llama Team 2024, arXiv:2407.21783",
    "minilm": "Wang et al. 2020, arXiv:2002.10957",
    "mistral": "Jiang et al. 2023, arXiv:2310.06825",
    "mixtral": "Jiang et al. 2024, arXiv:2401.04088",
    "opt": "Zhang et al. 2022, arXiv:2205.01068",
    "palm": "Chowdhery et al. 2022, arXiv:2204.02311",
    "phi": "Li et al. 2023, arXiv:2309.05463",
    "phi-2": "Javaheripi et al. 2023 (Phi-2)",
    "pythia": "Biderman et al. 2023, arXiv:2304.01373",
    "qwen2": "none: the parts of Qwen2 in GPT-2's size",
    "qwen2-": "Yang et al. 2024, arXiv:2407.10671",
    "qwen3": "Yang et al. 2025, arXiv:2505.09388",
    "roberta": "Liu et al. 2019, arXiv:1907.11692",
    "rwkv": "Peng et al. 2023, arXiv:2305.13048",
    "smollm2": "Ben Allal et al. 2025, arXiv:2502.02737",
    "t5": "Raffel et al. 2020, arXiv:1910.10683",
    "tinyllama": "Zhang et al. 2024, arXiv:2401.02385",
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A shape with a name.

    Attributes:
        name: What `LM.new` and `make_config` take.
        config: The shape.
        num_parameters: How many elements the parameters have, as many as a new model of it; a tied head counts once.
        source: The paper that it is from.
    """

    name: str
    config: ModelConfig
    num_parameters: int
    source: str


class PresetList(Sequence[Preset]):
    """Shapes with a name, shown in a cell as a table; `nbllm.LM.new(name, tokenizer=...)` makes a model of one.

    Args:
        presets: The shapes.
    """

    def __init__(self, presets: Sequence[Preset]) -> None:
        self._presets = tuple(presets)

    @overload
    def __getitem__(self, key: int) -> Preset: ...
    @overload
    def __getitem__(self, key: slice) -> PresetList: ...
    def __getitem__(self, key: int | slice) -> Preset | PresetList:
        return PresetList(self._presets[key]) if isinstance(key, slice) else self._presets[key]

    def __len__(self) -> int:
        return len(self._presets)

    def __iter__(self) -> Iterator[Preset]:
        return iter(self._presets)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows as text, in the order of `HEADER`."""
        return [_row(preset) for preset in self._presets]

    def __repr__(self) -> str:
        return text_table([HEADER, *self.rows()])

    def _repr_html_(self) -> str:
        from nbllm.core.html import Raw, escape, fragment, table

        rows = [  # a line each: the table is long, and what is wider than the page scrolls
            (*row[:-1], Raw(f'<span style="white-space: nowrap">{escape(row[-1])}</span>'))
            for row in self.rows()
        ]
        return fragment(table(rows, HEADER, row_headers=True))


def presets(family: str | None = None) -> PresetList:
    """Return the shapes that have a name, family by family: its usual one, and those of published models.

    Parameters are counted of a model without weights.

    Args:
        family: Only those of this family; None: all.

    Raises:
        UserError: No preset is of that family.
    """
    families = list(dict.fromkeys(values["family"] for values in PRESETS.values()))
    if family is not None and family not in families:
        raise UserError(f"No preset is of a family {family!r}.", hint=nearest(family, families))
    found = [_preset(name) for name in PRESETS if family in (None, PRESETS[name]["family"])]
    found.sort(key=lambda preset: (families.index(preset.config.family), preset.num_parameters))
    return PresetList(found)


def _preset(name: str) -> Preset:
    config = make_config(name)
    fitting = [beginning for beginning in SOURCES if name.startswith(beginning)]
    source = SOURCES[max(fitting, key=len)] if fitting else ""
    return Preset(name, config, count_parameters(config), source)


def _row(preset: Preset) -> tuple[str, ...]:
    config = preset.config
    recurrent = config.network == "rwkv"
    layers = f"{config.num_layers}"
    if config.num_decoder_layers:
        layers += f" + {config.num_decoder_layers}"
    heads = f"{config.num_heads}"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads})"
    return (
        preset.name,
        config.family,
        "recurrent" if recurrent else config.network.replace("_", "-"),
        layers,
        f"{config.hidden_size:,}",
        "-" if recurrent else heads,
        f"{config.max_positions:,}",
        _count(preset.num_parameters),
        preset.source,
    )


def _count(number: int) -> str:
    """Return a number of parameters with three digits.

    >>> _count(124_439_808), _count(7_241_732_096), _count(540_000_000_000)
    ('124 M', '7.24 B', '540 B')
    """
    value, unit = (number / 1e9, "B") if number >= 0.9995e9 else (number / 1e6, "M")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
