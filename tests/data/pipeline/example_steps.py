"""Steps that are simple enough to be checked by hand; in a module, so that other processes can import them."""

import dataclasses
import hashlib
import re

import numpy as np
import pyarrow as pa

from nbllm.data.pipeline.step import CorpusStep, Editor, Edits, Filter, Rule


@dataclasses.dataclass(frozen=True)
class Length(Filter):
    """Keeps documents by their number of bytes."""

    least: int = 3
    most: int = 1000

    @property
    def rules(self):
        return (
            Rule("long enough", "length/bytes", "at least", self.least, "bytes"),
            Rule("short enough", "length/bytes", "at most", self.most, "bytes"),
        )

    def signals(self, texts):
        return {"length/bytes": np.diff(texts.offsets)}


@dataclasses.dataclass(frozen=True)
class Vowels(Filter):
    """Keeps documents by their share of vowels, which an empty one does not have."""

    least: float = 0.1

    @property
    def rules(self):
        return (Rule("vowels", "vowels/share", "at least", self.least),)

    def signals(self, texts):
        shares = []
        for document in range(texts.num_documents):
            text = texts[document]
            shares.append(sum(text.count(v) for v in b"aeiou") / len(text) if text else np.nan)
        return {"vowels/share": np.array(shares, float)}


@dataclasses.dataclass(frozen=True)
class CutLines(Editor):
    """Removes lines that begin with "#", masks digits, and drops what is then empty."""

    @property
    def rules(self):
        return (
            Rule("not empty", "lines/bytes", "at least", 1, "bytes"),
            Rule("comment", kind="line"),
            Rule("digits", kind="span"),
            Rule("forbidden"),
        )

    def edits(self, texts):
        rows, left = [], []
        for document in range(texts.num_documents):
            text, cut = texts[document], 0
            if (at := text.find(b"FORBIDDEN")) >= 0:
                rows.append((document, at, at + 9, 3, 1.0, b""))
            for found in re.finditer(rb"(?m)^#[^\n]*\n?|FORBIDDEN|[0-9]+", text):
                if found[0] == b"FORBIDDEN":
                    continue
                comment = found[0].startswith(b"#")
                rule, new = (1, b"") if comment else (2, b"<N>")
                rows.append((document, *found.span(), rule, float(len(found[0])), new))
                cut += len(found[0]) if comment else 0
            left.append(len(text) - cut)
        rows.sort(key=lambda row: row[:2])
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        kinds = (np.int64, np.int64, np.int64, np.int32, np.float64)
        arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=False)]
        return Edits(*arrays, replacement=list(columns[5]), signals={"lines/bytes": np.array(left, np.int64)})


@dataclasses.dataclass(frozen=True)
class Distinct(CorpusStep):
    """Keeps the first of equal documents: that with the smallest id."""

    @property
    def rules(self):
        return (Rule("distinct"),)

    def scan(self, texts, ids):
        digests = [hashlib.sha256(texts[document]).digest()[:16] for document in range(texts.num_documents)]
        return pa.table({"id": pa.array(ids, pa.int64()), "digest": pa.array(digests, pa.binary(16))})

    def solve(self, tables, workdir):
        (workdir / "seen").write_text("a file of its own")
        first = {}
        pairs = []
        for table in tables:
            for number, digest in zip(table["id"].to_pylist(), table["digest"].to_pylist(), strict=True):
                first[digest] = min(number, first.get(digest, number))
        for table in tables:
            for number, digest in zip(table["id"].to_pylist(), table["digest"].to_pylist(), strict=True):
                if first[digest] != number:
                    pairs.append((number, first[digest]))
        return pa.table({
            "id": pa.array([pair[0] for pair in pairs], pa.int64()),
            "partner": pa.array([pair[1] for pair in pairs], pa.int64()),
        })  # fmt: skip

    def apply(self, texts, ids, decisions):
        place = {number: index for index, number in enumerate(ids.tolist())}
        document = np.array([place[number] for number in decisions["id"].to_pylist()], np.int64)
        order = np.argsort(document)
        nothing = np.zeros(len(document), np.int64)
        return Edits(
            document[order], nothing, nothing, nothing.astype(np.int32), np.full(len(document), np.nan),
            partner=decisions["partner"].to_numpy()[order], jaccard=np.ones(len(document)),
        )  # fmt: skip


STEPS = (Length(3, 1000), Vowels(), CutLines(), Distinct(), Length(2))


def documents(count, seed=0):
    """Return texts of all kinds: repeated, empty, with comments, digits and what is forbidden."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdeiou \n#1é"))
    texts = []
    for number in range(count):
        text = "".join(rng.choice(letters, rng.integers(0, 40)))
        if number % 7 == 3:
            text = texts[int(rng.integers(0, number))]
        if number % 31 == 5:
            text += "FORBIDDEN"
        texts.append(text)
    return texts
