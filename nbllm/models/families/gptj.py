"""GPT-J (Wang and Komatsuzaki 2021): parallel blocks, interleaved rotary positions, a head with a bias."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LAYER_NORM_DECODER, plain_heads, rules_of

_FIXED: dict[str, Any] = {
    **LAYER_NORM_DECODER,
    "positions": "rotary",
    "rotary_interleaved": True,
    "parallel_block": True,
    "shared_norm": True,
    "attention_bias": False,
    "feed_forward_bias": True,
    "tie_embeddings": False,
    "head_bias": True,
}


def read(settings: ConfigReader) -> ModelConfig:
    """Read a GPTJConfig."""
    hidden_size = settings.integer("n_embd", 4096)
    num_heads = settings.integer("n_head", 16)
    settings.required("rotary_dim")  # transformers would rotate by frequencies of the width of the model
    head_dim = max(hidden_size // num_heads, 1)
    settings.only("rotary", True)
    settings.only("scale_attn_weights", True)
    settings.only("tie_word_embeddings", False)
    return ModelConfig(
        family="gptj",
        vocab_size=settings.integer("vocab_size", 50400),
        hidden_size=hidden_size,
        num_layers=settings.integer("n_layer", 28),
        num_heads=num_heads,
        intermediate_size=settings.integer("n_inner", 4 * hidden_size),
        max_positions=settings.integer("n_positions", 2048),
        rotary_fraction=settings.integer("rotary_dim", 64, most=head_dim) / head_dim,
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=settings.choice("activation_function", "gelu_new", ACTIVATIONS),
        initializer_range=settings.number("initializer_range", 0.02),
        **_FIXED,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a GPTJConfig's values."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": False,
        "initializer_range": config.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("transformer.wte.weight", ("embedding.weight",))]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        matrices = (
            ("attn.q_proj", "attention.query"),
            ("attn.k_proj", "attention.key"),
            ("attn.v_proj", "attention.value"),
            ("attn.out_proj", "attention.output"),
        )
        biased = (
            ("ln_1", "attention_norm"), ("mlp.fc_in", "feed_forward.up"), ("mlp.fc_out", "feed_forward.down"),
        )  # fmt: skip
        for parts, bias in ((matrices, False), (biased, True)):
            out += rules_of([(f"{theirs}.{their}", f"{ours}.{our}") for their, our in parts], bias=bias)
    return out + rules_of([("transformer.ln_f", "norm"), ("lm_head", "head")], bias=True)


FAMILIES.register("gptj")(
    Family(
        name="gptj",
        label="GPT-J",
        architecture="GPTJForCausalLM",
        base_prefix="transformer.",
        of_head=re.compile(r"lm_head\.(weight|bias)"),
        fixed=_FIXED,
        varied=frozenset({"rotary_fraction"}),
        read=read,
        write=write,
        rules=rules,
        unused=re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
        requirements=(plain_heads,),
    )
)
