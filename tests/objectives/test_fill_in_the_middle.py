"""Fill-in-the-middle: its rates, both orders, cuts between characters, and nothing of a document is lost."""

import numpy as np
import pytest

import nbllm as nb
from nbllm.objectives import FillInTheMiddle

PARTS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def rows_of(objective, windows, seed=0):
    """Return each row's tokens."""
    batch = objective.batch(windows, np.random.default_rng(seed))
    inputs, targets = batch["inputs"].numpy(), batch["targets"].numpy()
    lengths = (targets != -100).sum(1)
    for row, length in enumerate(lengths):
        assert (inputs[row, 1:length] == targets[row, : length - 1]).all() and (
            targets[row, length:] == -100
        ).all()
    return [[inputs[row, 0], *targets[row, :length]] for row, length in enumerate(lengths)]


def restored(row, tokenizer):
    """Return a rearranged document's text and the order of its parts."""
    before, between, then = (tokenizer.convert_tokens_to_ids(name) for name in PARTS)
    assert row[0] == before and row[-1] == tokenizer.eos_token_id
    second, third = row.index(between), row.index(then)
    parts = [row[1:second], row[second + 1 : third], row[third + 1 : -1]]
    prefix, suffix, middle = map(tokenizer.decode, parts)
    return prefix + middle + suffix, "SPM" if second == 1 and prefix == "" else "PSM"


def text_windows(tokenizer, text, rows, spare=20):
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    return np.tile([*ids, *[tokenizer.eos_token_id] * spare], (rows, 1))


def test_the_parts_of_the_known_example(tokenizer, monkeypatch):
    """Of ab|cd|ef: PRE ab SUF ef MID cd; and PRE SUF ef MID ab cd."""
    before, between, then = (tokenizer.convert_tokens_to_ids(name) for name in PARTS)
    objective = FillInTheMiddle.for_tokenizer(tokenizer)
    ab, cd, ef = ([int(token) for token in tokenizer.encode(part)] for part in ("ab", "cd", "ef"))
    monkeypatch.setattr(FillInTheMiddle, "_parts", lambda *given: [ab, cd, ef])
    monkeypatch.setattr(FillInTheMiddle, "rate", 1.0)
    for spm_rate, expected in (
        (0.0, [before, *ab, between, *ef, then, *cd]),
        (1.0, [before, between, *ef, then, *ab, *cd]),
    ):
        monkeypatch.setattr(FillInTheMiddle, "spm_rate", spm_rate)
        row = rows_of(objective, text_windows(tokenizer, "abcdef", 1, spare=0 * 20 + 8))[0]
        assert row[: len(expected) + 1] == [*expected, tokenizer.eos_token_id]


def test_what_is_shown_is_rearranged_and_whole(tokenizer):
    for seed in range(9):
        shown = FillInTheMiddle.show("a text that is shown", tokenizer=tokenizer, seed=seed)
        assert shown.seen[0] == PARTS[0] and shown.predicted[-1] == tokenizer.eos_token
        text = "".join(each for each in shown.seen if each not in PARTS).replace("Ġ", "")
        assert len(text) == len("atextthatisshown")
        assert "<mark>&lt;|fim_middle|&gt;</mark>" in shown._repr_html_()


def test_half_is_rearranged_half_of_it_each_way_and_cuts_are_uniform(tokenizer, monkeypatch):
    text = "The quick brown fox; 你好, jumps."
    windows = text_windows(tokenizer, text, 4000, spare=0)
    room = np.pad(windows, ((0, 0), (0, 30)), constant_values=tokenizer.encode("x")[0])
    objective = FillInTheMiddle.for_tokenizer(tokenizer)
    rows = [row[: row.index(tokenizer.eos_token_id) + 1] for row in rows_of(objective, room)]
    changed = [row for row in rows if row[0] == tokenizer.convert_tokens_to_ids(PARTS[0])]
    assert all(row == windows[0].tolist() for row in rows if row[0] == windows[0, 0])
    assert len(changed) / 4000 == pytest.approx(0.5, abs=0.03)
    found = [restored(row, tokenizer) for row in changed]
    assert {whole for whole, _ in found} == {text}
    assert sum(order == "SPM" for _, order in found) / len(found) == pytest.approx(0.5, abs=0.06)
    between = tokenizer.convert_tokens_to_ids(PARTS[1])
    prefixes = [len(tokenizer.decode(row[1 : row.index(between)])) for row in changed]
    lengths = np.bincount([each for each in prefixes if each], minlength=len(text) + 1)
    assert (lengths[1:-3] > 0).all()  # between any two characters, those within tokens among them
    again = rows_of(objective, room)
    assert all(row[: len(short)] == short for row, short in zip(again, rows, strict=True))


def test_documents_are_rearranged_one_by_one_and_windows_never_get_longer(tokenizer, plain):
    windows = plain(200, 64)
    windows[:, [10, 11, 40]] = tokenizer.eos_token_id
    objective = FillInTheMiddle.for_tokenizer(tokenizer)
    rows = rows_of(objective, windows)
    assert max(map(len, rows)) <= 64
    marks = [sum(token == tokenizer.convert_tokens_to_ids(PARTS[0]) for token in row) for row in rows]
    assert {0, 1, 2} <= set(marks) and max(marks) <= 3
    for row, window in zip(rows, windows, strict=True):
        if row[0] == window[0]:
            assert row[:11] == window[:11].tolist()  # a document that is left as it is


def test_text_that_does_not_survive_encoding_is_cut_between_tokens(tokenizer, monkeypatch):
    """A window may begin inside of a character; its tokens are kept as they are."""
    monkeypatch.setattr(FillInTheMiddle, "rate", 1.0)
    ids = tokenizer.encode("你好 and a long text that follows")[1:]
    objective = FillInTheMiddle.for_tokenizer(tokenizer)
    marks = {tokenizer.convert_tokens_to_ids(name) for name in PARTS} | {tokenizer.eos_token_id}
    for seed in range(20):
        row = rows_of(objective, np.array([ids + [tokenizer.eos_token_id] * 1]), seed)[0]
        kept = sorted(token for token in row if token not in marks)
        assert len(set(kept) - set(ids)) == 0 and len(kept) >= len(ids) - 4


def test_the_token_that_begins_documents_stays_before_them(texts):
    tokenizer = nb.objectives.add_tokens(nb.data.train_tokenizer(texts, vocab_size=400), "fill_in_the_middle")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    objective = FillInTheMiddle.for_tokenizer(tokenizer)
    ids = [tokenizer.bos_token_id, *tokenizer.encode("some text"), tokenizer.eos_token_id]
    rows = rows_of(objective, np.tile(ids + ids, (50, 1)))
    assert all(row[0] == tokenizer.bos_token_id for row in rows)
    assert any(row[1] == tokenizer.convert_tokens_to_ids(PARTS[0]) for row in rows)
