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


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_dr_grpo_reaches_its_optimum(seed, unbiased):
    """Of one token out of 64. The plain gradient of k3 is that of KL(reference, policy), with an optimum of its own."""
    table, rewards = toy(seed, num_tokens=64, length=1)
    reference = table.log_probs()
    train(
        table, rewards, "grpo", seed, answers=2048, steps=250, lr=0.1, kl_coefficient=BETA,
        normalization="dr_grpo", unbiased_kl_gradient=unbiased,
    )  # fmt: skip
    tilted = (reference + rewards.double() / BETA).log_softmax(0)
    low, high = float(rewards.max()), float(rewards.max()) + BETA
    for _ in range(80):  # ref beta / (c - r), with c such that the probabilities add up to 1
        middle = (low + high) / 2
        total = float((BETA * reference.exp() / (middle - rewards.double())).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    other = (BETA * reference.exp() / (high - rewards.double())).log()
    right, wrong = (tilted, other) if unbiased else (other, tilted)
    assert divergence(table.log_probs(), right) < 1e-3
    assert divergence(table.log_probs(), wrong) > 1e-2
