"""Signals of Gopher's and FineWeb's rules beside datatrove's filters: `python -m tests.bench.bench_quality`.

Documents of 1.1 kB, cut from the texts inside every Python installation, in turn. datatrove's filters split text into
words by spaces here, the cheapest way there is (as installed it asks spaCy), and end at the first rule that is broken;
ours measure every rule of every document. Also: two threads against one, bytes a second beside a copy in memory, and
how long the first call of a new process takes, its machine code cached. "ours" and "datatrove" are processor time; "one
thread" and "two threads" are time on the clock, and say little where other processes compute.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pyarrow as pa

import nbllm as nb
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import Editor
from nbllm.data.quality.fineweb import FineWeb
from nbllm.data.quality.gopher import Gopher, GopherRepetition
from nbllm.data.quality.presets import quality

SIZE = 1100  # bytes of a document
STEPS = (GopherRepetition(), Gopher(), FineWeb())
FIRST_CALL = """
import time
import pyarrow as pa
from nbllm.data.arrow_text import Texts
from tests.bench.bench_quality import STEPS
began = time.perf_counter()
texts = Texts.of(pa.array(["one text"]))
for step in STEPS:
    step.signals(texts)
print(time.perf_counter() - began)
"""


def cut_documents(count: int) -> list[str]:
    """Return `count` documents of about 1.1 kB, with whole lines."""
    documents: list[str] = []
    for text in itertools.chain(nb.data.load("pydocs")["text"], nb.data.load("pystdlib")["text"]):
        lines, size = [], 0
        for line in text.splitlines():
            lines.append(line)
            size += len(line.encode()) + 1
            if size >= SIZE:
                documents.append("\n".join(lines))
                lines, size = [], 0
        if len(documents) >= count:
            break
    return (documents * (count // len(documents) + 1))[:count]


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Return how long `run` computes in this thread, or, by `time.perf_counter`, how long it takes."""
    began = clock()
    run()
    return clock() - began


def measure(texts: Texts) -> None:
    for step in STEPS:
        step.signals(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        fineweb_quality_filter as fineweb,
        gopher_quality_filter as gopher,
        gopher_repetition_filter as repetition,
    )

    documents = cut_documents(arguments.documents)
    column = pa.array(documents)
    texts = Texts.of(column)
    halves = [Texts.of(column.slice(0, len(column) // 2)), Texts.of(column.slice(len(column) // 2))]
    some = documents[: len(documents) // 20]
    filters = (
        repetition.GopherRepetitionFilter(),
        gopher.GopherQualityFilter(),
        fineweb.FineWebQualityFilter(),
    )

    def theirs() -> None:
        for text in some:
            document = Document(text=text, id="0")
            for each in filters:
                each.filter(document)

    first = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True)
    first = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True)
    measure(texts)
    block = np.zeros(1 << 28, np.uint8)
    target = np.empty_like(block)
    times: dict[str, list[float]] = {
        "ours": [],
        "one thread": [],
        "two threads": [],
        "datatrove": [],
        "copy": [],
    }
    with ThreadPoolExecutor(2) as pool, mock.patch.multiple(fineweb, split_into_words=split):
        with (
            mock.patch.multiple(gopher, split_into_words=split),
            mock.patch.multiple(repetition, split_into_words=split),
        ):
            for _ in range(arguments.repeats):
                times["ours"].append(seconds(lambda: measure(texts)) / len(documents))
                wall = time.perf_counter
                times["one thread"].append(seconds(lambda: measure(texts), wall) / len(documents))
                both = seconds(lambda: list(pool.map(measure, halves)), wall)
                times["two threads"].append(both / len(documents))
                times["datatrove"].append(seconds(theirs) / len(some))
                times["copy"].append(seconds(lambda: np.copyto(target, block)) / (2 * block.nbytes))
    best = {name: statistics.median(values) for name, values in times.items()}
    size = texts.data.size / len(documents)
    print(f"{len(documents):,} documents of {size:,.0f} bytes; median of {arguments.repeats}, in turn")
    for name in ("ours", "datatrove", "one thread", "two threads"):
        print(f"{name:12} {best[name] * 1e6:9.2f} us a document  {size / best[name] / 1e9:7.4f} GB/s")
    print(f"ours against datatrove        {best['datatrove'] / best['ours']:6.1f} times as fast")
    print(f"two threads against one       {best['one thread'] / best['two threads']:6.2f} times as fast")
    print(f"a copy in memory              {1e-9 / best['copy']:6.2f} GB/s, read and written")
    print(f"first call of a new process   {float(first.stdout):6.2f} s")
    measure_bait()


def measure_bait(size: int = 1_000_000) -> None:
    """Print how long text that is made to be slow takes, and how much longer twice as much of it."""
    steps = [*STEPS, *quality("c4-code"), quality("refinedweb")[-1]]
    print(f"\nbait of {size:,} characters: slowest step, nanoseconds a byte; twice the text, times the time")
    for bait in ("a", "a ", "\n", "a\n", ".", "[1", "\u0301", "中", "lorem ipsu"):
        slowest = []
        for step in steps:
            run = step.edits if isinstance(step, Editor) else step.signals
            once, twice = (Texts.of(pa.array([(bait * size)[: size * times]])) for times in (1, 2))
            run(once)
            short, long = (min(seconds(lambda t=t, r=run: r(t)) for _ in range(3)) for t in (once, twice))
            slowest.append((short / once.data.size * 1e9, long / short, step.name))
        worst = max(slowest)
        print(f"{bait!r:14} {worst[0]:8.1f}  {max(ratio for _, ratio, _ in slowest):5.2f}  {worst[2]}")


def split(text: str, language: str) -> list[str]:
    """Return what stands between spaces."""
    return text.split()


if __name__ == "__main__":
    main()
