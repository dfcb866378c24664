"""A tokenizer that has grown: refused where it does not fit, and the model resized, as transformers does it."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from nbllm.core.errors import RunError, UserError
from nbllm.data import train_tokenizer
from nbllm.lm import LM
from nbllm.models import build, make_config, save_model
from nbllm.models.gguf import save_gguf
from nbllm.models.vocabulary import resize_vocabulary
from nbllm.opening import load

TEXT = ["the cat sat on the mat and the dog sat on the log", "def f(x):\n    return x + 1"]
SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 32, "initializer_range": 0.2}
CASES = [("gpt2", True), ("llama", False), ("llama", True), ("qwen2", False)]


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXT * 4, 290)


@pytest.fixture
def grown(tokenizer):
    """A model whose tokenizer got a token more than it has rows."""
    lm = LM.new("llama", tokenizer=tokenizer, **SHAPE)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return lm


def test_what_does_not_fit_is_refused_before_anything_is_written(grown, tmp_path):
    for name in ("model", "x.gguf"):
        with pytest.raises(UserError, match=r"\d+ tokens, the model only \d+.*\n.*lm.resize\(\)"):
            grown.save(tmp_path / name)
    with pytest.raises(UserError, match="lm.resize"):
        save_gguf(grown.model, grown.tokenizer, tmp_path / "x.gguf")
    assert grown.generate("the cat", max_new_tokens=2).tokens  # what needs no new token goes on
    with pytest.raises(UserError, match="beyond the model's vocabulary"):
        grown.generate("the cat[PAD]")
    with pytest.raises(UserError, match="beyond the model's vocabulary"):
        grown.score_tokens([[1, 2], [1, grown.config.vocab_size]])
    assert not list(tmp_path.iterdir())


def test_an_id_beyond_the_vocabulary_counts_though_the_tokens_are_few(tokenizer, tmp_path):
    lm = LM.new("llama", tokenizer=tokenizer, **SHAPE)

    class Sparse(type(tokenizer)):
        def get_vocab(self):
            return {**super().get_vocab(), "far away": 9999}

    tokenizer.__class__ = Sparse
    with pytest.raises(UserError, match="has 10000 tokens"):
        lm.save(tmp_path / "model")


@pytest.mark.parametrize(("family", "tied"), CASES)
@pytest.mark.parametrize("change", [7, -3])
def test_rows_are_those_of_transformers(family, tied, change, tokenizer, tmp_path):
    lm = LM.new(family, tokenizer=tokenizer, tie_embeddings=tied, vocab_size=len(tokenizer) + 5, **SHAPE)
    theirs = AutoModelForCausalLM.from_pretrained(lm.save(tmp_path / "model"))
    before, size = lm.config.vocab_size, lm.config.vocab_size + change
    theirs.resize_token_embeddings(size, mean_resizing=True)
    assert lm.resize(size) is lm
    assert lm.config.vocab_size == theirs.config.vocab_size == size
    kept = min(before, size)
    pairs = [
        (lm.model.embedding.weight, theirs.get_input_embeddings().weight),
        (lm.model.head_weight, theirs.get_output_embeddings().weight),
    ]
    for ours, expected in pairs:
        assert ours.shape == expected.shape
        assert torch.equal(ours[:kept], expected[:kept])
        # transformers draws new rows about the mean with a variance of 1e-9 times the rows' own
        torch.testing.assert_close(ours[kept:], expected[kept:], atol=1e-3, rtol=0)
    assert (lm.model.head is None) == tied
    ids = torch.tensor([[1, 2, 3, size - 1]])
    torch.testing.assert_close(lm.model(ids), theirs(ids).logits, atol=1e-2, rtol=0)
    opened = load(lm.save(tmp_path / "resized"))
    assert torch.equal(opened.model(ids), lm.model(ids))


def test_the_bias_of_a_decoders_head_too(tmp_path):
    config = make_config("phi", vocab_size=90, hidden_size=32, num_layers=2, num_heads=4, max_positions=32)
    model = build(config)
    torch.nn.init.normal_(model.head.bias)
    kept = model.head.bias.clone()
    resize_vocabulary(model, 97)
    assert torch.equal(model.head_bias[:90], kept) and model.head_bias.shape == (97,)
    save_model(model, tmp_path)
    ids = torch.tensor([[1, 2, 96]])
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(ids).logits, model(ids), atol=1e-5, rtol=0)


def test_an_encoder_too(tmp_path):
    config = make_config("bert", vocab_size=90, hidden_size=32, num_layers=2, num_heads=4, max_positions=32)
    model = build(config)
    save_model(model, tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path)
    theirs.resize_token_embeddings(97)
    resize_vocabulary(model, 97)
    assert torch.equal(model.head_weight[:90], theirs.get_output_embeddings().weight[:90])
    assert model.head_weight.shape == theirs.get_output_embeddings().weight.shape
    assert model.head.bias.shape == theirs.get_output_embeddings().bias.shape == (97,)
    save_model(model, tmp_path)
    ids = torch.tensor([[1, 2, 96]])
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(ids).logits, model(ids), atol=1e-5, rtol=0)


def test_a_grown_model_is_saved_opened_and_used(grown, tmp_path):
    before = grown.generate("the cat", temperature=0, max_new_tokens=6)
    grown.model.embedding.requires_grad_(False)
    grown.model.bfloat16()
    grown.resize()
    assert grown.config.vocab_size == len(grown.tokenizer)
    assert not grown.model.embedding.weight.requires_grad
    assert grown.model.embedding.weight.dtype == torch.bfloat16
    assert grown.model.embedding.num_embeddings == len(grown.tokenizer)
    grown.model.float()
    assert len(grown.generate("the cat [PAD]", temperature=0, max_new_tokens=6).tokens) == 6
    assert before.tokens
    for name in ("model", "x.gguf"):
        opened = load(grown.save(tmp_path / name))
        assert opened.tokenizer.pad_token == "[PAD]"
        assert opened.config.vocab_size == len(grown.tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token == "[PAD]"
    rows = grown.config.vocab_size
    assert grown.resize().config.vocab_size == rows
    assert grown.resize(rows + 30).resize().config.vocab_size == rows + 30


@pytest.mark.parametrize("size", [0, -1, 3, 1.5, True, "300"])
def test_sizes_that_the_tokenizer_does_not_fit(grown, size):
    with pytest.raises(UserError, match="vocab_size must be a whole number, at least"):
        grown.resize(size)


def test_a_wrapped_embedding_is_refused_and_nothing_changed(grown):
    grown.model.embedding = nn.Sequential(grown.model.embedding)
    before = grown.config
    with pytest.raises(UserError, match="was wrapped or replaced"):
        grown.resize()
    assert grown.config == before


def test_a_model_that_a_run_trains_is_not_resized(tokenizer, tmp_path):
    from nbllm.training.start import train

    lm = LM.new("llama", tokenizer=tokenizer, **SHAPE)
    run = train(lm, TEXT * 200, steps=100_000, batch_size=2, sequence_length=16, folder=tmp_path, name="demo")
    try:
        with pytest.raises(RunError, match="being trained by the run 'demo'"):
            lm.resize(400)
    finally:
        run.stop()
        run.wait()
    assert lm.resize(400).config.vocab_size == 400
    with pytest.raises(RunError, match="was resized since this run began"):
        run.resume()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("initialize", ["mean", "subtokens", "random"])
def test_how_new_rows_begin(tied, initialize, tokenizer):
    lm = LM.new("llama", tokenizer=tokenizer, tie_embeddings=tied, **SHAPE)
    words = ["the cat", "dog log", "\u65e5\u672c"]
    spelt = [tokenizer(word)["input_ids"] for word in words]
    tokenizer.add_tokens(words)
    places = [lm.model.embedding.weight.clone(), lm.model.head_weight.clone()]
    rows = lm.config.vocab_size
    assert lm.resize(initialize=initialize) is lm
    for old, new in zip(places, (lm.model.embedding.weight, lm.model.head_weight), strict=True):
        assert torch.equal(new[:rows], old) and new.shape[0] == rows + 3
        if initialize == "mean":
            torch.testing.assert_close(new[rows:], old.mean(0).expand(3, -1))
        elif initialize == "subtokens":
            for row, ids in enumerate(spelt, start=rows):
                torch.testing.assert_close(new[row], old[ids].mean(0))
        else:
            assert (new[rows:] - old.mean(0)).abs().max() < 6 * old.std(0).max()
            assert not torch.equal(new[rows], new[rows + 1])
    assert lm.resize(initialize=initialize).config.vocab_size == rows + 3


def test_rows_by_id_and_what_is_refused(tokenizer):
    lm = LM.new("gpt2", tokenizer=tokenizer, vocab_size=len(tokenizer) + 5, **SHAPE)
    old = lm.model.embedding.weight.clone()
    last = lm.config.vocab_size - 1
    lm.resize(initialize={last: [1, 2], last - 1: []})
    torch.testing.assert_close(lm.model.embedding.weight[last], old[[1, 2]].mean(0))
    assert torch.equal(lm.model.embedding.weight[:last], old[:last])
    with pytest.raises(UserError, match="no initialization 'means'"):
        lm.resize(initialize="means")
    for wrong in ({last + 1: [0]}, {0: [last + 1]}, {-1: [0]}):
        with pytest.raises(UserError, match="cannot begin as the mean"):
            lm.resize(initialize=wrong)


@pytest.mark.parametrize("tied", [True, False])
def test_old_tokens_keep_their_share_of_the_probability(tied, tokenizer):
    """Of n old and k new tokens, at least n / (n + k): an exponential of a mean is at most the mean of exponentials."""
    lm = LM.new("llama", tokenizer=tokenizer, tie_embeddings=tied, **{**SHAPE, "initializer_range": 2.0})
    n, k = lm.config.vocab_size, 60
    ids = torch.arange(24).reshape(2, 12)
    before = lm.model(ids).softmax(-1)
    lm.resize(n + k)
    after = lm.model(ids).softmax(-1)
    mass = after[..., :n].sum(-1)
    assert (mass >= n / (n + k) - 1e-5).all() and mass.min() < 1
    torch.testing.assert_close(after[..., :n] / mass[..., None], before, atol=1e-5, rtol=1e-4)


def test_a_text_with_an_added_token_comes_back_unchanged(tokenizer):
    from tokenizers import AddedToken

    lm = LM.new("gpt2", tokenizer=tokenizer, **SHAPE)
    tokenizer.add_tokens(["new york"])
    lm.resize(initialize="subtokens")
    text = "a new york b"
    ids = tokenizer.encode(text)
    assert lm.config.vocab_size - 1 in ids and tokenizer.decode(ids) == text
    assert len(lm.score_tokens([ids])[0]) == len(ids) - 1
    stripping = train_tokenizer(TEXT * 4, 290)  # flags that are the tokenizer's own, and lose spaces
    stripping.add_tokens([AddedToken("new york", lstrip=True, rstrip=True)])
    assert stripping.decode(stripping.encode(text)) != text
