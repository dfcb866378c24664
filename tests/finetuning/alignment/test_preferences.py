"""Preferences: their layouts, what is left out and why, and the rows that runs train on."""

import json
from pathlib import Path

import numpy as np
import pytest

from nbllm.core.errors import DataError
from nbllm.finetuning import METHODS, show
from nbllm.finetuning.alignment.preference_rows import encode
from nbllm.finetuning.alignment.preferences import read_pairs, read_verdicts
from nbllm.finetuning.rows import rows_of
from nbllm.training.config import TrainConfig

HH = Path(__file__).parents[4] / "shared" / "data" / "hh_rlhf"
USER, GOOD, BAD = (
    {"role": role, "content": content}
    for role, content in (("user", "Hi"), ("assistant", "Hello."), ("assistant", "What?"))
)
THREE = {"prompt": "Hi", "completions": [" a", " b", " c"]}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " What?"},  # static-hh
        {"prompt": [USER], "completions": ["What?", "Hello."], "ratings": [1, 4]},
        {"prompt": [USER], "ranked": ["Hello.", [BAD]]},
    ],
)
def test_layouts_of_conversations(row):
    (pair,) = read_pairs(row)
    assert pair.chosen.messages == (USER, GOOD) and pair.rejected.messages == (USER, BAD)
    assert pair.chosen.turn_weights == pair.rejected.turn_weights == (0.0, 1.0)
    assert [verdict.desirable for verdict in read_verdicts(row)] == [True, False]
    assert read_verdicts(row)[1].example() == pair.rejected


def test_layouts_of_texts():
    (pair,) = read_pairs({"prompt": "Q:", "chosen": " yes", "rejected": " no"})
    assert (pair.chosen.prompt, pair.chosen.completion) == ("Q:", " yes")
    (pair,) = read_pairs({"chosen": "It is red.", "rejected": "It is really blue."})
    assert (pair.chosen.prompt, pair.chosen.completion) == ("It is ", "red.")
    assert pair.rejected.completion == "really blue."
    (verdict,) = read_verdicts({"prompt": "Q:", "completion": " no", "label": False})
    assert verdict.example().completion == " no" and not verdict.desirable


def test_ratings_and_rankings_are_all_pairs_that_together_count_as_one():
    pairs = read_pairs({**THREE, "ratings": [2, 5, 2]})
    assert [(pair.chosen.completion, pair.rejected.completion) for pair in pairs] == [
        (" b", " a"),
        (" b", " c"),
    ]
    assert [(pair.margin, pair.weight) for pair in pairs] == [(3.0, 0.5), (3.0, 0.5)]
    ranked = read_pairs({"prompt": "Hi", "ranked": [" a", " b", " c"]})
    assert len(ranked) == 3 and sum(pair.weight for pair in ranked) == pytest.approx(1)
    assert {pair.margin for pair in ranked} == {0.0}
    assert read_pairs({"chosen": "a b", "rejected": "a c", "margin": 0.5})[0].margin == 0.5
    row = {"chosen": "a b", "rejected": "a c", "score_chosen": 8, "score_rejected": 5.5}
    assert read_pairs(row)[0].margin == 2.5


def test_only_what_differs_is_trained(tokenizer):
    """Of turns that both share nothing is, though some are the assistant's."""
    turns = [USER, GOOD, {"role": "user", "content": "And now?"}]
    (pair,) = read_pairs({"chosen": [*turns, GOOD], "rejected": [*turns, BAD]})
    made = encode(tokenizer, pair.rejected, 64)
    assert tokenizer.decode(made.tokens[made.targets >= 0]) == "What?<|im_end|>"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a"}, "unpaired: there is chosen, but no rejected"),
        ({"chosen": "a", "rejected": None}, "unpaired"),
        ({"prompt": "a", "rejected": "b", "chosen": ""}, "unpaired"),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"chosen": [USER, GOOD], "rejected": [USER, {**BAD, "content": ""}]}, "answers are empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "Both answers are the same"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "Both answers are the same"),
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, GOOD]}, "no answer after the turns"),
        ({"chosen": [{"role": "wizard", "content": "x"}, GOOD], "rejected": [USER, BAD]}, "no role 'wizard'"),
        ({"chosen": "a b", "rejected": [USER, BAD]}, "a conversation, the other a text"),
        ({"chosen": 5, "rejected": "b"}, "must be a text or messages"),
        ({**THREE, "ratings": [1, 1, 1]}, "rated differently"),
        ({**THREE, "ratings": [1, 2]}, "a rating for each"),
        ({**THREE, "ratings": [1, 2, float("nan")]}, "must be a number"),
        ({"chosen": "a b", "rejected": "a c", "margin": "much"}, "margin must be a number"),
        ({"text": "a"}, "none of the known layouts"),
        ("a", "is a mapping"),
    ],
)
def test_bad_rows_are_named(row, said):
    with pytest.raises(DataError, match=said):
        read_pairs(row)


