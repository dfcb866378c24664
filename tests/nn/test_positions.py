import math

import pytest
import torch

from nbllm.nn.positions import LearnedPositions, Places, RotaryPositions, rotate

CPU = torch.device("cpu")


def test_pairs_are_rotated_by_position_times_frequency():
    rotary = RotaryPositions(8, 10000.0)
    x = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x, rotary.angles(Places(slice(0, 5), 5), CPU))
    for position in range(5):
        for i in range(4):
            angle = position * 10000.0 ** (-2 * i / 8)
            a, b = float(x[0, 0, position, i]), float(x[0, 0, position, i + 4])
            assert math.isclose(
                rotated[0, 0, position, i], a * math.cos(angle) - b * math.sin(angle), abs_tol=1e-5
            )
            assert math.isclose(
                rotated[0, 0, position, i + 4], b * math.cos(angle) + a * math.sin(angle), abs_tol=1e-5
            )


def test_scores_depend_on_distance_only():
    rotary = RotaryPositions(16, 10000.0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind(0)

    def score(at, of):
        return float(
            (
                rotate(query, rotary.angles(Places(slice(at, at + 1), 100), CPU))
                * rotate(key, rotary.angles(Places(slice(of, of + 1), 100), CPU))
            ).sum()
        )

    assert math.isclose(score(7, 3), score(94, 90), rel_tol=1e-4)
    assert not math.isclose(score(7, 3), score(7, 5), rel_tol=1e-2)


def test_the_table_grows_and_keeps_its_values():
    rotary = RotaryPositions(8, 500.0)
    before = rotary.angles(Places(slice(0, 10), 10), CPU)[0].clone()
    assert rotary.angles(Places(torch.tensor([[999]]), 1000), CPU)[0].shape == (1, 1, 4)
    assert torch.equal(rotary.angles(Places(slice(0, 10), 10), CPU)[0], before)


def test_a_table_made_in_inference_mode_serves_training():
    rotary = RotaryPositions(8, 500.0)
    with torch.inference_mode():
        rotary.angles(Places(slice(0, 10), 10), CPU)
    x = torch.ones(1, 1, 10, 8, requires_grad=True)
    rotate(x, rotary.angles(Places(slice(0, 10), 10), CPU)).sum().backward()
    assert x.grad is not None


def test_learned_positions_by_slice_and_by_index_agree():
    positions = LearnedPositions(6, 3)
    torch.nn.init.normal_(positions.weight, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(1, 3, 3)
    by_slice = positions.embed(x, Places(slice(2, 5), 5))
    assert torch.equal(by_slice, positions.embed(x, Places(torch.tensor([[2, 3, 4]]), 5)))
    assert torch.equal(by_slice[0], positions.weight[2:5])


def test_learned_positions_with_rows_before_the_first():
    positions = LearnedPositions(4, 3, offset=2)
    torch.nn.init.normal_(positions.weight, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(1, 3, 3)
    assert positions.weight.shape == (6, 3) and positions.limit == 4
    assert torch.equal(positions.embed(x, Places(slice(0, 3), 3))[0], positions.weight[2:5])
    assert torch.equal(
        positions.embed(x, Places(torch.tensor([[3, 0, -1]]), 4))[0], positions.weight[[5, 2, 1]]
    )


def test_rotation_keeps_bfloat16():
    rotary = RotaryPositions(8, 500.0)
    x = torch.ones(1, 2, 3, 8, dtype=torch.bfloat16)
    assert rotate(x, rotary.angles(Places(slice(0, 3), 3), CPU)).dtype == torch.bfloat16


def test_gradients_of_the_rotation():
    rotary = RotaryPositions(6, 500.0)
    rotation = tuple(
        table.double() for table in rotary.angles(Places(torch.tensor([[3, 1, 4], [1, 5, 9]]), 10), CPU)
    )
    x = torch.randn(
        2, 2, 3, 6, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0)
    )
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), x)
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, rotation), x)


@pytest.mark.parametrize("interleaved", [False, True])
def test_both_layouts_rotate_the_first_components_and_leave_the_rest(interleaved):
    scheme = RotaryPositions(6, 1e4, rotary_dim=4, interleaved=interleaved)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 1, 1, 6)
    query, key = scheme.rotate(x, x, Places(slice(1, 2), 2))
    half, neighbours = [-1.98411, 1.95990, 2.46238, 4.01980], [-1.14264, 1.92208, 2.95985, 4.02980]
    expected = torch.tensor([*(neighbours if interleaved else half), 5.0, 6.0])
    for rotated in (query, key):
        torch.testing.assert_close(rotated.flatten(), expected, atol=1e-5, rtol=0)
