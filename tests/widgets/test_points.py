from __future__ import annotations

import numpy as np

from nbllm.runs.timeline import Points
from nbllm.widgets.points import MOST, columns, packed, thinned


def points(count):
    found = Points()
    for i in range(1, count + 1):
        found.add([{"step": i, "loss": 1 / i, "tokens": i * 10_000_000_001, "time": 1.7e9 + i}])
    return found


def test_columns_travel_as_bytes_that_say_what_they_are():
    described, buffers = packed(columns(points(5), 1, 4))
    table = {d["name"]: np.frombuffer(b, d["dtype"]) for d, b in zip(described, buffers, strict=True)}
    assert table["step"].tolist() == [2, 3, 4]
    assert table["tokens"].tolist() == [i * 10_000_000_001 for i in (2, 3, 4)]  # no rounding
    assert table["loss"].dtype == np.float32
    np.testing.assert_allclose(table["loss"], [1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    assert all(d["length"] == 3 for d in described)


def test_all_columns_are_thinned_at_the_same_places():
    table = thinned(columns(points(50_000)))
    assert len(table["step"]) <= MOST
    np.testing.assert_array_equal(table["tokens"], table["step"] * 10_000_000_001)
    np.testing.assert_allclose(table["loss"], 1 / table["step"])


def test_a_number_too_large_for_float32_is_infinite_and_no_warning():
    _, buffers = packed({"step": np.array([1.0]), "grad_norm": np.array([1e200])})
    assert np.isinf(np.frombuffer(buffers[1], "float32")).all()
