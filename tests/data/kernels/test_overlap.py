"""Hashes of runs: the same for the same runs, all of them, whatever stands around."""

import numpy as np
import pytest

from nbllm.data.kernels.overlap import run_hashes

NONE = np.empty(0, np.uint64)


def runs_of(text, length, by_word):
    runs, hashes = np.empty((len(text) + 1, 2), np.int64), np.empty(len(text) + 1, np.uint64)
    count = run_hashes(np.frombuffer(text, np.uint8), length, by_word, NONE, NONE, runs, hashes)
    return [text[start:stop] for start, stop in runs[:count].tolist()], hashes[:count].tolist()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_runs_are_those_of_plain_python(length):
    rng = np.random.default_rng(length)
    by_run = {}
    for _ in range(50):
        text = " ".join(
            "".join(rng.choice(list("aé世"), rng.integers(1, 4))) for _ in range(rng.integers(0, 30))
        )
        words = text.split()
        found, hashes = runs_of(text.encode(), length, True)
        assert [run.decode() for run in found] == [
            " ".join(words[i : i + length]) for i in range(len(words) - length + 1)
        ]
        letters = text.replace(" ", "")
        found_letters, letter_hashes = runs_of(text.encode(), length, False)
        expected = [letters[i : i + length] for i in range(len(letters) - length + 1)]
        assert [run.decode().replace(" ", "") for run in found_letters] == expected
        for kind, runs, values in (("w", found, hashes), ("c", expected, letter_hashes)):
            for run, value in zip(runs, values, strict=True):
                assert by_run.setdefault((kind, run), value) == value
    for kind in "wc":
        hashes = [value for (of, _), value in by_run.items() if of == kind]
        assert len(set(hashes)) == len(hashes) >= 3
