"""What every network must keep, and that one more is one file: an encoder is defined and trained here."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig, shape_for_positions
from nbllm.models.families.base import Family, WeightRule
from nbllm.models.families.registry import FAMILIES
from nbllm.models.network import (
    NETWORKS,
    VERBS,
    Network,
    Row,
    build,
    build_without_weights,
    check_can,
    describe_parts,
)
from nbllm.models.presets import make_config
from nbllm.nn.attention import AttentionContext
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.nn.normalization import make_norm
from nbllm.nn.positions import POSITIONS, Places, Positions, make_positions
from nbllm.objectives import OBJECTIVES, Objective


@NETWORKS.register("test_encoder")
class Encoder(Network):
    """Every position sees every other; the head is the embedding."""

    can = frozenset({"fill", "embed"})
    kind = "an encoder, which reads a text in both directions"

    def add_parts(self, config):
        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.positions = make_positions(config.positions, shape_for_positions(config, causal=False))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config.norm, config.hidden_size, config.norm_eps)

    @property
    def head_weight(self):
        return self.embedding.weight

    def hidden(self, input_ids):
        places = Places(slice(0, input_ids.shape[1]), input_ids.shape[1])
        x = self.positions.embed(self.embedding(input_ids), places)
        context = AttentionContext(
            causal=False, scheme=self.positions, positions=places, backend=self.attention_backend
        )
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)

    def forward(self, input_ids):
        return F.linear(self.hidden(input_ids), self.head_weight)

    def describe(self) -> list[Row]:
        return describe_parts([("blocks.*", "blocks", [*self.blocks])], self.config.num_layers)


SIZES = {"layers": "num_layers", "width": "hidden_size", "heads": "num_heads", "context": "max_positions"}


def read(settings):
    sizes = {ours: settings.integer(theirs, 1) for theirs, ours in SIZES.items()}
    vocab_size = settings.integer("vocab_size", 1)
    return ModelConfig(family="test_encoder", network="test_encoder", vocab_size=vocab_size, **sizes)


def rules(config):
    names = [name for name, _ in build_without_weights(config).named_parameters()]
    return [WeightRule(f"bert.{name}", (name,)) for name in names]


FAMILIES.register("test_encoder")(
    Family(
        name="test_encoder",
        label="test_encoder",
        architecture="TestEncoderModel",
        base_prefix="bert.",
        fixed={"network": "test_encoder", "positions": "learned"},
        read=read,
        write=lambda config: {
            "vocab_size": config.vocab_size, **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        },
        rules=rules,
        unused=re.compile("nothing"),
    )
)  # fmt: skip


@OBJECTIVES.register("test_masked_by_encoder")
class Masked(Objective):
    """A quarter of the tokens is replaced by token 0; only those count."""

    def batch(self, windows, rng):
        masked, tokens = torch.from_numpy(rng.random(windows.shape) < 0.25), torch.from_numpy(windows)
        return {"inputs": torch.where(masked, 0, tokens), "targets": torch.where(masked, tokens, -100)}

    def loss(self, network, batch):
        targets = batch["targets"].flatten()
        hidden = network.hidden(batch["inputs"]).flatten(0, 1)
        return linear_cross_entropy(hidden, network.head_weight, targets), int((targets != -100).sum())


class Distance(Positions):
    """Each head's scores fall with the distance to the key, as ALiBi's do; nothing else tells positions."""

    @classmethod
    def make(cls, shape):
        return cls()

    def bias(self, query_positions, key_positions):
        query, key = (_as_ids(places) for places in (query_positions, key_positions))
        return -0.5 * (query[:, None, :, None] - key[:, None, None, :]).abs().float()


def _as_ids(places):
    return torch.arange(places.length)[None, places.ids] if isinstance(places.ids, slice) else places.ids


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(10))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return nb.data.train_tokenizer(texts, vocab_size=320)


USUAL = {
    "decoder": "gpt2",
    "encoder": "bert",
    "encoder_decoder": "t5",
    "rwkv": "rwkv",
    "prefix_decoder": "gpt2",
}


@pytest.fixture(params=sorted({*NETWORKS, *USUAL}))
def config(request):
    shape = {"vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64}
    if request.param == "rwkv":  # it has one head
        del shape["num_heads"]
    if request.param in USUAL:
        return make_config(USUAL[request.param], network=request.param, **shape)
    return ModelConfig(family=request.param, network=request.param, **shape)


def test_a_network_is_built_of_its_configuration_seed_and_nothing_else(config):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = (build(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(one) is NETWORKS[config.network] and one.config == config
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
        assert weight.squeeze().dim() < 2 or not torch.equal(weight, other.state_dict()[name])
    assert one.dtype == torch.float32 and one.device.type == "cpu"


def test_without_weights_it_has_the_same_names_and_shapes(config):
    empty, full = build_without_weights(config), build(config)
    assert empty.device.type == "meta"
    shapes = [{name: p.shape for name, p in each.named_parameters()} for each in (empty, full)]
    assert shapes[0] == shapes[1]


def test_it_describes_itself_and_says_what_it_can(config):
    network = build(config)
    assert 0 < sum(row.parameters for row in network.describe()) <= network.num_parameters
    assert network.can <= set(VERBS)
    for verb in VERBS:
        if verb in network.can:
            check_can(network, verb)
        else:
            with pytest.raises(UserError, match=f"cannot {verb}: it is {network.kind}"):
                check_can(network, verb)


def test_it_is_saved_and_opened_equal(config, tokenizer, tmp_path):
    lm = nb.LM(build(config, seed=3), tokenizer)
    opened = nb.load(lm.save(tmp_path / "model"))
    assert opened.config == config
    ids = [torch.arange(20)[None]] * (2 if config.network == "encoder_decoder" else 1)
    assert torch.equal(opened.model(*ids), lm.model(*ids))
    lm._repr_html_()


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="no network named 'decodr'.*\n.*decoder"):
        build(ModelConfig(family="gpt2", network="decodr", vocab_size=9))


def encoder(tokenizer):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64}
    config = ModelConfig(family="test_encoder", network="test_encoder", vocab_size=len(tokenizer), **shape)
    return nb.LM(build(config, seed=1), tokenizer)


def test_the_encoder_sees_what_comes_after_and_refuses_to_generate(tokenizer):
    lm, ids = encoder(tokenizer), torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 15] = 300
    assert not torch.allclose(lm.model(ids)[0, :15], lm.model(changed)[0, :15])
    for ask in (lambda: lm.generate("a"), lambda: lm.chat("a"), lambda: lm.score("a")):
        with pytest.raises(UserError, match="it is an encoder, which reads a text in both directions"):
            ask()


def test_the_encoder_trains_in_a_run_and_its_checkpoint_opens(tokenizer, texts, tmp_path):
    run = nb.train(
        encoder(tokenizer), nb.data.pack(texts, tokenizer, folder=tmp_path / "cache"), folder=tmp_path, name="run",
        objective="test_masked_by_encoder", steps=12, batch_size=2, sequence_length=32, lr=3e-3, sample_interval=4,
        precision="float32", num_threads=1, validation=None,
    ).wait(progress=False)  # fmt: skip
    losses = np.array(run.history("loss")[1])
    assert run.state == "finished" and losses[-3:].mean() < losses[:3].mean()
    assert not run.events("sample")
    assert type(nb.load(run.checkpoints[-1].path).model) is Encoder


def test_an_objective_that_the_network_cannot_learn_is_refused(tokenizer, texts, tmp_path):
    with pytest.raises(UserError, match="causal_lm': it is an encoder"):
        nb.train(encoder(tokenizer), texts, folder=tmp_path, objective="causal_lm", sequence_length=32)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("kind", [*POSITIONS, "test_distance"])
def test_position_schemes_tell_the_order_with_padding_and_cache(monkeypatch, padding, kind):
    monkeypatch.setitem(POSITIONS, "test_distance", Distance)
    shape = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "initializer_range": 0.3}
    model = build(ModelConfig(family="gpt2", positions=kind, **shape))
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :padding] = False
    with torch.inference_mode():
        whole = model(ids, attention_mask=mask if padding else None)
        cache = model.make_cache(2, 20)
        parts = [
            model(part, cache=cache, attention_mask=mask[:, :end] if padding else None)
            for part, end in zip(ids.split([12, 1, 7], dim=1), (12, 13, 20), strict=True)
        ]
        alone = model(ids[1:, padding:])
        reordered = model(ids[:, torch.tensor([*range(10, 18), *range(10), 18, 19])])
    torch.testing.assert_close(torch.cat(parts, dim=1)[1, padding:], whole[1, padding:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[1, padding:], alone[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(reordered[0, -1], whole[0, -1], atol=1e-3)  # else it could not tell
