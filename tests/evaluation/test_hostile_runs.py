"""Reports of runs whose files hold anything: they are written and opened again, in every format."""

from __future__ import annotations

import json

import pytest

from nbllm.core.report import Report
from nbllm.evaluation.run_sections import run_details, run_sections, training_metrics
from nbllm.runs.compare import compare
from nbllm.runs.run import Run
from tests.runs.test_hostile_runs import hostile


@pytest.mark.parametrize("seed", range(8))
def test_a_report_of_a_hostile_run_is_written_and_opened(tmp_path, seed):
    runs = [Run(hostile(tmp_path, number)) for number in (seed, seed + 100)]
    report = Report("x", run_sections(runs[0]) + run_details(runs[0])).add(compare(runs))
    assert training_metrics(runs[0])
    for ending in ("html", "md", "json"):
        report.save(tmp_path / f"report.{ending}")
        text = (tmp_path / f"report.{ending}").read_text()
        assert "\x1b" not in text
        assert "\u202e" not in text or ending == "json"
    json.dumps(json.loads((tmp_path / "report.json").read_text()), allow_nan=False)
    assert len(Report.load(tmp_path / "report.json").sections) == len(report.sections)
