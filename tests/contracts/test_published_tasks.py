"""What every task of a published layout holds: bad data are named with file and line, and hostile text stays text."""

import json

import pytest

from nbllm.core.errors import DataError
from nbllm.data import train_tokenizer
from nbllm.evaluation import TASKS, Source, evaluate
from nbllm.evaluation.splits import load_split
from nbllm.evaluation.tasks.few_shot import FewShotTask
from nbllm.lm import LM

NAMES = [name for name in TASKS if issubclass(TASKS[name], FewShotTask)]
HOSTILE = "</td><script>alert(1)</script>"
each_task = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 3, vocab_size=290)
    return LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)


def records(name):
    """The rows of the small set, as the files hold them; MMLU's with names, as on the hub."""
    task = TASKS[name]()
    layout = task.published()
    found, _ = load_split(None, layout, layout.splits)
    if name == "mmlu":
        return [next(task.items(each)) for each in found]
    subject = {"subject": found[0].file} if name in ("cmmlu", "bbh") else {}
    return [{**each.values, **subject} for each in found]


def file_of(name, rows, folder, text=None):
    """Write rows as JSON Lines under a name that tells the split."""
    split = next(filter(None, TASKS[name]().published().splits), "all")
    file = folder / f"{split}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) if text is None else text)
    return file


@each_task
def test_each_column_that_is_read_must_be_there(name, tmp_path):
    task, rows = TASKS[name](), records(name)
    read = 0
    for column in rows[0]:
        for missing in ({k: v for k, v in rows[-1].items() if k != column}, {**rows[-1], column: None}):
            file = file_of(name, [*rows[:1], missing], tmp_path)
            try:
                task.examples(Source(None, tmp_path))
            except DataError as error:
                read += 1
                assert f"{file.name}, line 2" in str(error)
    assert read >= 2


@each_task
@pytest.mark.parametrize(
    "text, message", [("", "empty"), ("{}\n{", "line 1|line 2"), ("[1]", "line 1"), ('{"foo": 1}', "line 1")]
)
def test_files_that_hold_something_else_are_named(name, text, message, tmp_path):
    file_of(name, (), tmp_path, text)
    with pytest.raises(DataError, match=message):
        TASKS[name]().examples(Source(None, tmp_path))


@each_task
def test_rows_of_a_data_set_are_read_as_those_of_a_file(name, tmp_path):
    task, rows = TASKS[name](), records(name)
    file = file_of(name, rows, tmp_path)
    of_file, _ = task.examples(Source(None, file))
    assert list(of_file) == list(task.examples(Source(None, tmp_path))[0])
    of_rows, _ = task.examples(Source(None, rows))
    assert [each["question"] for each in of_rows] == [each["question"] for each in of_file]


def hostile(value):
    """Put a script before every text; identifiers stay."""
    if isinstance(value, str):
        return value if value.isascii() and " " not in value else HOSTILE + value
    if isinstance(value, dict):
        return {key: hostile(each) for key, each in value.items()}
    return [hostile(each) for each in value] if isinstance(value, list) else value


@each_task
def test_hostile_text_stays_text(name, lm, tmp_path):
    changed = hostile(json.loads(json.dumps(records(name)[:2])))
    report = evaluate(lm, name, data=changed, progress=False, resamples=20)
    assert HOSTILE in json.dumps(report.to_dict())
    for suffix in ("html", "md"):
        assert HOSTILE not in report.save(tmp_path / f"report.{suffix}").read_text("utf-8")
