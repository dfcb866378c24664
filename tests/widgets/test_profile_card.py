from __future__ import annotations

import json
import time

import pytest

from nbllm.runs.step_profile import KINDS
from nbllm.widgets import profile_card
from nbllm.widgets.profile_card import ProfileCards
from tests.runs.profile_files import summary, write_profile


@pytest.fixture
def newest(monkeypatch, tmp_path):
    """The newest profile of a folder, which is looked at each time."""
    monkeypatch.setattr(profile_card, "LOOK_SECONDS", 0.0)
    cards = ProfileCards()
    return lambda: cards.newest(tmp_path)


def test_a_profile_is_plain_json_of_shares_and_bars(newest, tmp_path):
    assert newest() is None
    folder = write_profile(tmp_path, 20, summary(), summary(1))
    card = newest()
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert (card["step"], card["title"]) == (20, "3 steps from step 20 on, 2 ranks")
    assert (card["length"], card["folder"], card["traces"], card["hidden"]) == (30, str(folder), 2, 0)
    first, second = card["ranks"]
    assert (first["rank"], first["length"], first["step"]) == (0, 30, 10)
    assert first["shares"] == {
        "computing": 38, "communication": 25, "exposed": 15, "data": 10, "optimizer": 20, "idle": 17,
    }  # fmt: skip
    assert first["bars"]["computing"][:2] == [[1, 3, 2, 1], [3.2, 5, 1.8, 1]]
    assert first["bars"]["idle"][:2] == [[3, 3.2, 0.2, 1], [8.5, 10, 1.5, 1]]
    assert second["shares"]["computing"] == 42


def test_it_is_read_again_only_when_a_rank_has_written(newest, tmp_path):
    write_profile(tmp_path, 20, summary())
    first = newest()
    assert newest() is first
    write_profile(tmp_path, 20, summary(), summary(1))
    second = newest()
    assert [rank["rank"] for rank in second["ranks"]] == [0, 1]
    assert newest() is second


def test_nothing_that_is_written_makes_it_large(newest, tmp_path):
    many = [[k * 1e-7, k * 1e-7 + 5e-8] for k in range(20_000)]
    write_profile(tmp_path, 1, *(summary(rank, spans={kind: many for kind in KINDS}) for rank in range(3)))
    card = newest()
    counts = [len(bars) for rank in card["ranks"] for bars in rank["bars"].values()]
    assert 1900 < sum(counts) <= 2000
    covered = sum(bar[2] for bar in card["ranks"][0]["bars"]["computing"])
    assert covered == pytest.approx(1, rel=0.01)  # milliseconds
    assert len(json.dumps(card)) < 100_000
    write_profile(tmp_path, 2, *(summary(rank) for rank in range(100)))
    card = newest()
    assert (len(card["ranks"]), card["hidden"]) == (64, 36)
    assert sum(len(bars) for rank in card["ranks"] for bars in rank["bars"].values()) <= 2000


def test_what_cannot_be_read_is_no_profile(newest, tmp_path):
    write_profile(tmp_path, 1, "<script>", "[]", '{"rank": "<b>"}')
    assert newest() is None
    (tmp_path / "profiles" / "step-00000002").write_text("no folder")
    assert newest() is None


def test_the_folder_is_looked_at_once_a_second(tmp_path):
    cards = ProfileCards()
    assert cards.newest(tmp_path) is None
    write_profile(tmp_path, 1, summary())
    assert cards.newest(tmp_path) is None
    cards._looked = time.monotonic() - 1
    assert cards.newest(tmp_path)["step"] == 1
