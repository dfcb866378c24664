"""Exact match and F1 by the rules of SQuAD 1.1 and 2.0, beside what others wrote of the official scripts."""

import collections
import json
import random
import re
import string
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from torchmetrics.functional.text import squad as squad_of_torchmetrics

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric
from nbllm.evaluation.columns import to_arrays, to_columns
from nbllm.evaluation.metrics.normalizing import mlqa, squad, squad_nonempty
from tests.evaluation.metrics.corpora import perturbed

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "xquad"


def xquad(language, count):
    """Questions of XQuAD with all gold answers, and predictions made of them by a fixed seed."""
    path = DATA / f"xquad.{language}.json"
    if not path.exists():
        pytest.skip("the real data sets are not here")
    chooser = random.Random(0)
    articles = json.loads(path.read_text("utf-8"))["data"]
    found = [
        (question, paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    chooser.shuffle(found)
    predictions, references = [], []
    for question, context in found[:count]:
        golds = [answer["text"] for answer in question["answers"]]
        other = perturbed(golds[0], chooser)  # XQuAD has one gold answer; the rule takes all
        # An erased one scores 0 by the script of SQuAD 1.1, and 1 by torchmetrics, which takes the rule of 2.0.
        golds += [other] * (squad(other) != "" and chooser.random() < 0.5)
        words = context.split()
        start = chooser.randrange(len(words))
        made = chooser.choice([
            golds[0], f"The {golds[0].upper()}.", perturbed(golds[-1], chooser), "", "the",
            golds[0][: len(golds[0]) // 2], " ".join(words[start : start + 4]), f"“{golds[0]}”!",
        ])  # fmt: skip
        predictions.append({"id": question["id"], "prediction_text": made})
        starts = [answer["answer_start"] for answer in question["answers"]]
        starts += [0] * (len(golds) - len(starts))
        references.append({"id": question["id"], "answers": {"text": golds, "answer_start": starts}})
    assert len(predictions) == count
    return predictions, references


@pytest.mark.realdata
@pytest.mark.parametrize("language", ["en", "zh"])
def test_500_questions_of_xquad_are_scored_as_by_the_official_rules(language):
    predictions, references = xquad(language, 500)
    found = metric("squad").compute(predictions=predictions, references=references)
    expected = squad_of_torchmetrics(predictions, references)
    assert found.keys() == {"exact_match", "f1"}
    assert 10 < found["exact_match"] < found["f1"] < 90
    for key, value in found.items():
        assert value == pytest.approx(float(expected[key]), rel=1e-6)  # theirs in float32


# The script of SQuAD 2.0 told again from its paper and documentation: dictionaries and loops, question by question.


def official_words(text):
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def official_scores(prediction, golds):
    golds = [gold for gold in golds if official_words(gold)] or [""]
    exact, f1 = 0, 0
    for gold in golds:
        one, two = official_words(gold), official_words(prediction)
        exact = max(exact, int(one == two))
        if not one or not two:
            f1 = max(f1, float(one == two))
            continue
        same = sum(min(one.count(word), two.count(word)) for word in set(one))
        if same:
            f1 = max(f1, 2 * same / len(two) * same / len(one) / (same / len(two) + same / len(one)))
    return exact, f1


def official_v2(predictions, references, threshold):
    golds = {each["id"]: each["answers"]["text"] for each in references}
    texts = {each["id"]: each["prediction_text"] for each in predictions}
    empty = {each["id"]: each["no_answer_probability"] for each in predictions}
    raw = {key: official_scores(text, golds[key]) for key, text in texts.items()}
    out = collections.OrderedDict()
    for name, index in (("exact", 0), ("f1", 1)):
        under = {key: (float(not golds[key]) if empty[key] > threshold else raw[key][index]) for key in raw}
        out[name] = 100 * sum(under.values()) / len(under)
        out["total"] = len(under)
        for prefix, chosen in (
            ("HasAns", [key for key in raw if golds[key]]),
            ("NoAns", [key for key in raw if not golds[key]]),
        ):
            if chosen:
                out[f"{prefix}_{name}"] = 100 * sum(under[key] for key in chosen) / len(chosen)
                out[f"{prefix}_total"] = len(chosen)
        best, at = 0.0, 0.0
        for limit in [None, *sorted(empty.values())]:
            score = 0.0
            for key in raw:
                answers = limit is not None and empty[key] <= limit
                if not answers or not texts[key]:
                    score += not golds[key] if not answers else (0 if golds[key] else 1)
                    score += raw[key][index] if answers and golds[key] else 0
                elif golds[key]:
                    score += raw[key][index]
            if limit is None or score > best + 1e-9:
                best, at = score, 0.0 if limit is None else limit
        out[f"best_{name}"], out[f"best_{name}_thresh"] = 100 * best / len(raw), at
    return dict(out)


def v2_questions(count, seed=0):
    chooser = random.Random(seed)
    texts = ["the cat", "A dog!", "cat", "dog sat on the mat", "The", "", "3.5%", "naïve café"]
    predictions, references = [], []
    for index in range(count):
        golds = [chooser.choice(texts[:5] + texts[6:]) for _ in range(chooser.randint(0, 3))]
        predictions.append({
            "id": str(index), "prediction_text": chooser.choice([*texts, *golds]),
            "no_answer_probability": chooser.random(),
        })  # fmt: skip
        answers = {"text": golds, "answer_start": [0] * len(golds)}
        references.append({"id": str(index), "answers": answers})
    return predictions, references


@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.0])
def test_squad_2_is_what_its_rules_told_again_give(threshold):
    predictions, references = v2_questions(300)
    shuffled = random.Random(1).sample(references, len(references))
    found = metric("squad_v2").compute(
        predictions=predictions, references=shuffled, no_answer_threshold=threshold
    )
    expected = official_v2(predictions, references, threshold)
    assert found == pytest.approx(expected, rel=1e-12)
    assert list(found)[:3] == ["exact", "total", "HasAns_exact"]


def test_an_abstention_is_right_where_there_is_no_answer_and_wrong_where_there_is_one():
    prediction = {"id": "1", "prediction_text": "Unanswerable.", "no_answer_probability": 0.0}
    none = {"id": "1", "answers": {"text": [], "answer_start": []}}
    gold = {"id": "1", "answers": {"text": ["Paris"], "answer_start": [3]}}
    judged = metric("squad_v2", abstention="unanswerable")
    for reference, expected in ((none, 100), (gold, 0)):
        found = judged.compute(predictions=[prediction], references=[reference])
        assert found["exact"] == found["f1"] == expected
    plain = metric("squad_v2").compute(predictions=[prediction], references=[none])
    assert plain["exact"] == plain["f1"] == 0  # no one said what the word means


def test_squad_s_rule_erases_whole_answers_and_another_does_not():
    def score(gold, text, normalizer):
        return metric("squad", normalizer=normalizer).compute(
            predictions=[{"id": "1", "prediction_text": text}],
            references=[{"id": "1", "answers": {"text": [gold], "answer_start": [0]}}],
        )

    assert score("A", "A", "squad") == {"exact_match": 100, "f1": 0}
    assert score("A", "The", "squad")["exact_match"] == 100
    assert score("A", "A", "squad_nonempty") == {"exact_match": 100, "f1": 100}
    assert score("A", "The", "squad_nonempty") == {"exact_match": 0, "f1": 0}
    assert score("the cat", "cat", "squad_nonempty")["f1"] == 100
    assert "normalizer:squad_nonempty|" in metric("squad", normalizer="squad_nonempty").signature
    assert squad("+") == "" and squad_nonempty("+") == "+" and squad_nonempty("") == ""


def test_languages_by_mlqa_s_rule():
    assert mlqa("Der Hund, die Katze!", "de") == "hund katze"
    assert mlqa("¿El perro?", "es") == "perro"
    assert mlqa("«Привет» — мир", "ru") == "привет мир"
    assert mlqa("中国人民。2008年", "zh") == "中 国 人 民 2008 年"
    assert mlqa("東京タワー", "ja") == "東 京 タ ワ ー"


def official_mlqa(text, articles, by_character):
    """The rule of MLQA's evaluation script told again, character by character."""
    kept = [c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P"]
    text = re.sub(articles, " ", "".join(kept)) if articles else "".join(kept)
    words, open_word = [], ""
    for character in text:
        if by_character and "\u4e00" <= character <= "\u9fa5":
            words += [*open_word.split(), character]
            open_word = ""
        else:
            open_word += character
    return " ".join([*words, *open_word.split()])


@pytest.mark.parametrize(
    "language, articles",
    [
        ("en", r"\b(a|an|the)\b"),
        ("es", r"\b(un|una|unos|unas|el|la|los|las)\b"),
        ("de", r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
        ("vi", r"\b(của|là|cái|chiếc|những)\b"),
        ("ar", r"\sال^|ال"),  # noqa: RUF001
        ("hi", ""),
        ("zh", ""),
    ],
)
def test_mlqa_s_rule_is_its_script_s(language, articles):
    chooser = random.Random(language)
    parts = [
        "the", "A", "der", "Das", "el", "la", "la", "của", "là", "الولد", "ال", "यह", "है।", "中国", "2008年", "a中b",
        "«x»", "…", "don't", "end.", " ", "\t", "+", "naïve",
    ]  # fmt: skip
    for _ in range(200):
        text = " ".join(chooser.choices(parts, k=chooser.randint(0, 8)))
        assert mlqa(text, language) == official_mlqa(text, articles, language == "zh")


@pytest.mark.realdata
def test_chinese_answers_are_compared_by_character():
    predictions, references = xquad("zh", 200)
    whole = metric("squad").compute(predictions=predictions, references=references)
    by_character = metric("squad", normalizer="mlqa", language="zh").compute(
        predictions=predictions, references=references
    )
    assert by_character["f1"] > whole["f1"] + 5  # part of an answer counts for something
    half = metric("token_f1", normalizer="mlqa", language="zh")
    assert half.compute(predictions=["北京"], references=["北京大学"])["token_f1"] == pytest.approx(2 / 3)
    assert metric("token_f1").compute(predictions=["北京"], references=["北京大学"])["token_f1"] == 0


@pytest.mark.parametrize("name", ["squad_v2_exact", "squad_v2_f1"])
def test_the_threshold_is_part_of_the_figure_that_is_resampled(name):
    figure = METRICS[name](no_answer_threshold=0.5)
    columns = to_arrays(to_columns(figure.rows(*v2_questions(20))))
    counts = np.eye(20)
    alone = figure.resample(columns, counts)
    assert figure.compute(columns) == pytest.approx(alone.mean())


def test_ids_are_matched_and_checked():
    predictions, references = v2_questions(3)
    first = [{"id": each["id"], "prediction_text": ""} for each in predictions]
    with pytest.raises(DataError, match=r"predictions\[1\] has the id '0', as an earlier one has"):
        metric("squad_v2").compute(predictions=[predictions[0]] * 3, references=references)
    with pytest.raises(DataError, match="has the id 'x', which no reference has"):
        metric("squad").compute(predictions=[{**first[0], "id": "x"}], references=references[:1])
    with pytest.raises(DataError, match="(?s)'9' has no gold answer.*squad_v2"):
        metric("squad").compute(
            predictions=[{"id": "9", "prediction_text": ""}],
            references=[{"id": "9", "answers": {"text": []}}],
        )
    with pytest.raises(DataError, match=r"predictions\[0\] has no 'no_answer_probability'"):
        metric("squad_v2").compute(predictions=first[:1], references=references[:1])
    with pytest.raises(UserError, match="language is 'xx'"):
        metric("squad", normalizer="mlqa", language="xx")
