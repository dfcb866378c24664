"""How a model's makers recommend to sample: read beside the weights, obeyed in a chat, saved again."""

import json

import pytest
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, GenerationConfig

import nbllm as nb
from nbllm.core.errors import UserError
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


@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_every_end_token_ends_a_text_and_is_saved(tokenizer, name, tmp_path):
    """Against transformers, which reads them in `generation_config.json`."""
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=64, num_heads=2, max_positions=64,
        initializer_range=0.5,
    )  # fmt: skip
    written = lm.generate("the cat", temperature=0, max_new_tokens=20)
    other, own = written.tokens[6], tokenizer.eos_token_id
    expected = written.tokens[: written.tokens.index(other)]
    assert expected
    lm = nb.LM(lm.model, tokenizer, end_tokens=[other])
    assert lm.end_tokens == (other, own)
    path = lm.save(tmp_path / name)
    opened = nb.load(path)
    assert set(opened.end_tokens) == {other, own}
    for each in (lm, opened, nb.load(opened.save(tmp_path / f"again-{name}"))):
        made = each.generate("the cat", temperature=0, max_new_tokens=20)
        assert (made.tokens, made.stopped_by) == (expected, "eos")
        assert each.end_tokens == opened.end_tokens
    if name == "model":
        prompt = tokenizer("the cat", return_tensors="pt")
        theirs = AutoModelForCausalLM.from_pretrained(path)
        assert theirs.generation_config.eos_token_id == [other, own]
        ids = theirs.generate(**prompt, do_sample=False, max_new_tokens=20, pad_token_id=own)
        assert ids[0, prompt["input_ids"].shape[1] :].tolist() == [*expected, other]


def test_a_chat_ends_at_every_end_token(tokenizer):
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=64, num_heads=2, max_positions=64,
        initializer_range=0.5,
    )  # fmt: skip
    written = lm.chat("the cat", temperature=0, max_new_tokens=20).result
    other = written.tokens[6]
    answer = nb.LM(lm.model, tokenizer, end_tokens=[other]).chat("the cat", temperature=0, max_new_tokens=20)
    assert answer.result.tokens == written.tokens[: written.tokens.index(other)]
    assert answer.result.stopped_by == "eos"


def test_end_tokens_of_an_older_file_stand_in_its_configuration(lm, tmp_path):
    path = lm.save(tmp_path / "model")
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text())
    for stated, found in (([5, 7], {5, 7}), (50256, set()), (None, set())):
        (path / "config.json").write_text(json.dumps({**config, "eos_token_id": stated}))
        assert set(nb.load(path).end_tokens) == found | {lm.tokenizer.eos_token_id}


@pytest.mark.parametrize("wrong", ["x", -1, 10**400, True, 1.5, {}, [[]], [5, 9999]])
def test_end_tokens_that_are_none_are_warned_of(lm, wrong, tmp_path):
    path = lm.save(tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.warns(UserWarning, match=r"Of the end tokens .*generation_config.json.* is left out"):
        opened = nb.load(path)
    assert set(opened.end_tokens) == {lm.tokenizer.eos_token_id} | ({5} if wrong == [5, 9999] else set())


def test_gguf_says_which_end_tokens_it_has_no_names_for(lm, tmp_path):
    more = nb.LM(lm.model, lm.tokenizer, end_tokens=[3, 4, 5])
    with pytest.raises(UserError, match="3 tokens end a text"):
        more.save(tmp_path / "x.gguf")
    path = nb.LM(lm.model, lm.tokenizer, end_tokens=[3, 4]).save(tmp_path / "x.gguf")
    fields = GGUFReader(path).fields
    found = [fields[f"tokenizer.ggml.{key}_token_id"].contents() for key in ("eos", "eot", "eom")]
    assert found == [lm.tokenizer.eos_token_id, 3, 4]


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
    stated = {
        "eos_token_id": [1, 2],
        "max_length": 20,
        "temperature": 0.6,
        "top_p": None,
        "num_beam_groups": 4,
    }
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
