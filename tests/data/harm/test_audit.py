"""Whose text filters remove: shares and ratios of known text, and of text without a difference."""

import random

import pytest

import nbllm.data
from nbllm.core.errors import DataError, UserError
from nbllm.core.proportions import wilson
from nbllm.data import harm_audit, toxicity
from nbllm.data.harm.groups import groups
from nbllm.data.pipeline.pipeline import Pipeline

AXES = {
    "dialect": {"northern": ["nowt", "summat"], "southern": ["y'all"]},
    "identity": {"women": ["woman"], "<b>": ["rare"]},
}


def documents(count=300):
    """Documents of which 40 % in one dialect, and 10 % of the others, have a bad word."""
    chooser = random.Random(0)
    texts = []
    for number in range(count):
        northern = number % 3 == 0
        words = ["there is", "nowt or summat" if northern else "nothing or something", f"in place {number}"]
        words += ["a woman"] * (chooser.random() < 0.5)
        words += ["badword"] * (chooser.random() < (0.4 if northern else 0.1))
        texts.append(" ".join(words))
    return texts


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return harm_audit(documents(), [toxicity(["badword"], max_share=0)], groups=AXES)


def test_shares_are_those_counted_by_hand(audited):
    rows = {row.group: row for row in audited.of("toxicity")}
    texts = documents()
    northern = [text for text in texts if "nowt" in text]
    others = [text for text in texts if "nowt" not in text]
    row = rows["northern"]
    removed = sum("badword" in text for text in northern)
    assert (row.documents, row.removed) == (len(northern), removed)
    assert row.interval == wilson(removed, len(northern), 0.95)
    assert row.rest_share == sum("badword" in text for text in others) / len(others)
    assert row.ratio == pytest.approx(row.share / row.rest_share)
    assert row.differs and row.ratio_interval[0] > 1.5
    women = rows["women"]
    assert women.documents == sum("woman" in text for text in texts) and not women.differs
    assert set(audited.skipped) == {"southern", "<b>"}


def test_the_display_says_how_many_differ_by_chance_and_escapes(audited):
    for shown in (repr(audited), audited._repr_html_()):
        assert "northern" in shown and "300 documents" in shown and "by chance" in shown
    assert "<b>" not in audited._repr_html_().replace("&lt;b&gt;", "")


def test_each_step_is_judged_by_what_reached_it():
    steps = [toxicity(["badword"], max_share=0), toxicity(["woman"], max_share=0)]
    found = harm_audit(documents(), steps, groups=AXES)
    first, second = dict.fromkeys(row.step for row in found)
    women = {row.step: row for row in found if row.group == "women"}
    assert women[second].removed == women[second].documents < women[first].documents
    assert women[second].rest_share == 0 and women[second].ratio_interval[0] > 10


def test_what_was_prepared_with_groups_is_audited(tmp_path):
    steps = [groups(AXES), toxicity(["badword"], max_share=0)]
    prepared = Pipeline(steps).run(documents(), tmp_path / "run")
    for given in (prepared, prepared.dataset(), tmp_path / "run"):
        assert harm_audit(given).rows == harm_audit(documents(), steps[1:], groups=AXES).rows
    with pytest.raises(UserError, match="has its groups already"):
        harm_audit(prepared, groups=AXES)
    untagged = Pipeline(steps[1:]).run(documents(), tmp_path / "other")
    with pytest.raises(DataError, match="was not tagged"):
        harm_audit(untagged)
    with pytest.raises(UserError, match="No step 'x'"):
        harm_audit(prepared).of("x")


def parity_of_number(texts):
    return ["even" if text[-1] in "02468" else "odd" if text and text[-1].isdigit() else "" for text in texts]


def test_an_axis_may_be_a_function():
    texts = [f"text number {number}" for number in range(100)]
    odd = [f"number {number}" for number in range(1, 100, 2)]
    found = harm_audit(texts, [toxicity(odd, max_share=0)], groups={"parity": parity_of_number})
    assert {row.group: (row.documents, row.removed) for row in found} == {"even": (50, 0), "odd": (50, 50)}
    with pytest.raises(UserError, match="must return a text"):
        harm_audit(texts, [toxicity(odd, max_share=0)], groups={"parity": lambda texts: [1]})


def test_groups_are_checked_and_our_lists_find_what_they_name():
    for wrong in ({}, [], {"axis": {}}, {"axis": ["word"]}):
        with pytest.raises(UserError):
            groups(wrong)
    with pytest.raises(DataError):
        groups({"axis": {"group": [""]}})
    import pyarrow as pa

    from nbllm.data.arrow_text import Texts

    texts = [
        "My mother and the Rabbi.",
        "Yall finna go",
        "finna",
        "The doctor and the patient: health",
        "doctor",
    ]
    signals = groups().signals(Texts.of(pa.array(texts)))
    assert signals["group/identity: women"].tolist() == [True, False, False, False, False]
    assert signals["group/identity: jews"].tolist() == [True, False, False, False, False]
    assert signals["group/dialect: african american english"].tolist() == [False, True, False, False, False]
    assert signals["group/topic: health"].tolist() == [False, False, False, True, False]
    assert nbllm.data.harm_audit is harm_audit
