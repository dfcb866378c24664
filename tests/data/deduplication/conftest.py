"""Corpora with known near-duplicates, and steps run without the pipeline."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.executing import Threads
from nbllm.data.pipeline.shuffle import shuffle
from nbllm.data.pipeline.step import Tables

WORDS = [f"word{number}" for number in range(3000)]


def edited(words, changes, rng):
    """A copy with words replaced, left out or put in."""
    words = list(words)
    for _ in range(changes):
        place = rng.randrange(len(words))
        words[place : place + rng.randint(0, 1)] = [rng.choice(WORDS)] if rng.random() < 0.8 else []
    return words


def generated(count, seed=0, repeats=0.35, shortest=3, longest=120):
    """Documents, many of them edits of the ones before."""
    rng = random.Random(seed)
    documents = []
    while len(documents) < count:
        if documents and rng.random() < repeats:
            source = documents[rng.randrange(max(0, len(documents) - 50), len(documents))]
            documents.append(edited(source, rng.randint(0, 4), rng))
        else:
            documents.append([rng.choice(WORDS) for _ in range(rng.randint(shortest, longest))])
    return [" ".join(document) for document in documents]


def decide(step, documents, workdir, *, ids=None, batches=1, order=None):
    """The decisions of a corpus step on documents, scanned in batches, in any order of the batches."""
    ids = np.arange(len(documents), dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
    parts = np.array_split(np.argsort(ids), batches)
    workdir.mkdir(parents=True, exist_ok=True)
    tables = [
        step.scan(Texts.of(pa.array([documents[i] for i in part], pa.large_string())), ids[part])
        for part in parts
    ]
    files = [workdir / f"{number}.arrow" for number in range(batches)]
    for number, file in zip(order or range(batches), files, strict=True):
        with pa.ipc.new_stream(str(file), tables[number].schema) as writer:
            writer.write_table(tables[number])
    shuffle(Threads(1), files, step.keys, workdir)
    return step.solve(Tables(files, workdir), workdir)


@pytest.fixture(scope="session")
def corpus():
    """5,000 documents."""
    return generated(5000)
