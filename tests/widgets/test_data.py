"""The panel of a preparation: its answers, by messages as the front end sends them."""

import json

import pytest

import nbllm as nb
from nbllm.data.harm.groups import groups
from nbllm.widgets.data import DataPanel

BASE = "The river rose in the night and the old bridge that led to the mill was carried off with its stones. "
GOOD = [
    f"{BASE}In {name} they have to cross by boat, and nobody knows when the work of {name} will be done. {extra}"
    for name, extra in zip(
        ("Arden", "Birch", "Cole", "Dale"),
        (
            "The children like it and wave to everyone.",
            "A ferry from the south is expected with the spring.",
            "Every barrel of flour is weighed before it may be carried over.",
            "Old people stay at home and listen to what the others tell.",
        ),
        strict=True,
    )
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    texts = [*GOOD, GOOD[0].replace("nobody", "no one"), "Too short <b>to keep</b>."]
    steps = [nb.data.quality("gopher", min_words=30), nb.data.dedup(threshold=0.6)]
    return nb.data.Pipeline(steps).run(texts, tmp_path_factory.mktemp("data") / "out")


@pytest.fixture
def viewer(prepared, listen):
    return listen(DataPanel(prepared))


def test_it_tells_what_each_step_left_and_which_thresholds_can_be_moved(viewer):
    viewer.say("hello")
    state = viewer.wait("state")
    json.dumps(state, allow_nan=False)  # as the comm sends it
    assert (state["raw"]["documents"], state["kept"]["documents"], state["pairs"]) == (6, 4, 1)
    assert [step["name"] for step in state["steps"]] == [
        "read",
        "gopher",
        "gopher-repetition",
        "near-duplicates",
    ]
    rule = state["rules"][0]
    assert (rule["name"], rule["threshold"], rule["whole"]) == ("gopher: words, at least", 30, True)
    assert sum(rule["counts"]) + rule["missing"] == 6 and len(rule["edges"]) == len(rule["counts"]) + 1
    assert dict(map(tuple, state["lists"]))["kept"] == 4
    assert 'nb.data.STEPS["gopher"](min_words=30)' in state["code"]


def test_moved_thresholds_are_answered_from_the_files(viewer, prepared):
    moved = {"gopher: words, at least": 1, "gopher: stop words, at least": 0}
    viewer.say("outlook", thresholds=moved, request=7)
    found = viewer.wait("outlook")
    assert found["request"] == 7
    assert (found["kept"]["documents"], found["unknown"]["documents"]) == (4, 1)
    assert found["kept"]["bytes"] == prepared.at(moved).kept.bytes
    assert "min_words=1, min_stop_words=0" in found["code"]
    strict = {"gopher: words, at least": 49}
    viewer.say("page", name="newly dropped", thresholds=strict, start=0, count=5, request=8)
    page = viewer.wait("page")
    assert page["total"] == len(page["entries"]) == 4 - prepared.at(strict).kept.documents > 0


def test_documents_come_with_the_reason_and_duplicates_with_their_partner(viewer):
    viewer.say("page", name="gopher: words, at least", start=0, count=5)
    (entry,) = viewer.wait("page")["entries"]
    assert entry["why"][0] == "words, at least: 4, threshold 30"
    assert "".join(text for text, _ in entry["parts"]) == "Too short <b>to keep</b>."
    viewer.say("pairs", start=0, count=5)
    (pair,) = viewer.wait("pairs")["entries"]
    assert [text for text, marked in pair["removed"] if marked] == ["no one"]
    assert [text for text, marked in pair["kept"] if marked] == ["nobody"]
    assert 0.6 <= pair["jaccard"] < 1 and pair["id"] != pair["partner"]


def test_the_audit_is_shown_where_groups_were_tagged_and_else_how_to_get_it(viewer, listen, tmp_path):
    viewer.say("audit")
    told = viewer.wait("audit")
    assert told["rows"] == [] and "nb.data.harm_audit(" in told["note"]
    texts = (
        [f"A doctor of the hospital spoke of medicine, for {i} hours." for i in range(6)] + GOOD + ["no"] * 5
    )
    steps = [groups({"place": {"hospital": ["hospital"]}}), nb.data.quality("gopher", min_words=30)]
    other = listen(DataPanel(nb.data.Pipeline(steps).run(texts, tmp_path / "out")))
    other.say("audit")
    row = next(row for row in other.wait("audit")["rows"] if row["step"] == "gopher")
    assert (row["axis"], row["group"], row["documents"], row["removed"]) == ("place", "hospital", 6, 6)
    assert row["rest"] == pytest.approx(5 / 9) and row["ratio"] > 1


@pytest.mark.parametrize(
    "message",
    [
        dict(kind="outlook", thresholds={"no such rule": 1}),
        dict(kind="outlook", thresholds={"gopher: words, at least": "many"}),
        dict(kind="outlook", thresholds=None),
        dict(kind="page", name="kept", start=-1, count=5),
        dict(kind="page", name="kept", start=0, count=10**6),
        dict(kind="page", name="no such list", start=0, count=5),
        dict(kind="run"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_panel_goes_on(viewer, message):
    viewer.say(request=3, **message)
    assert viewer.wait("refused")["request"] == 3
    viewer.say("hello")
    viewer.wait("state")
