"""The filters against transformers' logits processors, the draw against its distribution."""

import pytest
import torch
from transformers.generation import logits_process as reference

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.sampling import (
    choose,
    draw,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)


@pytest.fixture
def logits():
    return torch.randn(16, 500, generator=torch.Generator().manual_seed(3)) * 4


@pytest.mark.parametrize("count", [1, 2, 50, 499, 500, 9000])
def test_top_k_as_transformers(logits, count):
    assert torch.equal(keep_top_k(logits, count), reference.TopKLogitsWarper(count)(None, logits))


def test_top_k_keeps_ties_as_transformers():
    tied = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    kept = keep_top_k(tied, 1)
    assert torch.equal(kept, reference.TopKLogitsWarper(1)(None, tied))
    assert kept.isfinite().sum() == 2


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999])
def test_top_p_as_transformers(logits, mass):
    assert torch.equal(keep_top_p(logits, mass), reference.TopPLogitsWarper(mass)(None, logits))


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.5, 5.0], ids=["flat", "peaked"])
def test_top_p_of_a_large_vocabulary_as_transformers(mass, spread):
    """Of a peaked distribution only the likeliest are sorted."""
    logits = spread * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(2))
    kept = keep_top_p(logits, mass)
    assert torch.equal(kept, reference.TopPLogitsWarper(mass)(None, logits))
    assert (kept.isfinite().sum(-1) > 512).all() == (spread < 1 and mass > 0.05)


@pytest.mark.parametrize("mass", [0.3, 0.5, 0.9])
def test_top_p_is_the_smallest_set_that_reaches_the_mass(logits, mass):
    probabilities = logits.double().softmax(-1)
    for row, kept in zip(probabilities, keep_top_p(logits, mass).isfinite(), strict=True):
        chosen = row[kept]
        assert chosen.sum() >= mass - 1e-6
        assert chosen.sum() - chosen.min() < mass + 1e-6
        assert row[~kept].max() <= chosen.min()


@pytest.mark.parametrize("share", [1e-4, 0.05, 0.5, 1.0])
def test_min_p_as_transformers(logits, share):
    assert torch.equal(keep_min_p(logits, share), reference.MinPLogitsWarper(share)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_repetition_penalty_as_transformers(logits, penalty):
    ids = torch.randint(0, 500, (16, 40), generator=torch.Generator().manual_seed(4))
    seen = torch.zeros(16, 500, dtype=torch.bool).scatter(1, ids, True)
    expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalize_repetition(logits, seen, penalty), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_whole_chain_gives_transformers_distribution(logits, temperature):
    config = SamplingConfig(temperature=temperature, top_k=60, top_p=0.9, min_p=0.02)
    expected = logits
    for warper in (
        reference.TemperatureLogitsWarper(temperature),
        reference.TopKLogitsWarper(60),
        reference.TopPLogitsWarper(0.9),
        reference.MinPLogitsWarper(0.02),
    ):
        expected = warper(None, expected)
    ours = filter_logits(logits, config)
    assert torch.equal(ours.isfinite(), expected.isfinite())
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1), rtol=1e-5, atol=1e-7)


def test_temperature_alone_as_transformers(logits):
    ours = filter_logits(logits, SamplingConfig(temperature=0.7))
    expected = reference.TemperatureLogitsWarper(0.7)(None, logits)
    torch.testing.assert_close(ours.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=2e-5)


def test_a_tiny_temperature_is_greedy_and_finite(logits):
    config = SamplingConfig(temperature=1e-30)
    generators = [torch.Generator().manual_seed(i) for i in range(16)]
    assert torch.equal(choose(logits, config, generators), logits.argmax(-1))


def test_draw_follows_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).log()[None]
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = draw(logits.expand(100_000, -1), uniform).bincount(minlength=5)
    assert torch.allclose(counts / 100_000, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]), atol=2e-5)


@pytest.mark.parametrize("excluded", [0, 4])
def test_draw_never_takes_an_excluded_token_at_either_end(excluded):
    logits = torch.zeros(2, 5)
    logits[:, excluded] = float("-inf")
    tokens = draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == ([1, 4] if excluded == 0 else [0, 3])


def test_the_largest_uniform_number_never_lies_beyond_the_last_token():
    for scale in (0.01, 1.0, 20.0):
        many = torch.randn(500, 97, generator=torch.Generator().manual_seed(5)) * scale
        many[:, 90:] = float("-inf")
        tokens = draw(many, torch.full((500,), 1 - 2**-53, dtype=torch.float64))
        assert tokens.max() < 90


def test_each_row_draws_from_its_own_generator_only(logits):
    config = SamplingConfig()
    state = torch.random.get_rng_state()
    alone = choose(logits[3:4], config, [torch.Generator().manual_seed(7)])
    together = choose(logits, config, [torch.Generator().manual_seed(7 if i == 3 else i) for i in range(16)])
    assert alone[0] == together[3]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be at least 0, not -0.1"),
        ("temperature", float("nan"), "temperature must be at least 0, not nan"),
        ("temperature", float("inf"), "must be finite"),
        ("temperature", "hot", "temperature must be a number, not 'hot'"),
        ("temperature", True, "temperature must be a number, not True"),
        ("top_p", 1.5, "top_p must be greater than 0 and at most 1, not 1.5"),
        ("top_p", 0, "top_p must be greater than 0 and at most 1, not 0"),
        ("min_p", 2, "min_p must be at least 0 and at most 1, not 2"),
        ("top_k", -1, "top_k must be a whole number, at least 0, not -1"),
        ("top_k", 2.5, "top_k must be a whole number, at least 0, not 2.5"),
        ("repetition_penalty", 0, "repetition_penalty must be greater than 0, not 0"),
        ("max_new_tokens", 0, "max_new_tokens must be a whole number, at least 1, not 0"),
        ("batch_size", 0, "batch_size must be a whole number, at least 1, not 0"),
        ("seed", 1.5, "seed must be a whole number or None, not 1.5"),
        ("stop", ("a", ""), "stop holds an empty string"),
        ("stop", 3, "stop must be a string or a list of strings, not 3"),
        ("overflow", "slid", "Did you mean 'slide'?"),
        ("temperatur", 1, "Did you mean 'temperature'?"),
    ],
)
def test_bad_settings_are_refused(setting, value, message):
    with pytest.raises(UserError) as error:
        SamplingConfig.from_dict({setting: value})
    assert message in str(error.value)


def test_stop_takes_one_string_or_many():
    assert SamplingConfig(stop="end").stop == ("end",)
    assert SamplingConfig(stop=["a", "b"]).stop == ("a", "b")
