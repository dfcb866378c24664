"""Duplicates by embeddings: against brute force, measured, with a real encoder."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication import semantic
from nbllm.data.deduplication.clusters import spherical_kmeans
from nbllm.data.deduplication.semantic import SemanticDuplicates

from .conftest import decide, generated


class Words:
    """Embeds a text as the mean of fixed random vectors of its words."""

    def __init__(self, width=24):
        self.width = width
        self.model = torch.nn.Linear(2, 2)

    def embed(self, texts):
        rows = [sum(self.vector(word) for word in text.split()) for text in texts]
        vectors = torch.from_numpy(np.array(rows, np.float32).reshape(-1, self.width))
        return torch.nn.functional.normalize(vectors, dim=-1)

    def vector(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(size=self.width)


def brute_force(vectors, threshold):
    staying, removed = [], {}
    for number, vector in enumerate(vectors):
        like = [other for other in staying if vectors[other] @ vector >= threshold]
        if like:
            removed[number] = like[0]
        else:
            staying.append(number)
    return removed


@pytest.fixture(scope="module")
def documents():
    return generated(700, seed=5, longest=60)


def test_one_cluster_equals_brute_force(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(semantic, "BLOCK", 100)
    step = SemanticDuplicates(Words(), threshold=0.97, clusters=1)
    expected = brute_force(Words().embed(documents).numpy(), 0.97)
    assert len(expected) > 50
    decisions = decide(step, documents, tmp_path / "1")
    assert dict(zip(decisions["id"].to_pylist(), decisions["partner"].to_pylist(), strict=True)) == expected
    assert min(decisions["cosine"].to_pylist()) >= 0.97
    again = decide(step, documents, tmp_path / "2", batches=3, order=[2, 0, 1])
    assert again.equals(decisions, check_metadata=True)
    assert step.report(decisions.schema.metadata).recall.value == 1


def test_what_clusters_miss_is_measured(documents, tmp_path):
    step = SemanticDuplicates(Words(), threshold=0.9, clusters=20, sample=700)
    decisions = decide(step, documents, tmp_path)
    report = step.report(decisions.schema.metadata)
    vectors = Words().embed(documents).numpy()
    alike = vectors @ vectors.T >= 0.9
    np.fill_diagonal(alike, False)
    assert report.recall.trials == int(alike.any(1).sum())
    assert 0.5 < report.recall.value < 1 and report.clusters > 10
    assert "95% interval" in report._repr_html_() and "recall" in str(report)


def test_clusters_are_of_similar_direction():
    rng = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)
    truth = rng.integers(0, 8, 4000)
    vectors = centres[truth] + rng.normal(0, 0.05, (4000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    firsts = [int(np.flatnonzero(truth == k)[0]) for k in range(8)]
    order = np.array([*firsts, *(set(range(4000)) - set(firsts))])
    found = spherical_kmeans(vectors, order, 8)
    assert np.array_equal(found, truth)


def test_with_an_encoder(tmp_path):
    """Equal but for white space and control characters to a tiny BERT; texts without text stay."""
    texts = ["def add(a, b): return a + b", "a quite different text", "", None, "  "]
    tokenizer = nb.data.train_tokenizer(texts[:2], vocab_size=300)
    lm = nb.LM.new(
        "bert", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64, seed=0
    )
    step = nb.data.dedup("semantic", model=lm, threshold=0.9999)
    assert step.describe()["model"] != SemanticDuplicates(Words()).describe()["model"]
    assert decide(step, [*texts, texts[0]], tmp_path)["id"].to_pylist() == [5]
    decisions = decide(step, [*texts, texts[0]], tmp_path / "again")
    edits = step.apply(Texts.of(pa.array([*texts, texts[0]])), np.arange(6), decisions)
    assert edits.document.tolist() == [5] and edits.partner.tolist() == [0] and edits.jaccard is None
    assert edits.value[0] == pytest.approx(1, abs=1e-6)


def test_no_documents(tmp_path):
    assert decide(SemanticDuplicates(Words()), [], tmp_path / "1").num_rows == 0
    assert decide(SemanticDuplicates(Words()), ["", None], tmp_path / "2").num_rows == 0


@pytest.mark.parametrize("settings", [{"threshold": 0}, {"threshold": 1.5}, {"clusters": 0}, {"sample": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        SemanticDuplicates(Words(), **settings)


def test_many_copies_are_compared_in_blocks(tmp_path):
    documents = ["the same words again"] * 3000 + [" ".join(random.Random(1).sample(["a", "b", "c"], 3))]
    decisions = decide(SemanticDuplicates(Words()), documents, tmp_path)
    assert decisions.num_rows == 2999 and set(decisions["partner"].to_pylist()) == {0}
