"""Deduplication in a pipeline: the ledger, the report, and the same bytes for any workers and order of shards."""

from __future__ import annotations

import json

import pytest

import nbllm as nb
from tests.data.pipeline.test_pipeline import contents

from .conftest import generated

STEPS = [
    nb.data.dedup("exact"),
    nb.data.dedup(threshold=0.7),
    nb.data.dedup("exact", level="line", min_characters=20),
    nb.data.dedup("substring", length=20),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    documents = ["A licence that every file has\n" + text for text in generated(900, seed=7)]
    files = []
    for number in range(3):
        part = documents[300 * number : 300 * (number + 1)]
        files.append(folder / f"{number}.jsonl")
        files[-1].write_text("\n".join(json.dumps({"text": text}) for text in part))
    return files


@pytest.fixture(scope="module")
def prepared(shards, tmp_path_factory):
    return nb.data.Pipeline(STEPS, part_bytes=100_000).run(shards, tmp_path_factory.mktemp("out"), workers=1)


def test_any_workers_and_order_of_shards_write_the_same_bytes(shards, prepared, tmp_path):
    again = nb.data.Pipeline(STEPS, part_bytes=100_000).run(
        [shards[i] for i in (2, 0, 1)], tmp_path, workers=3
    )
    assert contents(again.folder) == contents(prepared.folder)


def test_the_ledger_names_partner_and_similarity(prepared):
    ledger, signals = prepared.ledger, prepared.signals
    near = ledger[ledger["step"] == "near-duplicates"]
    assert len(near) > 50
    assert (near["jaccard"] >= 0.7).all() and (near["jaccard"] < 1).any()
    assert near["partner"].isin(signals["id"]).all() and (near["partner"] < near["id"]).all()
    assert not near["partner"].isin(near["id"]).any()  # whom it repeats stays
    lines = ledger[ledger["kind"] == "line"]
    assert (lines["text"] == "A licence that every file has\n").all()
    assert len(lines) == prepared.counts[-1].left.documents - 1
    assert (ledger[ledger["kind"] == "span"]["value"] >= 20).all()


def test_the_report_is_kept(prepared):
    report = prepared.reports["near-duplicates"]
    assert report.recall.value > 0.9 and report.precision.value == 1
    assert "<svg" in report._repr_html_()
