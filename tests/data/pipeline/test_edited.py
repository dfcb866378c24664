import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.editing import first_bad_edit, shortened_stops, valid_utf8
from nbllm.data.pipeline.edited import edited
from nbllm.data.pipeline.step import Edits


def edits(rows):
    """Return edits of (document, start, stop, replacement)."""
    columns = [np.array([row[column] for row in rows], np.int64) for column in range(3)]
    count = len(rows)
    return Edits(*columns, np.zeros(count, np.int32), np.zeros(count), [row[3] for row in rows])


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


BROKEN = [
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe0\x80\x80",
    b"\xf0\x9d\x84",
    b"\xc3",
    b"\xff",
    b"\x80",
]
WHOLE = [
    "",
    "a",
    "\u00e9",
    "\u4e16",
    "\U0001d11e",
    "\ud7ff",
    "\ue000",
    "\U0010ffff",
    "\0",
    "\u0800",
    "\U00010000",
]


def test_utf8_is_told_as_python_tells_it():
    rng = np.random.default_rng(0)
    pieces = [
        *BROKEN,
        *(text.encode() for text in WHOLE),
        *(bytes([lead, 0x80]) for lead in range(0x80, 0x100)),
    ]
    pieces += [
        bytes([lead, second, 0x80, 0x80])
        for lead in range(0xE0, 0x100)
        for second in (0x7F, 0x8F, 0x90, 0x9F, 0xA0)
    ]
    documents = pieces + [b"".join(pieces[i] for i in rng.integers(0, len(pieces), 4)) for _ in range(3000)]
    documents += ["".join(WHOLE[i] for i in rng.integers(0, len(WHOLE), 5)).encode() for _ in range(300)]
    documents += [bytes(rng.integers(0, 256, 3, np.uint8)) for _ in range(3000)]
    texts = Texts.of(pa.array(documents, pa.binary()))
    found = np.empty(len(documents), bool)
    valid_utf8(texts.data, texts.offsets, found)
    assert found.tolist() == [is_utf8(document) for document in documents]
    assert 0 < found.sum() < len(found)


def test_edits_are_applied_as_by_slices():
    rng = np.random.default_rng(1)
    documents, rows, expected = [], [], []
    for document in range(500):
        text = "".join(rng.choice(list("aé世𝄞\n"), rng.integers(0, 12)))
        cuts = np.sort(rng.integers(0, len(text) + 1, rng.integers(0, 7))).tolist()
        out, read = "", 0
        for start, stop in zip(cuts[::2], cuts[1::2], strict=False):
            new = str(rng.choice(["", "<X>", "é"]))
            begin = len(text[:start].encode())
            rows.append((document, begin, begin + len(text[start:stop].encode()), new.encode()))
            out += text[read:start] + new
            read = stop
        documents.append(text)
        expected.append(out + text[read:])
    texts = Texts.of(pa.array(["before", *documents, "behind"])[1:-1])  # a slice
    assert edited(texts, edits(rows), np.ones(len(rows), bool), "step").column.to_pylist() == expected


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 2, 1, b"")],
        [(0, 0, 9, b"")],
        [(0, -1, 1, b"")],
        [(2, 0, 0, b"")],
        [(-1, 0, 0, b"")],
        [(1, 0, 1, b""), (0, 0, 1, b"")],
        [(0, 0, 2, b""), (0, 1, 3, b"")],
        [(1, 0, 1, b"")],  # within é
        [(1, 1, 2, b"")],
    ],
)
def test_bad_edits_are_refused(rows):
    texts = Texts.of(pa.array(["abcd", "éa"]))
    with pytest.raises(UserError, match="step 'mine'|Step 'mine'"):
        edited(texts, edits(rows), np.ones(len(rows), bool), "mine")


def test_touching_and_empty_spans_are_good():
    texts = Texts.of(pa.array(["abcd", None, ""]))
    rows = [(0, 0, 1, b"x"), (0, 1, 1, b"y"), (0, 1, 4, b""), (1, 0, 0, b""), (2, 0, 0, b"z")]
    assert first_bad_edit(texts.data, texts.offsets, *(edits(rows)[:3])) == -1
    assert edited(texts, edits(rows), np.ones(5, bool), "s").column.to_pylist() == ["xy", None, "z"]


def test_quotes_end_between_characters():
    text = "aé世𝄞" * 3
    data = np.frombuffer(text.encode(), np.uint8)
    for most in range(len(data) + 2):
        (stop,) = shortened_stops(data, np.zeros(1, np.int64), np.array([len(data)]), most)
        cut = text.encode()[:stop].decode()
        assert text.startswith(cut) and len(cut.encode()) <= most
        assert cut == text or len(text[: len(cut) + 1].encode()) > most
