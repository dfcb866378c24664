"""Our encoders against transformers': hidden states, logits and gradients from the same weights, files both ways."""

import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from nbllm.core.errors import UserError, WeightsError
from nbllm.models import Encoder, make_config
from nbllm.models.families import FAMILIES
from nbllm.models.loading import load_model, save_model
from nbllm.models.network import build_without_weights
from tests.parity.weights import draw_weights

PAD = 1
BERT = dict(
    vocab_size=131, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
    max_position_embeddings=40, pad_token_id=PAD,
)  # fmt: skip
DISTILBERT = dict(
    vocab_size=131, dim=48, n_layers=3, n_heads=4, hidden_dim=80, max_position_embeddings=40, pad_token_id=PAD
)
TINY = {
    "bert": ("Bert", BERT),
    "bert-relu": ("Bert", {**BERT, "hidden_act": "relu", "type_vocab_size": 5, "layer_norm_eps": 1e-3}),
    "roberta": ("Roberta", {**BERT, "type_vocab_size": 1}),
    "roberta-padding-0": ("Roberta", {**BERT, "pad_token_id": 0}),
    "distilbert": ("DistilBert", DISTILBERT),
    "distilbert-sinusoidal": ("DistilBert", {**DISTILBERT, "sinusoidal_pos_embds": True, "activation": "relu"}),
    "albert": ("Albert", {**BERT, "embedding_size": 16}),
    "albert-groups": ("Albert", {**BERT, "embedding_size": 48, "num_hidden_layers": 5, "num_hidden_groups": 2}),
}  # fmt: skip


def make_reference(name, kind="ForMaskedLM", **changes):
    """A model without dropout and with weights large enough that every part matters, biases and norms included."""
    prefix, settings = TINY[name]
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    off = {"dropout": 0.0, "attention_dropout": 0.0} if prefix == "DistilBert" else off
    config = getattr(transformers, f"{prefix}Config")(**{**settings, **off, **changes})
    model = getattr(transformers, f"{prefix}{kind}")(config)
    return draw_weights(model)


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request):
    return make_reference(request.param)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(folder)
    return folder


def ids(*shape):
    """Tokens, none of which is padding."""
    return torch.randint(2, 131, shape, generator=torch.Generator().manual_seed(1))


def padded(tiny, side):
    """Three texts of odd lengths, as a batch with padding on one side, and which tokens are real."""
    tokens, mask = ids(3, 13), torch.ones(3, 13, dtype=torch.long)
    for row, length in ((1, 7), (2, 1)):
        mask[row, slice(length, None) if side == "right" else slice(None, -length)] = 0
    return tokens.masked_fill(mask == 0, tiny.config.pad_token_id), mask


def counted(tiny, mask):
    """What makes transformers count only the real tokens, as ours does: RoBERTa does so by itself."""
    if tiny.config.model_type == "roberta":
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def compare_gradients(tiny, ours, theirs, mine, targets):
    """Every gradient of the loss on real tokens, to 1e-4 of its norm."""
    found = []
    for model, logits in ((tiny, theirs), (ours, mine)):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    rules = FAMILIES[ours.config.family].rules(ours.config)
    assert {rule.source for rule in rules} == set(found[0])
    assert {target for rule in rules for target in rule.targets} == set(found[1])
    for rule in rules:
        theirs, mine = found[0][rule.source], found[1][rule.targets[0]]
        # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
        assert float((mine - theirs).norm()) < 1e-4 * max(float(theirs.norm()), 1e-5), rule.source


