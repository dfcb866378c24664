"""RWKV-4 (Peng et al. 2023): a recurrent network; in files its parts carry the names of a transformer's."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import rules_of, usual_head_dim

RWKV_NETWORK: dict[str, Any] = {
    "network": "rwkv",
    "num_heads": 1,
    "positions": "none",
    "norm": "layer_norm",
    "norm_placement": "pre",
    "embedding_norm": True,
    "activation": "relu_squared",
    "gated": False,
    "attention_bias": False,
    "feed_forward_bias": False,
}


def read(settings: ConfigReader) -> ModelConfig:
    """Read a RwkvConfig."""
    hidden_size = settings.integer("hidden_size", 4096)
    settings.only("attention_hidden_size", hidden_size)
    return ModelConfig(
        family="rwkv",
        vocab_size=settings.integer("vocab_size", 50277),
        hidden_size=hidden_size,
        num_layers=settings.integer("num_hidden_layers", 32),
        intermediate_size=settings.integer("intermediate_size", 4 * hidden_size),
        max_positions=settings.integer("context_length", 1024),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        rescale_every=settings.integer("rescale_every", 6, least=0),
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        **RWKV_NETWORK,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a RwkvConfig's values."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "attention_hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.intermediate_size,
        "context_length": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "rescale_every": config.rescale_every,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("rwkv.embeddings.weight", ("embedding.weight",))]
    out += rules_of([("rwkv.blocks.0.pre_ln", "embedding_norm")], bias=True)
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"rwkv.blocks.{layer}"
        norms = [
            (f"{theirs}.ln1", f"{ours}.time_mixing_norm"),
            (f"{theirs}.ln2", f"{ours}.channel_mixing_norm"),
        ]
        out += rules_of(norms, bias=True)
        parts = (
            ("attention", "time_mixing", ("key", "value", "receptance"), ("output",)),
            ("feed_forward", "channel_mixing", ("key", "receptance"), ("value",)),
        )
        for their_part, our_part, mixed, others in parts:
            their_name, our_name = f"{theirs}.{their_part}", f"{ours}.{our_part}"
            out += [
                WeightRule(f"{their_name}.time_mix_{name}", (f"{our_name}.mix_{name}",)) for name in mixed
            ]
            out += rules_of(
                [(f"{their_name}.{name}", f"{our_name}.{name}") for name in (*mixed, *others)], bias=False
            )
        out += [
            WeightRule(f"{theirs}.attention.{their_name}", (f"{ours}.time_mixing.{our_name}",))
            for their_name, our_name in (("time_decay", "decay"), ("time_first", "bonus"))
        ]
    out += rules_of([("rwkv.ln_out", "norm")], bias=True)
    return out if config.tie_embeddings else [*out, *rules_of([("head", "head")], bias=False)]


FAMILIES.register("rwkv")(
    Family(
        name="rwkv",
        label="RWKV",
        architecture="RwkvForCausalLM",
        base_prefix="rwkv.",
        head="head.weight",
        of_head=re.compile(r"head\.weight"),
        fixed=RWKV_NETWORK,
        varied=frozenset({"embedding_norm", "rescale_every"}),
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=re.compile("nothing"),
        requirements=(usual_head_dim,),
    )
)
