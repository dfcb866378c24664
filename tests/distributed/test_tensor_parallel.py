"""Tensor parallelism computes what one process does: loss and every gradient, for every kind of network."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from nbllm.core.errors import UserError
from nbllm.distributed import Plan, lay_out
from nbllm.distributed.tensor_parallel import apply_tensor_parallel
from nbllm.distributed.tensor_shares import check_tensor_parallel, local_shape, shares
from nbllm.models import ModelConfig, build, make_config
from nbllm.models.network import Network, build_without_weights
from nbllm.models.peft.lora import LoRA
from nbllm.models.peft.prefix_tuning import PrefixTuning
from nbllm.models.peft.stack import AdapterStack
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.nn.linear_log_probabilities import linear_log_probabilities
from nbllm.nn.mixture_of_experts import record_routing
from nbllm.objectives import OBJECTIVES
from tests.distributed.pool import Pool
from tests.distributed.steps import Group, assert_equal_steps, take_steps

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
    "uneven llama": {**_LLAMA, "intermediate_size": 23, "vocab_size": 59},
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
    "reward": {**_LLAMA, "tie_embeddings": True, "score_head": True},
    "mixtral": {**_LLAMA, "family": "mixtral", "num_experts": 3, "experts_per_token": 2, "router_loss_weight": 0.1},
}  # fmt: skip


def network_of(case: str, **changes: Any) -> Network:
    return randomized(build(ModelConfig(**{**_TINY, **CASES[case], **changes}), seed=1))


@torch.no_grad()
def randomized(network: Network) -> Network:
    """Let what begins as zeros or ones, biases, normalizations and adapters, differ from element to element."""
    draw = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2 or "lora_b" in name:
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return network


def loss_and_count(network: Network, length: int = 11) -> tuple[Tensor, float]:
    """Return the loss of a batch that depends on the kind of network alone, with what the network adds to it."""
    draw = np.random.default_rng(3)

    def tokens(count: int) -> Tensor:
        return torch.from_numpy(draw.integers(network.config.vocab_size, size=(2, count)))

    batch = {"inputs": tokens(length), "targets": tokens(length), "decoder_inputs": tokens(length)}
    batch["targets"][:, 2:4] = -100
    kind = {"encoder": "masked_lm", "encoder_decoder": "span_corruption", "prefix_decoder": "prefix_lm"}.get(
        network.config.network, "causal_lm"
    )
    if kind in ("span_corruption", "prefix_lm"):
        batch["targets"][1, -4:] = -100  # padding
        batch |= {name: batch[name][:, 2:] for name in ("decoder_inputs", "targets")}
        batch["mask"] = torch.ones(2, length, dtype=torch.bool)
        batch["mask"][1, -3:] = False
    if network.config.score_head:
        scores: Any = network
        return scores.scores(batch["inputs"], torch.tensor([length, length - 3])).square().sum(), 2
    with record_routing() as routing:
        objective: Any = OBJECTIVES[kind]
        loss, count = objective.loss(objective.__new__(objective), network, batch)
    added = network.auxiliary_loss(routing)
    return (loss if added is None else loss + added * count), count


def compare(whole: Network, sequence: bool) -> Network:
    """Check that a network has the same loss and gradients on the ranks of the pool; return it as it is on these."""
    parallel = copy.deepcopy(whole)
    apply_tensor_parallel(parallel, init_device_mesh("cpu", (dist.get_world_size(),)), sequence=sequence)
    for _ in range(2):  # gradients of two batches add up
        losses = []
        for network in (whole, parallel):
            loss, count = loss_and_count(network)
            (loss / count).backward()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) <= 1e-6 * abs(losses[0]), losses
    expected, found = dict(whole.named_parameters()), dict(parallel.named_parameters())
    assert list(found) == list(expected)
    for name, parameter in found.items():
        gradient, wanted = parameter.grad, expected[name].grad
        if wanted is None:
            assert gradient is None and not parameter.requires_grad, name
            continue
        assert isinstance(parameter, DTensor) and isinstance(gradient, DTensor), name
        assert gradient.placements == parameter.placements and gradient.shape == parameter.shape, name
        # That of a key's bias is 0 but for rounding: it adds the same to the scores of every key.
        scale = float(expected[name.replace("key.bias", "query.bias")].grad.abs().max())
        error = float((gradient.full_tensor() - wanted).abs().max())
        assert error <= 1e-5 * scale and scale > 0, f"{name}: {error} of {scale}"
    return parallel


def compare_case(case: str, sequence: bool, **changes: Any) -> None:
    compare(network_of(case, **changes), sequence)


@pytest.mark.parametrize("sequence", [False, True], ids=["all", "sequence"])
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_loss_and_gradients_of_one(two_ranks: Pool, case: str, sequence: bool) -> None:
    two_ranks(compare_case, case, sequence)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_ranks_share_key_value_heads_where_there_are_fewer(four_ranks: Pool, kv_heads: int) -> None:
    four_ranks(compare_case, "qwen3", True, num_kv_heads=kv_heads, attention_bias=True)


def compare_lora(case: str, sequence: bool, **changes: Any) -> None:
    network = network_of(case, **changes)
    AdapterStack(network).attach(LoRA(rank=3, alpha=1, targets="all-linear"))
    compare(randomized(network), sequence)


@pytest.mark.parametrize("case", ["gpt2", "t5 untied"])
@pytest.mark.parametrize("sequence", [False, True], ids=["all", "sequence"])
def test_lora_is_split_as_the_layers_are(two_ranks: Pool, case: str, sequence: bool) -> None:
    two_ranks(compare_lora, case, sequence)


def test_lora_of_shared_key_value_heads(four_ranks: Pool) -> None:
    four_ranks(compare_lora, "llama", False)


def norm_of_gradients() -> float:
    """Return the norm of a gradient (3, 4), of which each rank has an element, and one of 12 that both have."""
    network = build(make_config("llama", num_layers=1, num_heads=2, hidden_size=4, vocab_size=8))
    layout = lay_out(network, Plan(tensor=2), cast("Any", Group()))
    mesh = init_device_mesh("cpu", (2,))
    split = distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
    return layout.norm([split, distribute_tensor(torch.tensor([12.0]), mesh, [Replicate()])])


def test_an_element_that_several_ranks_have_counts_once_in_the_norm(two_ranks: Pool) -> None:
    assert two_ranks(norm_of_gradients) == [13.0, 13.0]


def compare_with_zero(sequence: bool, case: str) -> None:
    """Check that torch's `fully_shard` over two data ranks composes with tensor parallelism over two."""
    from torch.distributed.fsdp import fully_shard

    from nbllm.distributed.loss_module import LossModule

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    whole = network_of(case)
    parallel = copy.deepcopy(whole)
    apply_tensor_parallel(parallel, mesh["tensor"], sequence=sequence)
    root = LossModule(parallel)
    for module in (*parallel.get_submodule("blocks"), root):
        fully_shard(module, mesh=mesh["shard"]).set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
    loss, _ = loss_and_count(whole)
    (2 * loss).backward()
    root({}, lambda network, batch: (*loss_and_count(network), None))[0].backward()
    for (name, expected), found in zip(whole.named_parameters(), parallel.parameters(), strict=True):
        assert isinstance(found, DTensor) and isinstance(found.grad, DTensor) and found.device_mesh.ndim == 2
        torch.testing.assert_close(found.full_tensor(), expected, rtol=0, atol=0)
        scale = float(expected.grad.abs().max())
        assert float((found.grad.full_tensor() - expected.grad).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize(("case", "sequence"), [("llama", False), ("mixtral", True), ("uneven llama", True)])
def test_parameters_are_sharded_over_data_ranks_too(four_ranks: Pool, case: str, sequence: bool) -> None:
    four_ranks(compare_with_zero, sequence, case)


def test_gradients_of_a_bfloat16_network_are_added_up_in_float32(two_ranks: Pool) -> None:
    found = two_ranks(take_steps, "untied", {"tensor": 2}, dtype="bfloat16")[0]
    assert_equal_steps(found, take_steps("untied", {}, dtype="bfloat16"), tolerance=0.05)


def theirs_and_ours(folder: str) -> tuple[float, float, float]:
    """Return the loss of transformers' LLaMA split by torch's own plan, and ours; and how far gradients differ."""
    import transformers
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        loss_parallel,
        parallelize_module,
    )

    from nbllm.models.loading import load_model

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    column, row = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1), use_local_output=False)
    gather = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": Shard(1)},
        desired_input_kwarg_layouts={"hidden_states": Replicate()},
    )
    positional = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    plan: dict[str, Any] = {
        "model.embed_tokens": RowwiseParallel(
            input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False
        ),
        "model.norm": SequenceParallel(),
        "lm_head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    for layer in range(len(theirs.model.layers)):
        block = f"model.layers.{layer}"
        plan |= {
            f"{block}.{name}": SequenceParallel() for name in ("input_layernorm", "post_attention_layernorm")
        }
        plan |= {f"{block}.self_attn.{name}_proj": column for name in "qkv"}
        plan |= {f"{block}.mlp.{name}_proj": column for name in ("gate", "up")}
        plan |= {f"{block}.self_attn.o_proj": row, f"{block}.mlp.down_proj": row}
        plan |= {f"{block}.self_attn": gather, f"{block}.mlp": positional}
    parallelize_module(theirs, mesh, plan)
    tokens = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-2], tokens[:, 1:-1]
    with loss_parallel():
        logits = theirs(inputs, use_cache=False, position_ids=torch.arange(10)[None]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
    ours = load_model(folder)
    apply_tensor_parallel(ours, mesh, sequence=True)
    objective: Any = OBJECTIVES["causal_lm"]()
    own, _ = objective.loss(ours, {"inputs": inputs, "targets": targets})
    own.backward()
    pairs = {
        "embedding.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight",
        "blocks.1.attention.key.weight": "model.layers.1.self_attn.k_proj.weight",
        "blocks.0.attention_norm.weight": "model.layers.0.input_layernorm.weight",
        "blocks.0.feed_forward.down.weight": "model.layers.0.mlp.down_proj.weight",
    }  # fmt: skip
    worst = 0.0
    for name, other in pairs.items():
        grad, expected = (
            dict(module.named_parameters())[path].grad.full_tensor()
            for module, path in ((ours, name), (theirs, other))
        )
        worst = max(worst, float((grad - expected).abs().max() / expected.abs().max()))
    full = loss.full_tensor() if isinstance(loss, DTensor) else loss
    return float(full), float(own), worst


def test_torchs_own_plan_for_transformers_gives_the_same_loss_and_gradients(
    two_ranks: Pool, tmp_path: Any
) -> None:
    from nbllm.models.loading import save_model

    save_model(network_of("llama", vocab_size=60), tmp_path)
    for theirs, ours, error in two_ranks(theirs_and_ours, str(tmp_path)):
        assert ours == pytest.approx(theirs, rel=1e-5) and error < 1e-5


def compare_whole(case: str, plan: dict[str, Any], dtype: str = "float32") -> None:
    """Check that rank 0 is given a network that computes by itself what the single process does."""
    whole = network_of(case)
    layout = lay_out(copy.deepcopy(whole), Plan(**plan), cast("Any", Group()), dtype=getattr(torch, dtype))
    with torch.no_grad():
        for in_float32 in (False, True):
            with layout.whole_network(in_float32=in_float32) as network:
                assert (network is None) == (dist.get_rank() > 0)
                if network is not None:
                    expected = loss_and_count(whole if in_float32 else copy.deepcopy(whole).to(layout.dtype))
                    torch.testing.assert_close(loss_and_count(network), expected, rtol=1e-6, atol=0)
    found = layout.evaluate({}, lambda network, batch: (*loss_and_count(cast("Network", network)), None))
    loss, count = loss_and_count(whole)
    assert found == pytest.approx((loss.item(), count), rel=1e-6 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("case", ["bloom", "mixtral", "t5", "albert", "gpt2", "gopher"])
def test_rank_0_may_compute_with_the_whole_network_by_itself(two_ranks: Pool, case: str) -> None:
    two_ranks(compare_whole, case, {"tensor": 2, "sequence": True})


def test_rank_0_is_given_the_whole_network_in_either_precision(two_ranks: Pool, four_ranks: Pool) -> None:
    two_ranks(compare_whole, "llama", {"tensor": 2}, "bfloat16")
    four_ranks(compare_whole, "bloom", {"tensor": 2, "zero": 3})


def compare_head(softcap: float) -> None:
    """Loss and log-probabilities of a split vocabulary, with every option."""
    draw = torch.Generator().manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    hidden, weight = torch.randn(9, 8, generator=draw), torch.randn(13, 8, generator=draw)
    bias, weights = torch.randn(13, generator=draw), torch.rand(9, generator=draw)
    targets = torch.randint(13, (9,), generator=draw)
    ignored = targets.clone()
    ignored[3] = -100
    results = []
    for is_split in (False, True):
        split = [each.clone() for each in (hidden, weight, bias)]
        if is_split:
            split[1:] = (distribute_tensor(each, mesh, [Shard(0)]) for each in split[1:])
        for each in split:
            each.requires_grad_()
        losses = torch.empty(9)
        loss = linear_cross_entropy(
            split[0],
            split[1],
            ignored,
            bias=split[2],
            softcap=softcap,
            weights=weights,
            losses=losses,
            chunk=4,
        )
        log_probs, entropies = linear_log_probabilities(
            split[0], split[1], targets, bias=split[2], softcap=softcap, temperature=0.7, chunk=4
        )
        (loss + (log_probs * weights).sum()).backward()
        gradients = [each.grad.full_tensor() if isinstance(each, DTensor) else each.grad for each in split]
        results.append([loss.detach(), losses, log_probs.detach(), entropies, *gradients])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_the_loss_of_a_split_vocabulary_is_that_of_the_whole(two_ranks: Pool, softcap: float) -> None:
    two_ranks(compare_head, softcap)


def collectives_of(sequence: bool) -> list[dict[str, int]]:
    """Return how many collectives a network of so many blocks calls: forward, and backward."""
    found = []
    for num_layers in (1, 2):
        network = network_of("llama", num_layers=num_layers)
        apply_tensor_parallel(network, init_device_mesh("cpu", (2,)), sequence=sequence)
        with CommDebugMode() as forward:
            loss, _ = loss_and_count(network)
        with CommDebugMode() as backward:
            loss.backward()
        for mode in (forward, backward):
            counts = {str(op).split(".")[-1]: count for op, count in mode.get_comm_counts().items()}
            found.append(counts)
    one, of_one, two, of_two = found
    return [
        {op: more[op] - less.get(op, 0) for op in more if more[op] != less.get(op, 0)}
        for more, less in ((two, one), (of_two, of_one))
    ]


def test_a_block_exchanges_two_sums_each_way(two_ranks: Pool) -> None:
    assert two_ranks(collectives_of, False)[0] == [{"all_reduce": 2}, {"all_reduce": 2}]
    forward, backward = two_ranks(collectives_of, True)[0]
    both = {"all_gather_into_tensor": 2, "reduce_scatter_tensor": 2}
    assert forward == both
    assert backward == {**both, "all_reduce": 2}  # these of the normalizations' weights, which are small


@pytest.mark.parametrize(
    ("shape", "size", "reason"),
    [
        ({"num_heads": 6, "hidden_size": 48}, 4, "6 attention heads cannot be split evenly over 4 ranks.*tensor=3"),
        ({"num_heads": 12, "num_kv_heads": 6, "hidden_size": 96}, 4, "6 key/value heads can neither.*tensor=3"),
        ({"intermediate_size": 9}, 4, "intermediate_size is 9, too few for 4 ranks"),
        ({"vocab_size": 3}, 4, "vocab_size is 3, too few"),
        ({"family": "rwkv", "network": "rwkv", "positions": "none"}, 2, "a recurrent network has none.*zero=3"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_beforehand(shape: dict[str, Any], size: int, reason: str) -> None:
    config = ModelConfig(**{**_TINY, "family": "gpt2", **shape})
    with pytest.raises(UserError, match=f"(?s){reason}"):
        check_tensor_parallel(config, size)
    check_tensor_parallel(config, 1)


@pytest.mark.parametrize("adapter", [LoRA(dora=True), LoRA(targets=("embedding",)), PrefixTuning()])
def test_adapters_that_cannot_be_split_are_refused(adapter: Any) -> None:
    network = network_of("gpt2")
    AdapterStack(network).attach(adapter)
    with pytest.raises(UserError, match="'default' cannot be split over ranks"):
        shares(network, 2)


def held_by_each_rank(config: ModelConfig, ranks: int) -> list[int]:
    """Return how many elements each rank holds, in a group of ranks that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    held = []
    for rank in range(ranks):
        dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
        try:
            network = build(config)
            whole = {name: parameter for name, parameter in build_without_weights(config).named_parameters()}
            of_each = shares(network, ranks)
            apply_tensor_parallel(network, init_device_mesh("cpu", (ranks,)))
            total = 0
            for name, parameter in network.named_parameters():
                assert isinstance(parameter, DTensor)
                local = parameter.to_local()
                assert tuple(local.shape) == local_shape(whole[name], of_each[name], rank, ranks), name
                assert local.untyped_storage().nbytes() == local.nbytes, name  # nothing of the whole is kept
                total += local.numel()
            held.append(total)
        finally:
            dist.destroy_process_group()
    return held


def test_eight_ranks_hold_what_the_formula_says() -> None:
    ranks, hidden, inner, vocabulary, layers = 8, 64, 176, 320, 2
    config = make_config(
        "llama", vocab_size=vocabulary, hidden_size=hidden, num_layers=layers, num_heads=16, num_kv_heads=2,
        intermediate_size=inner, tie_embeddings=False, max_positions=64,
    )  # fmt: skip
    head_dim = hidden // 16
    attention = (
        2 * hidden * hidden / ranks + 2 * (2 * head_dim) * hidden
    )  # few keys and values: every rank has all
    block = attention + 3 * hidden * inner / ranks + 2 * hidden
    expected = 2 * vocabulary * hidden / ranks + layers * block + hidden
    assert held_by_each_rank(config, ranks) == [expected] * ranks
    uneven = config.replace(vocab_size=315, intermediate_size=171)
    held = held_by_each_rank(uneven, ranks)
    assert max(held) == math.ceil(315 / ranks) * 2 * hidden + layers * (
        attention + 3 * hidden * math.ceil(171 / ranks) + 2 * hidden
    ) + hidden and min(held) < max(held)
