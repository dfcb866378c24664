"""Ranks that share the positions of each sequence compute what one process computes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from nbllm.core.errors import UserError
from nbllm.distributed import Plan
from nbllm.distributed.context_parallel import (
    apply_context_parallel,
    check,
    check_context_parallel,
    share_loss,
)
from nbllm.distributed.loss_module import LossModule
from nbllm.models import build, make_config
from nbllm.models.peft.lora import LoRA
from nbllm.models.peft.prefix_tuning import PrefixTuning
from nbllm.models.peft.prompt_tuning import PromptTuning
from nbllm.models.peft.stack import AdapterStack
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.mixture_of_experts import MixtureOfExperts, record_routing
from nbllm.objectives.base import IGNORED
from nbllm.objectives.causal_lm import CausalLM
from nbllm.objectives.heads import head_cross_entropy
from nbllm.objectives.masked_lm import MaskedLM
from tests.distributed.steps import Pairs, assert_equal_steps, take_steps

TINY = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "initializer_range": 0.2}
LENGTH = 37  # which no number of ranks divides


def batch_of(kind: str, length: int = LENGTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randint(2, 61, (3, length), generator=generator)
    targets = torch.randint(2, 61, (3, length), generator=generator)
    targets[0, : length // 3] = IGNORED
    made = {"inputs": inputs, "targets": targets}
    if kind == "isolated":
        made["documents"] = torch.arange(length).expand(3, -1) // 11
    if kind == "padded":
        made["real"] = torch.arange(length) < torch.tensor([length, length - 5, length - 11])[:, None]
    if kind == "pairs":
        shorter = targets[:, : length - 9]
        made |= {"targets": shorter, "decoder_inputs": shorter.clamp(min=0)}
        made["mask"] = torch.arange(length) < torch.tensor([length, length - 5, length])[:, None]
    return made


def loss_of(kind, network, batch):
    if kind == "pairs":
        return (*Pairs(0, 1).loss(network, batch), None)
    if kind == "masked":
        return (*MaskedLM(4, torch.zeros(61, dtype=torch.bool).numpy()).loss(network, batch), None)
    if kind == "padded":
        hidden = network.hidden(batch["inputs"], attention_mask=batch["real"])
        targets = batch["targets"].where(batch["real"], IGNORED)
        return head_cross_entropy(network, hidden, targets), int((targets != IGNORED).sum()), None
    if kind == "squared":  # not a sum over tokens, and not by the head's cross-entropy alone
        loss, count = CausalLM().loss(network, batch)
        return loss.square() + network.hidden(batch["inputs"]).mean(1).square().sum(), count, None
    if kind == "routed":
        with record_routing() as routing:
            loss, count = CausalLM().loss(network, batch)
        return loss, count, network.auxiliary_loss(routing)
    return (*CausalLM().loss(network, batch), None)


def one_pass(preset, changes, kind, *, length=LENGTH, adapter=None, split=False):
    """Return loss, count, what a forward pass without loss gives, and all gradients, summed over the ranks."""
    network = build(make_config(preset, **TINY | changes), seed=1)
    if adapter is not None:
        AdapterStack(network).attach(adapter)
    module = LossModule(network)
    if split:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("context",))
        apply_context_parallel(network, mesh)
        module = copy.deepcopy(module)
        share_loss(module, mesh)
    batch = batch_of(kind, length)
    widths = []
    part = next(each for each in module.modules() if isinstance(each, FeedForward | MixtureOfExperts))
    watching = part.register_forward_hook(lambda part, given, out: widths.append(out.shape[1]))
    loss, count, added = module(batch, lambda net, b: loss_of(kind, net, b))
    (loss if added is None else loss + added * count).backward()
    sums = [loss.detach(), torch.tensor(float(count), dtype=torch.float64)]
    gradients = {name: p.grad for name, p in module.network.named_parameters() if p.grad is not None}
    if split:
        for each in [*sums, *gradients.values()]:
            dist.all_reduce(each)
    watching.remove()
    ranks = dist.get_world_size() if split else 1
    # each rank has had its positions only; a prefix decoder joins both texts
    if kind != "pairs" or preset != "gpt2":
        assert widths[0] == -(-(length + getattr(adapter, "num_virtual_tokens", 0)) // ranks), widths
    with torch.no_grad():  # alone: other ranks need not take part
        alone = module.network.hidden(
            batch["inputs"][:1], *([batch["targets"][:1].clamp(min=0)] if kind == "pairs" else [])
        )
    return float(sums[0]), float(sums[1]), alone, gradients


def assert_equal_passes(ranks, preset, changes, kind, **more):
    wanted = one_pass(preset, changes, kind, **more)
    for found in ranks(one_pass, preset, changes, kind, split=True, **more):
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        assert found[1] == pytest.approx(wanted[1], rel=1e-12)
        torch.testing.assert_close(found[2], wanted[2])
        assert found[3].keys() == wanted[3].keys()
        least = 1e-2 * max(float(gradient.abs().max()) for gradient in wanted[3].values())
        for name, gradient in wanted[3].items():
            worst, size = float((found[3][name] - gradient).abs().max()), float(gradient.abs().max())
            assert worst <= 1e-5 * max(size, least), (name, worst, size)


CASES = {
    "gpt2": ("gpt2", {}, "plain"),
    "isolated documents": ("llama", {"num_kv_heads": 2}, "isolated"),
    "padding": ("llama", {"num_kv_heads": 2}, "padded"),
    "one key/value head": ("llama", {"num_kv_heads": 1}, "plain"),
    "sliding window": ("mistral", {"num_kv_heads": 2, "sliding_window": 8}, "plain"),
    "local and full layers, softcaps": (
        "gemma2",
        {"num_kv_heads": 2, "head_dim": 8, "sliding_window": 8},
        "plain",
    ),
    "alibi": ("bloom", {}, "padded"),
    "tied and squared": ("gpt2", {"tie_embeddings": True}, "squared"),
    "experts": ("mixtral", {"num_kv_heads": 2, "router_loss_weight": 0.5}, "routed"),
    "encoder": ("bert", {"position_offset": 0}, "masked"),
    "shared layers": ("albert", {}, "masked"),
    "t5": ("t5", {}, "pairs"),
    "bart": ("bart", {}, "pairs"),
    "prefix decoder": ("gpt2", {"network": "prefix_decoder"}, "pairs"),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_equal_those_of_one_process(two_ranks, case):
    assert_equal_passes(two_ranks, *CASES[case])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_sequences_shorter_than_the_ranks_are_computed(four_ranks, length):
    assert_equal_passes(four_ranks, "llama", {"num_kv_heads": 2}, "plain", length=length)


def test_six_heads_that_share_three_are_repeated(two_ranks):
    shape = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 3}
    assert_equal_passes(two_ranks, "llama", shape, "plain")


@pytest.mark.parametrize(
    "adapter", [LoRA(rank=2), PromptTuning(num_virtual_tokens=3)], ids=["lora", "prompt"]
)
def test_adapters_are_trained_alike(two_ranks, adapter):
    assert_equal_passes(two_ranks, "llama", {"num_kv_heads": 2}, "plain", adapter=adapter)


@pytest.mark.parametrize("kind", ["decoder", "untied", "encoder_decoder"])
def test_steps_of_two_ranks_equal_those_of_one_process(two_ranks, kind):
    found = two_ranks(take_steps, kind, {"context": 2})
    assert_equal_steps(found[0], take_steps(kind, {}))


@pytest.mark.parametrize("kind", ["untied", "encoder_decoder"])
@pytest.mark.parametrize(
    "plan", [{"data": 2, "context": 2}, {"tensor": 2, "context": 2}], ids=["data", "tensor"]
)
def test_steps_in_two_dimensions_equal_those_of_one_process(four_ranks, kind, plan):
    found = four_ranks(take_steps, kind, {**plan, "activation_checkpointing": "selective"})
    assert_equal_steps(found[0], take_steps(kind, {}))


def refuse(adapter):
    network = build(make_config("llama", **TINY), seed=1)
    AdapterStack(network).attach(adapter)
    with pytest.raises(UserError, match="prefix stands before"):
        apply_context_parallel(network, init_device_mesh("cpu", (2,), mesh_dim_names=("context",)))


def test_what_cannot_be_split_is_refused(two_ranks):
    two_ranks(refuse, PrefixTuning(num_virtual_tokens=3))
    for preset, changes, reason in (
        ("gpt2", {"hidden_size": 24, "num_heads": 3}, "3 attention heads"),
        ("rwkv", {"num_heads": 1, "head_dim": 32}, "recurrent"),
        ("gopher-44m", {}, "queries of all heads"),
    ):
        with pytest.raises(UserError, match=reason):
            check_context_parallel(make_config(preset, **TINY | changes | {"max_positions": 64}), 2)
    with pytest.raises(UserError, match="of each of 2 tensor ranks"):
        check_context_parallel(make_config("gpt2", **TINY), 4, tensor=2)
    with pytest.raises(UserError, match="same positions"):
        check(Plan(data=1, tensor=2, sequence=True, context=2), make_config("gpt2", **TINY), None)
