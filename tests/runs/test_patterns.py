"""The list of patterns that says what is frozen, after each action."""

from __future__ import annotations

import pytest

from nbllm.core.errors import RefusedError
from nbllm.runs.actions import Action
from nbllm.runs.patterns import after, from_everything, frozen_after


def folded(*actions):
    frozen = ()
    for action, *patterns in actions:
        frozen = after(action, frozen, patterns)
    return frozen


@pytest.mark.parametrize(
    ("actions", "frozen"),
    [
        ([("freeze", "embedding.*", "blocks.0.*")], ("embedding.*", "blocks.0.*")),
        ([("freeze", "a", "b"), ("freeze", "a")], ("b", "a")),
        ([("freeze", "!layers[-2:]")], ("*", "!layers[-2:]")),
        ([("freeze", "embedding"), ("freeze", "!layers[-2:]")], ("*", "!layers[-2:]")),
        ([("freeze", "blocks.0.*", "embedding.*"), ("unfreeze", "embedding.*")], ("blocks.0.*",)),
        ([("freeze", "*"), ("unfreeze", "embedding.*")], ("*", "!embedding.*")),
        ([("freeze", "*"), ("unfreeze", "*")], ()),
        ([("freeze", "*"), ("unfreeze", "norm"), ("freeze", "norm")], ("*", "norm")),
        ([("freeze", "blocks.*"), ("unfreeze", "blocks.1")], ("blocks.*", "!blocks.1")),
        ([("freeze", "layers[:4]"), ("unfreeze", "blocks.1")], ("layers[:4]", "!blocks.1")),
        ([("freeze", "layers[:4]"), ("unfreeze", "embedding")], ("layers[:4]",)),
        # transformers' name may mean the same parameter
        ([("freeze", "embedding"), ("unfreeze", "model.embed_tokens")], ("embedding", "!model.embed_tokens")),
    ],
)
def test_a_later_pattern_overrides_and_what_has_no_effect_is_left_out(actions, frozen):
    assert folded(*actions) == frozen


def test_what_is_taken_away_first_is_taken_from_everything():
    assert from_everything(["!a", "b"]) == ("*", "!a", "b")
    assert from_everything(["b", "!a"]) == ("b", "!a")
    assert from_everything([]) == ()


def test_unfreeze_takes_no_exclamation_mark_and_says_what_to_write():
    with pytest.raises(RefusedError, match="without '!'") as caught:
        after("unfreeze", ("*",), ["!norm"])
    assert "freeze('!norm') freezes all but 'norm'" in caught.value.hint


def test_there_is_an_end_to_it():
    with pytest.raises(RefusedError, match="More than 1000 patterns"):
        after("freeze", tuple(f"blocks.{n}" for n in range(1000)), ["norm"])


def test_a_record_may_hold_anything():
    def action(name, patterns):
        return Action(
            id="", action=name, args={"patterns": patterns}, actor="person", step=0, outcome="applied"
        )

    actions = [
        action("freeze", ["norm", 5]), action("set", ["x"]), action("freeze", 7), action("unfreeze", None),
        action("unfreeze", ["!x"]), action("unfreeze", ["embedding"]),
    ]  # fmt: skip
    assert frozen_after(["embedding"], actions) == ("norm", "5", "!embedding")  # 5 might be anything
    assert frozen_after(None, actions[:1]) == ("norm", "5")
    assert frozen_after("embedding", []) == ()
    assert len(frozen_after([f"blocks.{n}" for n in range(5000)], [])) == 1000