def test_bad_labels_are_named():
    with pytest.raises(DataError, match="true or false"):
        read_verdicts({"prompt": "a", "completion": "b", "label": 0.5})


def config_of(method, length=40):
    return TrainConfig(
        objective=METHODS[method].objective, sequence_length=length, precision="float32", device="cpu"
    )


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_what_is_left_out_and_cut_is_counted(lm, tmp_path, method):
    rows = [
        {"prompt": "a", "chosen": " yes", "rejected": " no"},
        {"prompt": "a", "chosen": " word" * 60, "rejected": " no"},
        {"prompt": "word " * 60, "chosen": " yes", "rejected": " no"},
        {"prompt": "a", "chosen": " yes"},
        {"prompt": "a", "chosen": " yes", "rejected": " yes"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = METHODS[method]().prepare(str(tmp_path / "rows.jsonl"), lm, config_of(method))
    verdicts = method == "kto"
    assert prepared.num_examples == (4 if verdicts else 2) and prepared.truncated == ("1",)
    assert prepared.left_out["no token of an answer within 40 tokens"] == (("2", "2") if verdicts else ("2",))
    assert all(reason in repr(prepared) for reason in prepared.left_out) and len(prepared.left_out) == 3
    with pytest.raises(DataError, match="nothing to train on") as caught:
        METHODS[method]().prepare(rows[2:], lm, config_of(method))
    assert "within 40 tokens" in caught.value.hint
    with pytest.raises(DataError, match="nothing to train on"):
        METHODS[method]().prepare([], lm, config_of(method))


def test_the_same_within_a_row(lm):
    rows = [{"prompt": "a", "chosen": " word" * 50 + " x", "rejected": " word" * 50 + " y"}]
    with pytest.raises(DataError) as caught:
        METHODS["dpo"]().prepare(rows, lm, config_of("dpo", 30))
    assert "the same within 30 tokens" in caught.value.hint


def test_an_answer_is_paired_with_the_prompt_before(lm):
    """And so the last with the first: the other texts have the same answers."""
    rows = [{"prompt": f"Q{n}?", "completion": f" A{n}.", "label": n % 2} for n in range(3)]
    store = METHODS["kto"]().prepare(rows, lm, config_of("kto")).store
    texts = [lm.tokenizer.decode(row[:length]) for row, length in zip(
        store.columns["other"], store.columns["other_length"], strict=True)]  # fmt: skip
    for text, expected in zip(texts, ("Q0? A2.", "Q1? A0.", "Q2? A1."), strict=True):
        assert expected in text


@pytest.mark.realdata
@pytest.mark.skipif(not HH.is_dir(), reason="needs the real hh-rlhf")
def test_hh_rlhf(lm):
    rows = list(rows_of(HH))
    assert len(rows) == 2312
    prepared = METHODS["simpo"]().prepare(rows[:600], lm, config_of("simpo", 96))
    counted = sum(map(len, prepared.left_out.values()))
    assert prepared.num_examples + counted == 600 and prepared.num_examples > 60
    assert all(column.dtype in (np.int32, np.float32) for column in prepared.store.columns.values())
    reasons = " ".join(prepared.left_out)
    assert "empty" in reasons and "no answer after the turns" in reasons  # rows that are so


def test_a_pair_is_shown(lm):
    shown = show({"chosen": [USER, {**GOOD, "content": "<b>Yes</b>"}], "rejected": [USER, BAD]}, lm)
    assert "[[<b>Yes</b><|im_end|>]]" in repr(shown) and "[[What?<|im_end|>]]" in repr(shown)
    assert "<b>" not in shown._repr_html_() and "<mark>" in shown._repr_html_()
