"""How a model's makers recommend to sample: read beside the weights, obeyed in a chat, saved again."""

import json

import pytest
from transformers import GenerationConfig

import nbllm as nb
from nbllm.inference.chat import CAUTIOUS, chat_config

CARD = {"temperature": 0.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05}


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(["the cat sat on the mat"] * 4, vocab_size=280)


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64
    )


@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_they_are_saved_and_opened_again(lm, name, tmp_path):
    assert nb.load(lm.save(tmp_path / name)).sampling == {}
    lm.sampling = dict(CARD)
    path = lm.save(tmp_path / name)
    again = nb.load(path)
    assert again.sampling == CARD
    assert chat_config({}, again.sampling).temperature == 0.2
    if name == "model":
        theirs = GenerationConfig.from_pretrained(path)
        assert theirs.do_sample
        assert {setting: getattr(theirs, setting) for setting in CARD} == CARD
        assert theirs.eos_token_id == lm.tokenizer.eos_token_id


def test_greedy_is_a_recommendation_too(lm, tmp_path):
    lm.sampling = {"temperature": 0}
    path = lm.save(tmp_path / "model")
    assert not GenerationConfig.from_pretrained(path).do_sample
    assert nb.load(path).sampling == {"temperature": 0}


@pytest.mark.parametrize(
    ("text", "message", "left"),
    [
        ("{", "cannot be read", {}),
        ("[]", "it is no object", {}),
        ('{"temperature": "<b>", "top_p": 0.8}', "temperature must be a number", {"top_p": 0.8}),
        ('{"top_p": 7, "top_k": 20}', "top_p must be", {"top_k": 20}),
    ],
)
def test_what_cannot_be_used_is_warned_of_and_the_model_opened(lm, text, message, left, tmp_path):
    path = lm.save(tmp_path / "model")
    (path / "generation_config.json").write_text(text)
    with pytest.warns(UserWarning, match=message):
        assert nb.load(path).sampling == left


def test_what_others_state_beside_is_no_concern(lm, tmp_path):
    path = lm.save(tmp_path / "model")
    stated = {"eos_token_id": [1, 2], "max_length": 20, "temperature": 0.6, "top_p": None, "num_beams": 4}
    (path / "generation_config.json").write_text(json.dumps(stated))
    assert nb.load(path).sampling == {"temperature": 0.6}


def test_a_chat_obeys_them_and_a_person_comes_first(lm):
    assert lm.generate("the", seed=3) == lm.generate(
        "the", seed=3, temperature=1.0
    )  # no chat: as the model has it
    lm.sampling = {"temperature": 0}
    greedy = lm.chat("the cat", max_new_tokens=20, temperature=0).text
    assert lm.chat("the cat", max_new_tokens=20, seed=1).text == greedy
    assert lm.chat("the cat", max_new_tokens=20, seed=1, temperature=1.0).text != greedy
    assert chat_config({"top_k": 5}, CARD).to_dict().items() >= {**CARD, "top_k": 5}.items()
    assert chat_config({}, {}).to_dict().items() >= CAUTIOUS.items()
