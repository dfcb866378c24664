"""What is asked of a finished preparation: histograms, code, reasons, differences."""

import numpy as np
import pytest

from nbllm.core.report import Report
from nbllm.data.pipeline.code import code_of, with_threshold
from nbllm.data.pipeline.differing import differing
from nbllm.data.pipeline.histograms import histogram
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.step import STEPS, Filter
from nbllm.data.quality.reasons import find_reasons


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [0.0, 1e9], [-5.0, 5.0], list(range(2000))])
@pytest.mark.parametrize("whole", [False, True])
def test_a_histogram_counts_every_value_and_holds_its_threshold(values, whole):
    values = np.array(values, float)
    found = histogram(values, [2.0], whole=whole)
    assert found.counts.sum() + found.missing == len(values)
    assert (np.diff(found.edges) > 0).all()
    assert found.edges[0] <= 2.0 <= found.edges[-1]
    assert not found.log or found.edges[0] > 0


def test_a_limit_far_beyond_all_values_does_not_squeeze_them():
    found = histogram(np.arange(50, 500, dtype=float), [50.0, 100_000.0], whole=True)
    assert found.edges[-1] < 5000 and (found.counts > 0).sum() > 20


@pytest.mark.parametrize("name", sorted(name for name in STEPS if issubclass(STEPS[name], Filter)))
def test_a_threshold_that_is_moved_stands_in_the_code_and_only_it_moves(name):
    try:
        step = STEPS[name]()
    except TypeError:
        pytest.skip("it needs settings")
    rules = [rule for rule in step.rules if rule.signal and np.isfinite(rule.threshold)]
    for rule in rules:
        wanted = rule.threshold + 1 if rule.unit else rule.threshold * 0.75
        moved = with_threshold(step, rule.name, wanted)
        if moved is None:
            continue
        after = {each.name: each.threshold for each in moved.rules}
        before = {each.name: each.threshold for each in step.rules}
        assert after[rule.name] == pytest.approx(wanted)
        assert {key for key in after if after[key] != before[key]} == {rule.name}


def test_code_makes_the_same_steps_again():
    steps = [STEPS["gopher"](min_words=20), STEPS["gopher-repetition"]()]
    described = [
        {
            "key": step.title,
            "settings": step.describe(),
            "rules": [{"name": rule.name} for rule in step.rules],
        }
        for step in steps
    ]
    code = code_of(described, {"gopher-repetition: top 3 gram, at most": 0.5, "gopher: words, at most": 10.0})
    made: dict = {}
    exec(code.rpartition("\n")[0], made)
    assert made["steps"][0] == STEPS["gopher"](min_words=20, max_words=10)
    assert made["steps"][1] == STEPS["gopher-repetition"](max_top_ngrams=(0.2, 0.5, 0.16))
    needs = [{"key": "x", "settings": {"step": "unknown", "a": 1}, "rules": [{"name": "r"}]}]
    assert 'nb.data.STEPS["unknown"](a=1),  # r: 2' in code_of(needs, {"x: r": 2.0})


@pytest.mark.parametrize(
    ("signal", "text", "marked"),
    [
        ("gopher/bullet_lines", "- one\ntwo\n • three", ["-", " •"]),
        ("gopher/ellipsis_lines", "one...\ntwo\nthree…", ["...", "…"]),
        ("gopher/letter_words", "a 12 b == c", ["12", "=="]),
        ("gopher/duplicate_lines", "a b\nc\na b\n", ["a b"]),
        ("gopher/top_2_gram", "x y z x y", ["x y", "x y"]),
        ("gopher/duplicate_5_grams", "1 2 3 4 5 1 2 3 4 5", ["1 2 3 4 5"]),
        ("fineweb/short_lines", "short\n" + "l" * 40, ["short"]),
        ("fineweb/ended_lines", "It ends.\nIt does not", ["It does not"]),
        ("gopher/words", "one two", []),
        ("", "one two", []),
    ],
)
def test_reasons_are_found_in_the_text(signal, text, marked):
    assert [text[start:stop] for start, stop in find_reasons(signal, text)] == marked


def test_two_texts_are_compared_word_by_word():
    one, other = differing("the cat sat, there", "the dog sat there")
    assert "".join(text for text, _ in one) == "the cat sat, there"
    assert [text for text, marked in one if marked] == ["cat", ","]
    assert [text for text, marked in other if marked] == ["dog"]


def test_a_preparation_is_a_part_of_a_report(tmp_path):
    texts = ["It was the best of times and the worst of times. " * 2, "short", "<b>short</b> & 1"]
    clean = Pipeline([STEPS["gopher"](min_words=5)]).run(texts, tmp_path / "out")
    report = Report("made").add(clean.dataset())
    steps, why, settings = report.sections
    assert [row[:2] for row in steps.rows] == [("(raw)", 3), ("read", 3), ("gopher", 1)]
    assert ("gopher", "words, at least", "document", 2, 2, "21 B") in why.rows
    assert dict(settings.entries)["gopher: words, at least"] == "at least 5 words"
    assert Report.load(report.save(tmp_path / "report.json")) == report
