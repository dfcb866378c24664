"""BART's kinds of noise: their rates, and what each leaves of the text."""

import numpy as np
import pytest

from nbllm.objectives import (
    Denoising,
    DocumentRotation,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
)
from nbllm.objectives.spans import poisson_spans

KINDS = [Denoising, DocumentRotation, SentencePermutation, TextInfilling, TokenDeletion, TokenMasking]


def arrays(kind, tokenizer, windows, seed=0):
    batch = kind.for_tokenizer(tokenizer).batch(windows, np.random.default_rng(seed))
    return {name: each.numpy() for name, each in batch.items()}


def read(batch, row):
    """Return what is read of a row, without the end token."""
    return batch["inputs"][row][batch["mask"][row]][:-1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_text_is_predicted_from_its_end_token_on(tokenizer, plain, kind):
    windows, end = plain(6, 40), tokenizer.eos_token_id
    batch = arrays(kind, tokenizer, windows)
    assert (batch["targets"] == np.pad(windows, ((0, 0), (0, 1)), constant_values=end)).all()
    assert (batch["decoder_inputs"] == np.pad(windows, ((0, 0), (1, 0)), constant_values=end)).all()
    assert batch["inputs"].shape[1] <= 41 and (batch["inputs"][~batch["mask"]] == end).all()
    assert kind.for_tokenizer(tokenizer).window_length(41) == 40


def test_masking_and_deletion_have_their_rate_over_a_million_tokens(tokenizer, plain):
    windows = plain(1000, 1000)
    masked = arrays(TokenMasking, tokenizer, windows)["inputs"][:, :-1]
    hidden = masked == tokenizer.mask_token_id
    assert hidden.mean() == pytest.approx(0.15, abs=0.0015) and (masked == windows)[~hidden].all()
    assert (arrays(TokenDeletion, tokenizer, windows)["mask"].sum() - 1000) / 1e6 == pytest.approx(
        0.85, abs=0.0015
    )
    batch = arrays(TokenDeletion, tokenizer, windows[:5])
    for row in range(5):
        rest = iter(windows[row].tolist())
        assert all(token in rest for token in read(batch, row))  # in order


def test_infilling_has_its_rates_over_a_million_tokens():
    """30% of the tokens in spans, whose lengths are Poisson's with mean 3, 0 among them; they lie everywhere."""
    spans = poisson_spans((1000, 1000), np.random.default_rng(0), rate=0.3, mean=3.0, least=0)
    assert (spans.lengths.sum(1) == 300).all()
    lengths = spans.lengths[spans.drawn]
    assert lengths.mean() == pytest.approx(3, abs=0.05)
    for length in range(7):
        expected = np.exp(-3) * 3**length / np.prod(range(1, length + 1))
        assert (lengths == length).mean() == pytest.approx(expected, abs=0.005)
    covered = np.ones((1000, 1000))
    np.put_along_axis(covered, spans.kept, 0, axis=1)
    assert covered.mean() == pytest.approx(0.3)
    assert covered.mean(0).std() < 1.3 * np.sqrt(0.3 * 0.7 / 1000)


def test_infilling_replaces_each_span_by_one_mask_token(tokenizer, plain):
    windows, mask = plain(30, 60), tokenizer.mask_token_id
    batch = arrays(TextInfilling, tokenizer, windows)
    drawn = poisson_spans((30, 60), np.random.default_rng(0), rate=0.3, mean=3.0, least=0)
    for row in range(30):
        expected, place = [], 0
        for slot in np.flatnonzero(drawn.drawn[row]):
            start, length = drawn.starts[row, slot], drawn.lengths[row, slot]
            expected += [*windows[row, place:start], mask]
            place = start + length
        assert read(batch, row) == [*expected, *windows[row, place:]]


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_short_texts_are_taken_and_never_get_longer(tokenizer, plain, length, kind):
    for seed in range(10):
        assert arrays(kind, tokenizer, plain(9, length), seed)["inputs"].shape[1] <= length + 1


def test_sentences_are_shuffled_whole(tokenizer):
    text = "One is first. Two is second. Three is third. Four is last."
    ids = tokenizer.encode(text)
    windows = np.tile(ids, (200, 1))
    objective = SentencePermutation.for_tokenizer(tokenizer)
    shuffled = arrays(SentencePermutation, tokenizer, windows)
    orders = {tokenizer.decode(read(shuffled, row)) for row in range(200)}
    assert len(orders) == 24  # of 4 sentences
    for order in orders:
        assert sorted(each.strip() for each in order.split(".")) == sorted(
            each.strip() for each in text.split(".")
        )
    assert objective.ends_sentence[tokenizer.eos_token_id]
    mixed = arrays(Denoising, tokenizer, windows)
    assert sum(tokenizer.mask_token_id in read(mixed, row) for row in range(200)) == 200
    firsts = {read(mixed, row)[0] for row in range(200)}
    assert {tokenizer.encode("One")[0], tokenizer.encode(" Four")[0]} <= firsts


def test_rotation_begins_anywhere(tokenizer, plain):
    windows = np.tile(plain(1, 10), (1000, 1))
    windows[:] = np.unique(plain(50, 50))[:10]
    batch = arrays(DocumentRotation, tokenizer, windows)
    starts = [windows[0].tolist().index(read(batch, row)[0]) for row in range(1000)]
    assert np.bincount(starts).min() > 60
    for row in range(20):
        assert read(batch, row) == np.roll(windows[0], -starts[row]).tolist()
