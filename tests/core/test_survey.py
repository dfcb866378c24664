from __future__ import annotations

import importlib
import pkgutil

import pytest

import nbllm as nb
from nbllm.core.survey import SECTIONS, TECHNIQUES
from nbllm.notebook import notebooks_folder


def resolve(dotted: str) -> object:
    """Return what a dotted name names, importing as far as modules go."""
    return pkgutil.resolve_name(dotted)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda t: t.name)
def test_every_home_resolves(technique):
    assert resolve(technique.home) is not None
    assert technique.section in SECTIONS


@pytest.mark.parametrize("name", sorted({t.notebook for t in TECHNIQUES}))
def test_every_notebook_exists(name):
    assert (notebooks_folder() / f"{name}.ipynb").is_file()


def test_a_wrong_home_would_be_noticed():
    with pytest.raises((ImportError, AttributeError)):
        resolve("nbllm.training.no_such_thing")


def test_the_survey_shows_every_section_and_technique():
    text = repr(nb.survey())
    assert all(title in text for title in SECTIONS.values())
    assert all(t.name in text and t.home in text for t in TECHNIQUES)
    assert len(nb.survey()) == len(TECHNIQUES) == nb.survey()._repr_markdown_().count("\n") - 1


def test_homes_are_modules_of_nbllm():
    assert importlib.import_module("nbllm.core.survey")
    assert all(t.home.startswith("nbllm.") for t in TECHNIQUES)
