"""Data sets trained together: their shares of the draws, the loss on each, weights of tokens."""

import collections

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.data.sample_store import RowSource, write_samples
from nbllm.finetuning import Mixture, prepare, read_example
from nbllm.finetuning.tokens import tokenize
from nbllm.objectives import OBJECTIVES
from nbllm.objectives.measures import recorded_measures


def chats(word, count):
    return [{"prompt": f"{word} {number}", "completion": f" is {word * 2}"} for number in range(count)]


def test_each_data_set_gets_its_share_and_has_epochs_of_its_own(tokenizer):
    data = Mixture({"a": chats("alpha", 40), "b": chats("beta", 5)}, weights={"a": 1, "b": 3})
    store = prepare(data, tokenizer, length=24, pack=False).store
    assert store.sources == ("a", "b") and store.shares == (1, 3)
    source = RowSource(store, seed=4)
    drawn = source.draw(0, 2048)
    shares = collections.Counter(drawn["sources"].tolist())
    assert abs(shares[1] / 2048 - 0.75) < 0.002
    rows = drawn["inputs"][drawn["sources"] == 1]
    for epoch in range(10):  # each row of the small one once in five draws of it
        assert len(np.unique(rows[5 * epoch : 5 * epoch + 5], axis=0)) == 5
    again = RowSource(store, seed=4).draw(1500, 3)
    assert all(np.array_equal(again[name], drawn[name][1500:1503]) for name in again)
    assert not np.array_equal(RowSource(store, seed=5).draw(0, 64)["inputs"], drawn["inputs"][:64])


def test_without_weights_every_row_is_drawn_once_an_epoch(tokenizer):
    store = prepare({"a": chats("alpha", 7), "b": chats("beta", 5)}, tokenizer, length=24, pack=False).store
    drawn = RowSource(store).draw(0, 12)
    assert len(np.unique(drawn["inputs"], axis=0)) == 12


def test_examples_of_two_data_sets_share_no_row(tokenizer):
    store = prepare({"a": chats("x", 2), "b": chats("y", 3)}, tokenizer, length=90).store
    assert store.num_rows == 2 and store.columns["sources"].tolist() == [0, 1]


def test_the_loss_is_weighted_and_that_of_each_data_set_measured(lm, tokenizer):
    data = {
        "plain": [{"prompt": "It", "completion": " is a list."}],
        "heavy": [
            {"prompt": "They", "completion": " are sets.", "weight": 3},
            {"prompt": "a", "completion": "b"},
        ],
    }
    prepared = prepare(data, tokenizer, length=40)
    objective = OBJECTIVES["sft"].for_tokenizer(tokenizer)
    objective.sources = prepared.store.sources
    batch = objective.batch(prepared.store.take([0, 1]), np.random.default_rng(0))
    with recorded_measures() as measures:
        total, count = objective.loss(lm.model, batch)
    expected = {}
    for name, examples in data.items():
        for value in examples:
            made = tokenize(tokenizer, read_example(value))
            tokens = torch.from_numpy(made.tokens)
            logits = lm.model(tokens[None])[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            weights = torch.from_numpy(made.weights * made.trained)[1:]
            sums = expected.setdefault(name, [0.0, 0.0])
            sums[0] += float((losses * weights).sum().detach())
            sums[1] += float(weights.sum())
    assert measures.means() == pytest.approx(
        {f"loss/{name}": loss / weight for name, (loss, weight) in expected.items()}, abs=1e-5
    )
    assert count == pytest.approx(sum(weight for _, weight in expected.values()))
    assert float(total.detach()) == pytest.approx(sum(loss for loss, _ in expected.values()), rel=1e-5)


def test_weights_are_those_of_the_gradient(lm, tokenizer):
    """An example of weight 2 is the same as one that is there twice."""
    one = {"prompt": "They", "completion": " are sets."}
    gradients = []
    for data in ([{**one, "weight": 2}, "Another text."], [one, one, "Another text."]):
        store = prepare(data, tokenizer, length=80).store
        objective = OBJECTIVES["sft"].for_tokenizer(tokenizer)
        loss, count = objective.loss(lm.model, objective.batch(store.take([0]), np.random.default_rng(0)))
        lm.model.zero_grad()
        (loss / count).backward()
        gradients.append([parameter.grad.clone() for parameter in lm.model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_run_reports_the_loss_on_each_data_set(lm, tmp_path):
    run = nb.finetune(
        lm, Mixture({"a": chats("alpha", 6), "b": chats("beta", 6)}, weights={"a": 1, "b": 1}),
        validation={"b": chats("beta", 2), "c": chats("gamma", 2)}, folder=tmp_path, steps=4, batch_size=4,
        sequence_length=32, sample_interval=0, validation_interval=2, precision="float32", num_threads=1,
    )  # fmt: skip
    run.wait(progress=False)
    assert run.state == "finished"
    step, evaluation = run.events("step")[-1], run.events("evaluation")[-1]
    assert {"loss/a", "loss/b"} <= step.keys() and "loss/c" not in step
    assert {"loss/b", "loss/c"} <= evaluation.keys() and "loss/a" not in evaluation
    assert evaluation["loss"] == pytest.approx((evaluation["loss/b"] + evaluation["loss/c"]) / 2, rel=0.2)
    assert nb.replay(run, progress=False).identical


@pytest.mark.parametrize(
    ("sources", "weights", "said"),
    [
        ({}, None, "1 to 24"),
        ({"a/b": []}, None, "cannot be the name"),
        ({"a": []}, {"b": 1}, "no data set 'b'"),
        ({"a": [], "b": []}, {"a": 1}, "'b' has no weight"),
        ({"a": []}, {"a": 0}, "above 0"),
    ],
)
def test_bad_mixtures_are_refused(sources, weights, said):
    with pytest.raises(UserError, match=said):
        Mixture(sources, weights)


def test_a_data_set_without_anything_to_train_on_is_named(tokenizer):
    with pytest.raises(DataError, match="in 'b'"):
        prepare({"a": ["A text."], "b": [{"text": ""}]}, tokenizer, length=20)
    with pytest.raises(DataError, match="do not know|does not know"):
        prepare({"a": ["A text."]}, tokenizer, length=20).store.with_sources(["b"])


def test_shares_that_do_not_fit_are_refused(tmp_path):
    columns = {"inputs": np.zeros((2, 4), np.int32), "sources": np.array([0, 7], np.int32)}
    store = write_samples(
        columns, row_length=4, num_examples=2, num_bytes=2, vocab_size=5, sources=("a",), folder=tmp_path
    )
    with pytest.raises(DataError, match="does not know"):
        store.with_sources(["a"])
