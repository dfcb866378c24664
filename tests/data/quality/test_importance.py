"""Importance resampling: weights against counting, the sample against theory, and its independence of order."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.quality.importance import ImportanceResampling, ImportanceWeights, gumbel, importance_weights

IDS = np.arange(1000, dtype=np.int64) * 7919 - 3_000_000


def texts_of(*texts):
    return Texts.of(pa.array(texts, pa.string()))


class FewTables(list):
    """Tables as the engine gives them."""


def kept(step, texts, ids, cuts=(), reverse=False):
    """Return the ids that stay, scanned in the batches between `cuts`."""
    bounds = [0, *cuts, len(texts)]
    tables = FewTables(step.scan(texts_of(*texts[a:b]), ids[a:b]) for a, b in itertools.pairwise(bounds))
    if reverse:
        tables.reverse()
    decisions = step.solve(tables, None)
    edits = step.apply(texts_of(*texts), ids, decisions)
    return set(ids.tolist()) - set(ids[edits.document].tolist())


def test_weights_are_log_ratios_of_smoothed_counts():
    target, corpus = ["a b a", "c"], ["a x", "y z y z", None and ""]
    weights = importance_weights(target, [text for text in corpus if text], order=1, buckets=1 << 20)

    def chance(word, texts):
        words = [w for text in texts if text for w in text.split()]
        return (words.count(word) + 1) / (len(words) + (1 << 20))

    found = weights.log_weights(texts_of("a", "y a", "unseen", "", None))

    ratio = {w: math.log(chance(w, target) / chance(w, corpus)) for w in ("a", "y", "unseen")}
    expected = [ratio["a"], ratio["y"] + ratio["a"], ratio["unseen"], 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_sample_is_more_like_the_target():
    pages = [
        text[start : start + 800]
        for text in nb.data.load("pydocs")["text"]
        for start in range(0, len(text) - 800, 800)
    ]
    code = [text[2000:2800] for text in nb.data.load("pystdlib")["text"] if len(text) > 2800][:200]
    mixed = pages[1::2][:100] + code
    ids = IDS[: len(mixed)]

    step = ImportanceResampling(weights=importance_weights(pages[::2], mixed), share=1 / 3)
    staying = kept(step, mixed, ids)

    assert len(staying) == 100
    assert len(staying & set(ids[:100].tolist())) > 70  # by chance 33


def test_the_sample_does_not_depend_on_batches_or_their_order():
    texts = [f"word{i % 13} other{i % 7}" for i in range(300)]
    ids = IDS[:300]
    step = ImportanceResampling(weights=importance_weights(texts[:50], texts), share=0.4)

    once = kept(step, texts, ids)

    assert kept(step, texts, ids, cuts=(10, 11, 200)) == once
    assert kept(step, texts, ids, cuts=(10, 11, 200), reverse=True) == once
    other = ImportanceResampling(weights=step.weights, share=0.4, seed=1)
    assert kept(other, texts, ids) != once


def test_documents_are_drawn_in_proportion_to_their_weights():
    """Of two documents of weights 3 and 1, the first is drawn alone three times in four."""
    weights = np.log([3.0, 1.0])
    first = [np.argmax(weights + gumbel(np.array([5, 9]), seed)) == 0 for seed in range(4000)]

    assert abs(np.mean(first) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


def test_noise_has_the_gumbel_distribution():
    from scipy import stats

    assert stats.kstest(gumbel(np.arange(20_000), 3), "gumbel_r").pvalue > 0.001


def test_a_file_gives_the_same_weights(tmp_path):
    weights = importance_weights(["a b"], ["c d"])
    weights.save(tmp_path / "weights.safetensors")

    assert ImportanceWeights.load(tmp_path / "weights.safetensors").fingerprint == weights.fingerprint
    (tmp_path / "no").write_bytes(b"x")
    with pytest.raises(UserError, match="no importance weights"):
        ImportanceWeights.load(tmp_path / "no")


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="no words"):
        importance_weights([" "], ["a"])
    with pytest.raises(UserError, match="power of two"):
        importance_weights(["a"], ["a"], buckets=1000)
    with pytest.raises(UserError, match="share is 0"):
        ImportanceResampling(weights=importance_weights(["a"], ["a"]), share=0)
