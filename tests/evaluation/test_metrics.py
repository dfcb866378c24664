import lzma
import math
import shutil
import subprocess

import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.evaluation import METRICS, TASKS, EvaluationConfig, estimate
from nbllm.evaluation.columns import to_arrays, to_columns
from nbllm.evaluation.metrics import xz_bits_per_byte

COLUMNS = {
    "nats": np.array([10.0, 30.0]),
    "num_tokens": np.array([4.0, 6.0]),
    "num_bytes": np.array([20.0, 30.0]),
}


@pytest.mark.parametrize(
    "name, value",
    [("bits_per_byte", 40 / math.log(2) / 50), ("perplexity", math.exp(4)), ("bytes_per_token", 5.0)],
)
def test_figures_by_hand(name, value):
    metric = METRICS[name]()
    found = estimate(metric, COLUMNS, EvaluationConfig())
    assert metric.title("mine") == f"{metric.label} on mine"
    assert found.value == pytest.approx(value) and found.interval[0] <= value <= found.interval[1]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'perplexity'"):
        METRICS["perplexty"]
    with pytest.raises(UserError, match=r"(?s)no task named 'perplexities'.*Did you mean 'perplexity'"):
        TASKS["perplexities"]


def test_rows_become_columns_of_numbers_or_of_objects():
    rows = [
        {"n": 1, "hit": True, "text": "a", "golds": ["a", "b"], "gap": None},
        {"n": 2.5, "hit": False, "text": None, "golds": [], "gap": None},
    ]
    columns = to_columns(rows)
    assert columns["golds"] == (("a", "b"), ()) and columns["hit"] == (True, False)
    arrays = to_arrays(columns)
    assert arrays["n"].tolist() == [1, 2.5] and arrays["hit"].tolist() == [1, 0]
    assert np.isnan(arrays["gap"]).all() and arrays["gap"].dtype == np.float64
    assert arrays["text"].tolist() == ["a", None] and arrays["golds"].tolist() == [("a", "b"), ()]


TEXTS = ["The quick brown fox jumps over the lazy dog. " * 40, "日本語 naïve\n" * 100, "x"]


def test_xz_is_undone_by_lzma():
    data = "".join(TEXTS).encode()
    assert lzma.decompress(lzma.compress(data, preset=9)) == data
    assert xz_bits_per_byte(TEXTS) == 8 * len(lzma.compress(data, preset=9)) / len(data)


@pytest.mark.skipif(shutil.which("xz") is None, reason="there is no xz program here")
def test_xz_is_what_the_program_makes():
    data = "".join(TEXTS).encode()
    packed = subprocess.run(
        ["xz", "-9", "-T1", "--stdout"], input=data, capture_output=True, check=True
    ).stdout
    assert xz_bits_per_byte(TEXTS) == 8 * len(packed) / len(data)


def test_xz_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no text"):
        xz_bits_per_byte([""])


def test_accuracy_counts_examples_alike_and_its_macro_average_subjects():
    columns = {"correct": np.array([1, 1, 0.5, 0]), "subject": np.array(["a", "a", "a", "b"], object)}
    assert METRICS["accuracy"]().compute(columns) == 2.5 / 4
    assert METRICS["macro_accuracy"]().compute(columns) == (2.5 / 3 + 0) / 2
