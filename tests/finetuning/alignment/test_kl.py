import numpy as np
import pytest
import torch

from nbllm.finetuning.alignment.kl import ESTIMATORS, adapted_coefficient


@pytest.mark.parametrize(
    ("name", "bias", "deviation"), [("k1", 0, 20), ("k2", 0.0025, 1.418), ("k3", 0, 1.417)]
)
def test_bias_and_deviation_of_the_estimators_between_two_gaussians(name, bias, deviation):
    # Between N(0, 1) and N(.1, 1), whose divergence is .005; the expectations by Gauss-Hermite quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    found = ESTIMATORS[name]((x - 0.1).square() / 2 - x.square() / 2)
    mean = float((weights * found).sum())
    spread = float((weights * (found - mean).square()).sum().sqrt())
    assert mean / 0.005 - 1 == pytest.approx(bias, abs=1e-8)
    assert spread / 0.005 == pytest.approx(deviation, abs=6e-4)


def test_the_coefficient_rises_above_its_target_and_falls_below_by_at_most_a_fifth_a_horizon():
    def after(kl):
        return adapted_coefficient(0.2, kl, target=6.0, horizon=10_000, num_sequences=1000)

    assert after(6.0) == 0.2
    assert after(6.6) == pytest.approx(0.2 * 1.01)
    assert after(600.0) == pytest.approx(0.2 * 1.02)
    assert after(0.0) == after(-5.0) == pytest.approx(0.2 * 0.98)
