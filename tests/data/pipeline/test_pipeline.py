import dataclasses
import hashlib
import json
import os
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data.pipeline import shards
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.prepared import Prepared
from tests.data.pipeline.example_steps import STEPS, CutLines, Distinct, Length, Vowels, documents


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(shards, "BATCH_ROWS", 16)
    monkeypatch.setattr("nbllm.data.pipeline.stage.BATCH_ROWS", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards in several formats."""
    folder = tmp_path_factory.mktemp("shards")
    texts = documents(400)
    for number in range(3):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number * 100 : number * 100 + 100]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    pq.write_table(pa.table({"text": texts[300:]}), folder / "3.parquet")
    return folder


def contents(out):
    """Return the digest of every file of the output but the stages."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "stages" not in path.parts and path.name != ".lock"
    }


def by_hand(texts):
    """Return what STEPS leave, in plain Python; equal texts are told apart by their order."""
    kept = []
    for text in texts:
        size = len(text.encode())
        if not 3 <= size <= 1000 or sum(text.count(v) for v in "aeiou") / size < 0.1 or "FORBIDDEN" in text:
            continue
        left = re.sub(r"(?m)^#[^\n]*\n?", "", text)
        if left:
            kept.append(re.sub(r"[0-9]+", "<N>", left))
    return [text for text in dict.fromkeys(kept) if len(text.encode()) >= 2]


def test_a_data_set_is_prepared_as_by_hand(tmp_path):
    texts = documents(300)
    prepared = Pipeline(STEPS, part_bytes=2000).run(texts, tmp_path)
    dataset = prepared.dataset()
    assert dataset["text"][:] == by_hand(texts)
    assert len(prepared.files) > 2
    assert prepared.counts[0].entered.documents == 300
    assert prepared.funnel.kept.documents == len(dataset)
    assert prepared.funnel.kept.bytes == sum(len(text.encode()) for text in dataset["text"])
    assert all(count.balances for count in prepared.counts)


def test_other_columns_are_kept_and_rows_keep_theirs(tmp_path):
    texts = documents(50)
    given = datasets.Dataset.from_dict(
        {"id": [f"n{i}" for i in range(50)], "text": texts, "tokens": list(range(50))}
    )
    dataset = Pipeline([Length(3)], part_bytes=500).run(given, tmp_path).dataset()
    expected = [i for i, text in enumerate(texts) if len(text.encode()) >= 3]
    assert dataset["tokens"][:] == expected
    assert dataset["id"][:] == [f"n{i}" for i in expected]
    again = Pipeline([Length(4)]).run(dataset, tmp_path / "again").dataset()
    assert again.column_names == dataset.column_names


@pytest.mark.parametrize("workers", [1, 3])
def test_results_do_not_depend_on_workers_or_the_order_of_shards(folder, tmp_path, workers, request):
    pipeline = Pipeline(STEPS, part_bytes=1500)
    prepared = pipeline.run(folder, tmp_path / "a", workers=2)
    assert sorted(prepared.dataset()["text"]) == sorted(by_hand(documents(400)))
    files = sorted(folder.iterdir(), reverse=True)
    names = {path.name for path in files}
    os.chdir(folder)
    request.addfinalizer(lambda: os.chdir(request.config.invocation_params.dir))
    other = pipeline.run([path.name for path in files], tmp_path / "b", workers=workers)
    assert {entry["name"] for entry in other.manifest["source"]} == names
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_ledger_has_every_removal_with_its_reason(tmp_path):
    texts = [
        "ab",
        "hello 12",
        "xyz xyz",
        "# note\nhaha",
        "a FORBIDDEN",
        "hello 12",
        "# bcdfghjklm",
        None,
        "# note\naeiou",
    ]
    given = datasets.Dataset.from_dict({"text": texts})
    prepared = Pipeline([Length(3), Vowels(0.05), CutLines(), Distinct()]).run(given, tmp_path)
    assert prepared.dataset()["text"][:] == ["hello <N>", "haha", "aeiou"]
    ledger = prepared.ledger
    ids = prepared.signals["id"].tolist()
    rows = [
        (ids.index(row.id), row.step, row.rule, row.kind, row.text) for row in ledger.itertuples(index=False)
    ]
    assert sorted(rows) == [
        (0, "Length", "long enough", "document", "ab"),
        (1, "CutLines", "digits", "span", "12"),
        (2, "Vowels", "vowels", "document", "xyz xyz"),
        (3, "CutLines", "comment", "line", "# note\n"),
        (4, "CutLines", "forbidden", "document", "FORBIDDEN"),
        (5, "CutLines", "digits", "span", "12"),
        (5, "Distinct", "distinct", "document", "hello <N>"),
        (6, "Vowels", "vowels", "document", "# bcdfghjklm"),
        (7, "read", "not null", "document", ""),
        (8, "CutLines", "comment", "line", "# note\n"),
    ]
    short = ledger[ledger["step"] == "Length"].iloc[0]
    assert (short["value"], short["threshold"], short["start"], short["stop"]) == (2, 3, 0, 2)
    twin = ledger[ledger["step"] == "Distinct"].iloc[0]
    assert (twin["partner"], twin["jaccard"]) == (ids[1], 1.0)
    assert prepared.signals["removed_by"].fillna("").tolist()[:2] == ["Length: long enough", ""]


