"""The language of documents, by py3langid."""

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.quality.language import Language

SENTENCES = {
    "en": "The quick brown fox jumps over the lazy dog, and then it runs back into the forest.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund und läuft dann in den Wald zurück.",
    "fr": "Le renard brun saute par-dessus le chien paresseux, puis il retourne dans la forêt.",
    "ru": "Быстрая лисица прыгает через ленивую собаку, а затем убегает обратно в лес.",  # noqa: RUF001
    "zh": "敏捷的棕色狐狸跳过了懒惰的狗，然后跑回了森林里。",  # noqa: RUF001
}


def test_languages_are_told_apart_and_kept_by_their_probability():
    texts = Texts.of(pa.array([*SENTENCES.values(), "", "123 ...", None]))
    step = Language(languages=("en", "ru"))

    signals = step.signals(texts)

    assert signals["language/language"].tolist() == [*SENTENCES, "und", "und", "und"]
    kept = ~step.rules[0].broken(signals["language/probability"])
    assert kept.tolist() == [language in ("en", "ru") for language in SENTENCES] + [False] * 3
    both = (
        signals["language/probability"]
        + Language(languages=("de", "fr", "zh")).signals(texts)["language/probability"]
    )
    assert np.all(both <= 1 + 1e-5)


def test_one_language_may_be_a_string_and_an_unknown_one_is_refused():
    assert Language(languages="en") == Language()
    with pytest.raises(UserError, match="No language 'xx'"):
        Language(languages=("xx",))
