"""Arrow, Feather and Parquet files whose buffers lie: an error that names the file; the process goes on."""

import json
import struct
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nbllm.core.errors import DataError, SkippedWarning
from nbllm.data import load
from nbllm.data.sources import budget as budget_module

TEXTS = [f"text number {n}" for n in range(1000)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in TEXTS]
TABLES = {
    "texts": pa.table({"text": TEXTS}),
    "large": pa.table({"text": pa.array(TEXTS, pa.large_string())}),
    "views": pa.table({"text": pa.array(TEXTS, pa.string_view())}),
    "dictionary": pa.table({"text": pa.array(TEXTS).dictionary_encode()}),
    "chats": pa.table({"messages": CHATS}),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(budget_module, "LEAST_BYTES", 1 << 20)


def write(path, table, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_column_is_read(tmp_path, kind, compression):
    write(tmp_path / "a.arrow", TABLES[kind], compression)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), TABLES[kind].schema) as writer:
        writer.write_table(TABLES[kind])
    for name in ("a.arrow", "b.arrow"):
        data = load(tmp_path / name)
        assert len(data) == len(TEXTS)
        assert data["text"][3] == "text number 3" or data["messages"][3] == CHATS[3]


def spoil(values, buffer, place, form, number):
    """A copy of an array with one number of one buffer overwritten."""
    buffers = values.buffers()
    content = bytearray(buffers[buffer])
    struct.pack_into(form, content, place, number)
    buffers[buffer] = pa.py_buffer(bytes(content))
    return pa.Array.from_buffers(values.type, len(values), buffers)


@pytest.mark.parametrize(
    ("kind", "buffer", "place", "form", "number"),
    [
        ("texts", 1, 40, "<i", 1 << 30), ("texts", 1, 40, "<i", -5),
        ("large", 1, 80, "<q", 1 << 60), ("large", 1, 80, "<q", -(1 << 60)),
        ("views", 1, 160, "<i", 1 << 30), ("views", 1, 168, "<i", 77),
    ],
)  # fmt: skip
def test_offsets_out_of_their_buffers(tmp_path, kind, buffer, place, form, number):
    array = spoil(TABLES[kind]["text"].chunk(0), buffer, place, form, number)
    write(tmp_path / "a.arrow", pa.table({"text": array}))
    with pytest.raises(DataError, match="not a whole Arrow file") as caught:
        load(tmp_path / "a.arrow")
    assert "a.arrow" in str(caught.value)


@pytest.mark.parametrize("index", [1000, -1, 1 << 30])
def test_indices_out_of_their_dictionary(tmp_path, index):
    chunk = TABLES["dictionary"]["text"].chunk(0)
    indices = spoil(chunk.indices, 1, 40, "<i", index)
    wrong = pa.DictionaryArray.from_arrays(indices, chunk.dictionary, safe=False)
    write(tmp_path / "a.arrow", pa.table({"text": wrong}))
    with pytest.raises(DataError, match="not a whole Arrow file"):
        load(tmp_path / "a.arrow")


def test_a_text_that_is_not_utf_8_is_a_matter_of_its_row(tmp_path):
    array = spoil(TABLES["texts"]["text"].chunk(0), 2, 5, "B", 0xFF)
    write(tmp_path / "a.arrow", pa.table({"text": array}), "zstd")
    with pytest.warns(SkippedWarning, match="1 x invalid UTF-8"):
        assert len(load(tmp_path / "a.arrow", on_error="skip")) == len(TEXTS) - 1


def test_whatever_byte_is_changed_the_process_goes_on(tmp_path):
    """In a process of its own, so that a crash is a failed test and not the end of all."""
    for kind, table in TABLES.items():
        write(tmp_path / f"{kind}.arrow", table.slice(0, 20))
        write(tmp_path / f"{kind}-zstd.arrow", table.slice(0, 20), "zstd")
        write(tmp_path / f"{kind}-lz4.arrow", table.slice(0, 20), "lz4")
        pq.write_table(table.slice(0, 20), tmp_path / f"{kind}.parquet")
    code = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy as np\nimport nbllm.data\n"
        "from nbllm.core.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)\n"
        "generator, folder, refused = np.random.default_rng(0), Path(sys.argv[1]), 0\n"
        "for path in sorted(folder.iterdir()):\n"
        "    content = path.read_bytes()\n"
        "    for _ in range(60):\n"
        "        wrong = bytearray(content)\n"
        "        for place in generator.integers(len(wrong), size=3):\n"
        "            wrong[place:place + 4] = generator.bytes(4) if place % 2 else b'\\xff\\xff\\xff\\x7f'\n"
        "        changed = folder / f'changed{path.suffix}'\n"
        "        changed.write_bytes(wrong[: len(content)])\n"
        "        try: nbllm.data.load(changed)\n"
        "        except DataError: refused += 1\n"
        "        changed.unlink()\n"
        "print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 300


