"""`nb.data.dedup`."""

from __future__ import annotations

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.deduplication.methods import METHODS
from nbllm.data.pipeline.step import STEPS


def test_settings_reach_the_step():
    step = nb.data.dedup(threshold=0.8, bands=14, rows=8)
    assert step == METHODS["near"](threshold=0.8, bands=14, rows=8)
    assert step.describe()["bands"] == 14
    assert nb.data.dedup(recall=0.99).describe()["rows"] == 6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_registered_step(method):
    assert STEPS[METHODS[method].name] is METHODS[method]


def test_misspelt_names_are_refused():
    with pytest.raises(UserError, match="near"):
        nb.data.dedup("nera")
    with pytest.raises(UserError, match="threshold"):
        nb.data.dedup(treshold=0.8)
