"""Canaries are planted where nobody else finds a place, recorded, and more exposed the more often they are planted."""

import math

import numpy as np
import pytest
from datasets import Dataset

from nbllm.core.errors import DataError, UserError
from nbllm.data import Canaries, canary_exposure, load, plant_canaries, split, train_tokenizer
from nbllm.lm import LM, Score
from nbllm.training import train

TEXTS = [f"document {number}: the cat sat on mat {number % 7} and slept.\n" for number in range(60)]
CANARIES = Canaries(repeats=(0, 1, 40), template="code {} end", digits=4)


def test_they_are_planted_as_often_as_asked_and_nothing_else_changes():
    dataset = load(TEXTS)
    made = plant_canaries(dataset, CANARIES)
    texts = made["text"][:]
    assert [texts.count(text) for text in CANARIES.texts] == [0, 1, 40]
    assert [text for text in texts if text not in CANARIES.texts] == TEXTS
    places = [place for place, text in enumerate(texts) if text == CANARIES.texts[2]]
    assert places != list(range(places[0], places[0] + 40)) and max(places) > 50
    assert plant_canaries(dataset, CANARIES)["text"][:] == texts
    assert made.column_names == dataset.column_names
    assert plant_canaries(dataset, CANARIES.replace(seed=1))["text"][:] != texts


def test_the_same_settings_make_the_same_and_the_record_gives_them_back():
    assert Canaries(seed=3).texts == Canaries(seed=3).texts != Canaries(seed=4).texts
    assert len(set(CANARIES.texts)) == 3 and not set(CANARIES.texts) & set(CANARIES.others(500))
    odd = CANARIES.replace(template='a "quoted" } {} { \u65e5 code')
    for canaries in (CANARIES, odd):
        made = plant_canaries(load(TEXTS), canaries)
        assert Canaries.of(made) == canaries
        assert Canaries.of(split(made, 0.5)[0]) == canaries  # what is made of it remembers


class Known:
    """Scores of a model that knows one text, and finds the others as likely as their codes are large."""

    def __init__(self, known):
        self.known = known

    def score(self, texts):
        return [Score(0.0 if text == self.known else -float(text.split()[1]) - 1, 1, 1) for text in texts]


def test_rank_and_exposure_are_those_counted_by_hand():
    found = canary_exposure(Known(CANARIES.texts[2]), CANARIES, num_others=200)
    others = np.array([float(text.split()[1]) for text in CANARIES.others(200)])
    for row, text in zip(found, CANARIES.texts, strict=True):
        likelier = 0 if row.repeats == 40 else int((others < float(text.split()[1])).sum())
        assert row.rank == likelier + 1
        assert row.exposure == pytest.approx(-math.log2((likelier + 1) / (len(others) + 1)))
        assert row.interval[0] <= row.exposure <= row.interval[1] + 1e-9
    assert found.rows[2].exposure == pytest.approx(math.log2(len(others) + 1))
    assert "7.7 bits" in repr(found) and "40 times" in found._repr_html_()


def test_a_model_that_was_trained_on_them_gives_them_away(tmp_path):
    planted = plant_canaries(load(TEXTS), CANARIES)
    lm = LM.new(
        "llama", tokenizer=train_tokenizer(TEXTS, kind="byte"), hidden_size=48, num_layers=1, num_heads=4,
        max_positions=64,
    )  # fmt: skip
    before = canary_exposure(lm, planted, num_others=100)
    run = train(
        lm, planted, steps=100, batch_size=8, sequence_length=64, lr=1e-2, folder=tmp_path, name="canaries",
        validation=None,
    )  # fmt: skip
    run.wait()
    after = canary_exposure(lm, run, num_others=100)
    assert Canaries.of(run) == CANARIES
    often = after.rows[2]
    assert often.exposure > 5 > before.rows[2].exposure and often.rank <= 3
    assert after.rows[0].exposure < often.exposure


def test_settings_are_checked():
    for settings, message in [
        ({"repeats": ()}, "repeats must be"),
        ({"repeats": (-1,)}, "repeats must be"),
        ({"repeats": (20_000,)}, "would be planted"),
        ({"template": "no place"}, "one line with one"),
        ({"template": "{} {}"}, "one line with one"),
        ({"template": "a\n{}"}, "one line with one"),
        ({"digits": 3}, "digits must be"),
    ]:
        with pytest.raises(UserError, match=message):
            Canaries(**settings)
    with pytest.raises(DataError, match="No canaries are recorded"):
        Canaries.of(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(DataError, match="column text"):
        plant_canaries(Dataset.from_dict({"words": ["a"]}))
    with pytest.raises(UserError, match="num_others must be"):
        canary_exposure(Known(""), CANARIES, num_others=1)
