"""The `config.json` that a Megatron-LM checkpoint's own arguments say, where the model is one of a known family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import WeightsError

# What must not be set, for it changes what the model computes and no family here has it so.
_UNKNOWN = {
    "num_experts": "a mixture of experts",
    "multi_latent_attention": "multi-latent attention",
    "squared_relu": "squared ReLU",
    "attention_output_gate": "gated attention",
    "window_size": "a sliding window",
    "rotary_interleaved": "interleaved rotary positions",
    "rotary_seq_len_interpolation_factor": "interpolated rotary positions",
    "apply_residual_connection_post_layernorm": "norms after the residual connection",
}


def config_of_arguments(arguments: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Return the values of a `config.json` of the family llama, qwen2, qwen3 or gpt2.

    Args:
        arguments: Those of Megatron-LM.
        where: The checkpoint, for errors.

    Raises:
        WeightsError: The model is of none of these families, or the arguments do not say its shape.
    """
    for name, what in _UNKNOWN.items():
        if arguments.get(name):
            raise _unknown(f"The model has {what} ({name}).", where)
    try:
        if arguments["normalization"] == "RMSNorm" and arguments["swiglu"]:
            return _llama(arguments, where)
        positions = arguments["position_embedding_type"]
        if arguments["normalization"] == "LayerNorm" and positions == "learned_absolute":
            return _gpt2(arguments, where)
    except KeyError as error:
        raise _unknown(f"The checkpoint's arguments do not say {error}.", where) from None
    raise _unknown(
        f"A model with {arguments['normalization']}, {positions} positions and swiglu={arguments['swiglu']} is of no "
        "family that is known by its arguments.",
        where,
    )


def _unknown(what: str, where: Path) -> WeightsError:
    return WeightsError(
        what, where=where, hint="Put the model's config.json of Hugging Face's layout into the folder."
    )


def _llama(arguments: Mapping[str, Any], where: Path) -> dict[str, Any]:
    biases, qkv_biases = bool(arguments.get("add_bias_linear")), bool(arguments.get("add_qkv_bias"))
    heads = arguments["num_attention_heads"]
    if arguments["position_embedding_type"] != "rope" or arguments.get("rotary_percent", 1.0) != 1.0:
        raise _unknown("The positions are not rotary over whole heads.", where)
    if arguments.get("qk_layernorm"):
        family = "qwen3"
    else:
        family = "qwen2" if qkv_biases and not biases else "llama"
    if family == "qwen3" and (biases or qkv_biases):
        raise _unknown("The model has both norms of queries and keys and biases.", where)
    values = {
        "model_type": family,
        **_shape(
            arguments, "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"
        ),
        "intermediate_size": arguments["ffn_hidden_size"],
        "num_key_value_heads": arguments["num_query_groups"]
        if arguments.get("group_query_attention")
        else heads,
        "head_dim": arguments["kv_channels"],
        "rms_norm_eps": _epsilon(arguments),
        "rope_theta": float(arguments["rotary_base"]),
        "hidden_act": "silu",
    }
    if family == "llama":
        values |= {"attention_bias": biases, "mlp_bias": biases}
    if arguments.get("use_rope_scaling"):  # Megatron-LM fixes all but the factor
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(arguments.get("rope_scaling_factor", 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return values


def _gpt2(arguments: Mapping[str, Any], where: Path) -> dict[str, Any]:
    if not arguments.get("add_bias_linear", True) or arguments["swiglu"]:
        raise _unknown("A GPT-2 has biases and no gate.", where)
    return {
        "model_type": "gpt2",
        **_shape(arguments, "n_embd", "n_layer", "n_head", "n_positions"),
        "n_inner": arguments["ffn_hidden_size"],
        "layer_norm_epsilon": _epsilon(arguments),
        # The fused kernel of bias and GELU, the usual one, computes GELU by tanh.
        "activation_function": "gelu_new" if arguments.get("bias_gelu_fusion", True) else "gelu",
    }


def _shape(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the sizes; `names`: of width, layers, heads and positions in the family's configurations."""
    sizes = ("hidden_size", "num_layers", "num_attention_heads", "max_position_embeddings")
    return {
        "vocab_size": arguments["padded_vocab_size"],
        **{name: arguments[size] for name, size in zip(names, sizes, strict=True)},
        "tie_word_embeddings": not arguments["untie_embeddings_and_output_weights"],
    }


def _epsilon(arguments: Mapping[str, Any]) -> float:
    return float(arguments["norm_epsilon" if "norm_epsilon" in arguments else "layernorm_epsilon"])
