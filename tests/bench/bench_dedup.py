"""Deduplication beside datasketch and rensa, and a million documents: `python -m tests.bench.bench_dedup`.

`signatures`: from raw text to signatures of 128 permutations of word 5-grams, documents of 1.1 KB, in turn, the fastest
of three; the others with their own hashing, of the tokens that each document's words are made into by `str.lower` and a
regular expression (which is also timed alone). `threads`: what one and two threads do of it, and of a loop in
registers, which tells what the machine has to give. `hostile`: a single huge line, of which twice as much takes about
twice as long. `million [DOCUMENTS]`: a million generated documents, a fifth of them edits of others, through
`Pipeline([dedup()])` in a new process: minutes, the peak of its memory (VmHWM), and its own report.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasketch
import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rensa

from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.methods import dedup
from nbllm.data.deduplication.signatures import signatures_of
from nbllm.data.pipeline.executing import Threads
from nbllm.data.pipeline.shuffle import shuffle
from nbllm.data.pipeline.step import CorpusStep, Tables

LETTERS, WORDS = 6, 157  # of a word, of a document: with spaces 1.1 KB
SHARD = 50_000
EDITED = 0.2  # of documents
RUN = """
import json, sys, time
import nbllm as nb
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
before, began = peak(), time.perf_counter()
prepared = nb.data.Pipeline([nb.data.dedup(threshold=0.8)]).run(sys.argv[1], sys.argv[2], workers=2)
seconds, most = time.perf_counter() - began, peak()
report = prepared.reports["near-duplicates"]
print(json.dumps([seconds, before, most, str(report)]))
"""


def documents(count: int, seed: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Return documents of random words, and which of them is an edit (of one to five words) of which."""
    rng = np.random.default_rng(seed)
    vocabulary = rng.integers(97, 123, (50_000, LETTERS + 1), dtype=np.uint8)
    vocabulary[:, -1] = 32
    words = rng.integers(0, len(vocabulary), (count, WORDS))
    pairs = []
    for later in np.flatnonzero(rng.random(count) < EDITED):
        if later:
            source = int(rng.integers(0, later))
            words[later] = words[source]
            places = rng.integers(0, WORDS, rng.integers(1, 6))
            words[later, places] = rng.integers(0, len(vocabulary), places.size)
            pairs.append((source, int(later)))
    flat = vocabulary[words].reshape(count, -1)
    return [row.tobytes() for row in flat], pairs


def tokens(text: str) -> list[str]:
    """Return the word 5-grams of a text."""
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def with_datasketch(texts: list[str]) -> None:
    for text in texts:
        sketch = datasketch.MinHash(num_perm=128)
        sketch.update_batch([token.encode() for token in tokens(text)])


def with_rensa(texts: list[str]) -> None:
    for text in texts:
        sketch = rensa.RMinHash(num_perm=128, seed=42)
        sketch.update(tokens(text))
        sketch.digest()


def with_rensa_at_once(texts: list[str]) -> None:
    rensa.RMinHash.digest_matrix_from_token_sets([tokens(text) for text in texts], 128, 42)


