import numpy as np
import pytest
import torch

from nbllm.finetuning.alignment.advantages import (
    at_last_token,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    token_rewards,
    whitened,
)
from nbllm.finetuning.alignment.prompts import Prompt
from nbllm.finetuning.alignment.rollouts import Answers

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def test_the_score_is_read_at_the_end_of_the_answer_whatever_the_prompt_holds():
    """t0 t1 eos pad: the reward is index 2's; an end token in the prompt ends nothing (trl#3750, #2012)."""
    prompts, tokens = [[9, 2, 2], [9]], [[5, 6, 2], [3, 5, 6, 7]]
    answers = Answers([Prompt("a"), Prompt("b")], prompts, tokens, [True, False], ["", ""])
    batch = answers.to_batch("cpu")
    assert batch["mask"].tolist() == [[True, True, True, False], [True] * 4]
    assert batch["inputs"].tolist() == [[9, 2, 2, 5, 6], [9, 3, 5, 6, 0]]
    placed = at_last_token(torch.tensor([1.0, 2.0]), batch["mask"])
    assert placed.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2]]


def test_the_score_stands_at_the_last_token():
    placed = at_last_token(torch.tensor([1.0, 2.0, 3.0]), MASK)
    assert placed.tolist() == [[0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 3]]
    assert at_last_token(torch.tensor([1.0]), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


def test_each_token_pays_for_its_divergence():
    kl = torch.full((3, 4), 0.5)
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, MASK, coefficient=0.2)
    assert rewards.tolist() == [
        pytest.approx([-0.1, -0.1, 0.9, 0]),
        pytest.approx([1.9, 0, 0, 0]),
        pytest.approx([-0.1, -0.1, -0.1, 2.9]),
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.5), (1.0, 0.0)])
def test_advantages_are_the_weighted_sum_of_the_errors_to_come(gamma, lam):
    draw = np.random.default_rng(0)
    rewards, values = draw.normal(size=(3, 4)), draw.normal(size=(3, 4))
    expected = np.zeros((3, 4))
    for row, length in enumerate([3, 1, 4]):
        error = [
            rewards[row, t] + gamma * (values[row, t + 1] if t + 1 < length else 0) - values[row, t]
            for t in range(length)
        ]
        for t in range(length):
            expected[row, t] = sum((gamma * lam) ** (s - t) * error[s] for s in range(t, length))
    found, returns = generalized_advantages(
        torch.from_numpy(rewards), torch.from_numpy(values), MASK, gamma=gamma, lam=lam
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values * MASK.numpy(), atol=1e-12)


def test_padding_has_no_part_in_whitening():
    values = torch.tensor([[1.0, 2, 3, 9e9], [4, 9e9, 9e9, 9e9], [5, 6, 7, 8]])
    found = whitened(values, MASK)
    chosen = found[MASK]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-6) and float(chosen.std()) == pytest.approx(1)
    assert (found[~MASK] == 0).all()
    one = torch.zeros(3, 4, dtype=torch.bool)
    assert (whitened(values, one) == 0).all()
    one[0, 0] = True
    assert (whitened(values, one) == 0).all()


def test_advantages_within_a_group():
    scores = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    assert group_advantages(scores, 3, scale=False).tolist() == [-1, 0, 1, 0, 0, 0]
    assert group_advantages(scores, 3, scale=True).tolist() == pytest.approx(
        [-1 / 1.0001, 0, 1 / 1.0001, 0, 0, 0]
    )
    assert leave_one_out_advantages(scores, 3).tolist() == [-1.5, 0, 1.5, 0, 0, 0]
