"""BART (Lewis et al. 2020, arXiv:1910.13461): an encoder-decoder of BERT's parts, with two unused position rows."""

from __future__ import annotations

import re
from typing import Any

from nbllm.core.errors import WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, HEAD, Family, Tensors, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import plain_heads, rules_of

# What BART cannot vary.
BART: dict[str, Any] = {
    "network": "encoder_decoder",
    "positions": "learned",
    "position_offset": 2,
    "norm": "layer_norm",
    "norm_placement": "post",
    "norm_eps": 1e-5,
    "embedding_norm": True,
    "gated": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
    "scale_head": False,
}
_SIZES = {"attention_heads": 16, "ffn_dim": 4096}  # what a stack has where its size is not stated
_BIAS = "final_logits_bias"
_ATTENTION = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
# Settings of old files, each with the one value that transformers' BART computes.
_OLD = {
    "add_bias_logits": False, "add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True,
    "static_position_embeddings": False, "extra_pos_embeddings": 2,
}  # fmt: skip


def read(settings: ConfigReader) -> ModelConfig:
    """Read a BartConfig. Both stacks have as many heads and are as wide; they may differ in depth."""
    settings.only("is_encoder_decoder", True)
    for name, value in _OLD.items():
        settings.only(name, value)
    for remark in (
        "classif_dropout", "decoder_layerdrop", "encoder_layerdrop", "force_bos_token_to_be_generated",
        "num_hidden_layers",
    ):  # fmt: skip
        settings.ignore(remark)
    layers = settings.integer("encoder_layers", 12)
    heads, inner = (settings.integer(f"encoder_{size}", usual) for size, usual in _SIZES.items())
    for size, ours in (("attention_heads", heads), ("ffn_dim", inner)):
        if settings.integer(f"decoder_{size}", _SIZES[size]) != ours:
            raise WeightsError(
                f"encoder_{size} and decoder_{size} differ; nbllm implements only equal ones.",
                where=settings.where(f"decoder_{size}"),
            )
    return ModelConfig(
        family="bart",
        **BART,
        vocab_size=settings.integer("vocab_size", 50265),
        hidden_size=settings.integer("d_model", 1024),
        intermediate_size=inner,
        num_layers=layers,
        num_decoder_layers=settings.integer("decoder_layers", 12),
        num_heads=heads,
        max_positions=settings.integer("max_position_embeddings", 1024),
        activation=settings.choice("activation_function", "gelu", ACTIVATIONS),
        scale_embedding=settings.flag("scale_embedding", False),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        initializer_range=settings.number("init_std", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a BartConfig's values."""
    sizes = {"attention_heads": config.num_heads, "ffn_dim": config.intermediate_size}
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        **{f"{stack}_{size}": value for stack in ("encoder", "decoder") for size, value in sizes.items()},
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
        "max_position_embeddings": config.max_positions,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "scale_embedding": config.scale_embedding,
        "tie_word_embeddings": config.tie_embeddings,
        "init_std": config.initializer_range,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("model.shared.weight", ("embedding.weight",))]
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        theirs = f"model.{stack}"
        out.append(WeightRule(f"{theirs}.embed_positions.weight", (f"{stack}.positions.weight",)))
        out += rules_of([(f"{theirs}.layernorm_embedding", f"{stack}.embedding_norm")], bias=True)
        attentions = [("self_attn", "attention")]
        if stack == "decoder":
            attentions.append(("encoder_attn", "cross_attention"))
        names = [
            ("fc1", "feed_forward.up"),
            ("fc2", "feed_forward.down"),
            ("final_layer_norm", "feed_forward_norm"),
        ]
        for their, our in attentions:
            names += [(f"{their}.{matrix}", f"{our}.{name}") for matrix, name in _ATTENTION]
            names.append((f"{their}_layer_norm", f"{our}_norm"))
        for layer in range(layers):
            pairs = [
                (f"{theirs}.layers.{layer}.{their}", f"{stack}.blocks.{layer}.{our}") for their, our in names
            ]
            out += rules_of(pairs, bias=True)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    if config.head_bias:
        out.append(WeightRule(_BIAS, ("head_bias",), is_row=True))
    return out


def _has_bias(config: ModelConfig, tensors: Tensors) -> bool:
    """Return whether the logits' bias is anything but zero, which it is in all that its authors published."""
    return _BIAS in tensors and not tensors.is_zero(_BIAS)


FAMILIES.register("bart")(
    Family(
        name="bart",
        label="BART",
        architecture="BartForConditionalGeneration",
        base_prefix="model.",
        of_head=re.compile(rf"{re.escape(HEAD)}|{_BIAS}"),
        optional={"head_bias": _has_bias},
        unless_zero=_BIAS,
        decoder_start="eos_token_id",
        fixed=BART,
        varied=frozenset(
            {"position_offset", "head_bias", "num_decoder_layers", "scale_embedding", "embedding_norm"}
        ),
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=re.compile(r"model\.(encoder|decoder)\.(embed_tokens\.weight|version)"),
        requirements=(plain_heads,),
    )
)
