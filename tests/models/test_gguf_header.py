"""Headers that lie: every one a named error, before anything is allocated that the file only claims."""

import struct
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from nbllm.core.errors import WeightsError
from nbllm.models.gguf import read_header

U32, F32, TEXT, ARRAY = 4, 6, 8, 9


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def info(name="t", dims=(32,), kind=0, offset=0):
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


def make(entries=(), infos=(), data=bytes(4096), *, version=3, num_entries=None, num_tensors=None):
    counts = (
        len(infos) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


ALIGN = entry("general.alignment", U32, struct.pack("<I", 48))
HOSTILE = {
    "tensor count": (make(num_tensors=2**63), "ends within 9223372036854775808 tensors"),
    "entry count": (make(num_entries=2**64 - 1), "ends within 18446744073709551615 metadata entries"),
    "key length": (make([struct.pack("<QI", 2**63, 0)]), "name of metadata entry 0: 9,223,372,036,854,775,8"),
    "text length": (make([entry("a", TEXT, struct.pack("<Q", 2**40))]), "ends within a: 1,099,511,627,"),
    "text count": (make([entry("a", ARRAY, struct.pack("<IQ", TEXT, 2**62))]), "ends within a"),
    "text in a list": (
        make([entry("a", ARRAY, struct.pack("<IQ", TEXT, 2) + text("x") + struct.pack("<Q", 2**50))]),
        "ends within a: 1,125,899,906,8",
    ),
    "number count": (make([entry("a", ARRAY, struct.pack("<IQ", F32, 2**62))]), "ends within a"),
    "value type": (make([entry("a", 99, b"")]), "a is of the unknown type 99"),
    "array type": (make([entry("a", ARRAY, struct.pack("<IQ", 99, 1))]), "array of the unknown type 99"),
    "array of arrays": (make([entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "unknown type 9"),
    "not UTF-8": (make([entry("a", TEXT, text(b"\xff\xfe"))]), "A text of a is not UTF-8"),
    "key twice": (make([entry("a", U32, bytes(4))] * 2), "has 'a' twice"),
    "tensor twice": (make(infos=[info(), info(offset=128)]), "two tensors of one name"),
    "no dimension": (make(infos=[info(dims=())], num_tensors=1), "t has 0 dimensions"),
    "dimensions": (make(infos=[info(dims=(1,) * 9)]), "t has 9 dimensions"),
    "dimension count": (
        make(infos=[text("t") + struct.pack("<I", 2**32 - 1)], num_tensors=1),
        "4294967295 dim",
    ),
    "empty": (make(infos=[info(dims=(0, 3))]), r"shape \[3, 0\]"),
    "product": (make(infos=[info(dims=(2**63, 2**63))]), "t would end at byte"),
    "product that wraps to zero": (make(infos=[info(dims=(2**32, 2**32))]), "t would end at byte"),
    "unknown tensor type": (make(infos=[info(kind=77)]), r"t is of type 77 \(unknown\)"),
    "other tensor type": (make(infos=[info(dims=(256,), kind=16)]), "t is of type IQ2_XXS"),
    "part of a block": (make(infos=[info(dims=(33, 2), kind=8)]), "Q8_0 packs rows of a multiple of 32"),
    "overlap": (make(infos=[info("a", (64,)), info("b", offset=32)]), "bytes of b overlap those of a"),
    "outside": (make(infos=[info(offset=4096)]), "t would end at byte 4,"),
    "far outside": (make(infos=[info(offset=2**63)]), "t would end at byte 9,223,372,"),
    "between the alignment": (make(infos=[info(offset=8)]), "begins at 8, not at a multiple of 32"),
    "alignment": (make([ALIGN]), "general.alignment is 48"),
    "no alignment": (make([entry("general.alignment", U32, bytes(4))]), "general.alignment is 0"),
    "a part": (make([entry("split.count", U32, struct.pack("<I", 3))]), "one of 3 parts"),
    "version 1": (make(version=1), "GGUF version 1"),
    "big-endian": (make(version=3 << 24), "big-endian"),
    "other file": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "short": (b"GG", "too short"),
    "nothing": (b"", "too short"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lie_is_named_and_costs_nothing(case, tmp_path):
    data, message = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message) as caught:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def whole(path):
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "naïve", "日本", ""])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("flag", True)
    writer.add_uint64("large", 2**63)
    writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_whole_file_is_read_as_the_package_reads_it(tmp_path):
    whole(tmp_path / "x.gguf")
    header, theirs = read_header(tmp_path / "x.gguf"), GGUFReader(tmp_path / "x.gguf")
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = header.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors] == ["a", "b"]
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert ours.shape == tuple(map(int, tensor.shape[::-1]))
        place = (int(tensor.tensor_type), int(tensor.data_offset), int(tensor.n_bytes))
        assert (ours.type, ours.offset, ours.nbytes) == place


def test_cut_off_anywhere(tmp_path):
    """Up to the last byte of the last tensor; what follows is padding."""
    whole(tmp_path / "x.gguf")
    header, data = read_header(tmp_path / "x.gguf"), (tmp_path / "x.gguf").read_bytes()
    end = max(info.offset + info.nbytes for info in header.tensors.values())
    for length in range(end):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(WeightsError):
            read_header(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(data[:end])
    assert read_header(tmp_path / "cut.gguf").tensors == header.tensors


def test_any_byte_changed(tmp_path):
    """Named, or read as something that lies within the file; never another error."""
    whole(tmp_path / "x.gguf")
    data = (tmp_path / "x.gguf").read_bytes()
    generator = np.random.default_rng(0)
    for place in range(4, len(data) - 100):
        changed = bytearray(data)
        changed[place] = generator.integers(256)
        (tmp_path / "changed.gguf").write_bytes(changed)
        try:
            header = read_header(tmp_path / "changed.gguf")
        except WeightsError:
            continue
        assert all(info.offset + info.nbytes <= len(data) for info in header.tensors.values())


def test_no_such_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_header(tmp_path / "none.gguf")
