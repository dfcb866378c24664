"""A vocabulary expanded with the words of a domain: which words, what stays as it was, what is measured."""

import json

import pytest
import torch
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from nbllm.core.errors import DataError, RunError, UserError
from nbllm.data import expand_vocabulary, train_tokenizer
from nbllm.lm import LM
from nbllm.opening import load

GENERAL = ["the cat sat on the mat and the dog sat on the log", "a man and a woman ate the fish"] * 20
DOMAIN = [
    "the mitochondria of a café électrique\n\n\n",
    "mitochondria and ribosomes; ribosomes and mitochondria",
    "\u65e5\u672c\u8a9e mitochondria",
] * 8
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "max_positions": 32, "initializer_range": 0.2}
HARD = [
    "",
    "a new mitochondria b",
    "café électrique",
    " mitochondria\n",
    "x\u202e\x00\U0010ffff mitochondriac",
    "<|endoftext|>",
]


def model(kind="bpe", family="gpt2", **settings):
    return LM.new(family, tokenizer=train_tokenizer(GENERAL, 300, kind=kind), **{**SHAPE, **settings})


@pytest.fixture(scope="module")
def expanded():
    lm = model()
    old, rows = lm.tokenizer, lm.model.embedding.weight.detach().clone()
    return lm, old, rows, expand_vocabulary(lm, DOMAIN, 6)


def test_the_words_that_save_most_are_taken(expanded):
    lm, old, _, found = expanded
    gains = [token.gain for token in found.tokens]
    assert gains == sorted(gains, reverse=True) and len(gains) == 6 and gains[-1] > 0
    assert found.tokens[0].text == " mitochondria"
    for token in found.tokens:
        assert lm.tokenizer(token.text)["input_ids"] == [token.id]
        assert len(old(token.text)["input_ids"]) == token.num_subtokens
    kept = [text for place, text in enumerate(DOMAIN, start=1) if place % 10]
    saved = sum(len(old(text)["input_ids"]) - len(lm.tokenizer(text)["input_ids"]) for text in kept)
    assert saved == sum(gains)  # exactly: each word was counted as often as it stands there


def test_all_other_text_is_encoded_as_before_and_any_text_comes_back(expanded):
    lm, old, _, found = expanded
    for text in [*HARD, *GENERAL[:2], *DOMAIN[:3]]:
        assert lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text
        if "mitochondria" not in text and "caf" not in text:
            assert lm.tokenizer(text)["input_ids"] == old(text)["input_ids"]
    assert len(old) == len(lm.tokenizer) - len(found.tokens)  # whoever holds the old one keeps it


def test_rows_begin_as_the_mean_of_their_subtokens_and_figures_are_measured(expanded):
    lm, old, rows, found = expanded
    embedding = lm.model.embedding.weight
    assert torch.equal(embedding[: len(rows)], rows)
    for token in found.tokens:
        torch.testing.assert_close(embedding[token.id], rows[old(token.text)["input_ids"]].mean(0))
    held = DOMAIN[9::10]
    assert found.held_out and found.measured_on == len(held)
    assert found.tokens_before == sum(len(old(text)["input_ids"]) for text in held)
    assert (
        found.tokens_after == sum(len(lm.tokenizer(text)["input_ids"]) for text in held) < found.tokens_before
    )
    scores = lm.score(held)
    bits = sum(score.bits_per_byte * score.num_bytes for score in scores) / sum(
        score.num_bytes for score in scores
    )
    assert found.loss_after == pytest.approx(bits, rel=1e-5) and found.loss_before != found.loss_after
    for shown in (repr(found), found._repr_html_()):
        assert "mitochondria" in shown and "held-out" in shown and "bits a byte" in shown


