"""On a toy of 64 sequences the optimum is known: DPO and IPO reach it."""

import pytest
import torch

from nbllm.finetuning.alignment.dpo import DirectPreference, preference_loss
from nbllm.finetuning.alignment.ipo import IdentityPreference
from nbllm.finetuning.alignment.orpo import log1mexp

TOKENS, LENGTH, BETA = 4, 3, 0.5
SEQUENCES = torch.cartesian_prod(*[torch.arange(TOKENS)] * LENGTH)
STATES = sum(TOKENS**place for place in range(LENGTH))  # every beginning of a sequence


class Tabular(torch.nn.Module):
    """A distribution over the sequences, with logits of its own for every beginning."""

    head_bias, logit_softcap = None, 0.0

    def __init__(self, seed):
        super().__init__()
        drawn = torch.randn(TOKENS, STATES, generator=torch.Generator().manual_seed(seed))
        self.head_weight = torch.nn.Parameter(drawn)

    def hidden(self, input_ids):
        state, states = torch.zeros_like(input_ids[:, 0]), []
        for place in range(LENGTH):  # the first token begins all of them
            states.append(state)
            if place + 1 < LENGTH:
                state = state * TOKENS + 1 + input_ids[:, place + 1]
        return torch.nn.functional.one_hot(torch.stack(states, 1), STATES).float()

    def log_probs(self):
        logits = torch.log_softmax(self.head_weight, 0)
        hidden = self.hidden(inputs_of(SEQUENCES))
        return torch.einsum("bps,ts->bpt", hidden, logits).gather(2, SEQUENCES[..., None]).sum((1, 2))


def inputs_of(sequences):
    return torch.nn.functional.pad(sequences[..., :-1], (1, 0))


def learn(objective, values, reference, preferred):
    """Return the policy after learning from every ordered pair, weighed with how often it is preferred so."""
    first, second = (
        each.flatten() for each in torch.meshgrid(*[torch.arange(len(SEQUENCES))] * 2, indexing="ij")
    )
    keep = first != second
    pairs = torch.stack([first[keep], second[keep]], 1)
    batch = {
        "inputs": inputs_of(SEQUENCES[pairs]), "targets": SEQUENCES[pairs],
        "reference": reference.log_probs().detach()[pairs], "weight": preferred[pairs[:, 0], pairs[:, 1]],
    }  # fmt: skip
    policy = Tabular(99)
    objective.configure(values)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, count = objective.loss(policy, batch)
        (loss / count).backward()
        return loss.detach() / count

    optimizer.step(closure)
    return policy.log_probs().detach()


def divergence(policy, reference, reward, beta):
    optimum = torch.log_softmax(reference.log_probs().detach() + reward / beta, 0)
    return float((optimum.exp() * (optimum - policy)).sum())


@pytest.mark.parametrize("seed", range(3))
def test_dpo_reaches_the_optimum_of_the_reward(seed):
    """Where preferences follow Bradley and Terry's model of a reward."""
    reference = Tabular(seed)
    reward = torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(50 + seed))
    preferred = torch.sigmoid(reward[:, None] - reward)
    values = {"beta": BETA, "label_smoothing": 0.0, "robust": False}
    policy = learn(DirectPreference(), values, reference, preferred)
    assert divergence(policy, reference, reward, BETA) < 1e-3
    assert divergence(policy, reference, reward, 2 * BETA) > 0.05  # it is not just near everything
    flipped = learn(DirectPreference(), values, reference, preferred.t())
    assert divergence(flipped, reference, reward, BETA) > 1
    robust = values | {"label_smoothing": 0.2, "robust": True}  # so many are wrong, and it does not matter
    noisy = 0.8 * preferred + 0.2 * preferred.t()
    assert divergence(learn(DirectPreference(), robust, reference, noisy), reference, reward, BETA) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_ipo_reaches_the_optimum_of_the_preferences(seed):
    """Where the chance of being preferred is linear in a reward."""
    reference = Tabular(seed)
    reward = torch.rand(len(SEQUENCES), generator=torch.Generator().manual_seed(50 + seed))
    preferred = (1 + reward[:, None] - reward) / 2
    policy = learn(IdentityPreference(), {"beta": BETA}, reference, preferred)
    beta = 2 * BETA / LENGTH  # log-ratios are means over tokens
    assert divergence(policy, reference, reward, beta) < 1e-3
    assert divergence(policy, reference, reward, 2 * beta) > 0.02


def test_losses_of_a_margin_of_one():
    one = torch.ones(1)
    assert float(preference_loss(0 * one)) == pytest.approx(0.693147, abs=1e-6)
    assert float(preference_loss(one, 0.1)) == pytest.approx(0.413262, abs=1e-6)
    assert float(preference_loss(one, 0.1, robust=True)) == pytest.approx(0.188262, abs=1e-6)


def test_log_of_one_less_a_probability():
    x = torch.tensor([-50.0, -5.0, -0.7, -0.69, -1e-3, -1e-20, 0.0], requires_grad=True)
    found = log1mexp(x)
    exact = torch.log(-torch.expm1(x.detach().double()))
    torch.testing.assert_close(found[:-1].detach().double(), exact[:-1], rtol=1e-6, atol=1e-12)
    found.sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all()
