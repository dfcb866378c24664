import doctest

import pytest

from nbllm.core import quantities
from nbllm.core.quantities import column, duration, fixed, iso_minute, moment, number, size


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(quantities)
    assert result.attempted >= 4 and not result.failed


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (-3, "-3"), (1234567, "1,234,567"), (0.1 + 0.2, "0.3"),
     (1e-9, "1e-09"), (2.5e20, "2.5e+20"),
     (9.99996, "10"), (0.00031, "0.00031"), (float("inf"), "inf"), (True, "1"), (123456.7, "123,457")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_a_whole_number_too_large_for_a_float_has_an_exponent():
    assert number(-(10**400)) == "-1e+400"
    assert number(12345 * 10**30) == "1.234e+34"
    assert column([10**400, 0.25, None], "-") == ["1e+400", "0.25", "-"]


def test_fixed_keeps_the_decimals_of_the_figure_it_belongs_to():
    assert [fixed(x, like=2.098) for x in (2.05, 2.1, 12.04)] == ["2.050", "2.100", "12.040"]
    assert fixed(0.0) == "0" and fixed(4303.2) == "4,303"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.25, "0.25 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599.9, "1 h"),
        (90000, "1 d 1 h"),
        (float("nan"), "nan"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_sizes_and_times():
    assert [number(n) for n in (8240.4, -1000.5, 9999.4)] == ["8,240", "-1,000", "9,999"]
    assert size(999.9e6) == "1 GB"
    assert [size(n) for n in (0, 999, 1000, 14_800_000, 3e12)] == ["0 B", "999 B", "1 kB", "14.8 MB", "3 TB"]
    assert moment(0) == "1970-01-01 00:00 UTC" == iso_minute("1970-01-01T00:00:30+00:00")
    assert iso_minute("yesterday") == "yesterday"


@pytest.mark.parametrize("value", [1e299, -1e299, float("nan"), float("inf"), 10**400])
def test_what_is_no_date_or_duration_is_shown_shortly(value):
    assert moment(value) == "?"
    if not isinstance(value, int):
        assert len(duration(value)) < 12
