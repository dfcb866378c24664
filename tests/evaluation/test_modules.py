"""Metrics as `evaluate` uses them: evaluators, kernels at work at the same time, no network, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import f1_score

from nbllm.core.errors import UserError
from nbllm.evaluation import metric
from tests.models.test_embedding import wordpiece

TEXTS = [
    "the dog barks",
    "a cat",
    "the bird sleeps",
    "dogs and cats",
    "then",
    "at the dog",
    "bird",
    "a cat barks",
]
LABELS = [1, 0, 0, 1, 1, 0, 1, 0]


@pytest.fixture(scope="module")
def classifier():
    """A tiny classifier of transformers with random weights, and its tokenizer."""
    tokenizer = wordpiece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, num_labels=2, initializer_range=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval(), tokenizer


@pytest.fixture(scope="module")
def predicted(classifier):
    model, tokenizer = classifier
    with torch.no_grad():
        return [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]


def evaluated(classifier, **options):
    """What an evaluator of `evaluate` finds. (Its version 0.4.6 takes models of transformers 5, not pipelines.)"""
    model, tokenizer = classifier
    return evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model, tokenizer=tokenizer, data=Dataset.from_dict({"text": TEXTS, "label": LABELS}),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1}, **options,
    )  # fmt: skip


def test_an_evaluator_computes_a_metric_and_several(classifier, predicted):
    assert len(set(predicted)) == 2
    right = sum(one == two for one, two in zip(predicted, LABELS, strict=True)) / len(LABELS)
    found = evaluated(classifier, metric=metric("accuracy"))
    assert found["accuracy"] == right and found["samples_per_second"] > 0
    both = evaluated(classifier, metric=evaluate.combine([metric("accuracy"), metric("f1")]))
    assert both["accuracy"] == right and both["f1"] == pytest.approx(f1_score(LABELS, predicted))


def test_an_evaluator_resamples_a_metric(classifier, predicted):
    found = evaluated(
        classifier, metric=metric("accuracy"), strategy="bootstrap", n_resamples=20, random_state=0
    )
    low, high = found["accuracy"]["confidence_interval"]
    assert low <= found["accuracy"]["score"] <= high


PROGRAM = """
import socket, sys
real = socket.socket.connect
def refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise AssertionError(f"a connection to {address}")
    return real(self, address)
socket.socket.connect = refuse
socket.getaddrinfo = lambda *args, **options: (_ for _ in ()).throw(AssertionError(f"looked up {args[0]}"))
import nbllm as nb
assert "evaluate" not in sys.modules and "sacrebleu" not in sys.modules
kernel = int(sys.argv[1])
found = []
for _ in range(5):
    made = nb.evaluation.metric("sacrebleu")
    made.add_batch(predictions=["a b c d"] * kernel, references=["a b c d"] * kernel)
    found.append(made.compute(predictions=["x y z w"], references=[["a b c d", "x y z w"]])["sys_len"])
print(found)
"""


def _runs(kernel):
    try:
        kernel.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_kernels_compute_at_the_same_time_offline_and_leave_nothing_behind(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "XDG_", "TRANSFORMERS_"))
    }
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    kernel = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    while _runs(kernel):  # this process is the other kernel
        found = metric("sacrebleu").compute(predictions=["x y z w"], references=["x y z w"])
        assert found["sys_len"] == 4
    out, err = kernel.communicate()
    assert out.strip() == str([12] * 5), err
    assert [path for path in home.rglob("*") if path.is_file() and path.suffix in (".arrow", ".lock")] == []
    assert not any("metrics" in Path(path).parts for path in home.rglob("*"))


def test_an_argument_that_is_misspelt_is_told_the_nearest_of_all_arguments():
    with pytest.raises(UserError, match=r"(?s)no argument 'reference'.*Did you mean 'references'"):
        metric("accuracy").compute(predictions=[1, 0], reference=[1, 1])
