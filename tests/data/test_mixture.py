import numpy as np
import pytest

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.data.mixture import shares_of


def texts(letter, count, length):
    return [f"{letter}{number:06d}".ljust(length, letter) for number in range(count)]


A, B = texts("a", 200, 50), texts("b", 1000, 20)


def bytes_of(mixed, letter):
    return sum(len(text) for text in mixed["text"] if text[0] == letter)


def test_shares_hold_for_the_whole_and_for_every_stretch():
    mixed = nb.data.mix({"a": A, "b": B}, weights={"a": 3, "b": 1})
    assert bytes_of(mixed, "a") == 10_000  # the scarce one is used once, whole
    assert bytes_of(mixed, "b") == pytest.approx(10_000 / 3, abs=20)
    assert sorted(text for text in mixed["text"] if text[0] == "a") == A
    fourth = mixed.select(range(len(mixed) // 4))
    assert bytes_of(fourth, "a") / bytes_of(fourth, "b") == pytest.approx(3, rel=0.1)
    assert {name for name, text in zip(mixed["mixture"], mixed["text"], strict=True) if text[0] == "b"} == {
        "b"
    }


def test_without_weights_sizes_and_temperature_decide():
    assert len(nb.data.mix({"a": A, "b": B})) == 1200
    even = nb.data.mix({"a": A, "b": B}, temperature=1e9)
    assert bytes_of(even, "a") == pytest.approx(bytes_of(even, "b"), abs=50)
    for temperature in (1.0, 2.0, 5.0):  # p ~ n^(1/T), by hand
        expected = np.array([100.0, 400.0]) ** (1 / temperature)
        found = shares_of({"a": 100, "b": 400}, None, temperature, 1.0)
        np.testing.assert_allclose([share.share for share in found.values()], expected / expected.sum())


def test_texts_are_repeated_in_another_order_up_to_the_epochs():
    mixed = nb.data.mix({"a": A, "b": B}, weights={"a": 0.8, "b": 0.2}, epochs=2.5)
    chosen = [text for text in mixed["text"] if text[0] == "a"]
    assert len(chosen) == 500
    assert sorted(chosen[:200]) == sorted(chosen[200:400]) == A
    assert chosen[:200] != chosen[200:400]
    assert len(set(chosen[400:])) == 100
    assert "2.5 epochs" in mixed.info.description


def test_the_seed_alone_decides_the_order():
    first, again, other = (nb.data.mix({"a": A, "b": B}, seed=seed)["text"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_columns_and_one_source():
    only = nb.data.mix({"docs": nb.data.load("pydocs")})
    assert only.column_names == ["text", "source", "mixture"]
    assert nb.data.mix({"a": A, "docs": "pydocs"}).column_names[0] == "text"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": {"a": 1}}, "no weight of 'b'"),
        ({"weights": {"a": 1, "b": 0}}, "above 0"),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, "no text 'c'"),
        ({"weights": {"a": 1, "b": 1}, "temperature": 2}, "temperature"),
        ({"temperature": 0}, "temperature"),
        ({"epochs": float("inf")}, "epochs"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(UserError, match=said):
        nb.data.mix({"a": A, "b": B}, **settings)


def test_empty_texts_are_named():
    with pytest.raises(DataError, match="no text in 'b'"):
        nb.data.mix({"a": A, "b": [""]})
    with pytest.raises(UserError, match="by name"):
        nb.data.mix([A, B])
