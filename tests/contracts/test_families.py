"""What families of decoders and encoder-decoders must keep: each is held by its file alone, as its preset has it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import nbllm as nb
from nbllm.inference.runners import compiled
from nbllm.interpret import attention_weights
from nbllm.models.families import FAMILIES
from nbllm.models.network import build_without_weights
from nbllm.models.presets import PRESETS, make_config
from nbllm.objectives import CausalLM

DECODERS, ENCODER_DECODERS = (
    [name for name in FAMILIES if FAMILIES[name].fixed.get("network") == network]
    for network in ("decoder", "encoder_decoder")
)
PROMPTS = ["def add(a, b): return a + b", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(5)), vocab_size=300)


def make(family, tokenizer):
    """A tiny model of the family's usual parts whose every weight is random."""
    made = nb.LM.new(
        family, tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=4, max_positions=64,
        initializer_range=0.4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return made


@pytest.fixture(scope="module", params=DECODERS)
def lm(request, tokenizer):
    return make(request.param, tokenizer)


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def pair(request, tokenizer):
    """An encoder-decoder."""
    return make(request.param, tokenizer)


def test_transformers_opens_what_was_made_here(lm, tmp_path):
    folder = lm.save(tmp_path / "model")
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(300, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(
            lm.model(ids), expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0
        )
    assert nb.load(folder).config == lm.config


def test_transformers_opens_encoder_decoders_that_were_made_here(pair, tmp_path):
    folder = pair.save(tmp_path / "model")
    theirs, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(300, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(input_ids=ids, decoder_input_ids=ids[:, 8:]).logits
        torch.testing.assert_close(
            pair.model(ids, ids[:, 8:]), expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0
        )
    assert nb.load(folder).config == pair.config


def test_a_text_is_continued_as_it_would_be_alone(lm, monkeypatch):
    """By calling the model and, where it takes it, by the compiled kernel."""
    settings = {"max_new_tokens": 16, "temperature": 0}
    together = [each.tokens for each in lm.generate(PROMPTS, **settings)]
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)
    assert together == [lm.generate(prompt, **settings).tokens for prompt in PROMPTS]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_an_encoder_decoder_writes_as_it_would_alone(pair, settings):
    together = [each.tokens for each in pair.generate(PROMPTS, max_new_tokens=9, **settings)]
    assert together == [pair.generate(prompt, max_new_tokens=9, **settings).tokens for prompt in PROMPTS]


def test_its_attention_can_be_shown(lm):
    weights = attention_weights(lm, PROMPTS[0])
    assert weights.shape[:2] == (2, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights.triu(1).any()


def test_every_parameter_learns_and_is_described(lm):
    objective = CausalLM()
    windows = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0)).numpy()
    lm.model.zero_grad(set_to_none=True)
    objective.loss(lm.model, objective.batch(windows, None))[0].backward()
    check_gradients(lm.model)


def test_every_parameter_of_an_encoder_decoder_learns_and_is_described(pair):
    ids = torch.randint(300, (2, 21), generator=torch.Generator().manual_seed(0))
    pair.model.zero_grad(set_to_none=True)
    F.cross_entropy(pair.model(ids, ids[:, 1:12]).flatten(0, 1), ids[:, 2:13].flatten()).backward()
    check_gradients(pair.model)


def check_gradients(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    assert sum(row.parameters for row in model.describe()) == model.num_parameters


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_its_name_is_a_preset_and_its_weight_map_is_whole(family):
    config = make_config(family, num_layers=2)
    assert PRESETS[family]["family"] == family
    targets = [name for rule in FAMILIES[family].rules(config) for name in rule.targets]
    assert sorted(targets) == sorted(name for name, _ in build_without_weights(config).named_parameters())