def test_it_is_saved_opened_and_used_by_transformers(expanded, tmp_path):
    lm, *_ = expanded
    opened = load(lm.save(tmp_path / "model"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in [*HARD, *DOMAIN[:3]]:
        ids = lm.tokenizer(text)["input_ids"]
        assert opened.tokenizer(text)["input_ids"] == theirs(text)["input_ids"] == ids
    assert len(lm.generate(" mitochondria", max_new_tokens=3).tokens) == 3


def test_a_tokenizer_of_a_family_keeps_its_settings_and_its_new_words(tmp_path):
    saved = json.loads(train_tokenizer(GENERAL, 300).backend_tokenizer.to_str())["model"]
    tokenizer = GPT2Tokenizer(vocab=saved["vocab"], merges=[tuple(pair) for pair in saved["merges"]])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.model_max_length = 77
    lm = LM.new("gpt2", tokenizer=tokenizer, **SHAPE)
    lm.document_start = "<|endoftext|>"
    expand_vocabulary(lm, DOMAIN, 4)
    again = load(lm.save(tmp_path / "model"))
    assert again.tokenizer(DOMAIN[0])["input_ids"] == lm.tokenizer(DOMAIN[0])["input_ids"]
    assert again.tokenizer.chat_template == "{{ messages }}" and again.tokenizer.model_max_length == 77
    assert again.document_start == "<|endoftext|>" == again.tokenizer.eos_token
    assert again.tokenizer.convert_ids_to_tokens(again.config.vocab_size - 1).strip("\u0120")


@pytest.mark.parametrize(
    ("kind", "family", "tied"), [("unigram", "llama", False), ("wordpiece", "bert", True)]
)
def test_other_kinds_of_tokenizers_and_an_untied_head(kind, family, tied):
    lm = model(kind, family, **({} if family == "bert" else {"tie_embeddings": tied}))
    old = lm.tokenizer
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    lm.resize()
    head = lm.model.head_weight.detach().clone()
    found = expand_vocabulary(lm, DOMAIN, 3)
    assert found.tokens_after < found.tokens_before
    for token in found.tokens:
        assert lm.tokenizer(token.text)["input_ids"] == [token.id]
    first = found.tokens[0]
    torch.testing.assert_close(lm.model.head_weight[first.id], head[old(first.text)["input_ids"]].mean(0))
    assert lm.tokenizer("<extra>")["input_ids"] == old("<extra>")["input_ids"]
    assert (found.loss_before is None) == (family == "bert")
    if kind == "unigram":
        assert all(lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text for text in HARD)


def test_rows_that_no_token_had_are_used_first():
    lm = model(vocab_size=310)
    found = expand_vocabulary(lm, DOMAIN, 4)
    assert lm.config.vocab_size == 310 and max(token.id for token in found.tokens) < 310


@pytest.mark.parametrize("initialize", ["mean", "random"])
def test_other_beginnings(initialize):
    lm = model()
    rows = lm.model.embedding.weight.detach().clone()
    found = expand_vocabulary(lm, DOMAIN, 3, initialize=initialize)
    new = lm.model.embedding.weight[[token.id for token in found.tokens]]
    same = torch.allclose(new, rows.mean(0).expand_as(new), atol=1e-6)
    assert same == (initialize == "mean")


def test_what_cannot_be_expanded_is_refused_and_nothing_changed():
    lm = model()
    before = lm.tokenizer
    for settings, error, message in [
        ((DOMAIN, 0), UserError, "num_tokens must be"),
        ((DOMAIN, True), UserError, "num_tokens must be"),
        ((["rare words"], 5), UserError, "No word of the text"),
        ((["", ""], 5), DataError, "no text to choose words from"),
    ]:
        with pytest.raises(error, match=message):
            expand_vocabulary(lm, *settings)
    with pytest.raises(UserError, match="must be a model, not str"):
        expand_vocabulary("gpt2", ["text"])
    with pytest.raises(UserError, match="no initialization 'zeros'"):
        expand_vocabulary(lm, DOMAIN, initialize="zeros")
    lm.refuse_resizing_while(lambda: (_ for _ in ()).throw(RunError("being trained")))
    with pytest.raises(RunError, match="being trained"):
        expand_vocabulary(lm, DOMAIN)
    assert lm.tokenizer is before and lm.config.vocab_size == len(before)
    with pytest.raises(UserError, match="cannot be expanded by words"):
        expand_vocabulary(model("character"), DOMAIN)


def test_a_bpe_that_does_not_divide_text_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    lm = LM.new("llama", tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend), **SHAPE)
    with pytest.raises(UserError, match="not of bytes"):
        expand_vocabulary(lm, DOMAIN)
