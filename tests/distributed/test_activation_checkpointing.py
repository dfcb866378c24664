"""Checkpointed blocks give the same losses and gradients, bit for bit, and hold less."""

import copy

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.distributed.activation_checkpointing import checkpoint_activations, held_bytes
from nbllm.models.network import build
from nbllm.models.peft.lora import LoRA
from nbllm.models.peft.prefix_tuning import PrefixTuning
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.nn import kernels
from nbllm.nn.attention_backends import measuring
from nbllm.nn.compute.decisions import PLAIN, use_choices
from nbllm.nn.kernels import FUSED_DTYPES
from nbllm.objectives.heads import head_cross_entropy
from tests.distributed import steps
from tests.distributed.steps import assert_equal_steps, take_steps

KERNELS = PLAIN.replace(fused_kernels=FUSED_DTYPES, onednn_matmuls_from=1)
TINY = {"vocab_size": 61, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "initializer_range": 0.2}
NETWORKS = {
    "gpt2": {},
    "llama": {"num_kv_heads": 2},
    "bert": {},
    "t5": {},
    "bart": {},
    "mixtral": {"num_kv_heads": 2},
    "rwkv": {},
}
CHOICES = ["full", "selective", 2]


@pytest.fixture(autouse=True)
def one_thread():
    """torch adds up the gradient of T5's position bias in an order that several threads do not repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def computed_by(request, monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", 0)
    with use_choices(KERNELS if request.param == "kernels" else PLAIN):
        yield request.param


def make(preset, **changes):
    shape = {**TINY, "num_heads": 1, "head_dim": 64} if preset == "rwkv" else TINY
    return build(make_config(preset, **shape, **NETWORKS[preset], **changes), seed=1)


def loss_of(network, length=96):
    """Return a loss that reads all hidden states."""
    ids = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    if hasattr(network, "encoder"):
        real = torch.arange(length) < torch.tensor([[length], [length - 9]])
        return head_cross_entropy(network, network.hidden(ids, targets, attention_mask=real), targets)
    hidden = network.hidden(ids)
    if not hasattr(network, "logit_softcap") or "generate" not in network.can:
        return hidden.square().sum()
    return head_cross_entropy(network, hidden, targets)


def gradients(network):
    loss = loss_of(network)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_the_same(got, wanted):
    assert torch.equal(got[0], wanted[0])
    assert list(got[1]) == list(wanted[1])
    for name, gradient in wanted[1].items():
        assert (gradient is None) == (got[1][name] is None), name
        assert gradient is None or torch.equal(got[1][name], gradient), name


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("preset", NETWORKS)
def test_losses_and_gradients_are_equal_bit_for_bit_and_less_is_held(preset, choice):
    plain = make(preset)
    other = copy.deepcopy(plain)
    stacks = 2 if hasattr(plain, "encoder") else 1
    assert checkpoint_activations(other, choice) == stacks * (2 if choice == 2 else 3)
    assert other.state_dict().keys() == plain.state_dict().keys()
    assert held_bytes(lambda: loss_of(other)) < held_bytes(lambda: loss_of(plain))
    wanted = gradients(plain)
    assert_the_same(gradients(other), wanted)
    other.zero_grad()
    assert_the_same(gradients(copy.deepcopy(other)), wanted)  # a copy computes with its own weights


@pytest.mark.parametrize("backend", ["sdpa", "eager", "blocked", "per_head"])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_attention_backend_can_be_computed_twice(backend, choice):
    plain = make("llama")
    plain.attention_backend = backend
    other = copy.deepcopy(plain)
    checkpoint_activations(other, choice)
    assert_the_same(gradients(other), gradients(plain))


@pytest.mark.parametrize("choice", CHOICES)
def test_attention_may_be_measured_while_a_block_is_computed(choice, monkeypatch):
    monkeypatch.setattr(measuring, "_times", {})
    other = make("llama")
    checkpoint_activations(other, choice)
    got = gradients(other)
    assert measuring._times
    assert_the_same(got, gradients(make("llama")))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("method", [LoRA(rank=2), PrefixTuning(num_virtual_tokens=3)], ids=["lora", "prefix"])
def test_adapters_are_trained_alike(method, choice):
    plain = make("llama")
    AdapterStack(plain).attach(method)
    other = copy.deepcopy(plain)
    checkpoint_activations(other, choice)
    assert_the_same(gradients(other), gradients(plain))


@pytest.mark.parametrize("choice", CHOICES)
def test_frozen_parameters_of_joined_layers_get_no_gradient(choice):
    plain = make("llama")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("query" in name or "down" in name)
    other = copy.deepcopy(plain)
    checkpoint_activations(other, choice)
    got = gradients(other)
    assert_the_same(got, gradients(plain))
    assert got[1]["blocks.0.attention.key.weight"] is None


def test_full_holds_less_than_selective_and_every_second_block_lies_between_full_and_none():
    held = {}
    for choice in ("none", "full", "selective", 2):
        network = make("gpt2")
        checkpoint_activations(network, choice)
        held[choice] = held_bytes(lambda network=network: loss_of(network))
    assert held["full"] < held["selective"] < held["none"]
    assert held["full"] < held[2] < held["none"]


def test_texts_are_generated_as_before():
    plain = make("llama")
    other = copy.deepcopy(plain)
    checkpoint_activations(other, "full")
    ids = torch.arange(12)[None]
    hidden = []
    for network in (plain, other):
        with torch.inference_mode():
            cache = network.make_cache(1, 20)
            hidden += [network.hidden(ids, cache=cache), network.hidden(ids[:, :3], cache=cache)]
        assert cache.length == 15
    assert torch.equal(hidden[0], hidden[2]) and torch.equal(hidden[1], hidden[3])


def test_what_is_held_is_what_autograd_saves_where_nothing_is_checkpointed():
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    network = make("gpt2")
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(network)
    of_weights = sum(size for place, size in saved.items() if place in own)
    del loss
    assert held_bytes(lambda: loss_of(network)) == pytest.approx(sum(saved.values()) - of_weights, rel=0.02)


@pytest.mark.parametrize("choice", ["some", 0, -1, True, None])
def test_a_choice_that_does_not_exist_is_refused(choice):
    with pytest.raises(UserError, match="activation_checkpointing"):
        checkpoint_activations(make("gpt2"), choice)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("choice", ["full", "selective"])
@pytest.mark.parametrize("axes", [{"data": 2}, {"tensor": 2, "sequence": True}], ids=["data", "tensor"])
def test_checkpointed_steps_of_two_ranks_equal_those_of_one_process(two_ranks, kind, choice, axes):
    found = two_ranks(take_steps, kind, {**axes, "activation_checkpointing": choice})
    assert_equal_steps(found[0], take_steps(kind, {}))


def steps_of_shorter_targets(plan):
    """Take steps with targets that are shorter than what the encoder reads."""
    whole = steps.make_batch

    def make_batch(*args):
        made = whole(*args)
        return made | {name: made[name][:, :21] for name in ("decoder_inputs", "targets")}

    steps.make_batch = make_batch
    try:
        return take_steps("encoder_decoder", plan)
    finally:
        steps.make_batch = whole


def test_stacks_of_unlike_lengths_are_computed_twice_by_tensor_ranks(two_ranks):
    plan = {"tensor": 2, "sequence": True, "activation_checkpointing": "full"}
    assert_equal_steps(two_ranks(steps_of_shorter_targets, plan)[0], steps_of_shorter_targets({}))
