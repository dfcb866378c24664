"""Tensor parallelism computes what one process does: loss and every gradient, for every kind of network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from nbllm.distributed.tensor_parallel import apply_tensor_parallel
from nbllm.models import ModelConfig, build
from nbllm.models.network import Network
from nbllm.nn.mixture_of_experts import record_routing
from nbllm.objectives import OBJECTIVES
from tests.distributed.pool import Pool
from tests.distributed.steps import assert_equal_steps, take_steps

_TINY: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 24, "max_positions": 32,
    "initializer_range": 0.2,
}  # fmt: skip
_LLAMA = {
    "family": "llama", "positions": "rotary", "norm": "rms_norm", "activation": "silu", "gated": True,
    "attention_bias": False, "feed_forward_bias": False, "num_kv_heads": 2, "tie_embeddings": False,
}  # fmt: skip
_T5 = {
    "family": "t5", "network": "encoder_decoder", "positions": "relative", "norm": "rms_norm", "activation": "relu",
    "attention_bias": False, "feed_forward_bias": False, "scale_head": True,
}  # fmt: skip
_BERT = {
    "family": "bert", "network": "encoder", "norm_placement": "post", "activation": "gelu", "embedding_norm": True,
    "token_types": 2, "mask_head": True,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "gpt2": {"family": "gpt2"},
    "uneven": {"family": "gpt2", "intermediate_size": 23, "vocab_size": 59},
    "t5": _T5,
    "t5 untied": {**_T5, "tie_embeddings": False, "scale_head": False, "activation": "gelu_tanh", "gated": True},
    "bert": _BERT,
    "albert": {**_BERT, "family": "albert", "embedding_size": 16, "num_layer_groups": 2, "num_layers": 4},
    "bart": {
        "family": "bart", "network": "encoder_decoder", "norm_placement": "post", "activation": "gelu",
        "embedding_norm": True, "position_offset": 2, "scale_embedding": True, "head_bias": True,
    },
    "gemma": {
        **_LLAMA, "family": "gemma2", "norm": "rms_norm_offset", "norm_placement": "sandwich",
        "activation": "gelu_tanh", "attention_softcap": 5.0, "logit_softcap": 3.0, "attention_scale": 0.3,
        "scale_embedding": True, "tie_embeddings": True, "sliding_window": 4, "full_attention_interval": 2,
        "head_dim": 16,
    },
    "gptj": {
        "family": "gptj", "positions": "rotary", "rotary_fraction": 0.5, "rotary_interleaved": True,
        "parallel_block": True, "shared_norm": True, "attention_bias": False, "tie_embeddings": False,
        "head_bias": True,
    },
    "falcon": {
        "family": "gpt_neox", "positions": "rotary", "parallel_block": True, "num_kv_heads": 1, "tie_embeddings": False,
    },
    "qwen3": {**_LLAMA, "family": "qwen3", "qk_norm": True},
    "bloom": {"family": "bloom", "positions": "alibi", "embedding_norm": True},
    "gopher": {**_LLAMA, "positions": "transformer_xl", "num_kv_heads": 4},
    "glm": {"family": "glm", "network": "prefix_decoder", "positions": "learned_2d"},
    "mixtral": {**_LLAMA, "family": "mixtral", "num_experts": 3, "experts_per_token": 2, "router_loss_weight": 0.1},
}  # fmt: skip


def network_of(case: str) -> Network:
    network = build(ModelConfig(**{**_TINY, **CASES[case]}), seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for (
            parameter
        ) in network.parameters():  # biases and normalizations too are to differ from element to element
            if parameter.dim() < 2:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return network


def loss_and_count(network: Network, length: int = 11) -> tuple[Tensor, float]:
    """Return the loss of a batch that the seed and the kind of network decide, with what a network adds to it."""
    draw = np.random.default_rng(3)
    vocabulary = network.config.vocab_size

    def tokens(count: int) -> Tensor:
        return torch.from_numpy(draw.integers(vocabulary, size=(2, count)))

    batch = {"inputs": tokens(length), "targets": tokens(length)}
    batch["targets"][:, 2:4] = -100
    kind = "causal_lm"
    if network.config.network == "encoder":
        kind = "masked_lm"
    elif network.config.network == "encoder_decoder":
        kind = "span_corruption"
        batch |= {"decoder_inputs": tokens(length - 2)}
        batch["targets"] = batch["targets"][:, :-2]
        batch["mask"] = torch.ones(2, length, dtype=torch.bool)
        batch["mask"][1, -3:] = False
    with record_routing() as routing:
        objective: Any = OBJECTIVES[kind]
        loss, count = objective.loss(objective.__new__(objective), network, batch)
    added = network.auxiliary_loss(routing)
    return (loss if added is None else loss + added * count), count


def whole_gradients(network: nn.Module) -> dict[str, Tensor]:
    out = {}
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert isinstance(gradient, DTensor) and gradient.placements == parameter.placements, name
        out[name] = gradient.full_tensor()
    return out


def compare(case: str, sequence: bool) -> None:
    whole = network_of(case)
    parallel = copy.deepcopy(whole)
    apply_tensor_parallel(
        parallel, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), sequence=sequence
    )
    for _ in range(2):  # gradients of two batches add up
        losses = []
        for network in (whole, parallel):
            loss, count = loss_and_count(network)
            (loss / count).backward()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) <= 1e-6 * abs(losses[0]), losses
    expected = {name: each.grad for name, each in whole.named_parameters()}
    found = whole_gradients(parallel)
    assert list(found) == list(expected)
    for name, gradient in found.items():
        # That of a key's bias is 0 but for rounding: it adds the same to the scores of every key.
        scale = float(expected[name.replace("key.bias", "query.bias")].abs().max())
        error = float((gradient - expected[name]).abs().max())
        assert error <= 1e-5 * scale and scale > 0, f"{name}: {error} of {scale}"


@pytest.mark.parametrize("sequence", [False, True], ids=["all", "sequence"])
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_loss_and_gradients_of_one(two_ranks: Pool, case: str, sequence: bool) -> None:
    two_ranks(compare, case, sequence)


@pytest.mark.parametrize("sequence", [False, True], ids=["all", "sequence"])
@pytest.mark.parametrize("kind", ["decoder", "untied", "encoder_decoder"])
def test_steps_under_a_plan_equal_those_of_one_process(two_ranks: Pool, kind: str, sequence: bool) -> None:
    found = two_ranks(take_steps, kind, {"tensor": 2, "sequence": sequence})[0]
    assert_equal_steps(found, take_steps(kind, {}))


def test_two_data_ranks_of_two_tensor_ranks_equal_one_process(four_ranks: Pool) -> None:
    found = four_ranks(take_steps, "untied", {"tensor": 2, "data": 2, "sequence": True})
    expected = take_steps("untied", {})
    for each in found:
        assert_equal_steps(each, expected)


def test_gradients_of_a_bfloat16_network_are_added_up_in_float32(two_ranks: Pool) -> None:
    found = two_ranks(take_steps, "untied", {"tensor": 2}, dtype="bfloat16")[0]
    assert_equal_steps(found, take_steps("untied", {}, dtype="bfloat16"), tolerance=0.05)
