"""Every rule against plain Python, on text that hypothesis makes and shrinks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from nbllm.data.quality.c4 import C4
from nbllm.data.quality.refinedweb import RefinedWebLines
from tests.data.quality import reference
from tests.data.quality.documents import GAPS, PHRASES
from tests.data.quality.test_lines import edited, texts_of, trimmed_lines
from tests.data.quality.test_rules import STEPS

characters = st.characters(exclude_categories=["Cs"])
pieces = st.one_of(
    st.text(characters, max_size=6),
    st.sampled_from(PHRASES),
    st.sampled_from(GAPS),
    st.sampled_from([" ", "\n"]),
)
documents = st.lists(st.lists(pieces, max_size=40).map("".join), min_size=1, max_size=30)
# The same examples each time, so that a failure can be seen again; each is up to thirty documents.
thorough = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", STEPS)
@thorough
@given(texts=documents)
def test_signals_equal_plain_python(name, texts):
    step, measure = STEPS[name]
    signals = step.signals(texts_of(*texts))
    expected = [measure(text) for text in texts]
    for signal, values in signals.items():
        np.testing.assert_array_equal(values, [row[signal] for row in expected], err_msg=signal)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("published", ["paper", "code"])
@thorough
@given(texts=documents)
def test_c4_equals_plain_python(published, end, texts):
    results, signals = edited(C4(published=published, end_punctuation=end), texts_of(*texts))
    expected = [reference.c4(text, published == "code", end) for text in texts]
    for result, (lines, _) in zip(results, expected, strict=True):
        assert trimmed_lines(result) == lines
    for name, values in signals.items():
        np.testing.assert_array_equal(values, [counts[name] for _, counts in expected], err_msg=name)


@thorough
@given(texts=documents)
def test_refinedweb_equals_plain_python(texts):
    results, signals = edited(RefinedWebLines(), texts_of(*texts))
    expected = [reference.refinedweb(text) for text in texts]
    for result, (lines, _) in zip(results, expected, strict=True):
        assert list(filter(None, trimmed_lines(result))) == list(filter(None, map(str.strip, lines)))
    np.testing.assert_array_equal(signals["refinedweb/removed_words"], [share for _, share in expected])
