"""What every adapter method must keep, on every kind of network on which it makes sense."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError, WeightsError
from nbllm.inference.runners.compiled_spec import is_computed
from nbllm.models.network import build, build_without_weights
from nbllm.models.peft.checkpoint import read_adapters, write_adapters
from nbllm.models.peft.files import CONFIG, FORMATS, read_peft, write_peft
from nbllm.models.peft.known import ADAPTERS
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.models.quantized import quantize_layers

TINY = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder": ("llama", {"num_kv_heads": 2}),
    "gpt2": ("gpt2", {}),
    "encoder": ("bert", {}),
    "encoder_decoder": ("t5", {"num_decoder_layers": 2}),
    "rwkv": ("rwkv", {"num_heads": 1, "intermediate_size": 32}),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder": "lstm", "encoder_hidden_size": 5},
    "prefix_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 5},
    "p_tuning_v2": {"num_virtual_tokens": 3},
    "houlsby": {"reduction_factor": 4},
    "qlora": {"rank": 2, "block_size": 16},
    "pfeiffer": {"reduction_factor": 4, "activation": "gelu"},
}
LOW_RANK = ("key", "value")
CHANGED: dict[tuple[str, str], dict[str, Any]] = {  # where the layers have other names
    ("lora", "rwkv"): {"targets": LOW_RANK},
    ("ia3", "rwkv"): {"feed_forward": (), "targets": LOW_RANK},
}
REFUSED = {
    ("bitfit", "decoder"),
    ("bitfit", "encoder_decoder"),
    ("prefix_tuning", "rwkv"),
    ("p_tuning_v2", "rwkv"),
}
CASES = [(method, network) for method in ADAPTERS for network in NETWORKS if (method, network) not in REFUSED]
IDS = torch.tensor([[3, 7, 5, 9, 11, 4], [8, 2, 6, 1, 12, 13]])


def make(network: str, method: str = ""):
    family, shape = NETWORKS[network]
    model = build(make_config(family, **{**TINY, **shape}), seed=1).eval()
    if method == "qlora":
        quantize_layers(model, block_size=16)
    return model


def settings(method: str, network: str):
    return ADAPTERS[method](**SETTINGS.get(method, {}), **CHANGED.get((method, network), {}))


def logits(model):
    return model(IDS, IDS[:, :4]) if model.config.network == "encoder_decoder" else model(IDS)


@torch.no_grad()
def randomize(adapter) -> None:
    drawn = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters().values():
        parameter += torch.randn(parameter.shape, generator=drawn) * 0.2


@pytest.mark.parametrize(("method", "network"), CASES)
def test_it_is_attached_switched_and_taken_away(method, network):
    model = make(network, method)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        plain, fast = logits(model), is_computed(model)
    stack = AdapterStack(model)
    adapter = stack.attach(settings(method, network), seed=3)
    assert adapter.num_parameters > 0 and f"{adapter.num_parameters:,} parameters" in repr(adapter)
    names = adapter.parameters().keys()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names

    randomize(adapter)
    logits(model).square().sum().backward()
    assert not is_computed(model)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == names
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters().values())

    with torch.no_grad():
        adapted = logits(model)
        assert adapted.shape == plain.shape and (adapted - plain).abs().max() > 1e-5
        with adapter.disabled():
            assert torch.equal(logits(model), plain) and is_computed(model) == fast
            assert all(p.requires_grad for p in model.parameters())
        assert torch.equal(logits(model), adapted)
        same = copy.deepcopy(model)
        assert torch.equal(logits(same), adapted)
        adapter.off()
        model.double()
        adapter.on()
        assert logits(model).dtype == torch.float64
        model.float()
        adapter.detach()
        assert torch.equal(logits(model), plain)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    with pytest.raises(UserError, match="detached"):
        adapter.on()


@pytest.mark.parametrize(("method", "network"), CASES)
def test_its_start_depends_on_the_seed_alone(method, network):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (
        AdapterStack(make(network)).attach(settings(method, network), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    values = [torch.cat([p.flatten() for p in each.parameters().values()]) for each in (first, again, other)]
    assert torch.equal(values[0], values[1])
    without_weights = build_without_weights(first._stack.model.config)
    made = AdapterStack(without_weights).attach(settings(method, network))
    assert made.num_parameters == first.num_parameters


@pytest.mark.parametrize(("method", "network"), CASES)
def test_merged_it_computes_the_same_and_unmerged_the_weights_are_as_before(method, network):
    model = make(network, method)
    state = copy.deepcopy(model.state_dict())
    stack = AdapterStack(model)
    adapter = stack.attach(settings(method, network))
    randomize(adapter)
    with torch.no_grad():
        adapted = logits(model)
        if method == "qlora" or not all(part.can_merge for part in adapter.parts.values()):
            with pytest.raises(UserError, match="cannot be merged|Weights in 4 bits"):
                adapter.merge()
            assert torch.equal(logits(model), adapted)
            return
        adapter.merge()
        torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
        with adapter.disabled():
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
        torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
        adapter.unmerge()
        assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_files_hold_it(method, network, tmp_path):
    model = make(network, method)
    stack = AdapterStack(model)
    adapter = stack.attach(settings(method, network))
    randomize(adapter)
    with torch.no_grad():
        adapted = logits(model)
        write_adapters([adapter], tmp_path)
        in_their_order = network == "encoder_decoder" and method in ("prefix_tuning", "p_tuning_v2")
        has_format = any(method in form.methods for form in FORMATS) and not in_their_order
        if has_format:
            write_peft(model, adapter, tmp_path / "peft", base="")
        else:
            with pytest.raises(UserError, match=r"no file for it|peft_order"):
                write_peft(model, adapter, tmp_path / "peft", base="")
        adapter.detach()
        read_adapters(stack, tmp_path)
        assert stack["default"].config == adapter.config and torch.equal(logits(model), adapted)
        stack["default"].detach()
        if has_format:
            assert (tmp_path / "peft" / CONFIG).exists()
            read_peft(stack, tmp_path / "peft")
            torch.testing.assert_close(logits(model), adapted, atol=1e-6, rtol=1e-6)
            stack["default"].detach()

        record = json.loads((tmp_path / "adapters.json").read_text())
        record["adapters"][0]["settings"]["surplus"] = 1
        (tmp_path / "adapters.json").write_text(json.dumps(record))
        with pytest.raises(WeightsError, match="surplus"):
            read_adapters(stack, tmp_path)


@pytest.mark.parametrize(("method", "network"), sorted(REFUSED))
def test_where_it_makes_no_sense_it_is_refused(method, network):
    model = make(network)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(UserError):
        AdapterStack(model).attach(settings(method, network))
    assert [name for name, _ in model.named_parameters()] == names


class TestStack:
    def test_several_act_together_and_the_newest_is_trained(self):
        model = make("decoder")
        stack = AdapterStack(model)
        first = stack.attach(nb.LoRA(rank=2), name="first")
        second = stack.attach(nb.LoRA(rank=3, dora=True, targets=("query", "down")), name="second")
        third = stack.attach(nb.IA3(), name="third")
        for adapter in stack.adapters:
            randomize(adapter)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == third.parameters().keys()
        with torch.no_grad():
            together = logits(model)
            first.off()
            first.on()  # its place is the same
            assert torch.equal(logits(model), together)
            stack.merge(*stack.adapters)
            torch.testing.assert_close(logits(model), together, atol=1e-5, rtol=1e-5)
            with pytest.raises(UserError, match="one cannot be merged without the other"):
                second.unmerge()
            torch.testing.assert_close(logits(model), together, atol=1e-5, rtol=1e-5)
            stack.unmerge(*stack.adapters)
            stack.switch("second")
            assert [adapter.state for adapter in stack.adapters] == ["off", "on", "off"]
            alone = logits(model)
            stack.switch("first", "second", "third")
            assert torch.equal(logits(model), together)
            first.detach()
            third.detach()
            assert torch.equal(logits(model), alone)
        with pytest.raises(UserError, match="no adapter 'fourth'"):
            stack.switch("fourth")

    def test_deltas_are_summed_in_float32_before_they_are_rounded(self):
        """peft#2321: in bfloat16 1 + .003 is 1, but two of them together are 1.0078125."""
        model = make("decoder").bfloat16()
        weight = model.blocks[0].attention.query.weight
        with torch.no_grad():
            weight.fill_(1.0)
        stack = AdapterStack(model)
        for name in ("first", "second"):
            target = ("blocks.0.attention.query",)
            adapter = stack.attach(nb.LoRA(rank=1, alpha=1, targets=target), name=name)
            for parameter, value in zip(adapter.parameters().values(), (1.0, 0.003), strict=True):
                parameter.data.fill_(value)
        first, second = stack.adapters
        first.merge()
        assert weight.unique().tolist() == [1.0]
        second.merge()
        assert weight.unique().tolist() == [1.0078125]
        first.detach()  # for good
        second.unmerge()
        assert weight.unique().tolist() == [1.0]
        second.detach()
