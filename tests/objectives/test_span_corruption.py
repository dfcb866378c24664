"""Span corruption: the lengths of the published code, its rates, and nothing of the text is lost."""

import numpy as np
import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.objectives import SpanCorruption
from nbllm.objectives.span_corruption import Corruption
from nbllm.objectives.spans import noise_counts, noise_mask


def published_lengths(inputs_length, density, mean):
    """`random_spans_helper` of t5/data/preprocessors.py, with one extra token a span in inputs and in targets."""

    def lengths(tokens):
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, lengths(tokens)[1]


@pytest.mark.parametrize("length", [64, 100, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 8.0)])
def test_the_lengths_are_those_of_the_published_code(length, rate, mean):
    corruption = Corruption(rate, mean)
    tokens = corruption.longest(length)
    assert (tokens, corruption.lengths(tokens)[1]) == published_lengths(length, rate, mean)


def restored(inputs, targets, sentinels):
    """Put the spans of the targets in place of their sentinels."""
    spans, current = {}, None
    for token in targets[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [each for token in inputs[:-1] for each in spans.get(token, [token])]


def test_a_batch_has_fixed_lengths_and_loses_nothing(tokenizer, plain):
    objective = SpanCorruption.for_tokenizer(tokenizer)
    assert objective.window_length(512) == 568
    windows = plain(40, 568)
    batch = {name: each.numpy() for name, each in objective.batch(windows, np.random.default_rng(0)).items()}
    assert batch["inputs"].shape == (40, 512) and batch["targets"].shape == (40, 114) and "mask" not in batch
    assert (batch["decoder_inputs"][:, 1:] == batch["targets"][:, :-1]).all()
    assert (batch["decoder_inputs"][:, 0] == tokenizer.pad_token_id).all()
    assert (batch["inputs"][:, -1] == tokenizer.eos_token_id).all()
    assert (batch["targets"][:, -1] == tokenizer.eos_token_id).all()
    sentinels = [f"<extra_id_{number}>" for number in range(28)]
    for inputs, targets, window in zip(batch["inputs"], batch["targets"], windows, strict=True):
        for part in (inputs, targets):
            found = [name for name in tokenizer.convert_ids_to_tokens(part) if name.startswith("<extra")]
            assert found == sentinels
        ids = tokenizer.convert_tokens_to_ids(sentinels)
        assert restored(inputs, targets, ids) == window.tolist()
    assert len({row.tobytes() for row in batch["targets"] - windows[:, :1]}) == 40


def test_rates_over_a_million_tokens_are_the_papers():
    """15% is noise, in spans of 3 on average, of every length and everywhere in the text."""
    length = 568
    counts = noise_counts(length, 0.15, 3.0)
    mask = noise_mask((1800, length), counts, np.random.default_rng(0))
    assert mask.mean() == pytest.approx(0.15, abs=0.001)
    begins = mask & ~np.pad(mask[:, :-1], ((0, 0), (1, 0)))
    assert (begins.sum(1) == counts.spans).all() and (mask.sum(1) == counts.noise).all()
    assert mask.sum() / begins.sum() == pytest.approx(3, abs=0.1)
    # A division of n tokens into k spans has one that is of a single token with probability (k - 1) / (n - 1).
    alone = begins & ~np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    assert alone.sum() / begins.sum() == pytest.approx((counts.spans - 1) / (counts.noise - 1), abs=0.01)
    everywhere = mask[:, 40:-40].mean(0)
    assert everywhere.min() > 0.11 and everywhere.max() < 0.19
    assert not mask[:, 0].any() and mask[:, -1].all()


@pytest.mark.parametrize("length", range(1, 12))
def test_short_texts_are_taken(tokenizer, plain, length):
    objective = SpanCorruption.for_tokenizer(tokenizer)
    batch = objective.batch(plain(5, length), np.random.default_rng(0))
    noise = noise_counts(length, 0.15, 3.0)
    assert batch["targets"].shape == (5, noise.noise + noise.spans + 1)
    assert batch["inputs"].shape == (5, length - noise.noise + noise.spans + 1)


def test_sequences_without_enough_sentinels_or_text_are_refused(texts):
    few = nb.data.train_tokenizer(texts, kind="byte")
    few.add_special_tokens({"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<extra_id_3>"]})
    objective = SpanCorruption.for_tokenizer(few)
    assert len(objective.sentinels) == 2
    with pytest.raises(UserError, match="3 spans; the tokenizer has only 2"):
        objective.window_length(60)
    with pytest.raises(UserError, match="too short"):
        objective.window_length(1)
