"""Guesses from what a text has said before: what they are, and that they change no text."""

import pytest
import torch

from nbllm.inference import engine, prepared
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import generate_ids
from nbllm.inference.lookup import Lookup


def test_a_guess_is_what_followed_last_time():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.guess(9) == [4, 5], "a first guess is short"
    assert lookup.guess(1) == [4]
    assert lookup.guess(0) == []


def test_the_longer_end_and_the_later_place_are_preferred():
    assert Lookup([1, 2, 3, 10, 11, 12, 9, 2, 3, 20, 21, 22, 1, 2, 3]).guess(3) == [10, 11]
    assert Lookup([1, 2, 3, 10, 0, 1, 2, 3, 20, 21, 22, 1, 2, 3]).guess(3) == [20, 21]


def test_what_goes_round_is_guessed_to_go_round():
    assert Lookup([5, 6, 5, 6, 5]).guess(3) == [6, 5]
    assert Lookup([5] * 4).guess(3) == [5, 5]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_nothing_is_guessed_of_what_is_new(tokens):
    assert Lookup(tokens).guess(3) == []


def test_guesses_that_come_true_grow():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 1, 2, 3])
    assert lookup.guess(9) == [4, 5]
    assert [lookup.add(token) for token in (4, 5)] == [True, True]
    assert not lookup.add(6), "all of the guess had come true already"
    assert lookup.guess(9) == [7, 8, 9, 10, 11, 12, 13]
    assert lookup.add(7) and not lookup.add(99)
    lookup.add(1), lookup.add(2)
    assert len(lookup.guess(9)) == 2


def test_wrong_guesses_make_it_wait_longer_and_longer():
    lookup, waits = Lookup([1, 2] * 3), []
    for _ in range(7):
        wait = 0
        while not lookup.guess(3):
            lookup.add(1 + (lookup._tokens[-1] == 1))
            wait += 1
        waits.append(wait)
        assert not lookup.add(100 + len(waits))
        lookup.add(1), lookup.add(2)
    assert waits == [0, 2, 4, 8, 16, 32, 32]


@pytest.fixture(params=["gpt2", "llama"])
def model(request, make_model, monkeypatch):
    monkeypatch.setattr(prepared, "FEWEST", 0)
    return make_model(request.param)


class Silent(Lookup):
    def guess(self, most):
        return super().guess(0)


class Mistaken(Lookup):
    """Always guesses, and often wrongly."""

    def guess(self, most):
        self._guess = [self._tokens[-1], 7, 8, 9, 10, 11][: max(most, 0)]
        return list(self._guess)


@pytest.mark.parametrize("config", [
    SamplingConfig(temperature=0, max_new_tokens=60),
    SamplingConfig(temperature=0.6, max_new_tokens=60, repetition_penalty=1.2, seed=3),
    SamplingConfig(temperature=1.2, top_p=0.9, max_new_tokens=90, overflow="slide", seed=4),
], ids=["greedy", "penalized", "sliding"])  # fmt: skip
def test_a_text_is_the_same_with_guesses_without_and_with_wrong_ones(model, config, monkeypatch):
    prompts = [[1, 2, 3, 4, 1, 2, 3], [9] * 5, list(range(3))]
    texts, reads = {}, {}
    call = prepared.Steps.__call__
    for kind in (Lookup, Silent, Mistaken):
        counts = []
        monkeypatch.setattr(engine, "Lookup", kind)
        monkeypatch.setattr(
            prepared.Steps,
            "__call__",
            lambda self, tokens, c=counts: c.append(len(tokens[0])) or call(self, tokens),
        )
        texts[kind] = [generate_ids(model, [prompt], config, eos_id=None)[0] for prompt in prompts]
        reads[kind] = counts
    assert texts[Lookup] == texts[Silent] == texts[Mistaken]
    assert set(reads[Silent]) == {1} and max(reads[Mistaken]) > 1


def test_a_guess_that_comes_true_is_not_read_again(model, monkeypatch):
    config, prompt = SamplingConfig(temperature=0, max_new_tokens=33), [1, 2, 3]
    (text,) = generate_ids(model, [prompt], config, eos_id=None)

    class Knowing(Lookup):
        def guess(self, most):
            done = len(self._tokens) - len(prompt)
            self._guess = text[done : done + min(most, 7)]
            return list(self._guess)

    reads, call = [], prepared.Steps.__call__
    monkeypatch.setattr(engine, "Lookup", Knowing)
    monkeypatch.setattr(
        prepared.Steps, "__call__", lambda self, tokens: reads.append(len(tokens[0])) or call(self, tokens)
    )
    assert generate_ids(model, [prompt], config, eos_id=None) == [text]
    assert reads == [8, 8, 8, 8]  # 33 tokens: the first comes with the prompt, and the last is not read


def test_tokens_read_together_get_the_bits_that_they_get_one_by_one(model):
    ids = torch.arange(3, 11).tolist()
    with torch.inference_mode():
        one, all_ = (model.make_cache(1, 20) for _ in range(2))
        made = prepared.Prepared()
        padding = torch.zeros(1, dtype=torch.int64)
        steps = prepared.Steps(model, made, one, padding)
        alone = torch.stack([steps([[token]])[0, 0].clone() for token in ids])
        for buffer in all_.buffers:
            buffer.zero_()
        together = prepared.Steps(model, made, all_, padding)([ids])[0].clone()
    assert torch.equal(alone, together) and len(ids) == steps.rows
    for own, other in zip(one.buffers, all_.buffers, strict=True):
        assert torch.equal(own, other)
