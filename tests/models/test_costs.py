"""What a configuration says that it costs, beside what is counted and measured."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nbllm.core.errors import UserError
from nbllm.models import PRESETS, ModelConfig, build, make_config
from nbllm.models.families import FAMILIES
from nbllm.models.module_costs import module_costs
from nbllm.models.network import NETWORKS, build_without_weights

BATCH, LENGTH = 4, 128
SMALL = {"vocab_size": 512, "num_layers": 3, "hidden_size": 128, "num_heads": 4, "max_positions": LENGTH}

ONE_HEAD = {"rwkv": {"num_heads": 1}}
CONFIGS = {
    family: make_config(family, **SMALL | ONE_HEAD.get(family, {}))
    for family in FAMILIES
    if family in PRESETS
}
CONFIGS["prefix_decoder"] = make_config("llama", network="prefix_decoder", **SMALL)


def texts(network, ids):
    """What a network reads: one text, or one and another that it writes."""
    return (ids, ids) if network.config.network == "encoder_decoder" else (ids,)


def counted(config, batch, length):
    """The operations of a forward pass and of a training step, as torch counts those that are called."""
    network = build_without_weights(config)
    network.attention_backend = "eager"
    ids = torch.zeros(batch, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as forward:
        out = network(*texts(network, ids))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def kept(network, ids):
    """The bytes that autograd keeps of a forward pass, beside the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(*texts(network, ids))
    assert out.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in parameters)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_costs_of_a_family_are_those_that_are_counted_and_measured(family):
    config = CONFIGS[family]
    network = build(config)
    network.attention_backend = "sdpa"
    costs = config.costs(batch_size=BATCH, sequence_length=LENGTH)
    assert costs.parameters == network.num_parameters
    if not config.num_experts:  # without weights no expert is chosen
        forward, step = counted(config, BATCH, LENGTH)
        assert costs.flops_per_token * BATCH * LENGTH == pytest.approx(forward, rel=0.01)
        assert costs.flops_per_step == pytest.approx(step, rel=0.01)
    ids = torch.randint(5, 512, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    network.config = config.replace(
        logit_softcap=0.0
    )  # which training bounds within the loss, and keeps none
    assert costs.activation_bytes("float32") == pytest.approx(kept(network, ids), rel=0.05)


def test_of_experts_those_that_compute_a_token_are_counted():
    config = make_config("mixtral", **SMALL)
    dense = config.replace(
        num_experts=0, experts_per_token=0, router_loss_weight=0.0,
        intermediate_size=config.experts_per_token * config.intermediate_size,
    )  # fmt: skip
    routers = config.num_layers * config.num_experts * config.hidden_size
    assert config.costs().flops_per_token == dense.costs().flops_per_token + 2 * routers
    model = build_without_weights(config)
    assert config.costs().parameters == model.num_parameters
    assert model.num_active_parameters == dense.costs().parameters + routers
    assert f"{model.num_parameters:,} parameters ({model.num_active_parameters:,} active)" in str(
        config.costs()
    )


@pytest.mark.parametrize("network", ["decoder", "encoder"])
@pytest.mark.parametrize("positions", ["sinusoidal", "alibi", "relative", "transformer_xl"])
@pytest.mark.parametrize("batch", [1, 4])
def test_activations_know_what_a_position_scheme_keeps(network, positions, batch):
    family = {"decoder": "gpt2", "encoder": "bert"}[network]
    config = make_config(family, **SMALL).replace(positions=positions)
    model = build(config)
    model.attention_backend = "sdpa"
    measured = kept(model, torch.zeros(batch, LENGTH, dtype=torch.long))
    said = config.costs(batch_size=batch, sequence_length=LENGTH).activation_bytes("float32")
    assert said == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_operations_know_that_queries_ask_for_distances(family):
    config = make_config(family, **SMALL).replace(positions="transformer_xl")
    costs = config.costs(batch_size=BATCH, sequence_length=LENGTH)
    assert costs.flops_per_token * BATCH * LENGTH == pytest.approx(
        counted(config, BATCH, LENGTH)[0], rel=0.01
    )
    assert costs.parameters == build_without_weights(config).num_parameters


@pytest.mark.parametrize(
    ("preset", "length"), [("gpt2", 1024), ("llama-7b", 512), ("bert", 512), ("t5", 512)]
)
def test_published_shapes_cost_what_is_counted(preset, length):
    config = make_config(preset)
    forward, step = counted(config, 1, length)
    costs = config.costs(sequence_length=length)
    assert costs.flops_per_token * length == pytest.approx(forward, rel=0.01)
    assert costs.flops_per_step == pytest.approx(step, rel=0.01)


def test_parts_of_gpt2_are_those_of_its_paper():
    costs = make_config("gpt2").costs()
    parameters = {part.name: part.parameters for part in costs.parts}
    assert parameters == {
        "embedding": (50257 + 1024) * 768,
        "attention": 12 * (4 * 768**2 + 4 * 768),
        "feed-forward": 12 * (8 * 768**2 + 5 * 768),
        "norms": 25 * 2 * 768,
        "head": 0,
    }
    assert costs.parameters == 124_439_808
    assert costs.cache_bytes(1024, "bfloat16") == 2 * 12 * 768 * 1024 * 2  # keys and values
    assert costs.weight_bytes("float16") == 2 * 124_439_808


@pytest.mark.parametrize("family", [name for name in CONFIGS if CONFIGS[name].network == "decoder"])
def test_the_cache_takes_what_a_real_one_takes(family):
    cache = build(CONFIGS[family]).make_cache(1, 100)
    assert CONFIGS[family].costs().cache_bytes(100, "float32") == cache.num_bytes


def test_an_encoder_decoder_keeps_both_texts_in_its_cache():
    config = CONFIGS["t5"]
    network, ids = build(config), torch.zeros(1, 100, dtype=torch.long)
    cache = network.make_cache(1, 100)
    with torch.inference_mode():
        network(ids, ids, cache=cache)
    assert config.costs().cache_bytes(100, "float32") == cache.num_bytes
    assert "key/value cache, 128 tokens read and written" in str(config)


def test_the_display_is_escaped_and_names_every_part():
    config = ModelConfig(family="<b>evil</b>", vocab_size=512, hidden_size=64, num_layers=2, num_heads=4)
    html, text = config._repr_html_(), str(config)
    assert "<b>" not in html and "&lt;b&gt;evil" in html
    for name in (
        "embedding",
        "attention",
        "feed-forward",
        "norms",
        "head, tied to the embedding",
        "key/value cache",
    ):
        assert name in html and name in text
    assert "<b>" in text and repr(config).startswith("ModelConfig(family='<b>evil")
    assert "key/value cache" not in str(make_config("bert"))


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"sequence_length": 0}])
def test_no_tokens_are_refused(numbers):
    with pytest.raises(UserError, match="at least 1"):
        make_config("gpt2").costs(**numbers)


def test_every_network_is_held_to_this():
    assert {config.network for config in CONFIGS.values()} == {
        name for name in NETWORKS if not name.startswith("test_")
    }


def test_operations_of_gpt2_are_those_of_its_matrices_and_scores_however_its_head_is_tied():
    config = make_config("gpt2")
    for costs in (config.costs(), config.replace(tie_embeddings=False).costs()):
        assert costs.flops_per_step / 1024 == 854_438_400
        assert costs.causal_flops_per_step / 1024 == 797_815_296


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("length", [100, 256, 1024])
def test_attention_by_blocks_keeps_its_weights_of_short_sequences(family, length):
    config = make_config(family, **SMALL | {"max_positions": 1024})
    network = build(config)
    network.attention_backend = "blocked"
    ids = torch.zeros(2, length, dtype=torch.long)
    elements = sum(each.kept for each in module_costs(network, 2, length, keeps_weights=True)) * 2 * length
    # Of rotary positions it lets go what "sdpa" and "per_head" hold: queries and keys before they are rotated.
    assert 4 * elements == pytest.approx(kept(network, ids), rel=0.1)
