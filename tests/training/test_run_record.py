from __future__ import annotations

import json

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.runs.store import read_record
from nbllm.training.run_record import check_record
from tests.runs.test_hostile_runs import VALUES, changed, places


@pytest.fixture(scope="module")
def path(tokenizer, store, held_out, tmp_path_factory):
    """A run that has stopped."""
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64)
    run = nb.train(
        lm, store, validation=held_out, folder=tmp_path_factory.mktemp("runs"), name="run", steps=2, batch_size=1,
        sequence_length=32, validation_tokens=50, sample_interval=0, rules=[nb.rules.nan()],
    )  # fmt: skip
    run.wait(progress=False)
    return run.path


def test_the_record_of_every_run_is_usable(path):
    check_record(path, read_record(path))


def test_whatever_an_entry_holds_it_is_usable_or_refused(path):
    record = read_record(path)
    for name in ("config", "model", "data", "choices", "where", "replay"):
        for place in [(name,), *places(record[name], (name,))]:
            for value in VALUES:
                try:
                    check_record(path, changed(record, place, value))
                except UserError as error:
                    assert len(str(error)) < 3000


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("choices", "num_threads"), 10**9, "num_threads must be a number of threads up to 4,096, not 1000000000"),
        (("choices", "num_threads"), True, "num_threads must be"),
        (("choices",), None, r"choices\.device must be a device, not None"),
        (("data", "train"), {}, r"data\.train must be a packed text"),
        (("where",), "loop", "where must be 'thread' or 'process'"),
        (("config", "steps"), "many", "steps must be"),
        (("config", "num_threads"), 10**9, "num_threads must be"),
        (("config", "optimizer_settings"), 5, "optimizer_settings must be"),
        (("replay",), {"script": [{"step": 1}]}, "replay must be null, or a script of actions"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_trained_by_its_record_says_so_before_anything_starts(
    path, place, value, reason
):
    good = (path / "run.json").read_text()
    wrong = changed(read_record(path), place, value)
    try:
        (path / "run.json").write_text(json.dumps(wrong))
        for attempt in (
            lambda: nb.attach(path).fork("child"),
            lambda: nb.replay(path, progress=False),
            lambda: nb.attach(path).launcher.start(path),
        ):
            with pytest.raises(UserError, match=reason):
                attempt()
    finally:
        (path / "run.json").write_text(good)
    assert [p.name for p in path.parent.iterdir()] == ["run"]
