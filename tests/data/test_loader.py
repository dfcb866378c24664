import pickle

import numpy as np
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import BatchSource, TokenStore, pack, train_tokenizer

TEXTS = [f"document {n}: " + " ".join(f"word{(n * k) % 97}" for k in range(80)) for n in range(20)]


@pytest.fixture
def store() -> TokenStore:
    from datasets import Dataset

    return pack(Dataset.from_dict({"text": TEXTS}), train_tokenizer(TEXTS, 300))


def source(store, **changes):
    return BatchSource(store, **{"batch_size": 4, "sequence_length": 32, "seed": 1, **changes})


def test_targets_follow_inputs(store):
    inputs, targets = source(store).batch(0)
    assert inputs.shape == targets.shape == (4, 32)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert len({row.tobytes() for row in inputs}) == 4


def test_an_epoch_targets_every_token_at_most_once_and_misses_less_than_a_window(store):
    cut = source(store)
    for epoch in range(3):
        _, targets = cut.batch(epoch * cut.windows_per_epoch, cut.windows_per_epoch)
        seen = np.bincount(targets.ravel(), minlength=store.vocab_size)
        there = np.bincount(store.tokens, minlength=store.vocab_size)
        assert (seen <= there).all()
        assert 0 <= (there - seen).sum() < 32


def test_the_sequence_at_a_position_depends_on_nothing_else(store):
    cut = source(store)
    whole, _ = cut.batch(0, 3 * cut.windows_per_epoch)  # across epochs
    for position in (0, 1, cut.windows_per_epoch - 1, 2 * cut.windows_per_epoch):
        other = source(store, batch_size=1)
        np.testing.assert_array_equal(other.batch(position)[0][0], whole[position])


def test_epochs_differ_in_order_and_phase_and_seeds_differ(store):
    cut = source(store)
    n = cut.windows_per_epoch
    first, second = cut.batch(0, n)[0], cut.batch(n, n)[0]
    assert not {row.tobytes() for row in first} & {row.tobytes() for row in second}  # other phase
    assert not np.array_equal(first, source(store, seed=2).batch(0, n)[0])
    assert cut.epoch(2 * n) == 2.0


def test_a_pickled_source_draws_the_same(store):
    again = BatchSource(pickle.loads(pickle.dumps(store)), batch_size=4, sequence_length=32, seed=1)
    np.testing.assert_array_equal(again.batch(7)[0], source(store).batch(7)[0])


def test_the_longest_sequence_possible(store):
    cut = source(store, sequence_length=store.num_tokens - 1, batch_size=1)
    assert cut.windows_per_epoch == 1
    inputs, targets = cut.batch(5)
    np.testing.assert_array_equal(inputs[0, 1:], targets[0, :-1])


def test_bad_sizes_are_named(store):
    with pytest.raises(DataError, match="one sequence needs"):
        source(store, sequence_length=store.num_tokens)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        source(store, batch_size=0)
    with pytest.raises(UserError, match="position -1"):
        source(store).batch(-1)


def test_repr(store):
    assert "4 x 32 tokens, seed 1" in repr(source(store))
