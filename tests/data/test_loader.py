import pickle

import numpy as np
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import TokenStore, WindowSource, pack, train_tokenizer

TEXTS = [f"document {n}: " + " ".join(f"word{(n * k) % 97}" for k in range(80)) for n in range(20)]


@pytest.fixture
def store() -> TokenStore:
    from datasets import Dataset

    return pack(Dataset.from_dict({"text": TEXTS}), train_tokenizer(TEXTS, 300))


def source(store, **changes):
    return WindowSource(store, **{"length": 33, "overlap": 1, "seed": 1, **changes})


def test_windows_are_stretches_of_the_text_read_as_a_circle(store):
    windows = source(store).draw(0, 40)
    assert windows.shape == (40, 33)
    assert windows.dtype == np.int64
    circle = np.concatenate([store.read(), store.read(0, 33)])
    there = {circle[i : i + 33].tobytes() for i in range(store.num_tokens)}
    assert {window.tobytes() for window in windows} <= there
    assert len({window.tobytes() for window in windows}) > 35


@pytest.mark.parametrize("overlap", [0, 1, 8])
def test_an_epoch_has_every_token_at_most_once_and_misses_less_than_a_window(store, overlap):
    cut = source(store, length=32 + overlap, overlap=overlap)
    for epoch in range(3):
        windows = cut.draw(epoch * cut.windows_per_epoch, cut.windows_per_epoch)
        seen = np.bincount(windows[:, overlap:].ravel(), minlength=store.vocab_size)
        there = np.bincount(store.read(), minlength=store.vocab_size)
        assert (seen <= there).all()
        assert 0 <= (there - seen).sum() < 32


def test_the_window_at_a_position_depends_on_nothing_else(store):
    cut = source(store)
    whole = cut.draw(0, 3 * cut.windows_per_epoch)  # across epochs
    for position in (0, 1, cut.windows_per_epoch - 1, 2 * cut.windows_per_epoch):
        np.testing.assert_array_equal(source(store).draw(position, 1)[0], whole[position])


def test_epochs_differ_in_order_and_offset_and_seeds_differ(store):
    cut = source(store)
    n = cut.windows_per_epoch
    first, second = cut.draw(0, n), cut.draw(n, n)
    assert not {row.tobytes() for row in first} & {row.tobytes() for row in second}  # other offset
    assert not np.array_equal(first, source(store, seed=2).draw(0, n))
    assert cut.epoch(2 * n) == 2.0


def test_a_pickled_source_draws_the_same(store):
    again = WindowSource(pickle.loads(pickle.dumps(store)), length=33, overlap=1, seed=1)
    np.testing.assert_array_equal(again.draw(7, 4), source(store).draw(7, 4))


def test_the_longest_window_possible(store):
    cut = source(store, length=store.num_tokens)
    assert cut.windows_per_epoch == 1
    np.testing.assert_array_equal(np.sort(cut.draw(5, 1)[0]), np.sort(store.read()))


def test_bad_sizes_are_named(store):
    with pytest.raises(DataError, match="one window needs"):
        source(store, length=store.num_tokens + 1)
    with pytest.raises(UserError, match="cannot overlap"):
        source(store, overlap=33)
    with pytest.raises(UserError, match="position -1"):
        source(store).draw(-1, 4)
    with pytest.raises(UserError, match="draw 0 windows"):
        source(store).draw(0, 0)


def test_repr(store):
    assert "windows of 33 tokens, one every 32, seed 1" in repr(source(store))