def test_a_document_that_breaks_several_rules_is_counted_once_and_listed_for_each(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Both(Length):
        @property
        def rules(self):
            return (*super().rules, *Vowels(0.9).rules)

        def signals(self, texts):
            return {**super().signals(texts), **Vowels().signals(texts)}

    prepared = Pipeline([Both(5)]).run(["ab", "aaaaaa", "bbbbbb"], tmp_path)
    (_, count) = prepared.counts
    assert [rule.removed.documents for rule in count.rules.values()] == [1, 0, 1]
    assert [rule.hits for rule in count.rules.values()] == [1, 0, 2]
    ledger = prepared.ledger
    assert ledger["rule"].tolist() == ["long enough", "vowels", "vowels"]
    assert ledger["text"].fillna("-").tolist() == ["ab", "-", "bbbbbb"]


@pytest.mark.parametrize("most_kept", [0, 1 << 24], ids=["read each time", "kept in memory"])
def test_thresholds_are_moved_without_running_anything(tmp_path, monkeypatch, most_kept):
    monkeypatch.setattr("nbllm.data.pipeline.thresholds.MOST_KEPT", most_kept)
    texts = documents(200, seed=3)
    steps = [Length(5, 30), Vowels(0.2)]
    prepared = Pipeline(steps, part_bytes=700).run(texts, tmp_path / "a")
    for thresholds, changed in (
        ({}, steps),
        ({"long enough": 12, "vowels/share": 0.3}, [Length(12, 30), Vowels(0.3)]),
        ({"Length: short enough": 35, "vowels": 0.05}, [Length(5, 35), Vowels(0.05)]),
    ):
        with monkeypatch.context() as not_run:
            not_run.setattr(Length, "signals", None)
            not_run.setattr(Vowels, "signals", None)
            outlook = prepared.at(thresholds)
            if most_kept:  # so a slider can be followed
                not_run.setattr("nbllm.data.pipeline.thresholds.pq", None)
                assert prepared.at(thresholds).kept == outlook.kept
        real = Pipeline(changed, part_bytes=700).run(
            texts, tmp_path / f"b{len(thresholds)}{changed[1].least}"
        )
        assert outlook.kept.documents == real.funnel.kept.documents
        assert outlook.unknown.documents == 0
        kept = real.signals[real.signals["removed_by"].isna()]
        assert sorted(outlook.ids) == sorted(kept["id"])
        removed = {f"{c.step}: {n}": r.removed for c in real.counts[1:] for n, r in c.rules.items()}
        assert outlook.removed == {name: amount for name, amount in removed.items() if amount.documents}
    with pytest.raises(UserError, match="several rules"):
        prepared.at({"length/bytes": 3})
    with pytest.raises(UserError, match="no rule 'lenght'"):
        prepared.at({"lenght": 3})


def test_what_a_later_step_has_not_seen_is_said_to_be_unknown(tmp_path):
    prepared = Pipeline([Length(4), CutLines(), Distinct()]).run(["abc", "abcd", "abcde"], tmp_path)
    loosened = prepared.at({"Length: long enough": 3})
    assert (loosened.kept.documents, loosened.unknown.documents) == (2, 1)
    tightened = prepared.at({"Length: long enough": 5})
    assert (tightened.kept.documents, tightened.unknown.documents) == (1, 0)
    assert tightened.removed["Length: long enough"].documents == 2


def test_stages_that_did_not_change_are_not_run_again(folder, tmp_path, monkeypatch):
    first = Pipeline([Length(3), Distinct(), CutLines()], part_bytes=1500).run(folder, tmp_path)
    seen = []
    scan, edits = Distinct.scan, CutLines.edits
    monkeypatch.setattr(Distinct, "scan", lambda self, *given: seen.append("scan") or scan(self, *given))
    monkeypatch.setattr(CutLines, "edits", lambda self, *given: seen.append("edits") or edits(self, *given))
    same = Pipeline([Length(3), Distinct(), CutLines()], part_bytes=1500).run(folder, tmp_path)
    assert not seen
    assert same.manifest == first.manifest
    Pipeline([Length(3), Distinct(), CutLines(), Length(6)], part_bytes=1500).run(folder, tmp_path)
    assert set(seen) == {"edits"}
    Pipeline([Length(4), Distinct(), CutLines()], part_bytes=1500).run(folder, tmp_path)
    assert set(seen) == {"edits", "scan"}
    assert len(list((tmp_path / "stages").glob("?-*"))) == 2


def test_a_damaged_output_is_made_again(folder, tmp_path):
    pipeline = Pipeline(STEPS, part_bytes=1500)
    first = pipeline.run(folder, tmp_path)
    before = contents(tmp_path)
    for path in (first.files[1], *(tmp_path / "stages").glob("0-*/u00001-p0000.data.parquet")):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        first.verify()
    pipeline.run(folder, tmp_path).verify()
    assert contents(tmp_path) == before


def test_files_of_an_earlier_run_go(tmp_path):
    texts = documents(100)
    Pipeline([Length(3)], part_bytes=500).run(texts, tmp_path)
    fewer = Pipeline([Length(3)], part_bytes=5000).run(texts, tmp_path)
    assert sorted(tmp_path.glob("data/*")) == fewer.files
    assert Prepared(tmp_path).manifest == fewer.manifest


def test_ids_stay_the_same_when_files_are_added(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").write_text("second")
    before = Pipeline([]).run(tmp_path / "in", tmp_path / "a").signals["id"].tolist()
    (tmp_path / "in" / "a.txt").write_text("first")
    after = Pipeline([]).run(tmp_path / "in", tmp_path / "b").signals["id"].tolist()
    assert len(after) == 2
    assert set(before) < set(after)
    assert after == sorted(after)


def test_what_cannot_be_read_is_named_and_loses_nothing(folder, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    whole = (source / "3.parquet").read_bytes()
    (source / "3.parquet").write_bytes(whole[: len(whole) // 2])
    pipeline = Pipeline(STEPS, part_bytes=1500)
    with pytest.raises(DataError, match=r"3\.parquet"):
        pipeline.run(source, tmp_path / "out")
    done = list((tmp_path / "out" / "stages").glob("0-*/u0000[012].json"))
    assert len(done) >= 1
    (source / "3.parquet").write_bytes(whole)
    pipeline.run(source, tmp_path / "out")
    pipeline.run(folder, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_bad_lines_are_left_out_when_asked(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "good"}\n{"text": \n{"text": "\\ud800"}\n{"text": null}\n{"text": "also"}\n'
    )
    with pytest.raises(DataError, match="line 2"):
        Pipeline([]).run(tmp_path / "a.jsonl", tmp_path / "out")
    with pytest.warns(UserWarning, match="invalid JSON"):
        prepared = Pipeline([]).run(tmp_path / "a.jsonl", tmp_path / "out", on_error="skip")
    assert prepared.dataset()["text"][:] == ["good", "also"]
    assert sum(prepared.manifest["omitted"].values()) == 3
    assert "invalid JSON" in prepared._repr_html_()


def test_hostile_text_gets_a_verdict_and_is_not_run_together(tmp_path):
    texts = ["", None, "\0\0\0 a", "a\u0301e\u0302 \u202e\u05d0\u05d1", "𝄞 aeiou", " \n ", "…", "a" * 100_000]
    column = pa.array(
        [None if text is None else text.encode() for text in texts] + [b"\xff\xfe bad", b"ok \xe2\x82"]
    )
    _, offsets, data = column.buffers()
    column = pa.StringArray.from_buffers(len(column), offsets, data, column.buffers()[0])
    given = datasets.Dataset(pa.table({"text": column}))
    prepared = Pipeline([]).run(given, tmp_path)
    assert prepared.dataset()["text"][:] == [text for text in texts if text is not None]
    read = prepared.counts[0]
    assert (read.rules["not null"].removed.documents, read.rules["valid UTF-8"].removed.documents) == (1, 2)
    assert prepared.ledger["text"].tolist()[1:] == ["\ufffd\ufffd bad", "ok \ufffd"]
    kept = Pipeline([Length(1, 200), CutLines()]).run(given, tmp_path / "b")
    assert kept.funnel.kept.documents == 5


def test_the_funnel_escapes_names_and_shows_amounts(tmp_path):
    class Evil(Length):
        @property
        def title(self):
            return "<script>alert(1)</script>"

    prepared = Pipeline([Evil(3)]).run(["a", "abcd"], tmp_path)
    shown = prepared.dataset()._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "estimated" in shown
    assert "long enough" in shown
    assert repr(prepared.funnel).splitlines()[1].split()[:2] == ["(raw)", "2"]


def test_wrong_uses_are_said(tmp_path):
    with pytest.raises(UserError, match="no step"):
        Pipeline(["gopher!"])
    with pytest.raises(UserError, match="workers"):
        Pipeline([]).run(["a"], tmp_path, workers=0)
    with pytest.raises(UserError, match="Dask"):
        Pipeline([]).run(["a"], tmp_path, on="here")
    with pytest.raises(UserError, match="colum"):
        Pipeline([]).run(["a"], tmp_path, colum="text")
    with pytest.raises(DataError, match="no finished preparation"):
        Prepared(tmp_path / "nowhere")


def test_steps_that_return_nonsense_are_named(tmp_path):
    class Short(Length):
        def signals(self, texts):
            return {"length/bytes": np.zeros(1)}

    class Overlapping(CutLines):
        def edits(self, texts):
            found = super().edits(texts)
            return found._replace(stop=found.stop + 5)

    with pytest.raises(UserError, match=r"length/bytes.*Short.*shape"):
        Pipeline([Short()]).run(["a", "b"], tmp_path)
    with pytest.raises(UserError, match="Overlapping"):
        Pipeline([Overlapping()]).run(["ab 12 13"], tmp_path)
