"""GGUF metadata of wrong types and sizes: a named error or a model, nothing else; and no pipe is opened."""

import os
import struct

import pytest

from nbllm.core.errors import UserError, WeightsError
from nbllm.data import train_tokenizer
from nbllm.lm import LM
from nbllm.models.gguf.cursor import Cursor
from nbllm.models.gguf.header import read_header
from nbllm.opening import load

U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value):
    return struct.pack("<Q", len(value)) + value


def array(kind, *payloads):
    return struct.pack("<IQ", kind, len(payloads)) + b"".join(payloads)


VALUES = [
    (U32, struct.pack("<I", 0)), (U32, struct.pack("<I", 1)), (U32, struct.pack("<I", 2**32 - 1)),
    (I32, struct.pack("<i", -1)), (U64, struct.pack("<Q", 2**63)), (F32, struct.pack("<f", float("nan"))),
    (F32, struct.pack("<f", float("inf"))), (F32, struct.pack("<f", 1e30)), (BOOL, b"\1"), (TEXT, text(b"")),
    (TEXT, text(b"x" * 5000)), (TEXT, text(b"\x1b]0;owned\x07{{ 10**(10**9) }}")), (ARRAY, array(F32)),
    (ARRAY, array(TEXT)), (ARRAY, array(TEXT, text(b"a"), text(b"b"))), (ARRAY, array(U32, *[bytes(4)] * 3)),
    (ARRAY, array(U32, *[struct.pack("<I", 2**31)] * 400)), (ARRAY, array(TEXT, *[text(b"a b")] * 400)),
]  # fmt: skip


class Pieces:
    """A GGUF file in pieces: its first 24 bytes, its metadata by key, the tensors' entries, their bytes."""

    def __init__(self, path):
        data, header = path.read_bytes(), read_header(path)
        cursor = Cursor(data, path)
        self.head = cursor.take(24, "")
        self.entries = {}
        for key in header.metadata:
            begin = cursor.position
            assert cursor.text("") == key
            cursor.value(cursor.number("I", key), key)
            self.entries[key] = data[begin : cursor.position]
        begin = cursor.position
        for info in header.tensors.values():
            cursor.text("")
            cursor.take(4 + 8 * len(info.shape) + 4 + 8, "")
        self.infos, start = data[begin : cursor.position], -(-cursor.position // 32) * 32
        self.data = data[start:]

    def with_value(self, key, kind, payload):
        entry = text(key.encode()) + struct.pack("<I", kind) + payload
        counts = self.head[:16] + struct.pack("<Q", len(self.entries | {key: b""}))
        head = counts + b"".join((self.entries | {key: entry}).values()) + self.infos
        return head + bytes(-len(head) % 32) + self.data


@pytest.mark.filterwarnings(
    "ignore:Of what .* recommends", "ignore:Of the end tokens that"
)  # left out, and said
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_any_metadata_of_any_type(tmp_path, family):
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 260)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    lm = LM.new(family, tokenizer=tokenizer, hidden_size=32, num_layers=1, num_heads=2, max_positions=64)
    lm.sampling = {"temperature": 0.5}
    pieces = Pieces(lm.save(tmp_path / "whole.gguf"))
    assert pieces.with_value("general.alignment", U32, struct.pack("<I", 32))[:4] == b"GGUF"
    more = ["split.count", "general.alignment", "tokenizer.ggml.pre", "tokenizer.ggml.add_eos_token",
            "tokenizer.ggml.eot_token_id", "tokenizer.ggml.scores", "tokenizer.chat_template.other",
            f"{family}.expert_count", f"{family}.rope.scaling.type", f"{family}.vocab_size"]  # fmt: skip
    opened = refused = 0
    for key in [*pieces.entries, *more]:
        for kind, payload in VALUES:
            path = tmp_path / "x.gguf"
            path.write_bytes(pieces.with_value(key, kind, payload))
            try:
                load(path)
                opened += 1
            except UserError as error:
                assert str(path) in str(error) and len(str(error)) < 7000, (key, kind, payload[:20])
                assert "\x1b" not in str(error)
                refused += 1
    assert opened > 50 and refused > 200


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(WeightsError, match="Not a regular file"):
        load(tmp_path / "x.gguf")
