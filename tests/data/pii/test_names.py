"""Names of people, found by Presidio and by a token classifier."""

from __future__ import annotations

import pickle

import pytest
import spacy
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.pii.names import PresidioNames, TaggedNames

TEXT = "Yesterday Ada Lovelace wrote to Charles Babbage about Paris."


@pytest.fixture(scope="module")
def spacy_model(tmp_path_factory):
    """A spaCy model whose named entities are those of a list."""
    model = spacy.blank("en")
    ruler = model.add_pipe("entity_ruler")
    people = ("Ada Lovelace", "Charles Babbage")
    ruler.add_patterns(
        [{"label": "PERSON", "pattern": p} for p in people] + [{"label": "GPE", "pattern": "Paris"}]
    )
    folder = tmp_path_factory.mktemp("spacy")
    model.to_disk(folder)
    return str(folder)


def test_presidio_finds_people_and_not_places(spacy_model):
    names = PresidioNames(spacy_model)
    assert [TEXT[a:b] for a, b in names(TEXT)] == ["Ada Lovelace", "Charles Babbage"]
    assert pickle.loads(pickle.dumps(names))(TEXT) == names(TEXT)


def test_the_step_replaces_what_presidio_finds_by_the_same_placeholder_everywhere(spacy_model):
    step = nb.data.privacy(names=PresidioNames(spacy_model), key=bytes(32))
    clean = nb.data.prepare([TEXT, "Ada Lovelace, again: é \U0001f600 Ada Lovelace."], [step])
    first, second = clean["text"]
    assert "Lovelace" not in first + second and "Babbage" not in first and "Paris" in first
    (ada,) = {word.strip(".,") for word in second.split() if word.startswith("[NAME")}
    assert ada in first and second.count(ada) == 2
    assert spacy_model in step.describe()["names"]


def test_without_its_model_presidio_is_refused_with_a_hint():
    with pytest.raises(UserError, match="no spaCy model 'en_core_web_sm'") as caught:
        PresidioNames()
    assert "TaggedNames" in caught.value.hint


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A small BERT that has learned which words are people's names."""
    torch.manual_seed(0)
    words = ["ada", "grace", "paris", "wrote", "saw", "to", "."]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, id2label={0: "O", 1: "B-PER", 2: "B-LOC"},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    label = {"ada": 1, "grace": 1, "paris": 2}
    ids = torch.randint(0, len(words), (64, 8))
    inputs = torch.tensor([[tokenizer.convert_tokens_to_ids(words[i]) for i in row] for row in ids.tolist()])
    targets = torch.tensor([[label.get(words[i], 0) for i in row] for row in ids.tolist()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=inputs, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("tagger")
    tokenizer.model_max_length = 64
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_token_classifier_finds_people_also_in_texts_longer_than_its_positions(tagger):
    names = TaggedNames(tagger)
    text = "ada wrote to paris . " * 30 + "grace saw ada ."
    found = [text[a:b] for a, b in names(text)]
    assert found == ["ada"] * 30 + ["grace", "ada"]


def test_a_model_that_tags_no_names_is_refused(tagger, tmp_path):
    model = BertForTokenClassification.from_pretrained(tagger)
    model.config.id2label = {0: "O", 1: "B-LOC", 2: "I-LOC"}
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(tagger).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tags no names"):
        TaggedNames(str(tmp_path))
    with pytest.raises(UserError, match="No token classifier"):
        TaggedNames(str(tmp_path / "nothing"))
