import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from nbllm.core.errors import CacheError, DataError
from nbllm.data import (
    END_OF_TEXT,
    TokenStore,
    pack,
    packing as packing_module,
    token_store as store_module,
    train_tokenizer,
)

TEXTS = ["the first document", "", f"a literal {END_OF_TEXT} is text", "Grüße 世界 " * 50]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def data(texts=TEXTS):
    return Dataset.from_dict({"text": texts})


def test_the_store_holds_every_document_and_its_end(tokenizer, cache):
    store = pack(data(), tokenizer)
    assert store.path.parent == cache / "tokens"
    assert [tokenizer.decode(store.document(i)) for i in range(len(store))] == TEXTS
    assert tokenizer.decode(store.document(-1)) == TEXTS[-1]
    assert store.record.dtype == "uint16"
    assert store.offsets.tolist()[0] == 0
    assert store.offsets[-1] == store.num_tokens == len(store.read())
    ends = np.flatnonzero(store.read() == store.eos_id)  # no text makes an end
    np.testing.assert_array_equal(ends, store.offsets[1:] - 1)
    assert store.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert store.vocab_size == len(tokenizer)
    with pytest.raises(IndexError, match="no document 4"):
        store.document(4)


def test_groups_and_batches_of_any_size_give_the_same_tokens(tokenizer, monkeypatch, tmp_path):
    texts = TEXTS * 100
    whole = pack(data(texts), tokenizer)
    monkeypatch.setattr(packing_module, "GROUP_CHARACTERS", 50)
    small = pack(data(texts), tokenizer, folder=tmp_path / "other")
    np.testing.assert_array_equal(whole.read(), small.read())
    np.testing.assert_array_equal(whole.offsets, small.offsets)


def test_a_tokenizer_set_to_cut_or_pad_still_packs_whole_documents(tokenizer, tmp_path):
    whole = pack(data(), tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=3, padding=True)  # leaves its mark on the Rust tokenizer
    again = pack(data(), tokenizer, folder=tmp_path / "other")
    np.testing.assert_array_equal(whole.read(), again.read())
    assert whole.fingerprint == again.fingerprint


def test_a_large_vocabulary_takes_uint32(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([f"<word {n}>" for n in range(1 << 16)])
    store = pack(data([f"x <word {(1 << 16) - 1}>"]), tokenizer)
    assert store.record.dtype == "uint32"
    assert tokenizer.decode(store.document(0)) == f"x <word {(1 << 16) - 1}>"


def test_the_fingerprint_names_text_and_tokenizer(tokenizer):
    def name(texts, tok=tokenizer):
        return pack(data(texts), tok).fingerprint

    other = train_tokenizer(TEXTS, 290)
    names = {name(["ab", "c"]), name(["a", "bc"]), name(["c", "ab"]), name(["abc"]), name(["ab", "c"], other)}
    assert len(names) == 5
    assert name(["ab", "c"]) == name(["ab", "c"])


def test_what_was_packed_is_used_again_and_damage_is_packed_again(tokenizer, caplog):
    first = pack(data(), tokenizer)
    expected = first.read()
    file = first.path / store_module.shard_name(0)
    made = file.stat().st_mtime_ns
    assert (pack(data(), tokenizer).path / store_module.shard_name(0)).stat().st_mtime_ns == made

    content = bytearray(file.read_bytes())
    content[5] ^= 1  # one flipped bit
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"checksum of tokens-00000.bin"):
        TokenStore.open(first.path).verify()
    np.testing.assert_array_equal(pack(data(), tokenizer).read(), expected)
    assert "Packing again" in caplog.text

    file.write_bytes(bytes(content[:-2]))
    with pytest.raises(DataError, match=r"tokens-00000.bin has .* bytes instead of"):
        TokenStore.open(first.path)
    np.testing.assert_array_equal(pack(data(), tokenizer).read(), expected)


