"""Toxic words as whole words in any case, a classifier of one's own, and tags unless there is a limit."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import toxicity, train_classifier
from nbllm.data.arrow_text import Texts
from nbllm.data.harm.phrases import Phrases, read_phrases
from nbllm.data.overlap import normalized


def texts_of(*texts):
    return Texts.of(pa.array(texts, pa.string()))


def test_words_are_found_as_whole_words_in_any_case():
    step = toxicity(["Ass", "piece of  junk", "naïve", "坏人"])
    texts = [
        "ASS!",
        "class assassin ass-et",
        "a PIECE,\nof junk",
        "piece of a junk",
        "NAÏVE",
        "这是坏人吗",
        "坏 人",
        None,
        "",
    ]
    signals = step.signals(texts_of(*texts))
    assert signals["toxicity/words"].tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert signals["toxicity/share"][:4].tolist() == [1.0, 1 / 4, 1 / 4, 0.0]
    assert signals["toxicity/share"][-2:].tolist() == [0.0, 0.0]


def test_a_word_of_two_lists_counts_in_both():
    phrases = Phrases([["a b", "c"], ["c", "d"]])
    assert phrases.find(normalized("A-b c, c d a c b")).tolist() == [4, 4]


def test_documents_are_tagged_unless_there_is_a_limit():
    assert toxicity().rules == ()
    (rule,) = toxicity(max_share=0).rules
    assert (rule.signal, rule.keep, rule.threshold) == ("toxicity/share", "at most", 0)
    signals = toxicity().signals(texts_of("you are a moron and I will kill you", "a fine day in Scunthorpe"))
    assert signals["toxicity/words"].tolist() == [2, 0] and "toxicity/score" not in signals


def shouting(texts):
    return [sum(map(str.isupper, text)) / len(text) for text in texts]


def test_a_classifier_scores_what_has_text():
    step = toxicity(classifier=shouting, max_score=0.5)
    texts = ["LOUD", None, "quiet", ""] * 40
    scores = step.signals(texts_of(*texts))["toxicity/score"]
    assert scores[0] == 1 and scores[2] == 0 and math.isnan(scores[1]) and math.isnan(scores[3])
    (rule,) = step.rules
    assert rule.broken(scores[:4]).tolist() == [True, False, False, False]
    assert np.array_equal(
        pickle.loads(pickle.dumps(step)).signals(texts_of(*texts))["toxicity/score"], scores, equal_nan=True
    )
    assert "shouting" in step.describe()["classifier"]
    other = toxicity(classifier=lambda texts: [0.0] * len(texts), max_score=0.5)
    another = toxicity(classifier=lambda texts: [1.0] * len(texts), max_score=0.5)
    assert other.describe() != another.describe()


def test_a_classifier_trained_here_scores_too():
    toxic = [f"you {word} stupid fool number {i}" for i in range(30) for word in ("awful", "nasty")]
    harmless = [f"the {word} garden has tree number {i}" for i in range(30) for word in ("quiet", "green")]
    trained = train_classifier(toxic, harmless, buckets=1 << 12)
    step = toxicity(classifier=trained, max_score=0.5)
    texts = texts_of("you nasty stupid fool", None, "the green garden", "")
    scores = step.signals(texts)["toxicity/score"]
    assert scores[0] > 0.5 > scores[2] and np.isnan(scores[[1, 3]]).all()
    assert trained.fingerprint in str(step.describe())
    assert np.array_equal(
        pickle.loads(pickle.dumps(step)).signals(texts)["toxicity/score"], scores, equal_nan=True
    )


@pytest.mark.parametrize("made", [lambda texts: [0.0], lambda texts: ["x"] * len(texts), lambda texts: None])
def test_a_classifier_that_returns_something_else_is_named(made):
    with pytest.raises(UserError, match="classifier of toxicity"):
        toxicity(classifier=made).signals(texts_of("a", "b"))


def test_lists_of_words_are_read_and_settings_checked(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# a comment\nbad\n\n  worse word \nbad\n!!\n", encoding="utf-8-sig")
    assert read_phrases(path) == ("bad", "worse word") == read_phrases(["bad", "worse word", ""])
    assert toxicity(path).signals(texts_of("a worse word"))["toxicity/words"].tolist() == [1]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for wrong in (tmp_path / "none", tmp_path / "bytes", tmp_path, [], ["!"]):
        with pytest.raises(DataError):
            toxicity(wrong)
    for settings, message in [
        ({"words": [3]}, "holds int"),
        ({"classifier": 3}, "must be a function"),
        ({"max_share": "0"}, "max_share must be a number"),
        ({"max_share": math.nan}, "max_share must be a number"),
        ({"max_score": 0.5}, "there is none"),
    ]:
        with pytest.raises(UserError, match=message):
            toxicity(**settings)
