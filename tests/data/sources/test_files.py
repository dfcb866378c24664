import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nbllm.core.errors import DataError, SkippedWarning, UserError
from nbllm.data import load

TEXT = "first line\n\nGrüße, 世界\r\nlast, without an end"
PACK = {
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
ROWS = [{"id": 1, "text": "one\ntwo"}, {"id": 2, "text": 'a "quoted", text'}, {"id": 3, "text": "Grüße 世界"}]
TEXTS = [row["text"] for row in ROWS]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(suffix, rows=ROWS):
    """Return the rows as a file's content, written by code that is not ours."""
    frame = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(frame, sink)
    elif suffix == ".csv":
        frame.to_pandas().to_csv(sink, index=False, mode="wb")
    elif suffix == ".tsv":
        frame.to_pandas().to_csv(sink, index=False, sep="\t", mode="wb")
    elif suffix == ".json":
        return json.dumps(rows).encode()
    else:
        return jsonl(rows)
    return sink.getvalue().to_pybytes()


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_table_in_every_packing(tmp_path, kind, suffix):
    content = table(kind)
    path = write(tmp_path, f"data{kind}{suffix}", PACK[suffix](content) if suffix else content)
    data = load(path)
    assert data["text"][:] == TEXTS
    assert data["source"][0].startswith(f"data{kind}{suffix}:")


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_text_file_comes_back_byte_for_byte(tmp_path, suffix):
    content = TEXT.encode()
    data = load(str(write(tmp_path, f"a.txt{suffix}", PACK[suffix](content) if suffix else content)))
    assert data["text"][:] == [TEXT]
    assert data["source"][:] == [f"a.txt{suffix}"]


def test_text_by_paragraph_and_line(tmp_path):
    path = write(tmp_path, "a.txt", "\n\none\ntwo\n  \nthree\n\n\n")
    paragraphs = load(path, sample_by="paragraph")
    assert paragraphs["text"][:] == ["one\ntwo", "three"]
    assert paragraphs["source"][:] == ["a.txt:3", "a.txt:6"]
    assert load(path, sample_by="line")["text"][:] == ["one", "two", "three"]
    with pytest.raises(UserError, match="sample_by is 'word'"):
        load(path, sample_by="word")


def test_any_other_suffix_is_read_as_text(tmp_path):
    assert load(write(tmp_path, "README", TEXT))["text"][:] == [TEXT]


def test_json_of_strings_of_columns_and_of_lines(tmp_path):
    assert load(write(tmp_path, "a.json", json.dumps(TEXTS)))["text"][:] == TEXTS
    assert load(write(tmp_path, "b.json", json.dumps({"n": [1, 2], "body": ["x", "y"]})))["text"][:] == [
        "x",
        "y",
    ]
    assert load(write(tmp_path, "c.json", jsonl(ROWS)))["text"][:] == TEXTS
    assert load(write(tmp_path, "d.json", json.dumps({"text": "one"})))["text"][:] == ["one"]


def test_the_column_is_the_one_named_or_text_or_the_only_one(tmp_path):
    rows = [{"title": "t", "body": "b"}]
    path = write(tmp_path, "a.jsonl", jsonl(rows))
    assert load(path, column="body")["text"][:] == ["b"]
    with pytest.raises(DataError, match=r"no column 'text'. Columns: 'title', 'body'"):
        load(path)
    with pytest.raises(DataError, match="Did you mean 'body'"):
        load(path, column="bodi")
    assert load(write(tmp_path, "b.jsonl", jsonl([{"n": 1, "body": "b"}])))["text"][:] == ["b"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in (
        ("a.txt", "text\n"),
        ("a.csv", "text\nx\n"),
        ("a.json", '["x"]'),
        ("a.jsonl", '{"text":"x"}'),
    ):
        assert "\ufeff" not in load(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))["text"][0]


def test_several_zstd_frames_and_gzip_members_are_one_file(tmp_path):
    for suffix in (".zst", ".gz"):
        content = PACK[suffix](b"one\n" * 100_000) + PACK[suffix](b"two\n")
        assert load(write(tmp_path, f"a.txt{suffix}", content))["text"][0] == "one\n" * 100_000 + "two\n"


def test_a_csv_field_beyond_the_modules_own_limit(tmp_path):
    long = "x" * 300_000
    assert load(write(tmp_path, "a.csv", f"text\n{long}\n"))["text"][:] == [long]


def test_runs_and_models_in_a_folder_are_no_text(tmp_path):
    write(tmp_path, "a.md", "first")
    write(tmp_path, "runs/demo/run.json", "{}")
    write(tmp_path, "runs/demo/events/1.jsonl", jsonl([{"event": "start"}]))
    write(tmp_path, "my-model/config.json", "{}")
    write(tmp_path, "my-model/model.safetensors", b"")
    data = load(tmp_path)
    assert data["text"][:] == ["first"]
    assert "my-model is a run or a model" in data.info.description
    assert "demo is a run or a model" in data.info.description


def test_a_folder_in_order_with_hidden_and_foreign_files_left_out(tmp_path):
    write(tmp_path, "b/2.jsonl", jsonl([{"text": "second"}]))
    write(tmp_path, "a.md", "first")
    write(tmp_path, "c.txt.gz", gzip.compress(b"third"))
    write(tmp_path, "picture.png", b"\x89PNG")
    write(tmp_path, ".hidden.txt", "never")
    write(tmp_path, ".git/x.txt", "never")
    os.symlink(tmp_path, tmp_path / "loop")
    data = load(tmp_path)
    assert dict(zip(data["source"], data["text"], strict=True)) == {
        "a.md": "first", "c.txt.gz": "third", "b/2.jsonl:1": "second"
    }  # fmt: skip
    assert "1 x .png" in data.info.description


LATIN = "Gr\xfc\xdfe\n".encode("latin1")
DEEP = b'{"text": ' + b"[" * 100_000
BAD = {  # name: (content, in the message, where); each has good parts too, so that skip leaves something
    "utf8.txt": (b"good\n" + LATIN + b"good\n", "Byte 3 of line 2 (0xfc) is not UTF-8", "line 2"),
    "binary.txt": (b"good\nzero\0byte\n", "a zero byte", "line 2"),
    "empty.txt": (b"", "The file has no text", "empty.txt"),
    "blank.txt": (b" \n\n", "The file has no text", "blank.txt"),
    "empty.jsonl": (b"", "The file has no text", "empty.jsonl"),
    "empty.json": (b"[]", "The file has no text", "empty.json"),
    "empty.csv": (b"", "The file has no text", "empty.csv"),
    "header.csv": (b"text\n", "The file has no text", "header.csv"),
    "utf8.jsonl": (b'{"text": "good"}\n{"text": "' + LATIN.strip() + b'"}\n', "is not UTF-8", "line 2"),
    "json.jsonl": (b'{"text": "good"}\n{"text": \n', "This is not JSON", "line 2"),
    "null.jsonl": (b'{"text": "good"}\nnull\n', "Line 2 is null, not an object", "line 2"),
    "list.jsonl": (b'{"text": "good"}\n["x"]\n', "Line 2 is a list, not an object", "line 2"),
    "missing.jsonl": (b'{"text": "good"}\n{"body": "x"}\n', "no column 'text'", "line 2"),
    "nothing.jsonl": (b'{"text": "good"}\n{"text": null}\n', "holds nothing where text should be", "line 2"),
    "number.jsonl": (b'{"text": "good"}\n{"text": 3}\n', "holds int where text should be", "line 2"),
    "surrogate.jsonl": (b'{"text": "good"}\n{"text": "a\\ud800"}\n', "half of a surrogate pair", "line 2"),
    "deep.jsonl": (b'{"text": "good"}\n' + DEEP + b"\n", "This is not JSON", "line 2"),
    "digits.jsonl": (b'{"text": "good"}\n{"n": ' + b"9" * 5000 + b"}\n", "This is not JSON", "line 2"),
    "broken.json": (b'[{"text": "x"},\n {"text": ]', "This is not JSON", "line 2, column 11"),
    "utf8.json": (b'["good",\n"' + LATIN.strip() + b'"]', "of line 2 (0xfc) is not UTF-8", "line 2"),
    "number.json": (b"3", "The file holds a number", "number.json"),
    "mixed.json": (b'["good", 3]', "holds int where text should be", "entry 2"),
    "missing.csv": (b"id,body,title\n1,x,y\n", "no column 'text'", "line 1"),
    "ragged.csv": (b"id,text\n1,good\n2\n", "The row has 1 fields; the header has 2", "line 3"),
    "open.csv": (b'id,text\n1,good\n2,"never closed\n', "The row is not CSV", "line 3"),
    "utf8.csv": (b"id,text\n1,good\n2," + LATIN, "is not UTF-8", "line 3"),
    "none.parquet": (b"PAR1 and then nothing", "not a whole Parquet file", "none.parquet"),
    "cut.parquet": (table(".parquet")[:-20], "not a whole Parquet file", "cut.parquet"),
    "null.parquet": (table(".parquet", [{"text": "good"}, {"text": None}]), "holds nothing", "row 2"),
    "missing.parquet": (table(".parquet", [{"a": "x", "b": "y"}]), "no column 'text'", "missing.parquet"),
    "cut.txt.gz": (
        gzip.compress(os.urandom(500_000).hex().encode())[:-3000],
        "ends too early",
        "after line 0",
    ),
    "cut.txt.zst": (PACK[".zst"](b"good\n" * 99)[:-3], "ends too early", "after line"),
    "cut.txt.bz2": (bz2.compress(b"good\n" * 99)[:-3], "ends too early", "after line"),
    "cut.txt.xz": (lzma.compress(b"good\n" * 99)[:-3], "ends too early", "after line"),
    "not.txt.gz": (b"plain text", "The archive is damaged", "not.txt.gz"),
    "not.txt.zst": (b"plain text", "The archive is damaged", "not.txt.zst"),
    "not.txt.bz2": (b"plain text", "The archive is damaged", "not.txt.bz2"),
    "not.txt.xz": (b"plain text", "The archive is damaged", "not.txt.xz"),
    "flipped.json.gz": (
        gzip.compress(b'["x"]')[:12] + b"\xff" + gzip.compress(b'["x"]')[13:],
        "archive",
        "flipped",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_an_error_with_file_place_and_hint(tmp_path, name):
    content, message, where = BAD[name]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert message in caught.value.what
    assert str(path) in str(caught.value.where)
    assert where in str(caught.value.where)
    assert "on_error='skip'" in str(caught.value.hint)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_left_out_and_counted_when_asked(tmp_path, name):
    content, _, _ = BAD[name]
    write(tmp_path, "z-good.txt", "good")
    path = write(tmp_path, name, content)
    with pytest.warns(SkippedWarning, match=rf"Left out: 1 x [\w -]+ \(.*{name}") as caught:
        data = load(tmp_path, on_error="skip")
    assert "good" in data["text"][:]
    assert all(text.replace("good", "").strip() == "" for text in data["text"])
    assert str(caught[0].message) in data.info.description
    assert str(path) in data.info.description


def test_bytes_that_are_no_text_inside_parquet(tmp_path):
    raw = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"\xff\xfe"]).buffers())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": raw}), sink)
    path = write(tmp_path, "raw.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(DataError, match="A text is not UTF-8") as caught:
        load(path)
    assert "row 2" in str(caught.value.where)
    with pytest.warns(SkippedWarning, match=r"1 x invalid UTF-8 \("):
        assert load(path, on_error="skip")["text"][:] == ["good"]


def test_what_was_read_before_the_damage_is_kept(tmp_path):
    lines = [os.urandom(40).hex() for _ in range(20_000)]
    content = gzip.compress("\n".join(lines).encode())
    path = write(tmp_path, "a.txt.gz", content[: len(content) // 2])
    with pytest.warns(SkippedWarning, match="1 x truncated archive"):
        kept = load(path, on_error="skip", sample_by="line")["text"][:]
    assert 5_000 < len(kept) < 15_000
    assert kept == lines[: len(kept)]


def test_counts_and_examples(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"text": "good"}\n' + b"x\n" * 5 + LATIN * 2)
    with pytest.warns(SkippedWarning) as caught:
        load(path, on_error="skip")
    message = str(caught[0].message)
    assert "5 x invalid JSON" in message
    assert "2 x invalid UTF-8" in message
    assert "line 4, column 1 ..." in message  # three places, then an ellipsis
    assert "line 5" not in message


def test_nothing_left_is_an_error_with_the_counts(tmp_path):
    path = write(tmp_path, "a.jsonl", b"x\ny\n")
    with pytest.raises(DataError, match=r"no text left to use. Left out: 2 x invalid JSON"):
        load(path, on_error="skip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text left to use"):
        load(tmp_path / "empty")


def test_paths_that_are_no_files(tmp_path):
    for bad in (
        tmp_path / "none.txt",
        str(tmp_path / "none"),
        "none.jsonl",
        "data/none.csv.gz",
        "~/no/such/file",
    ):
        with pytest.raises(DataError, match="no file, folder or embedded source"):
            load(bad)
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken")
    for bad in ("pipe", "broken"):
        with pytest.raises(DataError, match="not a regular file"):
            load(tmp_path / bad)
    with pytest.raises(DataError, match=r"A .pdf file cannot be read as text"):
        load(write(tmp_path, "a.pdf", b"%PDF"))
    with pytest.raises(UserError, match="on_error is 'ignore'"):
        load(tmp_path, on_error="ignore")
    with pytest.raises(UserError, match="split='train' has no meaning"):
        load(write(tmp_path, "a.txt", "x"), split="train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path, "a.txt.gz", gzip.compress(b"x"))
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load(path)
