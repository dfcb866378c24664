"""Separate parameters, one matmul: the same results and gradients as of separate layers, whatever was done to them."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from nbllm.nn.attention import Attention, AttentionContext, AttentionShape
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.joined import JoinedLinears, empty_parameters, joined, side_by_side
from nbllm.nn.linear import Linear
from nbllm.nn.positions import Places, RotaryPositions


class Three(JoinedLinears):
    """Layers of different widths that read the same input."""

    def __init__(self, bias=True):
        super().__init__("first", "second", "third")
        draw = torch.Generator().manual_seed(0)
        self.first, self.second, self.third = (Linear(6, width, bias=bias) for width in (8, 4, 2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=draw)
        self.join()


def is_joined(module):
    layers = [getattr(module, name) for name in module.joined]
    return side_by_side(*[layer.weight for layer in layers]) is not None


def shape(num_heads, num_kv_heads):
    return AttentionShape(
        hidden_size=8, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=4, bias=True, output_bias=True
    )


def problem(rows=80):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("rows", [3, 80])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_those_of_separate_layers(bias, rows):
    module, x = Three(bias), problem(rows)
    parameters = dict(module.named_parameters())
    out = module.multiply_joined(x)
    layers = [getattr(module, name) for name in module.joined]
    expected = torch.cat([F.linear(x, layer.weight, layer.bias) for layer in layers], dim=-1)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(out, [x, *parameters.values()], grad)
    wanted = torch.autograd.grad(expected, [x, *parameters.values()], grad)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_slices_of_one_buffer_and_are_not_copied():
    module = Three()
    module.multiply_joined(problem()).sum().backward()
    assert side_by_side(*[layer.weight.grad for layer in module.children()]) is not None


def test_gradients_accumulate():
    module, x = Three(), problem()
    for _ in range(2):
        module.multiply_joined(x).sum().backward()
    torch.testing.assert_close(module.second.weight.grad, 2 * x.detach().sum(0).expand(4, -1))


def test_it_can_be_differentiated_twice():
    module, x = Three().double(), problem().detach().double().requires_grad_()
    inputs = [x, *module.parameters()]
    assert torch.autograd.gradgradcheck(lambda *_: module.multiply_joined(x), inputs, fast_mode=True)


MADE_AGAIN = {
    "as made": lambda module: module,
    "float64": lambda module: module.to(torch.float64),
    "bfloat16": lambda module: module.bfloat16(),
    "copied": copy.deepcopy,
    "loaded into": lambda module: (module.load_state_dict(Three().state_dict()), module)[1],
    "loaded by assigning": lambda module: (
        module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True), module,
    )[1],
    "saved and opened": lambda module: torch.load(_saved(module), weights_only=False),
    "emptied": lambda module: module.to_empty(device="cpu"),
    "out of meta": lambda module: copy.deepcopy(module).to("meta").to_empty(device="cpu"),
    "in shared memory": lambda module: module.share_memory(),
    "without gradients": lambda module: module.requires_grad_(False),
}  # fmt: skip


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("way", MADE_AGAIN)
def test_moved_copied_and_loaded_modules_are_joined(way):
    module = MADE_AGAIN[way](Three())
    assert is_joined(module)
    if way == "in shared memory":
        assert all(parameter.is_shared() for parameter in module.parameters())
    assert module.multiply_joined(problem().to(module.first.weight.dtype)) is not None


def test_a_copy_shares_nothing():
    module = Three()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.first.weight.zero_()
    assert module.first.weight.count_nonzero() == 48


def test_parameters_stay_the_same_objects():
    module = Three()
    before = list(module.parameters())
    module.double()
    assert all(one is other for one, other in zip(before, module.parameters(), strict=True))


def test_what_is_made_in_inference_mode_can_be_joined_and_used():
    with torch.inference_mode():
        module = Three()
        assert is_joined(module) and module.multiply_joined(problem()) is not None
    with torch.no_grad():
        assert module.multiply_joined(problem()) is not None


APART = {
    "frozen": lambda module: module.second.weight.requires_grad_(False),
    "hooked": lambda module: module.second.register_forward_hook(lambda *_: None),
    "subclassed": lambda module: setattr(module, "second", nn.Linear(6, 4)),
    "wrapped": lambda module: setattr(module, "second", nn.Sequential(module.second)),
    "parametrized": lambda module: torch.nn.utils.parametrizations.weight_norm(module.second),
    "pruned": lambda module: prune.l1_unstructured(module.second, "weight", 0.5),
    "patched": lambda module: setattr(module.second, "forward", lambda x: x[..., :4]),
    "another weight": lambda module: setattr(module.second, "weight", nn.Parameter(torch.ones(4, 6))),
    "another dtype": lambda module: setattr(module.second.weight, "data", torch.ones(4, 6).double()),
    "another order": lambda module: setattr(module, "joined", ("second", "first", "third")),
    "one bias fewer": lambda module: setattr(module.second, "bias", None),
    "on meta": lambda module: module.to("meta"),
}


@pytest.mark.parametrize("way", APART)
def test_what_is_not_alike_is_called(way):
    module = Three()
    APART[way](module)
    x = problem().to(module.first.weight.device)
    assert module.multiply_joined(x) is None


def test_a_part_written_to_before_the_backward_pass_is_noticed():
    module = Three()
    out = module.multiply_joined(problem())
    with torch.no_grad():
        module.second.weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_neighbours_in_memory_of_other_storages_are_not_joined():
    storage = torch.arange(24.0)
    first = torch.frombuffer(memoryview(storage.numpy())[:12], dtype=torch.float32).view(2, 6)
    second = torch.frombuffer(memoryview(storage.numpy())[12:], dtype=torch.float32).view(2, 6)
    assert first.data_ptr() + first.nbytes == second.data_ptr()
    assert side_by_side(first, second) is None
    assert torch.equal(side_by_side(*storage.view(4, 6).split(2)), storage.view(4, 6))


def test_frozen_parts_get_no_gradient_and_the_others_theirs():
    torch.manual_seed(0)
    attention = Attention(shape(2, 1), layer=0)
    x = torch.randn(1, 70, 8)

    def gradients():
        attention.zero_grad()
        query, key, value = attention.project(x, AttentionContext())
        (query.square().sum() + key.square().sum() + value.square().sum()).backward()
        return {name: parameter.grad for name, parameter in attention.named_parameters()}

    expected = gradients()
    attention.query.requires_grad_(False)
    got = gradients()
    assert got["query.weight"] is None and got["query.bias"] is None
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("change", ["hooked", "another weight"])
def test_attention_and_gated_feed_forward_give_the_same_when_called(change, rotated):
    torch.manual_seed(0)
    attention = Attention(shape(4, 2), layer=0)
    feed_forward = FeedForward(8, 12, activation="silu", gated=True, bias=True)
    x, scheme = torch.randn(2, 40, 8), RotaryPositions(4, 100.0) if rotated else None
    context = AttentionContext(scheme=scheme, positions=Places(slice(0, 40), 40))
    before = [*attention.project(x, context), feed_forward(x)]
    for layer in (attention.key, feed_forward.up):
        if change == "hooked":
            layer.register_forward_hook(lambda *_: None)
        else:
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    after = [*attention.project(x, context), feed_forward(x)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_parameters_are_joined_and_of_the_asked_kind():
    with torch.device("meta"):
        model = nn.ModuleList(
            [Three(), nn.Linear(3, 2), FeedForward(4, 6, activation="relu", gated=False, bias=True)]
        )
    made = empty_parameters(model, dtype=torch.bfloat16, device="cpu")
    assert {name: p.shape for name, p in made.items()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert {p.dtype for p in made.values()} == {torch.bfloat16}
    assert side_by_side(*[made[f"0.{name}.bias"] for name in ("first", "second", "third")]) is not None
    model.load_state_dict(made, assign=True)
    assert model[0].first.weight.data_ptr() == made["0.first.weight"].data_ptr()


def test_the_joined_tensor_is_their_memory():
    module = Three()
    weights = [layer.weight for layer in module.children()]
    whole = joined(*weights)
    assert whole.shape == (14, 6) and whole.data_ptr() == weights[0].data_ptr()
    assert torch.equal(whole, torch.cat(weights))
