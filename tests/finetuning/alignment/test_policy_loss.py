import math

import pytest
import torch

from nbllm.finetuning.alignment.policy_loss import averaged, clipped_surrogate, value_loss


def gradient(ratio, advantage):
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, is_clipped = clipped_surrogate(log_probs, torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    loss.sum().backward()
    return float(log_probs.grad), bool(is_clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0), (1.1, 2.0, -2.2), (1.3, 2.0, 0.0), (0.5, 2.0, -1.0),
        (0.9, -2.0, 1.8), (0.7, -2.0, 0.0), (1.5, -2.0, 3.0), (1.5, 0.0, 0.0),
    ],
)  # fmt: skip
def test_a_ratio_that_has_left_its_bounds_for_the_better_has_no_gradient(ratio, advantage, expected):
    found, is_clipped = gradient(ratio, advantage)
    assert found == pytest.approx(expected)
    assert is_clipped == (expected == 0 and advantage != 0)


def test_a_value_gains_nothing_beyond_its_bounds():
    values = torch.tensor([[0.1, 0.5, -0.5, 3.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    loss = value_loss(values, old, returns, clip=0.2)
    assert loss.tolist()[0] == pytest.approx([0.405, 0.32, 1.125, 2.0])
    loss.sum().backward()
    assert values.grad.tolist()[0] == pytest.approx([-0.9, 0.0, -1.5, 2.0])


def test_what_counts_as_much_as_what():
    losses = torch.tensor([[1.0, 3.0, float("nan")], [6.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])

    def mean(over):
        total, count = averaged(losses, mask, over=over, longest=5)
        return float(total / count)

    assert mean("sequence") == pytest.approx(4.0)
    assert mean("token") == pytest.approx(10 / 3)
    assert mean("fixed") == pytest.approx(1.0)
