import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.core.registry import Registry
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Edits, Filter, Rule, Tables, _Steps


@dataclasses.dataclass(frozen=True)
class Length(Filter):
    """Keeps documents by their number of bytes."""

    least: int = 3

    @property
    def rules(self):
        return (Rule("length", "length/bytes", "at least", self.least, "bytes"),)

    def signals(self, texts):
        return {"length/bytes": np.diff(texts.offsets)}


def test_a_filter_measures_and_a_rule_decides():
    texts = Texts.of(pa.array(["ab", None, "", "abcd", "é"]))
    step = Length(least=2)
    (rule,) = step.rules
    values = step.signals(texts)[rule.signal]
    assert values.tolist() == [2, 0, 0, 4, 2]
    assert rule.broken(values).tolist() == [False, True, True, False, False]
    assert Rule("length", "length/bytes", "at most", 2).broken(values).tolist() == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_an_undefined_signal_breaks_no_rule():
    for keep in ("at least", "at most"):
        assert not Rule("mean", "mean", keep, 1.0).broken(np.array([np.nan])).any()


def test_a_rule_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match="at least"):
        Rule("a", "a", "less than", 1.0)
    with pytest.raises(UserError, match="document"):
        Rule("a", "a", kind="page")


def test_a_registered_step_knows_its_name_and_describes_itself():
    steps: Registry = _Steps("preparation step")
    registered = steps.register("length")(Length)
    assert registered is Length is steps["length"]
    assert json.loads(json.dumps(Length(least=5).describe())) == {"step": "length", "least": 5}
    with pytest.raises(UserError, match="preparation step"):
        STEPS["no such step"]


def test_no_edits_are_arrays_of_length_nought():
    edits = Edits.none({"tags": np.ones(2, bool)})
    assert len(edits.document) == len(edits.start) == len(edits.rule) == 0
    assert edits.signals["tags"].sum() == 2


def test_tables_can_be_read_again_and_again(tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.arrow")
        table = pa.table({"id": [number]})
        with pa.ipc.new_stream(str(files[-1]), table.schema) as writer:
            writer.write_table(table)
    tables = Tables(files)
    for _ in range(2):
        assert [table["id"][0].as_py() for table in tables] == [0, 1, 2]
