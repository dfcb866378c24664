"""Kneser-Ney against an independent implementation on dictionaries; perplexity by a language model; both as filters."""

import collections
import math

import numpy as np
import pyarrow as pa
import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.quality import ngram_model
from nbllm.data.quality.ngram_model import NgramModel, train_ngram_model
from nbllm.data.quality.perplexity import ModelPerplexity, NgramPerplexity


def texts_of(*texts):
    return Texts.of(pa.array(texts, pa.string()))


class KneserNey:
    """Interpolated, one discount a level, on tuples of words."""

    def __init__(self, documents, order):
        self.order = order
        padded = [["<s>"] * (order - 1) + text.split() + ["</s>"] for text in documents]
        highest = collections.Counter(
            tuple(words[i - order + 1 : i + 1]) for words in padded for i in range(order - 1, len(words))
        )
        self.levels = [highest]
        for _ in range(order - 1):
            self.levels.insert(0, collections.Counter(gram[1:] for gram in self.levels[0]))
        self.discounts = []
        for level in self.levels:
            once, twice = (sum(count == n for count in level.values()) for n in (1, 2))
            self.discounts.append(min(max(once / max(once + 2 * twice, 1), 0.1), 0.9))
        self.followers = [collections.defaultdict(list) for _ in self.levels]
        for level, followers in zip(self.levels, self.followers, strict=True):
            for gram, count in level.items():
                followers[gram[:-1]].append(count)

    def probability(self, context, word):
        result = 1 / (len(self.levels[0]) + 1)
        for k, (level, discount, followers) in enumerate(
            zip(self.levels, self.discounts, self.followers, strict=True)
        ):
            before = tuple(context[len(context) - k :])
            counts = followers.get(before)
            if counts is None:
                continue
            taken = max(level.get((*before, word), 0) - discount, 0)
            result = (taken + discount * len(counts) * result) / sum(counts)
        return result

    def perplexity(self, text):
        words = ["<s>"] * (self.order - 1) + text.split() + ["</s>"]
        logs = [
            math.log(self.probability(words[i - self.order + 1 : i], words[i]))
            for i in range(self.order - 1, len(words))
        ]
        return math.exp(-sum(logs) / len(logs))


@pytest.fixture(scope="module")
def corpus():
    return [text[:3000] for text in nb.data.load("pydocs")["text"][:40]]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_perplexity_equals_an_independent_implementation(order, corpus):
    trained, asked = corpus[:30], [*corpus[25:], "words nobody has seen", "the the the", "x"]

    ours = train_ngram_model(trained, order=order).perplexity(texts_of(*asked))
    theirs = KneserNey(trained, order)

    np.testing.assert_allclose(ours, [theirs.perplexity(text) for text in asked], rtol=1e-9)


def test_probabilities_of_all_words_sum_to_one(corpus):
    model = KneserNey(corpus, 3)

    for context in (("<s>", "<s>"), ("of", "the"), ("never", "seen")):
        known = [model.probability(context, word) for (word,) in model.levels[0]]
        assert sum(known) + model.probability(context, "unknown") == pytest.approx(1)


def test_batches_change_nothing_unless_ngrams_are_forgotten(corpus, monkeypatch):
    whole = train_ngram_model(corpus)
    monkeypatch.setattr(ngram_model, "BATCH", 5000)
    assert train_ngram_model(corpus).fingerprint == whole.fingerprint

    small = train_ngram_model(corpus, max_ngrams=1000)

    assert np.diff(small.arrays["key_starts"])[-1] == 1000
    assert np.diff(small.arrays["key_starts"]).max() <= 1000
    assert np.isfinite(small.perplexity(texts_of(*corpus[:5]))).all()


def test_text_of_the_kind_is_more_probable_than_its_words_in_disorder(corpus):
    model = train_ngram_model(corpus[:30])
    words = corpus[35].split()

    sorted_words = " ".join(sorted(words))
    in_order, disorder = model.perplexity(texts_of(" ".join(words), sorted_words))
    assert in_order < disorder


def test_documents_without_words_are_kept(corpus):
    step = NgramPerplexity(model=train_ngram_model(corpus[:5]), max_perplexity=100, min_perplexity=5)

    values = step.signals(texts_of("", " ", None, "unheard of words", corpus[0]))["perplexity/ngrams"]

    assert np.isnan(values[:3]).all()
    broken = [rule.broken(values) for rule in step.rules]
    assert np.any(broken, axis=0).tolist()[:4] == [False, False, False, True]


def test_a_file_gives_the_same_model(corpus, tmp_path):
    model = train_ngram_model(corpus[:5])
    model.save(tmp_path / "model.safetensors")
    loaded = NgramModel.load(tmp_path / "model.safetensors")

    assert loaded.fingerprint == model.fingerprint
    texts = texts_of(*corpus[:8])
    np.testing.assert_array_equal(loaded.perplexity(texts), model.perplexity(texts))

    from safetensors.numpy import save_file

    save_file(
        {**model.arrays, "totals": model.arrays["totals"][:-1].copy()}, tmp_path / "damaged.safetensors"
    )
    with pytest.raises(UserError, match="does not fit"):
        NgramModel.load(tmp_path / "damaged.safetensors")


def test_settings_that_cannot_be_are_refused(corpus):
    with pytest.raises(UserError, match="order is 6"):
        train_ngram_model(corpus, order=6)
    with pytest.raises(UserError, match="no texts"):
        train_ngram_model([])
    with pytest.raises(UserError, match="max_perplexity"):
        NgramPerplexity(model=train_ngram_model(corpus[:2]), min_perplexity=10, max_perplexity=5)


def test_perplexity_by_a_language_model_is_that_of_its_scores(corpus):
    tokenizer = nb.data.train_tokenizer(corpus, kind="byte")
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, seed=0)
    step = ModelPerplexity(lm=lm, max_perplexity=1000)

    signals = step.signals(texts_of(corpus[0][:200], "", None, "short"))

    for place, text in ((0, corpus[0][:200]), (3, "short")):
        (score,) = lm.score([text])
        assert signals["perplexity/model"][place] == pytest.approx(
            math.exp(-score.log_probability / score.num_tokens)
        )
        assert signals["perplexity/bits_per_byte"][place] == pytest.approx(score.bits_per_byte)
    assert np.isnan(signals["perplexity/model"][[1, 2]]).all()
    other = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, seed=1)
    assert step.describe() != ModelPerplexity(lm=other, max_perplexity=1000).describe()
