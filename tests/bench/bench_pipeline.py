"""A pipeline of quality rules over JSON Lines: documents a second by one thread and by two, and what reading costs.

Run: python tests/bench/bench_pipeline.py
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

import nbllm as nb
from nbllm.data.pipeline.step import Step

DOCUMENTS, WORDS = 8_000, 170  # of about 1.1 KB
ROUNDS = 2


def write(path: Path) -> None:
    rng = np.random.default_rng(0)
    known = np.array(
        ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), n)) for n in rng.integers(2, 11, 8000)]
    )
    known[:4] = "the", "of", "and", "that"
    with open(path, "w") as file:
        for _ in range(DOCUMENTS):
            words = known[(rng.pareto(0.8, WORDS) * 4).astype(int).clip(0, len(known) - 1)]
            lines = [" ".join(words[start : start + 12]) + "." for start in range(0, WORDS, 12)]
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")


def seconds(steps: list[Step], source: Path, folder: Path, workers: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        begin = time.perf_counter()
        nb.data.Pipeline(steps).run(source, out, workers=workers)
        return time.perf_counter() - begin


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "a.jsonl")
        rules = nb.data.quality("gopher", "fineweb")
        nb.data.Pipeline(rules).run(["compile the kernels"], folder / "warm")
        kinds = {"reading alone": ([], 1), "rules, one thread": (rules, 1), "rules, two threads": (rules, 2)}
        times = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, (steps, workers) in kinds.items():
                times[kind].append(seconds(steps, folder / "a.jsonl", folder, workers))
        best = {kind: min(each) for kind, each in times.items()}
        for kind, value in best.items():
            print(f"{kind}: {DOCUMENTS / value:,.0f} documents a second ({value:.2f} s)")
        print(
            f"two threads are {best['rules, one thread'] / best['rules, two threads']:.2f} times as fast as one"
        )


if __name__ == "__main__":
    main()
