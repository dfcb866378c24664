"""The decoding kernel serves a model only where it computes what calling the model would."""

import contextlib
import copy
import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from nbllm.core.errors import UserError
from nbllm.inference.runners import compiled, compiled_spec
from nbllm.inference.runners.compiled import CompiledRunner
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.attention import Attention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.kernels import decoding
from nbllm.nn.linear import Linear
from nbllm.nn.normalization import LayerNorm, RMSNorm
from nbllm.nn.positions import LearnedPositions, RopeScaling, RotaryPositions

from ..conftest import randomized, read, small_config

FAMILIES = ("gpt2", "llama")


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)


def is_served_rightly(model):
    """Return whether the kernel serves the model; where it does, demand the logits that calling it gives."""
    if not CompiledRunner.serves(model):
        return False
    computed, called = read(model, [5, 9], 3)
    torch.testing.assert_close(computed, called, rtol=0, atol=2e-5 * float(called.abs().max()))
    return True


# ---- the configuration


CHOICES = {  # of the fields that hold a name
    "family": ("gpt2", "llama", "qwen2"),
    "network": ("decoder", "encoder"),
    "positions": ("learned", "rotary"),
    "norm": ("layer_norm", "rms_norm", "rms_norm_offset"),
    "norm_placement": ("pre", "post", "sandwich"),
    "activation": ("gelu_tanh", "gelu", "gelu_quick", "silu", "relu"),
}