def test_a_large_text_lies_in_several_files_and_is_read_as_one(tokenizer, tmp_path, monkeypatch):
    whole = pack(data(), tokenizer, folder=tmp_path / "one")
    monkeypatch.setattr(packing_module, "SHARD_BYTES", 2 * 37)
    store = pack(data(), tokenizer, folder=tmp_path / "many")
    shards = sorted(store.path.glob("tokens-*.bin"))
    assert len(shards) == -(-whole.num_tokens // 37) > 3
    assert {file.stat().st_size for file in shards[:-1]} == {74}
    np.testing.assert_array_equal(store.read(), whole.read())
    np.testing.assert_array_equal(store.read(30, 90), whole.read(30, 90))
    starts = np.array([0, 36, 37, 70, whole.num_tokens - 3])
    for length in (0, 1, 38, whole.num_tokens):
        np.testing.assert_array_equal(store.windows(starts, length), whole.windows(starts, length))
    for number in range(len(whole)):
        np.testing.assert_array_equal(store.document(number), whole.document(number))
    content = bytearray(shards[2].read_bytes())
    content[3] ^= 1
    shards[2].write_bytes(content)
    with pytest.raises(DataError, match=r"checksum of tokens-00002.bin"):
        TokenStore.open(store.path).verify()
    shards[1].unlink()
    with pytest.raises(DataError, match=r"tokens-00001.bin cannot be opened"):
        TokenStore.open(store.path)
    np.testing.assert_array_equal(pack(data(), tokenizer, folder=tmp_path / "many").read(), whole.read())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "record cannot be read"),
        ("[]", "record cannot be read"),
        ('{"schema": "nbllm-tokens/9"}', "of version 'nbllm-tokens/9'"),
        ('{"schema": "nbllm-tokens/2"}', "record cannot be read"),
    ],
)
def test_a_bad_record_is_named(tokenizer, record, message):
    store = pack(data(), tokenizer)
    (store.path / store_module.RECORD).write_text(record)
    with pytest.raises(DataError, match=message):
        TokenStore.open(store.path)
    assert len(pack(data(), tokenizer)) == len(TEXTS)


def test_no_store_is_named(tmp_path):
    with pytest.raises(DataError, match="no token store here"):
        TokenStore.open(tmp_path)


def test_pickling_passes_the_path(tokenizer):
    store = pack(data(), tokenizer)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).read(), store.read())


def _pack_in_process(folder, texts, vocabulary, queue):
    queue.put(str(pack(data(texts), train_tokenizer(TEXTS, vocabulary), folder=folder).path))


def test_two_processes_pack_the_same_text_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_pack_in_process, args=(tmp_path, TEXTS * 50, 300, queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    paths = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(paths) == 1
    TokenStore.open(paths.pop()).verify()
    assert not list((tmp_path / "tokens").glob(".aside-*"))


def test_a_full_disk_is_named_and_leaves_nothing(tokenizer, tmp_path):
    """A limit on file size stands for the full disk: the write fails half-way."""
    code = f"""
import resource, signal, sys
from datasets import Dataset
from nbllm.core.errors import CacheError
from nbllm.data import pack, train_tokenizer
tokenizer = train_tokenizer(["abc"], 300)
import nbllm.data.kernels.packing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
data = Dataset.from_dict({{"text": ["xyz" * 100_000]}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    pack(data, tokenizer, folder={str(tmp_path / "full")!r})
except CacheError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "The cache cannot be written" in done.stdout
    assert "NBLLM_CACHE" in done.stdout
    assert [entry.suffix for entry in (tmp_path / "full" / "tokens").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cache cannot be written"):
        pack(data(), tokenizer, folder=tmp_path / "file")


def test_a_store_is_found_in_a_copied_cache(tokenizer, tmp_path):
    store = pack(data(), tokenizer)
    shutil.copytree(store.path, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / store_module.RECORD).read_text())["num_tokens"] == store.num_tokens
    np.testing.assert_array_equal(TokenStore.open(tmp_path / "copy").read(), store.read())


def test_what_cannot_be_packed_is_named(tokenizer):
    with pytest.raises(DataError, match="no text to pack"):
        pack(data([""]), tokenizer)
    bare = train_tokenizer(TEXTS, 300)
    bare.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        pack(data(), bare)
    with pytest.raises(DataError, match="not a fast tokenizer"):
        pack(data(), object())
