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


def test_finewebs_steps_and_thresholds_are_the_papers_and_the_codes():
    assert [step.name for step in quality("fineweb")] == ["gopher-repetition", "gopher", "c4", "fineweb"]
    paper, code = thresholds(quality("fineweb")), thresholds(quality("fineweb-code"))

    rounded = [round(value, 12) for (step, _), value in paper.items() if step == "fineweb"]
    assert rounded == [0.12, 0.67, 0.1]
    assert [value for (step, _), value in code.items() if step == "fineweb"] == [0.12, 0.67, 0.01, 0.3]
    assert all(step.published == "code" for step in quality("fineweb-code"))
    assert (paper["c4", "sentences, at least"], code["c4", "sentences, at least"]) == (3, 5)
    assert (paper["c4", "words in a line, at least"], code["c4", "words in a line, at least"]) == (5, 3)
    assert not any(
        step.end_punctuation for steps in ("fineweb", "fineweb-code") for step in quality(steps)[2:3]
    )


def test_refinedweb_drops_a_page_of_which_a_twentieth_is_removed():
    steps = quality("refinedweb")

    assert [step.name for step in steps] == ["gopher-repetition", "gopher", "refinedweb-lines"]
    assert steps[-1].rules[0].threshold == 0.05


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