def other_values(config, name):
    """Return valid values of a field that are not the configuration's."""
    value = getattr(config, name)
    if name == "rope_scaling":
        return [
            RopeScaling(kind="linear", factor=3.0),
            RopeScaling(kind="dynamic", factor=32.0, original_max_positions=2),
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=16),
        ]
    if isinstance(value, str):
        return [other for other in CHOICES[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    return [value * 2 or 1] if isinstance(value, int) else [value * 50]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_computed_or_refused(family, field):
    config = small_config(family)
    for value in other_values(config, field):
        try:
            changed = config.replace(**{field: value})
        except UserError:  # two fields must change together; another family or value tries this one
            continue
        with contextlib.suppress(UserError):  # a decoder has no such setting
            is_served_rightly(randomized(changed))
        model = randomized(config)
        model.config = changed
        is_served_rightly(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configurations_of_today_are_served(family):
    """This fails when a field is added to `ModelConfig`: teach it to the kernel, or let `compiled_spec` refuse it."""
    assert is_served_rightly(randomized(small_config(family)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkConfig(ModelConfig):
    sink_tokens: int = 4


def test_a_field_that_nobody_has_taught_the_kernel_is_refused():
    config = small_config("llama")
    assert not CompiledRunner.serves(randomized(SinkConfig(**dataclasses.asdict(config))))
    object.__setattr__(config, "sink_tokens", 4)
    assert compiled_spec.expected_modules(config) is None
    assert not CompiledRunner.serves(randomized(config))


@pytest.mark.parametrize("field", ["activation", "norm", "positions"])
def test_a_value_that_nobody_has_taught_the_kernel_is_refused(field):
    config = small_config("llama")
    object.__setattr__(config, field, "new")
    assert compiled_spec.expected_modules(config) is None


def test_the_kernel_and_its_specification_number_the_same_activations():
    assert set(decoding.ACTIVATIONS) == set(compiled_spec.ACTIVATIONS)
    assert all(ACTIVATIONS[name].function is function for name, function in compiled_spec.ACTIVATIONS.items())


def test_a_new_function_under_an_old_name_is_refused(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "silu", dataclasses.replace(ACTIVATIONS["silu"], function=F.mish))
    assert not CompiledRunner.serves(randomized(small_config("llama")))


# ---- the modules


class Scaled(Decoder):
    def logits(self, hidden):
        return super().logits(hidden) / 2


class Quiet(Decoder):
    pass


class HalfLinear(Linear):
    def forward(self, x):
        return super().forward(x) / 2


def as_subclass(module, kind):
    module.__class__ = kind


def patch(module, name):
    original = getattr(module, name)
    setattr(module, name, lambda *arguments, **keywords: original(*arguments, **keywords))


def exchange(model):
    first, second = model.blocks[0], model.blocks[1]
    model.blocks[0], model.blocks[1] = second, first


def exchange_attentions(model):
    first, second = model.blocks
    first.attention, second.attention = second.attention, first.attention


def exchange_gate(feed_forward):
    feed_forward.gate, feed_forward.up = feed_forward.up, feed_forward.gate


REFUSED = {
    "a subclass that overrides logits": lambda model: as_subclass(model, Scaled),
    "any subclass": lambda model: as_subclass(model, Quiet),
    "a layer with another activation": lambda model: setattr(
        model.blocks[1].feed_forward, "activation", F.relu
    ),
    "layers joined otherwise": lambda model: setattr(model.blocks[0].feed_forward, "joined", ()),
    "gate and up exchanged": lambda model: exchange_gate(model.blocks[0].feed_forward),
    "a patched forward": lambda model: patch(model.blocks[0].feed_forward, "forward"),
    "a patched method of the model": lambda model: patch(model, "logits"),
    "a patched method of a layer": lambda model: patch(model.blocks[1].attention, "project"),
    "another eps of the last norm": lambda model: setattr(model.norm, "eps", 0.1),
    "another eps of a layer's norm": lambda model: setattr(model.blocks[1].attention_norm, "eps", 0.1),
    "no eps": lambda model: setattr(model.norm, "eps", None),
    "another base of the rotation": lambda model: setattr(model.positions, "theta", 100.0),
    "cosines of another type": lambda model: setattr(
        model.positions, "_table", tuple(each.double() for each in model.positions.table(64, torch.device("cpu")))
    ),
    "heads of another width": lambda model: setattr(model.blocks[0].attention, "head_dim", 4),
    "another place in the cache": lambda model: setattr(model.blocks[0].attention, "layer", 1),
    "layers in another order": exchange,
    "attentions exchanged": exchange_attentions,
    "a layer used twice": lambda model: setattr(model, "blocks", nn.ModuleList([model.blocks[0]] * 2)),
    "a layer less": lambda model: model.blocks.__delitem__(1),
    "a forward hook": lambda model: model.blocks[0].attention.output.register_forward_hook(lambda *_: None),
    "a hook before": lambda model: model.blocks[0].register_forward_pre_hook(lambda *_: None),
    "a hook of the model": lambda model: model.register_forward_hook(lambda *_: None),
    "a replaced module": lambda model: setattr(model.blocks[0], "feed_forward", nn.Identity()),
    "a replaced embedding": lambda model: setattr(
        model, "embedding", nn.Sequential(nn.Embedding(300, 32), nn.Dropout(0))
    ),
    "a wrapped module": lambda model: setattr(model.blocks, "1", nn.Sequential(model.blocks[1])),
    "a subclass of a layer's part": lambda model: as_subclass(model.blocks[0].attention.output, HalfLinear),
    "an added module": lambda model: model.blocks[0].add_module("adapter", nn.Linear(2, 2)),
    "an added buffer": lambda model: model.norm.register_buffer("shift", torch.zeros(32)),
    "an added attribute": lambda model: setattr(model.blocks[0], "scale", 2.0),
    "an added parameter": lambda model: model.blocks[0].register_parameter("gate", nn.Parameter(torch.ones(1))),
    "an added bias": lambda model: setattr(
        model.blocks[0].attention.output, "bias", nn.Parameter(torch.ones(32))
    ),
    "embeddings of limited length": lambda model: setattr(model.embedding, "max_norm", 0.1),
    "a parametrized weight": lambda model: nn.utils.parametrizations.weight_norm(
        model.blocks[1].feed_forward.down
    ),
    "a pruned weight": lambda model: prune.identity(model.blocks[1].feed_forward.down, "weight"),
    "a weight of another type": lambda model: model.blocks[0].feed_forward.down.double(),
    "a weight that is not contiguous": lambda model: setattr(
        model.norm, "weight", nn.Parameter(torch.ones(64)[::2])
    ),
    "a weight that is not beside its neighbours": lambda model: setattr(
        model.blocks[0].attention.key, "weight", nn.Parameter(model.blocks[0].attention.key.weight.detach().clone())
    ),
    "more tokens than configured": lambda model: setattr(model, "embedding", nn.Embedding(310, 32)),
    "another backend": lambda model: setattr(model, "attention_backend", "eager"),
    "compiled": lambda model: model.blocks[0].compile(backend="eager"),
    "float16": lambda model: model.half(),
    "float64": lambda model: model.double(),
    "no configuration": lambda model: delattr(model, "config"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_what_changes_the_computation_is_refused(change):
    model = randomized(small_config("llama"))
    assert CompiledRunner.serves(model)
    REFUSED[change](model)
    assert not CompiledRunner.serves(model)


CLASSES = {
    Decoder: "logits", Block: "forward", Attention: "project", FeedForward: "_multiply_gate", Linear: "forward",
    JoinedLinears: "multiply_joined",
    RMSNorm: "forward", RotaryPositions: "table", nn.Embedding: "forward", nn.Linear: "forward",
    nn.Module: "__call__", nn.ModuleList: "__iter__",
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_patched_class_is_refused(monkeypatch, kind):
    model, original = randomized(small_config("llama")), getattr(kind, CLASSES[kind])
    with monkeypatch.context() as patching:
        patching.setattr(kind, CLASSES[kind], lambda *given, **named: original(*given, **named))
        assert not CompiledRunner.serves(model)
    assert CompiledRunner.serves(model)


@pytest.mark.parametrize(
    "kind", [Decoder, Block, LearnedPositions, LayerNorm], ids=lambda kind: kind.__name__
)
def test_a_method_that_is_added_to_a_class_is_refused(monkeypatch, kind):
    model = randomized(small_config("gpt2"))
    monkeypatch.setattr(kind, "__call__", lambda self, *given, **named: None, raising=False)
    assert not CompiledRunner.serves(model)


def test_a_replaced_property_is_refused(monkeypatch):
    model = randomized(small_config("gpt2"))
    monkeypatch.setattr(Decoder, "head_weight", property(lambda self: self.embedding.weight * 2))
    assert not CompiledRunner.serves(model)


def test_a_hook_of_all_modules_is_refused():
    model = randomized(small_config("llama"))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not CompiledRunner.serves(model)
    handle.remove()
    assert CompiledRunner.serves(model)


def scale_parameter(module, draw):
    for parameter in module.parameters(recurse=False):
        parameter.data.mul_(draw.choice((0.5, 1.5)))


def replace_parameter(module, draw):
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().flip(0), requires_grad=draw.random() < 0.5))


def restride_parameter(module, draw):
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.stack((parameter.data, parameter.data), dim=-1)[..., 0]


def drop_parameter(module, draw):
    for name in list(module._parameters)[-1:]:
        module._parameters[name] = None


def cast_parameter(module, draw):
    for parameter in list(module.parameters(recurse=False))[:1]:
        parameter.data = parameter.data.to(draw.choice((torch.bfloat16, torch.float64)))


def change_attribute(module, draw):
    own = sorted(vars(module).keys() - vars(nn.Module()).keys())
    changes = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x * 30, str: lambda x: x + "?"}
    for name in draw.sample(own, min(1, len(own))):
        value = getattr(module, name)
        if callable(value) and not isinstance(value, nn.Module):
            setattr(module, name, draw.choice(list(ACTIVATIONS.values())).function)
        elif type(value) in changes:
            setattr(module, name, changes[type(value)](value))


def change_config(model, draw):
    name = draw.choice([field.name for field in dataclasses.fields(ModelConfig)])
    try:
        model.config = model.config.replace(**{name: draw.choice(other_values(model.config, name))})
    except UserError:
        pass


def replace_child(module, draw):
    for name, child in draw.sample(list(module.named_children()), min(1, len(list(module.children())))):
        made = draw.choice((copy.deepcopy, copy.copy, nn.Sequential, lambda _: nn.Identity()))(child)
        setattr(module, name, made)


def exchange_children(module, draw):
    children = list(module.named_children())
    if len(children) > 1:
        (one, first), (two, second) = draw.sample(children, 2)
        setattr(module, one, second), setattr(module, two, first)


def share_child(module, draw):
    children = list(module.named_children())
    if len(children) > 1:
        (one, _), (_, second) = draw.sample(children, 2)
        setattr(module, one, second)


def patch_method(module, draw):
    patch(module, draw.choice(("forward", "__call__", "extra_repr")))


def add_hook(module, draw):
    draw.choice((module.register_forward_hook, module.register_forward_pre_hook))(lambda *_: None)


def derive(module, draw):
    module.__class__ = type("Derived", (type(module),), {})


def change_mode(module, draw):
    module.train(draw.random() < 0.5).requires_grad_(draw.random() < 0.5)


MUTATIONS = (
    scale_parameter, replace_parameter, restride_parameter, drop_parameter, cast_parameter, change_attribute,
    change_config, replace_child, exchange_children, share_child, patch_method, add_hook, derive, change_mode,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_random_mutations_are_computed_or_refused(family):
    served = {mutation: [] for mutation in MUTATIONS}
    for seed in range(20 * len(MUTATIONS)):
        model, draw = randomized(small_config(family)), random.Random(seed)
        mutation = MUTATIONS[seed % len(MUTATIONS)]
        mutation(model if mutation is change_config else draw.choice(list(model.modules())), draw)
        served[mutation].append(is_served_rightly(model))
    always = (scale_parameter, change_mode)
    either = (*always, replace_parameter)  # a replaced one may lie apart from those it was joined with
    assert all(all(served[mutation]) for mutation in always), "weights and modes change no computation"
    assert not any(served[add_hook]) and not any(served[derive])
    kept = [one.__name__ for one in MUTATIONS if one not in either and all(served[one])]
    assert not kept, "some change of each other kind is refused"
