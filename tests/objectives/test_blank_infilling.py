"""GLM's blank infilling: its rates, its two parts, its positions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nbllm as nb
from nbllm.objectives import BlankInfilling
from nbllm.objectives.spans import poisson_spans


def arrays(tokenizer, windows, seed=0):
    batch = BlankInfilling.for_tokenizer(tokenizer).batch(windows, np.random.default_rng(seed))
    return {name: each.numpy() for name, each in batch.items()}


def test_rates_over_a_million_tokens_are_the_papers():
    """15% of the tokens; lengths of the Poisson distribution with mean 3 that are not 0; spans do not touch."""
    spans = poisson_spans((1000, 1000), np.random.default_rng(0), rate=0.15, mean=3.0, least=1)
    assert (spans.lengths.sum(1) == 150).all()
    lengths = spans.lengths[spans.drawn]
    assert lengths.min() == 1
    assert lengths.mean() == pytest.approx(3 / (1 - np.exp(-3)), abs=0.05)
    for row in range(5):
        starts, ends = (each[row][spans.drawn[row]] for each in (spans.starts, spans.starts + spans.lengths))
        assert (starts[1:] > ends[:-1]).all()


def test_parts_and_positions(tokenizer, plain):
    windows = plain(20, 50)
    batch = arrays(tokenizer, windows)
    mask, start, end = (tokenizer.convert_tokens_to_ids(name) for name in (
        "[MASK]", "<|startofpiece|>", "<|endofpiece|>",
    ))  # fmt: skip
    orders = set()
    for row in range(20):
        length = batch["prefix_lengths"][row]
        counted = batch["targets"][row] != -100
        assert not counted[:length].any() and counted[length:].argmin() in (0, counted[length:].sum())
        first = batch["inputs"][row, :length]
        assert batch["positions"][row, :length].tolist() == list(range(length))
        assert not batch["span_positions"][row, :length].any()
        second = {name: batch[name][row][counted] for name in batch if name != "prefix_lengths"}
        begins = np.flatnonzero(second["inputs"] == start)
        assert begins[0] == 0 and (second["span_positions"][begins] == 1).all()
        filled, order = {}, []
        for one, other in zip(begins, [*begins[1:], len(second["inputs"])], strict=True):
            place = second["positions"][one]
            order.append(place)
            assert first[place] == mask and (second["positions"][one:other] == place).all()
            assert second["span_positions"][one:other].tolist() == list(range(1, other - one + 1))
            assert second["targets"][other - 1] == end
            assert (second["inputs"][one + 1 : other] == second["targets"][one : other - 1]).all()
            filled[place] = second["targets"][one : other - 1].tolist()
        assert sorted(order) == np.flatnonzero(first == mask).tolist()
        orders.add(order == sorted(order))
        text = [each for place, token in enumerate(first) for each in filled.get(place, [token])]
        assert text == windows[row].tolist()
        assert counted.sum() == round(50 * 0.15) + len(begins)
    assert orders == {True, False}


def test_the_published_example_of_positions(tokenizer):
    """t1 t2 gMASK sop y1 is at 0 1 2 2 2, and in its blank at 0 0 0 1 2 (the paper counts the first from 1)."""
    windows = np.array([tokenizer.encode("a")[:1] * 3])
    for seed in range(20):
        batch = arrays(tokenizer, windows, seed)
        if batch["inputs"][0, 2] == tokenizer.mask_token_id:
            assert batch["positions"][0].tolist() == [0, 1, 2, 2, 2]
            assert batch["span_positions"][0].tolist() == [0, 0, 0, 1, 2]
            return
    raise AssertionError("no blank was at the end")


@pytest.mark.parametrize("positions", ["learned_2d", "rotary"])
def test_the_loss_is_torchs_cross_entropy_of_part_b(tokenizer, plain, positions):
    lm = nb.LM.new(
        "gpt2", tokenizer=tokenizer, network="prefix_decoder", num_layers=2, hidden_size=32, num_heads=2,
        max_positions=64, positions=positions,
    )  # fmt: skip
    objective = BlankInfilling.for_tokenizer(tokenizer)
    batch = objective.batch(plain(4, 40), np.random.default_rng(0))
    loss, count = objective.loss(lm.model, batch)
    if positions == "learned_2d":
        places = {name: batch[name] for name in ("positions", "span_positions")}
    else:
        places = {"positions": batch["positions"] + batch["span_positions"]}
    logits = lm.model(batch["inputs"], prefix_lengths=batch["prefix_lengths"], **places)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert count == int((batch["targets"] != -100).sum())


def test_sequences_are_never_longer_than_asked(tokenizer, plain):
    objective = BlankInfilling.for_tokenizer(tokenizer)
    for length in (3, 4, 10, 64, 200):
        window = objective.window_length(length)
        longest = max(arrays(tokenizer, plain(50, window), seed)["inputs"].shape[1] for seed in range(5))
        assert longest <= length
