"""What groups are mentioned with, against counts by hand and scipy's odds ratio."""

import math

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import identity_associations

GROUPS = {"reds": ["red", "reds"], "blues": ["blue"], "rare": ["green"]}
ATTRIBUTES = {"crime": ["thief", "prison"], "never": ["unheard of"], "family": ["home"]}
TEXTS = [
    "A red is a thief. A blue is at home! The red went to prison\nThe blue goes home.",
    "No one is here. Reds stay? Blue skies; a thief walks home。The red sleeps",
] * 20


def test_counts_and_figures_are_those_by_hand():
    rows = identity_associations(TEXTS, groups=GROUPS, attributes=ATTRIBUTES)
    found = {(row.group, row.attribute): row for row in rows}
    red, blue = found["reds", "crime"], found["blues", "family"]
    assert rows.num_sentences == 160 and rows.num_documents == 40  # four sentences each
    assert red.mentions == 80 and red.both == 40
    assert red.pmi == pytest.approx(math.log2((40 / 160) / (80 / 160 * 60 / 160)))
    assert red.odds_ratio == pytest.approx(40 * (160 - 80 - 20) / (40 * 20)) and red.differs
    assert blue.mentions == 60 and blue.both == 60
    assert blue.odds_ratio == pytest.approx(60.5 * 100.5 / (0.5 * 0.5)) and math.isfinite(blue.interval[1])
    assert found["reds", "family"].pmi == -math.inf and found["reds", "family"].odds_ratio < 1
    assert ("rare", "crime") not in found and ("reds", "never") not in found


def test_it_agrees_with_scipy():
    from scipy.stats.contingency import odds_ratio

    (row,) = identity_associations(TEXTS, groups={"reds": ["red"]}, attributes={"crime": ["thief"]})
    both, first = row.both, row.mentions - row.both
    second = sum(text.lower().count("thief") for text in TEXTS) - both
    rest = 160 - both - first - second
    theirs = odds_ratio([[both, first], [second, rest]], kind="sample")
    assert row.odds_ratio == pytest.approx(theirs.statistic)
    interval = theirs.confidence_interval(0.95)
    assert row.interval == pytest.approx((interval.low, interval.high))


def test_displays_and_refusals():
    found = identity_associations([f"{text} <b>" for text in TEXTS])
    assert "documents" in repr(found) and "<b>" not in found._repr_html_()
    named = identity_associations(TEXTS, groups={"<script>": ["red"]}, attributes=ATTRIBUTES)
    assert "<script>" not in named._repr_html_() and "by chance" in repr(named)
    with pytest.raises(DataError, match="no text"):
        identity_associations(["", "..."])
    for settings in ({"groups": {}}, {"attributes": ["crime"]}):
        with pytest.raises(UserError, match="given as words by name"):
            identity_associations(TEXTS, **settings)