def rate(function: Callable[[Any], object], argument: Any, count: int) -> float:
    """Return documents per second, the fastest of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)


def signatures() -> None:
    count = 20_000
    raw, _ = documents(count, 0)
    ours = Texts.of(pa.array(raw, pa.binary()))
    texts = [text.decode() for text in raw]
    signatures_of(ours)
    print(f"{count:,} documents of {len(raw[0]):,} bytes, documents per second:")
    base = rate(signatures_of, ours, count)
    print(f"  nbllm                {base:>10,.0f}")
    others = {
        "datasketch": (with_datasketch, 1000),
        "rensa": (with_rensa, 5000),
        "rensa, all at once": (with_rensa_at_once, 5000),
        "5-grams alone": (lambda texts: [tokens(text) for text in texts], 5000),
    }
    for name, (function, part) in others.items():
        theirs = rate(function, texts[:part], part)
        base = rate(signatures_of, ours, count)
        print(f"  {name:20} {theirs:>10,.0f}   nbllm {base:,.0f}: {base / theirs:.1f} times")


@numba.njit(nogil=True)
def spin(steps: int) -> np.uint64:
    """Multiply in registers: what threads cannot slow each other down at, but for the processor itself."""
    value = np.uint64(1)
    for step in range(steps):
        value = (value ^ np.uint64(step)) * np.uint64(0x9FB21C651E98DF25)
    return value


def threads() -> None:
    raw, _ = documents(40_000, 1)
    parts = [Texts.of(pa.array(raw[i : i + 2000], pa.binary())) for i in range(0, len(raw), 2000)]
    signatures_of(parts[0])
    spin(1)
    for name, function, items in (("signatures", signatures_of, parts), ("a loop", spin, [10_000_000] * 20)):
        wall, used = {1: math.inf, 2: math.inf}, {1: math.inf, 2: math.inf}
        for _ in range(5):  # in turn
            for workers in wall:
                began, before = time.perf_counter(), time.process_time()
                with ThreadPoolExecutor(workers) as pool:
                    list(pool.map(function, items))
                wall[workers] = min(wall[workers], time.perf_counter() - began)
                used[workers] = min(used[workers], time.process_time() - before)
        print(
            f"{name}: two threads are {wall[1] / wall[2]:.2f} times as fast as one, "
            f"and take {used[2] / used[1]:.2f} times its processor time"
        )


def hostile() -> None:
    """Print how much longer twice a hostile text takes: about twice as long where nothing is quadratic."""
    kinds = {"one line of words": None, "a.": b"a.", "invalid UTF-8": b"\xff", "zero bytes": b"\0"}
    methods = {"near": dedup(), "exact": dedup("exact"), "substring": dedup("substring")}
    for name, unit in kinds.items():
        for method, step in methods.items():
            used = []
            for size in (1_000, 25_000_000, 50_000_000):  # the first compiles
                data = (
                    b"".join(documents(-(-size // 1099), 3)[0])[:size]
                    if unit is None
                    else unit * (size // len(unit))
                )
                texts = Texts.of(pa.array([data], pa.large_binary()))
                began = time.process_time()
                with tempfile.TemporaryDirectory() as folder:
                    decide(step, texts, Path(folder))
                used.append(time.process_time() - began)
            print(
                f"{name:20} {method:10} 50 MB take {used[2]:5.1f} s, {used[2] / used[1]:.1f} times as long as 25 MB"
            )


def decide(step: CorpusStep, texts: Texts, folder: Path) -> None:
    """Let a step decide about documents, in files of this folder."""
    table = step.scan(texts, np.arange(texts.num_documents))
    file = folder / "scan.arrow"
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    shuffle(Threads(1), [file], step.keys, folder)
    step.solve(Tables([file], folder), folder)


def similarity(one: bytes, other: bytes) -> float:
    first, second = set(tokens(one.decode())), set(tokens(other.decode()))
    return len(first & second) / len(first | second)


def million(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        alike = 0
        for shard in range(-(-count // SHARD)):
            raw, pairs = documents(min(SHARD, count - shard * SHARD), 10 + shard)
            sample = pairs[:500]
            alike += round(np.mean([similarity(raw[a], raw[b]) >= 0.8 for a, b in sample]) * len(pairs))
            text = pa.array(raw, pa.binary()).cast(pa.string())
            pq.write_table(pa.table({"text": text}), source / f"{shard:04d}.parquet", compression="zstd")
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(source), f"{folder}/out"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, before, peak, report = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{count:,} documents of 1.1 KB, about {alike:,} edits of similarity .8 and more: "
            f"{seconds / 60:.2f} minutes, peak {peak / 1e9:.2f} GB ({before / 1e9:.2f} before)\n{report}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["signatures", "threads", "hostile", "million"])
    parser.add_argument("count", nargs="?", type=int, default=1_000_000)
    chosen = parser.parse_args()
    if chosen.what in (None, "signatures"):
        signatures()
    if chosen.what in (None, "threads"):
        threads()
    if chosen.what in (None, "hostile"):
        hostile()
    if chosen.what in (None, "million"):
        million(chosen.count)