@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_a_small_compressed_file_does_not_fill_the_memory(tmp_path, small, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, pa.table({"text": ["x" * (1 << 20)] * 300}), "zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="bytes would be read"):
        load(path)
    assert len(load(path, max_bytes=1 << 30)) == 300


def test_a_compressed_buffer_that_claims_more_than_it_has(tmp_path, small):
    write(tmp_path / "a.arrow", TABLES["texts"], "zstd")
    content = (tmp_path / "a.arrow").read_bytes()
    begin = content.index(struct.pack("<q", 4 * 1001))  # the unpacked size of the offsets
    (tmp_path / "a.arrow").write_bytes(content[:begin] + struct.pack("<q", 1 << 60) + content[begin + 8 :])
    with pytest.raises(DataError, match="bytes would be read"):
        load(tmp_path / "a.arrow")
    with pytest.raises(DataError, match="not a whole Arrow file"):
        load(tmp_path / "a.arrow", max_bytes=1 << 62)


def views_of_one_text(count, length):
    view = struct.pack("<i4sii", length, b"xxxx", 0, 0)
    buffers = [None, pa.py_buffer(view * count), pa.py_buffer(b"x" * length)]
    return pa.Array.from_buffers(pa.string_view(), count, buffers)


def nested_dictionary(rows, length):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * length]))
    role = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["user"]))
    message = pa.StructArray.from_arrays([role, text], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32)), message)


BOMBS = {
    "views": lambda path: write(path, pa.table({"text": views_of_one_text(10_000, 1 << 20)})),
    "nested": lambda path: write(path, pa.table({"messages": nested_dictionary(10_000, 1 << 20)})),
}


@pytest.mark.parametrize("case", BOMBS)
def test_entries_that_share_their_bytes(tmp_path, monkeypatch, case):
    """Ten gigabytes of text in a file of a megabyte."""
    monkeypatch.setattr(budget_module, "EXPANSION", 10)
    path = tmp_path / "a.arrow"
    BOMBS[case](path)
    assert path.stat().st_size < 2 << 20
    with pytest.raises(DataError, match="bytes would be read"):
        load(path)


def test_a_small_parquet_file_of_conversations_does_not_fill_the_memory(tmp_path, small):
    content = pa.array([[{"role": "user", "content": "x" * 100_000}]] * 1000)
    pq.write_table(pa.table({"messages": content}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    with pytest.raises(DataError, match="bytes would be read"):
        load(tmp_path / "a.parquet")
    assert len(load(tmp_path / "a.parquet", max_bytes=1 << 30)) == 1000


def saved(folder, table):
    datasets.Dataset(pa.table({"text": TEXTS})).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    return file


def test_a_saved_data_set_whose_buffers_lie(tmp_path):
    saved(tmp_path / "set", pa.table({"text": spoil(TABLES["texts"]["text"].chunk(0), 1, 40, "<i", 1 << 30)}))
    with pytest.raises(DataError, match="The data set is damaged"):
        load(tmp_path / "set")
    with pytest.raises(DataError, match="The data set is damaged"):
        load(datasets.load_from_disk(str(tmp_path / "set")))


NO_JSON = ["", "[]", "5", '{"a":' * 50_000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("state.json", content) for content in (*NO_JSON, "{}", '{"_data_files": 5}')),
        *(("dataset_info.json", content) for content in (*NO_JSON, '{"features": 5}')),
    ],
)
def test_a_saved_data_set_with_damaged_files(tmp_path, name, content):
    saved(tmp_path / "set", TABLES["texts"])
    (tmp_path / "set" / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)


def test_a_saved_data_set_that_names_files_elsewhere(tmp_path):
    file = saved(tmp_path / "set", TABLES["texts"])
    file.rename(tmp_path / "secret.arrow")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    for name in ("../secret.arrow", str(tmp_path / "secret.arrow")):
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "set" / "state.json").write_text(json.dumps(state))
        with pytest.raises(DataError, match="outside of its folder"):
            load(tmp_path / "set")
    file.symlink_to(tmp_path / "secret.arrow")
    state["_data_files"] = [{"filename": file.name}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside of its folder"):
        load(tmp_path / "set")
