"""Vectors of texts against the recipe of sentence-transformers, on transformers' own models."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models import embedding
from nbllm.models.zoo.known import MODELS

TEXTS = [
    "a cat", "the dog barks at the cat and the bird, then sleeps", "", "unknown: \u4f60\u597d", "the bird",
    "dogs bark, cats sleep", "a " * 30,
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece():
    """A tokenizer of BERT's kind."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        ["the dog barks at the cat and the bird, then sleeps"] * 3,
        trainers.WordPieceTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, SPECIAL, strict=True)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT of transformers, with its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("bert"), wordpiece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return nb.load(folder)


def recipe(folder, texts, pooling="mean"):
    """The recipe on the model card of all-MiniLM-L6-v2."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state
    if pooling == "cls":
        return F.normalize(hidden[:, 0], dim=1)
    mask = encoded["attention_mask"].unsqueeze(-1).float()
    return F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_vectors_are_those_of_the_recipe(lm, folder, pooling, batch_tokens, monkeypatch):
    monkeypatch.setattr(embedding, "_BATCH_TOKENS", batch_tokens)
    found = lm.embed(TEXTS, pooling=pooling)
    assert found.shape == (len(TEXTS), 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, recipe(folder, TEXTS, pooling), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


def test_one_text_is_one_row_and_the_length_is_kept_on_request(lm):
    one = lm.embed("a cat", normalize=False)
    assert one.shape == (1, 32) and float(one.norm()) > 1.5
    torch.testing.assert_close(F.normalize(one, dim=1), lm.embed(["a cat"]))
    assert lm.embed([]).shape == (0, 32)


def test_a_control_token_that_a_text_spells_is_plain_text(lm):
    ids = lm.tokenizer("a [SEP] cat")["input_ids"]
    assert ids.count(3) == 2  # the tokenizer alone is deceived
    plain = lm.embed("a [SEP] cat")
    with torch.inference_mode():
        deceived = F.normalize(lm.model(torch.tensor([ids])).mean(1), dim=1)
    assert not torch.allclose(plain, deceived, atol=1e-3)


def test_a_text_that_is_too_long_is_said(lm):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 46 tokens"):
        found = lm.embed(["the " * 100, "the dog"])
    torch.testing.assert_close(found[0], lm.embed("the " * 46)[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_embed_by_the_last_token_or_the_mean(family):
    tokenizer = nb.data.train_tokenizer(TEXTS[:2], kind="byte")
    lm = nb.LM.new(family, tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64)
    texts = ["a cat", "the dog barks at the cat"]
    with torch.inference_mode():
        hidden = [lm.model.hidden(torch.tensor([tokenizer.encode(text)]))[0] for text in texts]
    last, mean = (lm.embed(texts, pooling=pooling, normalize=False) for pooling in ("last", "mean"))
    torch.testing.assert_close(last, torch.stack([each[-1] for each in hidden]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean, torch.stack([each.mean(0) for each in hidden]), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="says nothing of a text here: this is a causal decoder"):
        lm.embed(texts, pooling="cls")
    with pytest.raises(UserError, match="A text has no token"):
        lm.embed(["a", ""])


def test_an_unknown_pooling_is_refused(lm):
    with pytest.raises(UserError, match="no pooling 'max'.*\n.*mean, cls, last"):
        lm.embed("a", pooling="max")


def test_a_model_without_a_head_only_embeds(lm):
    for ask in (lambda: lm.fill("a [MASK]"), lambda: lm.generate("a"), lambda: lm.score("a")):
        with pytest.raises(UserError, match="encoder.*without a head that predicts tokens.*\n.*It can embed"):
            ask()


@pytest.mark.realmodel
def test_the_published_model_is_the_recipe(tmp_path):
    """all-MiniLM-L6-v2, from the wheel of the package index; similar sentences are near one another."""
    source = MODELS["all-minilm-l6-v2"].sources[-1]
    if source.find() is None:
        pytest.skip("HF_HUB_OFFLINE=1 nbllm fetch all-minilm-l6-v2")
    texts = [
        "A cat sits on the mat.",
        "A kitten rests on a rug.",
        "Stocks fell sharply on Monday.",
        "caf\u00e9 \u4f60\u597d!",
    ]
    lm = nb.load(source.find())
    assert lm.num_parameters == MODELS["all-minilm-l6-v2"].num_parameters == 22_713_216
    found = lm.embed(texts)
    torch.testing.assert_close(found, recipe(source.find(), texts), atol=1e-5, rtol=0)
    near = found @ found.T
    assert near[0, 1] > 0.5 > 0.2 > near[0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = lm.save(tmp_path / "saved")
    torch.testing.assert_close(recipe(saved, texts), found, atol=1e-5, rtol=0)
