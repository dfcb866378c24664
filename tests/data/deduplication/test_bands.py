"""The S-curve, and settings chosen from a wanted recall."""

from __future__ import annotations

import pytest

from nbllm.core.errors import UserError
from nbllm.data.deduplication.bands import Bands, check_bands, choose_bands


@pytest.mark.parametrize(
    ("bands", "rows", "similarity", "probability"),
    [
        (14, 8, 0.70, 0.5645),
        (14, 8, 0.75, 0.7716),
        (14, 8, 0.80, 0.9235),
        (14, 8, 0.85, 0.9884),
        (450, 20, 0.75, 0.7605),
        (450, 20, 0.80, 0.9946),
        (60, 13, 0.80, 0.9664),
        (14, 8, 1.0, 1.0),
        (14, 8, 0.0, 0.0),
    ],
)
def test_the_probability_of_being_found(bands, rows, similarity, probability):
    assert Bands(bands, rows).probability(similarity) == pytest.approx(probability, abs=5e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("recall", [0.5, 0.95, 0.999])
def test_chosen_settings_reach_the_recall_and_are_of_use(threshold, recall):
    chosen = choose_bands(threshold, recall)
    assert chosen.probability(threshold) >= recall
    assert check_bands(chosen, threshold) == chosen


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(UserError, match="No setting"):
        choose_bands(0.05, 0.999)


@pytest.mark.parametrize(("bands", "rows"), [(0, 8), (14, 0), (1000, 5), (100, 1), (13, 60)])
def test_useless_settings_are_refused(bands, rows):
    with pytest.raises(UserError):
        check_bands(Bands(bands, rows), 0.8)
