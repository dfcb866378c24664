import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.kernels.bin_packing import best_fit, greedy
from nbllm.data.row_packing import plan_rows


def greedy_by_hand(sizes, length):
    rows, space = [], 0
    for size in sizes:
        if size > space:
            rows.append([])
            space = length
        rows[-1].append(size)
        space -= size
    return rows


def best_fit_by_hand(sizes, length):
    """Return the sizes in each row: the row with the least space that is enough, found by looking at all."""
    rows = []
    for size in sizes:
        fitting = [row for row in rows if length - sum(row) >= size]
        if fitting:
            least = min(length - sum(row) for row in fitting)
            next(row for row in fitting if length - sum(row) == least).append(size)
        else:
            rows.append([size])
    return rows


@pytest.mark.parametrize("length", [1, 7, 64, 100])
def test_kernels_pack_as_by_hand(length):
    rng = np.random.default_rng(length)
    for count in (0, 1, 50, 400):
        sizes = np.sort(rng.integers(1, length + 1, count))[::-1].astype(np.int64).copy()
        for kernel, by_hand in ((greedy, greedy_by_hand), (best_fit, best_fit_by_hand)):
            rows = np.full(count, -1, np.int64)
            num_rows = kernel(sizes, length, rows)
            filled = np.bincount(rows, sizes, minlength=num_rows) if count else np.zeros(0)
            assert (filled <= length).all()
            # Rows of equal space are interchangeable: what counts is how full they are.
            assert sorted(filled) == sorted(map(sum, by_hand(sizes.tolist(), length)))


def test_every_token_is_in_one_piece_and_long_documents_are_counted():
    sizes = np.array([5, 0, 23, 10, 1, 10, 9], np.int64)
    for strategy in ("greedy", "best-fit"):
        plan = plan_rows(sizes, 10, strategy)
        assert plan.num_split == 1
        for document, size in enumerate(sizes):
            mine = np.sort(plan.start[plan.document == document])
            assert plan.size[plan.document == document].sum() == size
            assert mine.tolist() == list(range(0, size, 10))
        assert np.bincount(plan.row, plan.size).max() <= 10
        assert plan.padding == pytest.approx(1 - sizes.sum() / (10 * plan.num_rows))
    assert plan_rows(sizes, 10, "best-fit").num_rows == 6  # 10 10 10 9+1 5+3 10: 58 tokens
    with pytest.raises(UserError, match="best-fit"):
        plan_rows(sizes, 10, "bestfit")
    with pytest.raises(UserError, match="length"):
        plan_rows(sizes, 0)


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(["a"], kind="byte")


def test_rows_hold_the_documents_and_their_ends(tokenizer, tmp_path, capsys):
    texts = ["abcd", "x", "a long document of more than a row", "hello"]
    store = nb.data.pack_rows(texts, tokenizer, length=16, folder=tmp_path)
    assert "4 documents in 3 rows of 16 tokens: 0.0% padding; 1 document longer" in capsys.readouterr().out
    inputs, targets, examples = (store.columns[name] for name in ("inputs", "targets", "examples"))
    end = tokenizer.eos_token_id
    learnt = sorted(targets[targets >= 0])
    assert learnt == sorted(token for text in texts for token in [*tokenizer.encode(text), end])
    assert ((targets >= 0) == (examples >= 0)).all()
    follows = (examples[:, 1:] == examples[:, :-1]) & (examples[:, 1:] >= 0)
    assert (inputs[:, 1:][follows] == targets[:, :-1][follows]).all()
    begins = ~np.pad(follows, ((0, 0), (1, 0))) & (examples >= 0)
    assert (inputs[begins] == end).sum() == 4  # and two pieces of the long one begin with its own tokens
    assert begins.sum() == 6
    again = nb.data.pack_rows(texts, tokenizer, length=16, folder=tmp_path)
    assert again.path == store.path


def test_packed_documents_have_the_losses_that_they_have_alone(tokenizer, tmp_path):
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=2, hidden_size=16, num_heads=2, max_positions=32)
    objective = nb.objectives.OBJECTIVES["sft"]()
    rng = np.random.default_rng(0)

    def loss(texts):
        store = nb.data.pack_rows(texts, tokenizer, length=12, folder=tmp_path)
        rows = {name: column.astype(np.int64) for name, column in store.columns.items()}
        with torch.no_grad():
            total, count = objective.loss(lm.model, objective.batch(rows, rng))
        return float(total), count

    (together, both), (three, few), (five, more) = loss(["abc", "defgh"]), loss(["abc"]), loss(["defgh"])
    assert both == few + more == 10
    assert together == pytest.approx(three + five, abs=1e-5)


def test_a_model_trains_on_rows(tokenizer, tmp_path):
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    rows = nb.data.pack_rows(["abc " * 3, "hello", "x" * 40] * 4, tokenizer, length=16, folder=tmp_path)
    run = nb.train(
        lm,
        rows,
        objective="sft",
        steps=3,
        batch_size=4,
        sequence_length=16,
        folder=tmp_path / "runs",
        validation=None,
    )
    run.wait()
    assert "finished, step 3 of 3" in repr(run)
