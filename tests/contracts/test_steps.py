"""The same checks over every registered step of data preparation."""

import importlib
import inspect
import json
import pickle
import pkgutil

import pyarrow as pa
import pytest
from datasets import Dataset

import nbllm.data
from nbllm.data.harm.groups import groups
from nbllm.data.pipeline import shards
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.step import STEPS, Step

for module in pkgutil.walk_packages(nbllm.data.__path__, "nbllm.data."):
    if "chat_template_worker" not in module.name:  # a script
        importlib.import_module(module.name)

MADE: dict[str, Step] = {  # those that cannot be made without arguments
    "privacy": nbllm.data.privacy(key=bytes(32)),
    "toxicity": nbllm.data.toxicity(max_share=0.01),
    "groups": groups(),
    "decontaminate": nbllm.data.decontaminate(
        ["they would be at the gate in the morning with all that they own"]
    ),
}
PROSE = (
    "The people of the town have said that they would be at the gate in the morning with all that they own. "
    "And so it was to be: before the sun had risen, a long row of carts stood on the road to the river.\n"
)
TEXTS = [
    PROSE * 3, PROSE * 3 + "More.", "", " \n\n\t", None, "…", "\0\0 zero \0", "write to ann@example.org or 192.0.2.7",
    "مرحبا بالعالم هذا نص عربي.\n\u05e9\u05dc\u05d5\u05dd", "a\u0301\u0302\u0303" * 50, "\u202e\u2066 hidden \u2069",
    "𝄞" * 300, "他们说这是一个很好的例子。" * 20, "aa " * 400, "x" * 20_000,
    "{ lorem ipsum; } javascript\n# note\n" * 9, PROSE,
    "line\r\nline\rline\u2028line\n" * 30, "\ufeffmark", PROSE * 3,
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile():
    """Texts of all kinds, and two that are not UTF-8."""
    encoded = pa.array(
        [None if text is None else text.encode() for text in TEXTS] + [b"\xff\xfe", b"cut \xe2\x82"]
    )
    valid, offsets, data = encoded.buffers()
    return Dataset(pa.table({"text": pa.StringArray.from_buffers(len(encoded), offsets, data, valid)}))


def made(name):
    """Return a step of that name with its default settings."""
    if name in MADE:
        return MADE[name]
    kind = STEPS[name]
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return pytest.skip(f"it needs {needed}") if needed else kind()


@pytest.mark.parametrize("name", STEPS)
def test_hostile_text_gets_the_same_verdict_wherever_batches_begin(name, hostile, tmp_path, monkeypatch):
    step = made(name)
    kept = []
    for rows in (3, 1000):
        monkeypatch.setattr(shards, "BATCH_ROWS", rows)
        prepared = Pipeline([step]).run(hostile, tmp_path / str(rows))
        assert prepared.counts[0].left.documents == len(TEXTS) - 1
        signals = prepared.signals
        assert len(signals) == len(hostile)
        columns = ["id", "step", "rule", "start", "stop", "value", "text"]
        ledger = prepared.ledger[columns].sort_values(["id", "step", "rule", "start"])
        kept.append((prepared.dataset()["text"][:], signals.to_dict("list"), ledger.to_dict("list")))
    first, second = kept
    assert first[0] == second[0]
    for one, other in zip(first[1:], second[1:], strict=True):
        assert repr(one) == repr(other)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_describes_itself_and_travels_to_other_processes(name):
    step = made(name)
    assert step.describe()["step"] == name == step.title
    assert json.loads(json.dumps(step.describe(), default=list)) is not None
    again = pickle.loads(pickle.dumps(step))
    assert again.describe() == step.describe()
    names = [rule.name for rule in step.rules]
    assert len(set(names)) == len(names)
    assert all(rule.name and ": " not in rule.signal for rule in step.rules)
