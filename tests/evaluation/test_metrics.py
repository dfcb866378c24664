import lzma
import math
import shutil
import subprocess

import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import Subject
from nbllm.evaluation import METRICS, TASKS, EvaluationConfig, Likelihoods
from nbllm.evaluation.metrics import xz_bits_per_byte

RESULTS = Likelihoods(np.array([10.0, 30.0]), np.array([4.0, 6.0]), np.array([20.0, 30.0]), 2)


@pytest.mark.parametrize(
    "name, value",
    [("bits_per_byte", 40 / math.log(2) / 50), ("perplexity", math.exp(4)), ("bytes_per_token", 5.0)],
)
def test_figures_by_hand(name, value):
    subject = Subject(task="perplexity", text="mine", fingerprint="0")
    found = METRICS[name].measure(RESULTS, EvaluationConfig(), subject)
    assert found.name == f"{METRICS[name].label} on mine"
    assert found.value == pytest.approx(value) and found.interval[0] <= value <= found.interval[1]


def test_what_two_models_are_compared_by_is_kept_document_by_document():
    subject = Subject(task="perplexity", text="", fingerprint="0")
    kept = METRICS["perplexity"].measure(RESULTS, EvaluationConfig(), subject).per_document
    assert (kept.subject, kept.figure) == (subject, "perplexity per token")
    assert (kept.numerators, kept.denominators) == ((10.0, 30.0), (4.0, 6.0))
    assert METRICS["bytes_per_token"].measure(RESULTS, EvaluationConfig(), subject).per_document is None


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_how_it_is_read(name):
    assert METRICS[name].label and METRICS[name].note


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'perplexity'"):
        METRICS["perplexty"]
    with pytest.raises(UserError, match=r"(?s)no task named 'perplexities'.*Did you mean 'perplexity'"):
        TASKS["perplexities"]


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
