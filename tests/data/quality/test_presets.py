"""The published sets of rules by name."""

import pytest

from nbllm.core.errors import UserError
from nbllm.data.quality.presets import PRESETS, quality


def thresholds(steps):
    return {(step.name, rule.name): rule.threshold for step in steps for rule in step.rules}


def test_gophers_thresholds_are_the_papers():
    rules = thresholds(quality())

    assert [value for (step, _), value in rules.items() if step == "gopher"] == [
        *(50, 100_000, 3, 10, 0.1, 0.1, 0.9, 0.3, 0.8, 2)
    ]
    assert [value for (step, _), value in rules.items() if step == "gopher-repetition"] == [
        *(0.3, 0.3, 0.2, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    ]


def test_settings_are_set_in_the_steps_that_have_them():
    steps = quality("gopher", min_words=20)

    assert steps[0].min_words == 20
    assert steps[1:] == list(PRESETS["gopher"][1:])


def test_a_step_of_several_presets_stands_once():
    assert quality("gopher", "gopher") == quality("gopher")


def test_names_that_are_not_known_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="gopher"):
        quality("gofer")
    with pytest.raises(UserError, match="min_words"):
        quality("gopher", min_word=20)