@pytest.mark.parametrize("length", [1, 23, 33])
def test_logits_hidden_states_and_gradients(tiny, saved, length):
    ours, tokens = load_model(saved), ids(2, length)
    assert type(ours) is Encoder and ours.can == {"embed", "fill"}
    assert ours.num_parameters == sum(parameter.numel() for parameter in tiny.parameters())
    theirs = tiny(tokens, output_hidden_states=True)
    mine = ours(tokens)
    torch.testing.assert_close(mine, theirs.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.hidden(tokens), theirs.hidden_states[-1], atol=1e-5, rtol=0)
    if length > 1:  # a single token can only attend to itself: queries and keys have no gradient
        compare_gradients(tiny, ours, theirs.logits, mine, ids(2, length).flip(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(tiny, saved, side):
    ours, (tokens, mask) = load_model(saved), padded(tiny, side)
    theirs = tiny(tokens, attention_mask=mask, **counted(tiny, mask)).logits
    mine = ours(tokens, attention_mask=mask)
    real = mask.bool()
    assert torch.isfinite(mine).all()
    torch.testing.assert_close(mine[real], theirs[real], atol=1e-5, rtol=0)
    alone = ours(tokens[1:2][mask[1:2].bool()][None])
    torch.testing.assert_close(mine[1][real[1]], alone[0], atol=1e-5, rtol=1e-5)
    compare_gradients(tiny, ours, theirs, mine, torch.where(real, tokens.flip(0), -100))


def test_positions_as_given_are_used(tiny, saved):
    """transformers' BERT counts padding too: with positions that do so ours is equal."""
    ours, (tokens, mask) = load_model(saved), padded(tiny, "left")
    places = torch.arange(13).expand(3, -1)
    offset = ours.config.position_offset
    theirs = tiny(tokens, attention_mask=mask, position_ids=places + offset).logits
    mine = ours(tokens, attention_mask=mask, positions=places)
    torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_a_text_of_padding_alone_stays_finite(tiny, saved):
    ours = load_model(saved)
    tokens = torch.full((2, 5), tiny.config.pad_token_id)
    assert torch.isfinite(ours(tokens, attention_mask=torch.zeros(2, 5, dtype=torch.long))).all()


def test_token_types(tiny, saved):
    ours, tokens = load_model(saved), ids(2, 9)
    kinds = torch.arange(9).expand(2, -1) // 5
    if ours.config.token_types < 2:
        with pytest.raises((UserError, IndexError)):
            ours(tokens, token_types=kinds)
        return
    theirs = tiny(tokens, token_type_ids=kinds).logits
    torch.testing.assert_close(ours(tokens, token_types=kinds), theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours(tokens), theirs, atol=1e-3)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_transformers_opens_what_we_save(tiny, saved, max_shard_bytes, tmp_path):
    ours = load_model(saved)
    save_model(ours, tmp_path, max_shard_bytes=max_shard_bytes)
    reopened, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(reopened) is type(tiny)
    for (name, got), (_, expected) in zip(
        reopened.state_dict().items(), tiny.state_dict().items(), strict=True
    ):
        assert torch.equal(got, expected), name
    tokens, mask = padded(tiny, "right")
    arguments = {"attention_mask": mask, **counted(tiny, mask)}
    assert torch.equal(reopened(tokens, **arguments).logits, tiny(tokens, **arguments).logits)
    assert load_model(tmp_path).config == ours.config


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert"])
def test_a_model_without_the_head_and_with_a_pooler(name, tmp_path):
    """Its file has no prefix; its first token makes a vector of the text."""
    tiny = make_reference(name, "Model")
    tiny.save_pretrained(tmp_path / "theirs")
    ours, tokens = load_model(tmp_path / "theirs"), ids(2, 11)
    assert ours.can == {"embed"} and ours.config.pooler == (name != "distilbert")
    theirs = tiny(tokens)
    torch.testing.assert_close(ours(tokens), theirs.last_hidden_state, atol=1e-5, rtol=0)
    if ours.config.pooler:
        torch.testing.assert_close(ours.pooled(ours(tokens)), theirs.pooler_output, atol=1e-5, rtol=0)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", token_ids={"pad_token_id": PAD})
    reopened, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    again = reopened(tokens)
    assert torch.equal(again.last_hidden_state, theirs.last_hidden_state)
    assert not ours.config.pooler or torch.equal(again.pooler_output, theirs.pooler_output)


def test_a_file_with_the_heads_of_pre_training_and_the_names_of_tensorflow(tmp_path):
    """The hub's bert-base-uncased is such a file."""
    tiny = make_reference("bert", "ForPreTraining")
    tiny.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        re.sub(
            "LayerNorm.weight$", "LayerNorm.gamma", re.sub("LayerNorm.bias$", "LayerNorm.beta", name)
        ): value
        for name, value in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    assert sum("gamma" in name for name in old) == 8
    save_file(old, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="Left out.*cls.seq_relationship.bias"):
        ours = load_model(tmp_path)
    assert ours.config.pooler and ours.config.mask_head
    tokens = ids(2, 11)
    torch.testing.assert_close(ours(tokens), tiny(tokens).prediction_logits, atol=1e-5, rtol=0)


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path):
    make_reference("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="decoder.weight differs from the embedding"):
        load_model(tmp_path)


def test_roberta_counts_from_its_padding_token_on_and_refuses_one_token_too_many(tmp_path):
    tiny = make_reference("roberta")
    tiny.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert (ours.config.max_positions, ours.config.position_offset) == (38, 2)
    tokens = torch.tensor([[0, 5, 6, 2, 1, 1]])  # without a mask padding is seen, and not counted
    torch.testing.assert_close(ours(tokens), tiny(tokens).logits, atol=1e-5, rtol=0)
    weight = ours.positions.weight.detach()
    x = ours.positions.embed(torch.zeros(1, 6, 48), ours_places(ours, tokens))
    assert torch.equal(x[0], weight[[2, 3, 4, 5, 1, 1]])
    assert ours(ids(1, 38)).shape == (1, 38, 131)
    with pytest.raises(UserError, match="39 tokens were given; this model has 38 positions"):
        ours(ids(1, 39))


def ours_places(model, tokens):
    from nbllm.nn.positions import Places

    return Places(model.count_positions(tokens, None), 6)


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "tie_word_embeddings", False),
        ("bert", "hidden_act", "mish"),
        ("bert", "something_new", 3),
        ("roberta", "hidden_act", "relu"),
        ("roberta", "is_decoder", True),
        ("roberta", "pad_token_id", -1),
        ("roberta", "pad_token_id", 40),
        ("distilbert", "tie_weights_", False),
        ("distilbert", "activation", "mish"),
        ("albert", "inner_group_num", 2),
        ("albert", "num_hidden_groups", 4),
        ("albert", "net_structure_type", 1),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(name, setting, value, tmp_path):
    make_reference(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    ours = {"hidden_act": "hidden_act|activation", "num_hidden_groups": "num_layer_groups"}
    with pytest.raises(WeightsError, match=ours.get(setting, setting)):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "setting", ["norm_placement", "embedding_size", "token_types", "num_layer_groups", "pooler"]
)
def test_a_decoder_refuses_what_only_encoders_have(setting):
    value = {"norm_placement": "post", "pooler": True}.get(setting, 2)
    with pytest.raises(UserError, match=setting):
        build_without_weights(make_config("gpt2", num_layers=2, **{setting: value}))


def test_bfloat16_is_kept_and_near(tiny, tmp_path):
    half = copy.deepcopy(tiny).bfloat16()
    half.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.dtype == torch.bfloat16
    tokens = ids(2, 23)
    exact = load_model(tmp_path, dtype=torch.float32)(tokens)
    our_error = (ours(tokens).float() - exact).norm() / exact.norm()
    their_error = (half(tokens).logits.float() - exact).norm() / exact.norm()
    assert our_error < 1.5 * their_error


def test_blocks_with_norms_before_each_part_and_rotary_positions():
    """What no family has yet: a stream that is normalized at its end alone, and tokens that see those after them."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 97, "norm_placement": "pre"}
    from nbllm.models.config import ModelConfig

    model = Encoder(
        ModelConfig(family="bert", network="encoder", positions="rotary", mask_head=True, **shape)
    )
    tokens = torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 15] = 90
    assert model(tokens).shape == (1, 20, 97) and model.norm is not None
    assert not torch.allclose(model(tokens)[0, :15], model(changed)[0, :15])
