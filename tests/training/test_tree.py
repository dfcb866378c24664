"""What a loop saves comes back as it was, from safetensors and JSON alone."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from nbllm.core.errors import RunError, UserError
from nbllm.training.tree import STRUCTURE, read_tree, write_tree


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))


def test_everything_that_state_dicts_hold_comes_back(tmp_path):
    weight = torch.randn(3, 4)
    tree = {
        "tied": [weight, weight, weight.T, weight[1:]],
        0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999), None: [], True: {}, 1.5: b"\x00\xff"},
        "array": np.arange(5, dtype=np.uint32),
        "arrays": [np.array(3.5), np.arange(6)[::-2], np.ones((2, 3), dtype=np.complex64).T],
        "empty": torch.empty(0, 2),
        "half": torch.randn(2).bfloat16(),
        "numbers": [1, -2.5, float("nan"), float("inf"), -float("inf"), False, "text/\u202e", 2**100],
        "python": random.getstate(),
    }
    write_tree(tmp_path, tree)
    same(read_tree(tmp_path), {**tree, "tied": [weight, weight, weight.T.contiguous(), weight[1:]]})


def test_numbers_of_numpy_come_back_as_numbers_of_python(tmp_path):
    write_tree(tmp_path, [np.float64(2.5), np.int32(7), np.bool_(True)])
    same(read_tree(tmp_path), [2.5, 7, True])


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"model": {"hook": print}}, "/model/hook"),
        ([1, {2, 3}], "/1"),
        ({(1, 2): 3}, "its top"),
        ({"o": np.array([object()])}, "/o"),
        ({"sparse": torch.eye(2).to_sparse()}, "/sparse"),
        ({"meta": torch.empty(2, device="meta")}, "/meta"),
        ({"wide": torch.zeros(2, dtype=torch.complex128)}, "/wide"),
        ({"wide": np.zeros(2, dtype=np.complex128)}, "/wide"),
        ({"texts": np.array(["x"])}, "/texts"),
        ({"times": np.array([1], dtype="datetime64[s]")}, "/times"),
        ({"swapped": np.arange(3, dtype=np.dtype(np.int32).newbyteorder())}, "/swapped"),
        ({"d": {float("inf"): 1}}, "/d"),
        (object(), "its top"),
    ],
)
def test_what_would_need_pickle_is_refused_with_its_place(tmp_path, tree, where):
    with pytest.raises(UserError, match=where):
        write_tree(tmp_path, tree)
    assert list(tmp_path.iterdir()) == []


def test_a_tree_without_end_is_refused(tmp_path):
    tree = []
    tree.append(tree)
    with pytest.raises(UserError, match="too deeply"):
        write_tree(tmp_path, tree)


@pytest.mark.parametrize(
    "text", ["", "[", '{"call": 1}', '{"tensor": "gone"}', '{"a": 1, "b": 2}', '{"dict": 3}']
)
def test_a_damaged_file_is_an_error_and_not_obeyed(tmp_path, text):
    write_tree(tmp_path, {"a": torch.ones(1)})
    (tmp_path / STRUCTURE).write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        read_tree(tmp_path)


def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path):
    def steps(model, optimizer, num):
        for number in range(num):
            loss = model(torch.full((2, 3), float(number))).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)

    one, other = make(), make()
    steps(*one, 3)
    write_tree(tmp_path, [part.state_dict() for part in one])
    for part, state in zip(other, read_tree(tmp_path), strict=True):
        part.load_state_dict(state)
    steps(*one, 3)
    steps(*other, 3)
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True))
    assert json.loads((tmp_path / STRUCTURE).read_text())  # plain JSON
