"""The table of all metrics."""

import inspect

from nbllm.evaluation import METRICS, MetricList, list_metrics
from nbllm.evaluation.metrics import MODULES


def test_every_metric_stands_in_the_table_once():
    table = list_metrics()
    assert len(table) == len(METRICS) and {each.kind.name for each in table} == set(METRICS)
    assert {each.module for each in table} == {*MODULES, ""}
    assert isinstance(table[:2], MetricList) and table[0] in list(table)
    modules = [each.module for each in table if each.module]
    assert modules == sorted(modules)


def test_an_entry_says_what_is_computed_of_what_by_which_conventions():
    by_key = {(each.module, each.key): each for each in list_metrics()}
    bleu = by_key["sacrebleu", "score"]
    assert bleu.range == "0 to 100" and bleu.inputs == ("predictions", "references")
    assert bleu.settings["smooth_method"] == "exp" and bleu.options == ()
    assert by_key["ter", "score"].range == "0 or more"
    assert by_key["bertscore", "f1"].range == "1 or less"
    assert by_key["f1", "f1"].options == ("sample_weight",)
    assert by_key["", "bits_per_byte"].inputs == ("nats", "num_bytes")
    for (module, _), each in by_key.items():
        if module:
            assert each.kind.source and inspect.getdoc(each.kind)


def test_it_is_shown_as_text_and_as_a_table():
    table = list_metrics()
    lines = repr(table).splitlines()
    assert lines[0].split()[:4] == ["metric", "key", "range", "better"] and len(lines) == len(table) + 1
    assert any(line.startswith("sacrebleu") and "0 to 100" in line and "higher" in line for line in lines)
    page = table._repr_html_()
    first, folded = page.split("<details>")
    assert all(part.count("<tr>") == len(table) + 1 for part in (first, folded))
    assert "similarity of each token" in first and "similarity of each token" not in folded
    assert "smooth_method=&#x27;exp&#x27;" in page or "smooth_method='exp'" in page
    assert "Papineni" in page and "(of a task)" in page
