"""BLEU, chrF and TER are what sacrebleu computes, to the last bit, also of every resample."""

import itertools

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from nbllm.core.errors import UserError
from nbllm.evaluation import METRICS, metric
from nbllm.evaluation.columns import to_arrays, to_columns
from tests.evaluation.metrics.corpora import pairs

CASES = [
    ("sacrebleu", "bleu", {}, BLEU, {}),
    ("sacrebleu", "bleu", {"tokenize": "intl", "lowercase": True}, BLEU, {"tokenize": "intl", "lowercase": True}),
    ("sacrebleu", "bleu", {"tokenize": "zh", "smooth_method": "floor", "smooth_value": 0.2},
     BLEU, {"tokenize": "zh", "smooth_method": "floor", "smooth_value": 0.2}),
    ("sacrebleu", "bleu", {"use_effective_order": True, "force": True}, BLEU, {"effective_order": True, "force": True}),
    ("chrf", "chrf", {}, CHRF, {}),
    ("chrf", "chrf", {"word_order": 2, "whitespace": True}, CHRF, {"word_order": 2, "whitespace": True}),
    ("chrf", "chrf", {"eps_smoothing": True, "beta": 3}, CHRF, {"eps_smoothing": True, "beta": 3}),
    ("ter", "ter", {}, TER, {}),
    ("ter", "ter", {"normalized": True, "support_zh_ja_chars": True, "case_sensitive": True},
     TER, {"normalized": True, "asian_support": True, "case_sensitive": True}),
    ("ter", "ter", {"ignore_punct": True}, TER, {"no_punct": True}),
]  # fmt: skip


@pytest.mark.parametrize("num_references", [1, 3, -3])
@pytest.mark.parametrize("module, name, settings, reference, theirs", CASES)
def test_scores_and_signatures_are_those_of_sacrebleu(
    module, name, settings, reference, theirs, num_references
):
    predictions, references = pairs(num_references=num_references)
    scorer = reference(**theirs)
    expected = scorer.corpus_score(predictions, list(itertools.zip_longest(*references)))
    ours = metric(module)
    found = ours.compute(predictions=predictions, references=references, **settings)
    assert found["score"] == expected.score
    for key in found.keys() - {"score", "char_order", "word_order", "beta"}:
        assert found[key] == getattr(expected, key)
    beta = "|beta:3" if settings.get("beta") == 3 else ""  # which sacrebleu leaves out
    assert ours.signature == f"{scorer.get_signature()}{beta}"
    assert f"nrefs:{'var' if num_references < 0 else num_references}|" in ours.signature


@pytest.mark.parametrize("module, name, settings, reference, theirs", CASES)
def test_a_resample_is_sacrebleu_s_score_of_its_segments(module, name, settings, reference, theirs):
    predictions, references = pairs(count=20)
    figure = METRICS[name].from_dict(settings)
    columns = to_arrays(to_columns(figure.rows(predictions, references)))
    drawn = np.random.default_rng(0).integers(20, size=(4, 20))
    counts = np.stack([np.bincount(each, minlength=20) for each in drawn]).astype(float)
    expected = [
        reference(**theirs)
        .corpus_score([predictions[i] for i in each], list(zip(*[references[i] for i in each], strict=True)))
        .score
        for each in drawn
    ]
    np.testing.assert_allclose(figure.resample(columns, counts), expected, rtol=1e-12)


README = {
    "references": [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ],
    "predictions": ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."],
}


@pytest.mark.parametrize(
    "module, settings, expected",
    [
        ("sacrebleu", {}, 48.5308),
        ("sacrebleu", {"tokenize": "none"}, 49.1920),
        ("sacrebleu", {"tokenize": "intl"}, 43.9162),
        ("chrf", {}, 59.7275),
        ("ter", {}, 40.0),
    ],
)
def test_the_example_of_sacrebleu_s_readme(module, settings, expected):
    assert metric(module, **settings).compute(**README)["score"] == pytest.approx(expected, abs=5e-5)


def test_one_reference_for_each_may_stand_alone():
    first = [each[0] for each in README["references"]]
    alone = metric("sacrebleu").compute(predictions=README["predictions"], references=first)
    assert alone["score"] == pytest.approx(45.0675, abs=5e-5)


def test_blank_translations_score_nothing():
    blank = metric("sacrebleu").compute(predictions=[""] * 3, references=README["references"])
    assert blank["score"] == 0


def test_a_reference_that_does_not_exist_is_not_an_empty_one():
    predictions, bleu = ["a b c d", "a b c d f"], metric("sacrebleu")
    absent = [["a b c d e f g h"], ["a b c d f", "a b c d f"]]
    empty = [["a b c d e f g h", ""], ["a b c d f", "a b c d f"]]
    assert bleu.compute(predictions=predictions, references=absent)["score"] == pytest.approx(64.12, abs=5e-3)
    assert bleu.compute(predictions=predictions, references=empty)["score"] == pytest.approx(100)
    with pytest.raises(UserError, match=r"references\[0\] has None at 1.*leave a reference"):
        bleu.compute(predictions=predictions, references=[["a", None], ["b", "c"]])


def test_one_list_for_each_set_of_references_is_refused():
    sets = list(zip(*README["references"], strict=True))
    with pytest.raises(UserError, match="There are 3 predictions but 2 references"):
        metric("sacrebleu").compute(predictions=README["predictions"], references=sets)


def test_a_tokenizer_that_sacrebleu_does_not_have_is_refused():
    with pytest.raises(UserError, match="Did you mean '13a'"):
        metric("sacrebleu", tokenize="13b")
    with pytest.raises(UserError, match="smooth_method is 'expo'"):
        metric("sacrebleu", smooth_method="expo")
    with pytest.raises(UserError, match="word_order must not be negative"):
        metric("chrf", word_order=-1)
