"""Policies reach the optimum that is known in closed form; with a sign or a place wrong they do not."""

import pytest

from nbllm.finetuning.alignment import ppo as ppo_module
from tests.finetuning.alignment.toy import divergence, toy, train

BETA = 0.5
PPO = {
    "answers": 512, "steps": 200, "lr": 0.1, "updates": 1, "value_lr": 0.1, "value_coefficient": 1.0,
}  # fmt: skip
SEEDS = (0, 1, 2, 3, 4)


def reached(method, seed, **settings):
    """Return KL to the optimum pi_ref exp(r / beta) / Z, and how much of beta log Z is missed."""
    table, rewards = toy(seed)
    reference = table.log_probs()
    tilted = reference + rewards.double() / BETA
    train(table, rewards, method, seed, kl_coefficient=BETA, **settings)
    policy = table.log_probs()
    value = (policy.exp() * rewards).sum() - BETA * divergence(policy, reference)
    return divergence(policy, tilted.log_softmax(0)), float(BETA * tilted.logsumexp(0) - value)


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_reaches_the_optimum(seed):
    gap, missed = reached("ppo", seed, **PPO)
    assert gap < 1e-3
    assert abs(missed) < 1e-3


def test_a_flipped_sign_of_the_divergence_would_be_found(monkeypatch):
    right = ppo_module.token_rewards
    monkeypatch.setattr(
        ppo_module, "token_rewards", lambda *args, coefficient: right(*args, coefficient=-coefficient)
    )
    assert reached("ppo", 0, **PPO)[0] > 1e-2


def test_advantages_shifted_by_one_token_would_be_found(monkeypatch):
    right = ppo_module.generalized_advantages

    def shifted(*args, **kwargs):
        advantages, returns = right(*args, **kwargs)
        return advantages.roll(1, dims=1), returns

    monkeypatch.setattr(ppo_module, "generalized_advantages", shifted)
    assert reached("ppo", 0, **PPO)[0] > 1e-2


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_rloo_reaches_the_optimum(seed):
    gap, missed = reached("rloo", seed, answers=1024, steps=200, lr=0.1)
    assert gap < 1e-3
    assert abs(missed) < 1e-3


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_dr_grpo_reaches_its_optimum(seed):
    """Of one token out of 64. What k3's gradient trains down is KL(reference, policy): policy = ref beta / (c - r)."""
    table, rewards = toy(seed, num_tokens=64, length=1)
    reference = table.log_probs().exp()
    train(
        table, rewards, "grpo", seed, answers=1024, steps=250, lr=0.1, kl_coefficient=BETA,
        normalization="dr_grpo",
    )  # fmt: skip
    low, high = float(rewards.max()), float(rewards.max()) + BETA
    for _ in range(80):  # the constant for which the probabilities add up to 1
        middle = (low + high) / 2
        total = float((BETA * reference / (middle - rewards.double())).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    best = (BETA * reference / (high - rewards.double())).log()
    assert divergence(table.log_probs(), best) < 1e-3
