"""ROUGE is what rouge-score computes, and reads every script where it is asked to."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import metric
from nbllm.evaluation.metrics.words import unicode_words
from tests.evaluation.metrics.corpora import pairs

TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def in_lines(texts):
    return [text.replace(". ", ".\n").replace("? ", "?\n") for text in texts]


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_scores_are_those_of_rouge_score(use_stemmer):
    predictions, references = pairs(num_references=-3)
    predictions, references = in_lines(predictions), [in_lines(each) for each in references]
    scorer = RougeScorer(TYPES, use_stemmer)
    expected = [scorer.score_multi(golds, text) for text, golds in zip(predictions, references, strict=True)]
    inputs = {"predictions": predictions, "references": references, "use_stemmer": use_stemmer}
    each = metric("rouge").compute(**inputs, tokenizer="rouge-score", use_aggregator=False)
    mean = metric("rouge").compute(**inputs, tokenizer="rouge-score")
    for kind in TYPES:
        scores = [score[kind].fmeasure for score in expected]
        assert each[kind] == scores
        assert mean[kind] == pytest.approx(np.mean(scores), rel=1e-12)


# The two lines of target.txt and prediction.txt that google-research's rouge is tested with.
TARGETS = [
    "ZfbCUIUuePaiLVUlCaUXxkpu XPeWing tUHfPMuZ',-Xd Y BrUgVJing M-HV.-DgdDaY.rFDJCRing Ht-LM EKBDXkME,yz'RBr q'wtion "
    "wIojNbN wL,b .a-'XdQggyFl jB-RPP'iyOIcUxer tKM L",
    "KsJdPByEtAor fE-Qg Dpdbring cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMtion psing sbKao Q m qiing LMmer "
    "HqqLFXe,XPY,J XsurkMer ,ed nB'wH'bWVHjWFEing tQ.saefZwJtKrTlixYpMMsJing UCAPwNHeYVjDing c T BUySKtion gMPfJpwGw "
    "p'NvxAoping eu pBwMBKV'I DNxqelhu,PHPxDEq,mtion SN",
]
PREDICTIONS = [
    "rFDJCRtion Ht-LM EKtDXkME,yz'RBr q'wer wrojNbN wL,b .a-'XdQggyFl jB-RPP'iyOIcUxi",
    "nn cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMer pstion sbKao Q m qier LMmed HqqLFXe,XPY,J XsurkMeo ,ed "
    "nB'wH'bWVHjWFEer tQ.saefZwJtKrTlixYpMMNJtion UCAPwNHeYVjD",
]


def test_the_texts_that_rouge_score_is_tested_with():
    inputs = {"predictions": PREDICTIONS, "references": TARGETS, "use_aggregator": False}
    found = metric("rouge").compute(**inputs)
    assert found["rouge1"] == pytest.approx([0.51163, 0.50000], abs=1e-5)
    assert found["rouge2"] == pytest.approx([0.39024, 0.36364], abs=1e-5)
    stemmed = metric("rouge").compute(**inputs, use_stemmer=True)
    assert stemmed["rouge1"][1] == pytest.approx(0.52941, abs=1e-5)


def test_identical_texts_of_any_script_score_one():
    texts = ["यह एक छोटी बिल्ली है", "東京タワーは高い", "Как дела?", "الولد يلعب", "ฉันรักเธอ"]
    for text in texts:
        assert set(
            metric("rouge", tokenizer="unicode").compute(predictions=[text], references=[text]).values()
        ) == {1.0}
    rouge = metric("rouge", tokenizer="unicode").compute(predictions=["café"], references=["caf"])
    assert rouge["rouge1"] == 0
    theirs = metric("rouge", tokenizer="rouge-score").compute(predictions=["café"], references=["caf"])
    assert theirs["rouge1"] == 1


def test_a_text_that_the_usual_tokenizer_cannot_read_is_refused_or_counted_as_empty():
    text = "यह एक छोटी बिल्ली है"
    with pytest.raises(DataError, match='(?s)finds no word.*tokenizer="unicode"'):
        metric("rouge").compute(predictions=[text], references=[text])
    theirs = metric("rouge", tokenizer="rouge-score").compute(predictions=[text], references=[text])
    assert set(theirs.values()) == {0.0}
    assert metric("rouge").compute(predictions=["…"], references=["a cat"])["rouge1"] == 0  # nothing to read


def test_words_of_every_script():
    assert unicode_words("Café, हिन्दी: 東京タワー 2") == ["café", "हिन्दी", "東", "京", "タ", "ワ", "ー", "2"]
    assert unicode_words("ที่ไป") == ["ที่", "ไ", "ป"]  # a letter with its marks
    assert unicode_words("naïve-ly don't") == ["naïve", "ly", "don", "t"]
    assert unicode_words(" — … ") == []


def test_sentences_are_lines_or_end_with_punctuation():
    prediction, gold = "The dog ran. A cat sat! Why? 犬。猫。", "A cat sat!\nThe dog ran.\nWhy?\n犬。\n猫。"
    one_line = " ".join(gold.split("\n"))
    rouge = metric("rouge", tokenizer="unicode")
    split = rouge.compute(predictions=[prediction], references=[one_line], sentences="punctuation")
    lines = rouge.compute(predictions=["The dog ran.\nA cat sat!\nWhy?\n犬。\n猫。"], references=[gold])
    whole = rouge.compute(predictions=[prediction], references=[one_line])
    assert split == lines and split["rougeLsum"] == 1 > whole["rougeLsum"]
    assert "sentences:punctuation" in metric("rouge", sentences="punctuation").signature


def test_types_tokenizers_and_refusals():
    inputs = {"predictions": ["a b"], "references": ["a c"]}
    assert metric("rouge").compute(**inputs, rouge_types=["rougeL"]) == {"rougeL": 0.5}
    assert metric("rouge").compute(**inputs, tokenizer=list)["rouge1"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="no 'rouge_l' here"):
        metric("rouge").compute(**inputs, rouge_types=["rouge_l"])
    with pytest.raises(UserError, match="Only rouge-score's own tokenizer stems"):
        metric("rouge", use_stemmer=True, tokenizer="unicode")
    with pytest.raises(UserError, match="Did you mean 'unicode'"):
        metric("rouge", tokenizer="unicod")
