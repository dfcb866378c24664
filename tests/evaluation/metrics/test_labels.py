"""Accuracy, F1, precision, recall and Matthews' correlation are those of scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric
from nbllm.evaluation.columns import to_arrays, to_columns

GENERATOR = np.random.default_rng(0)
BINARY = GENERATOR.integers(2, size=(2, 60))
CLASSES = GENERATOR.integers(4, size=(2, 60)) * GENERATOR.integers(2, size=(1, 60))  # the class 0 is common
NAMES = np.array(["cat", "dog", "a bird", "犬"])[CLASSES]
WEIGHTS = GENERATOR.random(60).tolist()
SCORES = {"f1": sklearn.f1_score, "precision": sklearn.precision_score, "recall": sklearn.recall_score}


def computed(name, pair, /, **settings):
    return metric(name).compute(predictions=pair[0], references=pair[1], **settings)[name]


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS])
@pytest.mark.parametrize("name", SCORES)
def test_averages_over_classes(name, sample_weight):
    theirs = SCORES[name]
    given = {"sample_weight": sample_weight}
    assert computed(name, BINARY, **given) == pytest.approx(theirs(BINARY[1], BINARY[0], **given), rel=1e-12)
    other = {**given, "pos_label": 0}
    assert computed(name, BINARY, **other) == pytest.approx(theirs(BINARY[1], BINARY[0], **other), rel=1e-12)
    for labels in (BINARY, CLASSES, NAMES):
        for average in ("micro", "macro", "weighted", None):
            expected = theirs(labels[1], labels[0], average=average, zero_division=0, **given)
            assert computed(name, labels, average=average, **given) == pytest.approx(expected, rel=1e-12)
    chosen = {"labels": [1, 3, 7], "average": "macro", "zero_division": 1}
    expected = theirs(CLASSES[1], CLASSES[0], **chosen, **given)
    assert computed(name, CLASSES, **chosen, **given) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS])
def test_accuracy_and_correlation(sample_weight):
    for labels in (BINARY, CLASSES, NAMES):
        given = {"sample_weight": sample_weight}
        expected = sklearn.accuracy_score(labels[1], labels[0], **given)
        assert computed("accuracy", labels, **given) == pytest.approx(expected, rel=1e-12)
        expected = sklearn.matthews_corrcoef(labels[1], labels[0], **given)
        assert computed("matthews_correlation", labels, **given) == pytest.approx(expected, rel=1e-9)
    assert computed("accuracy", BINARY, normalize=False) == (BINARY[0] == BINARY[1]).sum()
    assert computed("matthews_correlation", [[1, 1], [0, 1]]) == 0  # only one class is predicted


@pytest.mark.parametrize(
    "name, settings, theirs",
    [
        (name, {"average": average}, score)
        for name, score in SCORES.items()
        for average in ("micro", "macro", "weighted")
    ]
    + [("matthews_correlation", {}, lambda true, found, **_: sklearn.matthews_corrcoef(true, found))],
)
def test_a_resample_that_lacks_a_class_is_scored_as_scikit_learn_does(name, settings, theirs):
    figure = METRICS[name].from_dict(settings)
    columns = to_arrays(to_columns(figure.rows(NAMES[0].tolist(), NAMES[1].tolist())))
    drawn = np.random.default_rng(1).integers(60, size=(20, 5))
    counts = np.stack([np.bincount(each, minlength=60) for each in drawn]).astype(float)
    found = figure.resample(columns, counts)
    assert any(len({*NAMES[0][each], *NAMES[1][each]}) < 4 for each in drawn)
    for value, each in zip(found, drawn, strict=True):
        options = {**settings, "zero_division": 0} if settings else {}
        assert value == pytest.approx(theirs(NAMES[1][each], NAMES[0][each], **options), abs=1e-12)


def test_two_models_that_predict_different_classes_are_mixed_row_by_row():
    one, two = ["a", "b", "a"], ["c", "c", "b"]
    expected = ["a", "b", "b"]
    figure = METRICS["f1"](average="macro")
    first, second = (to_arrays(to_columns(figure.rows(each, expected))) for each in (one, two))
    chosen = np.array([[True, False, True]])
    mixed = ["a", "c", "a"]
    found = figure.exchanged(first, second, chosen)
    assert found[0] == pytest.approx(sklearn.f1_score(expected, mixed, average="macro", zero_division=0))


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(UserError, match="(?s)There are 4 classes, and average is 'binary'.*average='macro'"):
        computed("f1", NAMES)
    with pytest.raises(UserError, match="pos_label is 1, which is neither of the classes 'a' and 'b'"):
        computed("f1", [["a", "b"], ["b", "b"]])
    with pytest.raises(UserError, match="zero_division must be 0 or 1, not 0.5"):
        metric("precision", zero_division=0.5)
    with pytest.raises(DataError, match=r"(?s)references\[1\] is 'b', but an earlier label is of type int"):
        computed("accuracy", [[1, 2], [1, "b"]])
    with pytest.raises(DataError, match="There are 2 weights for 3 examples"):
        computed("accuracy", [[1, 2, 3]] * 2, sample_weight=[1, 2])
    with pytest.raises(DataError, match=r"sample_weight\[1\] is -1"):
        computed("accuracy", [[1, 2]] * 2, sample_weight=[1, -1])


def test_free_texts_as_labels_need_little_memory():
    labels = [f"answer {i}" for i in range(20_000)]
    assert computed("f1", [labels, labels], average="macro") == 1
    assert computed("matthews_correlation", [labels, labels[::-1]]) == pytest.approx(-1 / 19_999)


def test_labels_that_no_data_set_holds_are_refused():
    with pytest.raises(DataError, match=r"predictions\[0\] is 10{30}, too large"):
        computed("accuracy", [[10**30], [1]])
    with pytest.raises(DataError, match=r"references\[0\] has half a surrogate pair at 1"):
        computed("accuracy", [["a"], ["a\ud800"]])
    with pytest.raises(DataError, match=r"predictions\[0\] is of type float"):
        computed("accuracy", [[1.5], [1]])
    assert computed("accuracy", [[1.0, True], [1, 1]]) == 1
