"""The table of all tasks."""

from nbllm.evaluation import TASKS, TaskList, list_tasks


def test_every_task_stands_in_the_table_once_with_what_a_person_needs():
    table = list_tasks()
    assert [each.name for each in table] == sorted(TASKS)
    assert isinstance(table[:2], TaskList) and len(table[:2]) == 2
    for each in table:
        if not each.kind.__module__.startswith("nbllm."):
            continue  # another test has registered it
        assert each.summary and each.figures, each.name
        assert each.source or each.name in ("perplexity", "translation"), each.name
    by_name = {each.name: each for each in table}
    assert by_name["mmlu"].settings["shots"] == 0 and by_name["mmlu"].figures[0] == "accuracy"
    assert by_name["boolq"].source == "Wang et al. 2019, arXiv:1905.00537."
    assert "Rowan/hellaswag" in by_name["hellaswag"].data


def test_it_is_shown_as_text_and_as_a_table():
    table = list_tasks()
    lines = repr(table).splitlines()
    assert lines[0].split()[:3] == ["task", "label", "figures"] and len(lines) == len(table) + 1
    first, folded = table._repr_html_().split("<details>")
    assert all(part.count("<tr>") == len(table) + 1 for part in (first, folded))
    assert "arXiv:2009.03300" in folded and "shots=0" in folded
