"""Prompt tuning, P-tuning and prefix tuning in peft's files, which hold the virtual tokens as they are computed with.

What made them in training, a prompt encoder or a reparametrization, is not there: what is opened again can be used and
trained on, without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.network import Network
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.p_tuning import PTuning
from nbllm.models.peft.peft_format import TASKS, PeftFormat, check_settings
from nbllm.models.peft.prefix_tuning import KeysAndValues, PrefixTuning
from nbllm.models.peft.prompt_tuning import PromptTuning, prompt_width

_EMBEDDINGS = "prompt_embeddings"
_KNOWN = """
    encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type init_weights
    num_attention_heads num_layers num_transformer_submodules num_virtual_tokens prefix_projection prompt_tuning_init
    prompt_tuning_init_text token_dim tokenizer_kwargs tokenizer_name_or_path
"""


def read_prompt(
    model: Network, config: Mapping[str, Any], tensors: dict[str, Tensor], where: Path
) -> tuple[PromptTuning, dict[str, Tensor]]:
    """Return settings and values; see `PeftFormat`."""
    rows = _read(config, tensors, prompt_width(model), where)
    return PromptTuning(num_virtual_tokens=len(rows)), {"embedding": rows}


def read_prefix(
    model: Network, config: Mapping[str, Any], tensors: dict[str, Tensor], where: Path
) -> tuple[PrefixTuning, dict[str, Tensor]]:
    """Return settings and values; see `PeftFormat`."""
    shape = model.config
    layers = shape.num_decoder_layers or shape.num_layers
    rows = _read(config, tensors, layers * 2 * shape.num_kv_heads * shape.head_dim, where)
    is_pair = shape.network == "encoder_decoder"
    method = PrefixTuning(num_virtual_tokens=len(rows), prefix_projection=False, peft_order=is_pair)
    return method, {"embedding": rows}


@torch.no_grad()
def write_prompt(model: Network, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors; see `PeftFormat`."""
    rows = cast(Any, adapter.parts[""]).prompt().detach().cpu()
    return {**_config(model, len(rows), rows.shape[1]), "peft_type": "PROMPT_TUNING"}, {_EMBEDDINGS: rows}


@torch.no_grad()
def write_encoded_prompt(model: Network, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors; see `PeftFormat`."""
    config, tensors = write_prompt(model, adapter)
    settings = cast(PTuning, adapter.config)
    encoder = {
        "peft_type": "P_TUNING",
        "encoder_reparameterization_type": settings.encoder.upper(),
        "encoder_hidden_size": settings.encoder_hidden_size or config["token_dim"],
        "encoder_num_layers": settings.encoder_num_layers,
        "encoder_dropout": 0.0,
    }
    return config | encoder, tensors


@torch.no_grad()
def write_prefix(model: Network, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors; see `PeftFormat`."""
    shape = model.config
    rows = cast(KeysAndValues, adapter.parts[""]).flat().detach().cpu()
    config = {
        **_config(model, len(rows), shape.num_kv_heads * shape.head_dim),
        "peft_type": "PREFIX_TUNING",
        "num_attention_heads": shape.num_kv_heads,
        "num_layers": shape.num_decoder_layers or shape.num_layers,
        "prefix_projection": False,  # of what the file holds
        "encoder_hidden_size": shape.hidden_size,
    }
    if shape.network == "encoder_decoder":
        if not cast(PrefixTuning, adapter.config).peft_order:
            raise UserError(
                "peft gives the layers of an encoder-decoder other parts of a prefix, and shares them.",
                hint="Train a prefix that it can open: nb.PrefixTuning(peft_order=True).",
            )
        config["num_transformer_submodules"] = 2
    return config, {_EMBEDDINGS: rows}


FORMATS = (
    PeftFormat("PROMPT_TUNING", ("prompt_tuning",), read_prompt, write_prompt, prefix=""),
    PeftFormat("P_TUNING", ("p_tuning",), read_prompt, write_encoded_prompt, prefix=""),
    PeftFormat("PREFIX_TUNING", ("prefix_tuning", "p_tuning_v2"), read_prefix, write_prefix, prefix=""),
)


def _config(model: Network, tokens: int, width: int) -> dict[str, Any]:
    return {
        "task_type": TASKS.get(model.config.network, "FEATURE_EXTRACTION"),
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": model.config.num_heads,
        "num_layers": model.config.num_layers,
    }


def _read(config: Mapping[str, Any], tensors: dict[str, Tensor], width: int, where: Path) -> Tensor:
    """Return the virtual tokens; of an encoder-decoder's prompts those of the encoder, which alone peft uses."""
    check_settings(config, _KNOWN, where)
    rows, count = tensors.pop(_EMBEDDINGS, None), config.get("num_virtual_tokens")
    if (
        rows is None
        or rows.ndim != 2
        or rows.shape[1] != width
        or type(count) is not int
        or not 0 < count <= len(rows)
    ):
        shape = None if rows is None else tuple(rows.shape)
        raise WeightsError(
            f"The adapter does not belong to this model: its virtual tokens are {shape}, {count!r} of width {width} "
            "are needed.",
            where=where,
        )
    return rows[:count]
