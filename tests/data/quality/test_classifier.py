"""The linear classifier: against scikit-learn on the same features, what it measures, and its file."""

import numpy as np
import pyarrow as pa
import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.utf8 import new_words
from nbllm.data.kernels.word_features import Space, read_features
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.classifier import Classified, QualityClassifier, train_classifier
from tests.data.quality import reference


@pytest.fixture(scope="module")
def sets():
    """Reference pages of Python as what is wanted, its source code as what is not."""
    pages = [
        text[start : start + 600] for text in nb.data.load("pydocs")["text"][:60] for start in (0, 600, 1200)
    ]
    code = [
        text[start : start + 600] for text in nb.data.load("pystdlib")["text"][:90] for start in (0, 3000)
    ]
    return [page for page in pages if page.split()], [part for part in code if part.split()]


@pytest.fixture(scope="module")
def classifier(sets):
    return train_classifier(*sets, buckets=1 << 14)


def features(texts, space):
    """Return (documents, buckets) how often each feature occurs, divided by the root of how many a document has."""
    matrix = np.zeros((texts.num_documents, space.buckets))
    words, found = new_words(5000), np.empty(25_000, np.int64)
    for document in range(texts.num_documents):
        count = read_features(texts, document, character_table(), space, words, found)
        np.add.at(matrix[document], found[:count], 1 / np.sqrt(max(count, 1)))
    return matrix


def test_features_are_the_ngrams_of_the_words():
    texts = Texts.of(pa.array(["one two three", "two one", "中文 a", "", None]))
    space = Space(2, 1 << 20, 1000)

    matrix = features(texts, space)

    words = [reference.words(text) for text in ("one two three", "two one", "中文 a", "", "")]
    assert [np.count_nonzero(row) for row in matrix] == [2 * len(w) - 1 if w else 0 for w in words]
    assert np.count_nonzero(matrix[0] * matrix[1]) == 2  # the words, not the pair in another order


def test_it_tells_apart_what_scikit_learn_tells_apart(sets, classifier):
    from sklearn.linear_model import LogisticRegression

    both = Texts.of(pa.array([*sets[0], *sets[1]]))
    labels = np.repeat([1, 0], [len(sets[0]), len(sets[1])])
    matrix = features(both, Space(2, 1 << 14, 10_000))
    even = np.arange(len(labels)) % 2 == 0

    ours = train_classifier(
        [t for t, e in zip(sets[0], even, strict=False) if e], sets[1][::2], buckets=1 << 14
    )
    theirs = LogisticRegression(C=10).fit(matrix[even], labels[even])

    odd = ~even
    accuracy = np.mean((ours.score(both)[odd] >= 0.5) == labels[odd])
    assert accuracy > 0.9
    assert accuracy >= theirs.score(matrix[odd], labels[odd]) - 0.03


def test_the_probability_is_that_of_the_linear_model(classifier, sets):
    texts = Texts.of(pa.array([*sets[0][:20], "", None]))
    matrix = features(texts, Space(2, 1 << 14, 10_000))

    expected = 1 / (1 + np.exp(-(matrix @ classifier.parameters[:-1] + classifier.parameters[-1])))

    np.testing.assert_allclose(classifier.score(texts), expected, rtol=1e-5)


def test_precision_and_recall_are_of_documents_held_out(classifier, sets):
    assert classifier.held_out_scores.size == sum(round(0.2 * len(part)) for part in sets)

    measured = classifier.measure(0.5)
    kept = classifier.held_out_scores >= 0.5
    assert measured.precision == classifier.held_out_targets[kept].mean()
    assert measured.recall == kept[classifier.held_out_targets].mean()
    assert measured.recall_interval[0] <= measured.recall <= measured.recall_interval[1]
    assert measured.recall > 0.9
    assert np.isnan(classifier.measure(1.1).precision)
    assert "0.5" in repr(classifier)
    assert "recall" in classifier._repr_html_()


def test_training_is_a_function_of_the_seed(sets, classifier):
    again = train_classifier(*sets, buckets=1 << 14)
    other = train_classifier(*sets, buckets=1 << 14, seed=1)

    np.testing.assert_array_equal(classifier.parameters, again.parameters)
    assert classifier.fingerprint == again.fingerprint != other.fingerprint


def test_a_file_gives_the_same_classifier(classifier, tmp_path):
    classifier.save(tmp_path / "quality.safetensors")
    loaded = QualityClassifier.load(tmp_path / "quality.safetensors")

    texts = Texts.of(pa.array(["some text about functions", ""]))
    np.testing.assert_array_equal(loaded.score(texts), classifier.score(texts))
    assert loaded.measure() == classifier.measure()
    (tmp_path / "other.safetensors").write_bytes(b"no file of this kind")
    with pytest.raises(UserError, match="no quality classifier"):
        QualityClassifier.load(tmp_path / "other.safetensors")


def test_the_step_keeps_what_is_wanted(classifier, sets):
    step = Classified(classifier=classifier, threshold=0.5)

    signals = step.signals(Texts.of(pa.array([*sets[0][:50], *sets[1][:50]])))
    kept = ~step.rules[0].broken(signals["classifier/probability"])

    assert kept[:50].mean() > 0.9
    assert kept[50:].mean() < 0.1
    assert step.describe()["classifier"] == classifier.fingerprint
    with pytest.raises(UserError, match="between 0 and 1"):
        Classified(classifier=classifier, threshold=2)


def test_sets_that_cannot_be_trained_on_are_refused():
    with pytest.raises(UserError, match="one document"):
        train_classifier(["a"], ["b", "c"])
    with pytest.raises(UserError, match="power of two"):
        train_classifier(["a", "b"], ["b", "c"], buckets=100)
