import math

import numpy as np
import pytest

from nbllm.core.errors import RefusedError, UserError
from nbllm.runs.settings import Setting, SettingTable, check_settings, declared_settings

LR = Setting(name="lr", low=0, low_open=True, high=1, unit="", help="Learning rate.")
ACCUMULATION = Setting(name="accumulation", kind="int", low=1, high=64)
FREEZE = Setting(name="freeze", kind="patterns")


@pytest.mark.parametrize(
    ("setting", "given", "wanted"),
    [
        (LR, 1e-3, 1e-3),
        (LR, 1, 1.0),
        (LR, "2e-4", 2e-4),
        (LR, np.float32(0.5), 0.5),
        (ACCUMULATION, 8.0, 8),
        (ACCUMULATION, "16", 16),
        (ACCUMULATION, np.int64(3), 3),
        (FREEZE, "blocks.*", ["blocks.*"]),
        (FREEZE, ("a", "b"), ["a", "b"]),
    ],
)
def test_values_are_brought_to_their_kind(setting, given, wanted):
    value = setting.check(given)
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("setting", "given", "message"),
    [
        (LR, 0, "lr must be above 0 and at most 1, not 0"),
        (LR, 1.5, "at most 1, not 1.5"),
        (LR, math.nan, "lr must be a number, not nan"),
        (LR, math.inf, "lr must be a number, not inf"),
        (LR, 10**400, "lr must be a number"),
        (LR, True, "lr must be a number, not True"),
        (LR, "fast", "lr must be a number, not 'fast'"),
        (LR, None, "lr must be a number, not None"),
        (LR, b"1", "lr must be a number"),
        (ACCUMULATION, 2.5, "accumulation must be a whole number, not 2.5"),
        (ACCUMULATION, 0, "at least 1 and at most 64, not 0"),
        (FREEZE, [], "must be one or more names"),
        (FREEZE, ["a", 3], "must be names of model parts, not 3"),
        (FREEZE, [" "], "must be names of model parts"),
        (FREEZE, 5, "must be one or more names"),
        (FREEZE, ["x"] * 1001, "at most 1000 names"),
    ],
)
def test_refusals_say_why(setting, given, message):
    with pytest.raises(RefusedError) as caught:
        setting.check(given)
    assert message in caught.value.what


def test_open_and_missing_bounds():
    assert Setting(name="x").check(-1e9) == -1e9
    half_open = Setting(name="beta", low=0, high=1, high_open=True)
    assert half_open.check(0) == 0
    with pytest.raises(RefusedError, match="at least 0 and below 1"):
        half_open.check(1)


def test_settings_are_checked_together_and_unknown_ones_named():
    assert check_settings([LR, ACCUMULATION, FREEZE], {"lr": "0.1", "accumulation": 2}) == {
        "lr": 0.1,
        "accumulation": 2,
    }
    with pytest.raises(RefusedError, match=r"no setting 'lrr'[\s\S]*Did you mean 'lr'"):
        check_settings([LR], {"lrr": 1})
    with pytest.raises(RefusedError, match="no setting 'freeze'"):
        check_settings([LR, FREEZE], {"freeze": "a"})
    with pytest.raises(RefusedError, match="It offers: accumulation, lr"):
        check_settings([LR, ACCUMULATION], {})
    with pytest.raises(RefusedError, match="offers nothing"):
        check_settings([], {"lr": 1})


def test_the_record_round_trip_and_what_a_hostile_record_holds():
    strange = [
        7,
        {},
        {"name": 1},
        {"name": "a", "kind": "code"},
        {"name": "b", "low": "x"},
        {"name": "c", "extra": 1},
    ]
    strange += [{"name": "d", "high": 10**400}, {"name": "e", "help": ["x"]}, None]
    assert declared_settings({"settings": [LR.to_dict(), *strange, FREEZE.to_dict()]}) == [LR, FREEZE]
    assert declared_settings({}) == []
    assert declared_settings({"settings": "all"}) == []


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="kind is 'colour'"):
        Setting(name="x", kind="colour")


def test_the_table_shows_the_value_now_and_the_range():
    declared = [
        Setting(name="lr", low=0, high=1, help="Peak <rate>."),
        Setting(name="steps", kind="int", unit="steps"),
    ]
    shown = SettingTable(declared, {"lr": 0.001, "other": 3})
    assert list(shown) == declared
    assert shown.values == {"lr": 0.001}
    assert repr(shown).splitlines()[1].split() == [
        "lr",
        "0.001",
        "at",
        "least",
        "0",
        "and",
        "at",
        "most",
        "1",
        "Peak",
        "<rate>.",
    ]
    assert "? steps" in repr(shown)
    assert "&lt;rate&gt;" in shown._repr_html_()
