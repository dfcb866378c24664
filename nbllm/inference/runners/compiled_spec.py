"""Which models the decoding kernel computes.

The kernel reads weights by address and never calls a module, so it must know that nothing else would have been
computed by calling them. `expected_modules` turns a configuration into the modules that the kernel stands in for, and
refuses a configuration with any field or value that it does not know. `is_computed` compares a model with that: exact
types, every attribute, parameter and child, no hooks, no method replaced on an instance or a class.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nbllm.models.block import Block
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder
from nbllm.nn import kernels
from nbllm.nn.attention import Attention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.hooks import has_hooks, methods_are_original
from nbllm.nn.joined import JoinedLinears, side_by_side
from nbllm.nn.linear import Linear
from nbllm.nn.normalization import LayerNorm, RMSNorm
from nbllm.nn.positions import LearnedPositions, RopeScaling, RotaryPositions

# The functions that the kernel computes, by the names that both the configuration and the kernel give them. Not read
# from the table that builds models: a function that is put there under an old name must not pass for the old one.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
}
# Fields that change nothing once a model is built; the scheduler ends a text at `max_positions`.
_WITHOUT_EFFECT = ("family", "initializer_range", "max_positions")
# Settings that the kernel computes with one value alone.
_ONLY = {
    "position_offset": 0, "parallel_block": False, "shared_norm": False, "qk_norm": False, "attention_scale": 0.0,
    "attention_softcap": 0.0, "logit_softcap": 0.0, "sliding_window": 0, "full_attention_interval": 0,
    "norm_placement": "pre", "rope_local_theta": 0.0, "scale_embedding": False, "scale_head": False,
    "residual_scale": 1.0, "embedding_size": 0, "num_experts": 0, "experts_per_token": 0, "router_loss_weight": 0.0,
    "head_bias": False, "rotary_fraction": 1.0, "rotary_interleaved": False, "embedding_norm": False,
    "score_head": False, **Decoder.fixed,
}  # fmt: skip
_FIELDS = {
    *_WITHOUT_EFFECT, "network", "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "intermediate_size", "positions", "norm", "norm_eps", "activation", "gated", "attention_bias",
    "attention_output_bias", "feed_forward_bias", "tie_embeddings", "rope_theta", "rope_scaling", *_ONLY,
}  # fmt: skip
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclasses.dataclass(frozen=True)
class ExpectedModule:
    """What a module must be.

    Attributes:
        kind: Its exact class.
        attributes: All of its own attributes, and their values.
        parameters: The shapes of its own parameters; None for one that must be None.
        children: Its child modules in order.
        caches: Attributes that hold what may be computed anew at any time.
    """

    kind: type[nn.Module]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: dict[str, tuple[int, ...] | None] = dataclasses.field(default_factory=dict)
    children: dict[str, ExpectedModule] = dataclasses.field(default_factory=dict)
    caches: frozenset[str] = frozenset()

    def kinds(self) -> set[type[nn.Module]]:
        """Return the classes of this module and of all below it."""
        return {self.kind}.union(*(child.kinds() for child in self.children.values()))


def is_computed(model: nn.Module) -> bool:
    """Return whether the decoding kernel computes what calling the model would, for its weights as they are now.

    Costs a look at each module, so it is asked once a generation. The model may be of any class.
    """
    config = getattr(model, "config", None)
    expected = expected_modules(config)
    if expected is None or _has_any_global_hook() or not all(map(methods_are_original, expected.kinds())):
        return False
    weight = next(model.parameters(), None)
    return weight is not None and _matches(model, expected, weight.dtype)


def expected_modules(config: object) -> ExpectedModule | None:
    """Return the model that the kernel computes for a configuration; None where it does not know every field."""
    # Not `dataclasses.fields`: what was set on the instance counts too.
    if type(config) is not ModelConfig or vars(config).keys() != _FIELDS:
        return None
    if (
        config.network != "decoder"
        or any(getattr(config, name) != value for name, value in _ONLY.items())
        or config.activation not in ACTIVATIONS
        or config.norm not in _NORMS
        or config.positions not in _POSITIONS
        or not _has_one_table(config.rope_scaling)
    ):
        return None
    return _expected_decoder(config)


def _has_one_table(scaling: object) -> bool:
    """Return whether the angles of a position are the same in every text."""
    return scaling is None or (type(scaling) is RopeScaling and scaling.kind in ("linear", "yarn", "llama3"))


@functools.lru_cache(maxsize=8)
def _expected_decoder(config: ModelConfig) -> ExpectedModule:
    embedding = (config.vocab_size, config.hidden_size)
    norm, positions = _NORMS[config.norm](config), _POSITIONS[config.positions](config)
    blocks = {str(layer): _expected_block(config, layer) for layer in range(config.num_layers)}
    children = {
        "embedding": ExpectedModule(nn.Embedding, _of_embedding(*embedding), {"weight": embedding}),
        "positions": positions,
        "blocks": ExpectedModule(nn.ModuleList, children=blocks),
        "norm": norm,
    }
    attributes: dict[str, Any] = {
        "config": config,
        "attention_backend": "auto",
        "projection": None,
        "local_positions": None,
        "embedding_norm": None,
        "head_projection": None,
        "score": None,
    }
    if config.tie_embeddings:
        attributes["head"] = None
    else:
        children["head"] = _expected_linear(config.hidden_size, config.vocab_size, bias=False, kind=nn.Linear)
    return ExpectedModule(Decoder, attributes, {}, children)


def _of_embedding(rows: int, columns: int) -> dict[str, Any]:
    return {
        "num_embeddings": rows, "embedding_dim": columns, "padding_idx": None, "max_norm": None, "norm_type": 2.0,
        "scale_grad_by_freq": False, "sparse": False,
    }  # fmt: skip


def _expected_block(config: ModelConfig, layer: int) -> ExpectedModule:
    hidden, inner, norm = config.hidden_size, config.intermediate_size, _NORMS[config.norm](config)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    output_bias = config.attention_bias and config.attention_output_bias
    attention = ExpectedModule(
        Attention,
        {
            "head_dim": config.head_dim, "layer": layer, "joined": ("query", "key", "value"),
            "scale": config.head_dim**-0.5, "softcap": 0.0, "query_norm": None, "key_norm": None,
        },
        children={
            "query": _expected_linear(hidden, queries, bias=config.attention_bias),
            "key": _expected_linear(hidden, keys, bias=config.attention_bias),
            "value": _expected_linear(hidden, keys, bias=config.attention_bias),
            "output": _expected_linear(queries, hidden, bias=output_bias),
        },
    )  # fmt: skip
    gate_and_up = ("gate", "up") if config.gated else ()
    feed_forward = ExpectedModule(
        FeedForward,
        {
            "activation": ACTIVATIONS[config.activation], "joined": gate_and_up,
            **({} if config.gated else {"gate": None}),
        },
        children={
            **{
                name: _expected_linear(hidden, inner, bias=config.feed_forward_bias)
                for name in gate_and_up or ("up",)
            },
            "down": _expected_linear(inner, hidden, bias=config.feed_forward_bias),
        },
    )  # fmt: skip
    children = {
        "attention_norm": norm, "attention": attention, "feed_forward_norm": norm, "feed_forward": feed_forward,
    }  # fmt: skip
    return ExpectedModule(
        Block,
        {
            "norm_placement": "pre",
            "parallel": False,
            "residual_scale": 1.0,
            "attention_output_norm": None,
            "cross_attention_norm": None,
            "cross_attention": None,
            "cross_attention_output_norm": None,
            "feed_forward_output_norm": None,
        },
        children=children,
    )


def _expected_linear(
    inputs: int, outputs: int, *, bias: bool, kind: type[nn.Linear] = Linear
) -> ExpectedModule:
    return ExpectedModule(
        kind,
        {"in_features": inputs, "out_features": outputs},
        {"weight": (outputs, inputs), "bias": (outputs,) if bias else None},
    )


def _expected_norm(config: ModelConfig, kind: type[nn.Module], *parameters: str) -> ExpectedModule:
    shape = (config.hidden_size,)
    attributes = {"normalized_shape": shape, "eps": config.norm_eps, "elementwise_affine": True}
    return ExpectedModule(kind, attributes, dict.fromkeys(parameters, shape))


_NORMS: dict[str, Callable[[ModelConfig], ExpectedModule]] = {
    "layer_norm": lambda config: _expected_norm(config, LayerNorm, "weight", "bias"),
    "rms_norm": lambda config: _expected_norm(config, RMSNorm, "weight"),
}
_POSITIONS: dict[str, Callable[[ModelConfig], ExpectedModule]] = {
    "learned": lambda config: ExpectedModule(
        LearnedPositions, {"offset": 0}, {"weight": (config.max_positions, config.hidden_size)}
    ),
    "rotary": lambda config: ExpectedModule(
        RotaryPositions,
        {
            "head_dim": config.head_dim,
            "theta": config.rope_theta,
            "rotary_dim": config.head_dim,
            "interleaved": False,
            "scaling": config.rope_scaling,
        },
        caches=frozenset({"_table"}),
    ),
}


def _matches(module: nn.Module | None, expected: ExpectedModule, dtype: torch.dtype) -> bool:
    """Return whether a module and all below it are what is expected, with parameters of `dtype`."""
    if module is None or type(module) is not expected.kind or has_hooks(module):
        return False
    state = vars(module)
    own = state.keys() - _OF_EVERY_MODULE - expected.caches
    return (
        own == expected.attributes.keys()
        and all(_is_same(state[name], value) for name, value in expected.attributes.items())
        and not module._buffers
        and module._parameters.keys() == expected.parameters.keys()
        and all(
            _has_shape(module._parameters[name], shape, dtype) for name, shape in expected.parameters.items()
        )
        and list(module._modules) == list(expected.children)
        and all(_matches(module._modules[name], child, dtype) for name, child in expected.children.items())
        and (not isinstance(module, RotaryPositions) or _is_readable(module))
        and (not isinstance(module, JoinedLinears) or _is_joined(module))
    )


def _is_same(value: object, expected: object) -> bool:
    return value is expected or (type(value) is type(expected) and value == expected)


def _has_shape(parameter: Tensor | None, shape: tuple[int, ...] | None, dtype: torch.dtype) -> bool:
    """Return whether a parameter is contiguous memory of that shape and type; None is expected of None."""
    if parameter is None or shape is None:
        return parameter is None and shape is None
    return parameter.shape == shape and kernels.is_memory(parameter, dtype) and parameter.is_contiguous()


def _is_joined(module: JoinedLinears) -> bool:
    """Return whether layers that read the same input lie side by side: the kernel reads them as one matrix."""
    layers = [module.get_submodule(name) for name in module.joined]
    kinds = ("weight", "bias") if layers and layers[0].bias is not None else ("weight",)
    return not layers or all(
        side_by_side(*[getattr(layer, kind) for layer in layers]) is not None for kind in kinds
    )


def _is_readable(positions: RotaryPositions) -> bool:
    """Return whether the kept cosines and sines are such as the kernel reads, or not yet made."""
    table, half = positions._table, positions.head_dim // 2
    return table is None or all(
        kernels.is_memory(each, torch.float32) and each.is_contiguous() and each.shape[1:] == (half,)
        for each in table
    )
