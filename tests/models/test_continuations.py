"""Sequences read as a tree, against each read alone by `token_log_probabilities`."""

import random

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.models import continuations
from nbllm.models.continuations import continuation_likelihoods
from nbllm.models.network import build
from nbllm.models.peft.prefix_tuning import PTuningV2
from nbllm.models.peft.prompt_tuning import PromptTuning
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.models.scoring import token_log_probabilities

SHAPE = {"vocab_size": 50, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 300}
FAMILIES = [
    ("llama", {}),
    ("gpt2", {}),
    ("opt", {}),
    ("bloom", {}),
    ("mistral", {"sliding_window": 9}),
    ("gemma2", {}),
    ("gemma3", {}),
    ("rwkv", {"num_heads": 1}),
]


@pytest.fixture(scope="module")
def pairs():
    """Questions that share a long beginning, with four choices each, one of them a letter; and what begins a text."""
    chooser = random.Random(0)

    def tokens(low, high):
        return [chooser.randrange(50) for _ in range(chooser.randint(low, high))]

    shots = tokens(100, 100)
    out = [([], [3, 4, 5]), ([], [3]), (shots[:60], shots[60:63])]
    for question in range(12):
        context = (shots if question < 9 else shots[:50]) + tokens(1, 40)
        out += [(context, tokens(1, 5)) for _ in range(3)] + [(context, [7])]
    chooser.shuffle(out)
    return out


@pytest.mark.parametrize("family, more", FAMILIES)
@pytest.mark.parametrize("row", [32, 150, 5000])
def test_each_continuation_is_as_probable_as_alone(family, more, row, pairs, monkeypatch):
    monkeypatch.setattr(continuations, "ROW_ON_CPU", row)
    model = build(make_config(family, **{**SHAPE, **more}))
    found = continuation_likelihoods(model, pairs)
    alone = token_log_probabilities(
        model, [[*context, *after] for context, after in pairs], max_batch_tokens=1
    )
    for (context, after), ours, values in zip(pairs, found, alone, strict=True):
        expected = values[len(context) - 1 :] if context else values
        assert len(ours.values) == len(after) - (not context)
        torch.testing.assert_close(ours.values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [PromptTuning(num_virtual_tokens=3), PTuningV2(num_virtual_tokens=3)])
def test_so_it_is_behind_the_virtual_tokens_of_an_adapter(method, pairs, monkeypatch):
    monkeypatch.setattr(continuations, "ROW_ON_CPU", 150)
    model = build(make_config("llama", **SHAPE))
    plain = continuation_likelihoods(model, pairs)
    AdapterStack(model).attach(method)
    found = continuation_likelihoods(model, pairs)
    alone = token_log_probabilities(
        model, [[*context, *after] for context, after in pairs], max_batch_tokens=1
    )
    for (context, _), ours, values, before in zip(pairs, found, alone, plain, strict=True):
        expected = values[len(context) - 1 :] if context else values
        torch.testing.assert_close(ours.values, expected, rtol=0, atol=1e-5)
        assert not len(expected) or not torch.equal(ours.values, before.values)


def test_greedy_says_whether_the_model_would_write_it(pairs):
    model = build(make_config("llama", **SHAPE))
    context = next(context for context, _ in pairs if len(context) > 100)
    written = list(context)
    with torch.no_grad():
        for _ in range(3):
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
    after = written[len(context) :]
    other = [*after[:2], (after[2] + 1) % 50]
    assert [
        each.greedy for each in continuation_likelihoods(model, [(context, after), (context, other)])
    ] == [
        True,
        False,
    ]


def test_what_is_shared_is_read_once(pairs, monkeypatch):
    monkeypatch.setattr(continuations, "ROW_ON_CPU", 150)
    model = build(make_config("llama", **SHAPE))
    read, real = [], type(model).hidden

    def hidden(self, input_ids, **options):
        read.append(input_ids.numel())
        return real(self, input_ids, **options)

    monkeypatch.setattr(type(model), "hidden", hidden)
    continuation_likelihoods(model, pairs)
    distinct = {
        tuple([*context, *after][:end])
        for context, after in pairs
        for end in range(1, len(context) + len(after))
    }
    assert sum(read) < 1.3 * len(distinct) < sum(len(context) for context, _ in pairs) / 4


def test_a_network_that_takes_no_mask_reads_each_alone(pairs, monkeypatch):
    model = build(make_config("gpt2", **SHAPE))
    expected = continuation_likelihoods(model, pairs)
    monkeypatch.setattr(continuations, "_sees_as_told", lambda model: False)
    for size in (64, 4096):
        for ours, other in zip(
            continuation_likelihoods(model, pairs, max_batch_tokens=size), expected, strict=True
        ):
            torch.testing.assert_close(ours.values, other.values, rtol=0, atol=1e-5)
            assert ours.greedy == other.greedy


def test_tokens_beyond_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="beyond the model's vocabulary of 50"):
        continuation_likelihoods(build(make_config("gpt2", **SHAPE)), [([1], [50])])
