"""The report of a reward model: figures against other implementations, and that it says what it must."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.core.report import Bars, Chart, KeyValues, Report, Rows, Table
from nbllm.finetuning import reward_report
from nbllm.finetuning.alignment.reward_model import with_score_head
from nbllm.finetuning.alignment.reward_report import calibration_error, reliability

ANSWERS = [
    (f" Yes, {word} it is.", f" No {word}{'!' * (place % 4 * 3)}")
    for place, word in enumerate(("one", "two", "six", "ten", "red", "bad", "sad", "<b>old</b>"))
]
ROWS = [  # some of which are the other way round
    {"prompt": "Q?", "chosen": answers[place % 3 == 2], "rejected": answers[place % 3 != 2]}
    for place, answers in enumerate(ANSWERS)
]


@pytest.fixture(scope="module")
def reward(tokenizer):
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=96, seed=1
    )
    made = with_score_head(lm)
    with torch.no_grad():
        made.model.score.weight.mul_(30)  # some certainty
    return made


def test_its_figures_are_those_of_the_scores(reward, tmp_path):
    report = reward_report(reward, [*ROWS, {"chosen": "alone"}, ROWS[0] | {"prompt": "word " * 100}])
    texts = [row["prompt"] + row[side] for row in ROWS for side in ("chosen", "rejected")]
    margin = np.subtract(*np.array(reward.reward(texts)).reshape(-1, 2).T)
    likely = 1 / (1 + np.exp(-margin))
    assert 0 < (margin > 0).sum() < len(margin)  # else the test says little
    assert report.metric("accuracy").value == (margin > 0).mean()
    ones = np.ones(len(margin))
    assert report.metric("log-loss").value == pytest.approx(log_loss(ones, likely, labels=[0, 1]))
    assert report.metric("Brier score").value == pytest.approx(brier_score_loss(ones, likely, labels=[0, 1]))
    for figure in ("accuracy", "log-loss", "Brier score", "calibration error"):
        measured = report.metric(figure)
        assert measured.interval[0] <= measured.value <= measured.interval[1]
    (entries,) = (section.entries for section in report.sections if isinstance(section, KeyValues))
    shown = dict(entries)
    assert shown["pairs"] == 8 and shown["left out: both answers are the same within 96 tokens"] == 1
    assert shown["left out: It is unpaired: there is chosen, but no rejected."] == 1
    (rows,) = (section for section in report.sections if isinstance(section, Rows))
    assert len(rows) == 8 and rows.columns["chosen"][0] == "Yes, one it is."
    wrong = next(section for section in report.sections if isinstance(section, Table))
    assert len(wrong.rows) == (margin <= 0).sum()
    assert {Bars, Chart} <= {type(section) for section in report.sections}
    html = report._repr_html_()
    assert "<b>old" not in html
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_calibration():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    certain = 1 / (1 + np.exp(-np.abs(margin)))
    signed = np.where(rng.random(len(margin)) < certain, 1, -1) * np.abs(margin)  # as often right as it says
    assert calibration_error(signed) < 0.01
    assert calibration_error(3 * signed) > 0.05  # too certain
    assert calibration_error(np.full(4, 50.0)) == pytest.approx(0) and len(reliability(np.full(4, 50.0))) == 1
    assert calibration_error(np.full(4, -50.0)) == pytest.approx(1)
    assert sum(each.pairs for each in reliability(signed)) == len(margin)


def test_what_cannot_be_measured(reward, lm):
    with pytest.raises(UserError, match="cannot reward"):
        reward_report(lm, ROWS)
    with pytest.raises(UserError, match="reward model"):
        reward_report("reward", ROWS)
    with pytest.raises(DataError) as caught:
        reward_report(reward, [{"chosen": "alone"}])
    assert "unpaired" in caught.value.hint
    single = reward_report(reward, ROWS[:1])
    assert single.metric("log-loss").interval is None
