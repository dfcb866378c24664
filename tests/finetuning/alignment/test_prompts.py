import numpy as np
import pytest

import nbllm as nb
from nbllm.core.errors import DataError
from nbllm.finetuning.alignment.prompts import Prompt, columns_of, prepare_prompts, prompts_in, read_prompt

ASKED = [{"role": "user", "content": "How many?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Two."}]


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Once", Prompt("Once")),
        ({"prompt": "Once", "answer": 3, "none": None}, Prompt("Once", {"answer": 3})),
        ({"text": "Once"}, Prompt("Once")),
        (ASKED, Prompt(ASKED)),
        ({"prompt": ASKED, "answer": "2"}, Prompt(ASKED, {"answer": "2"})),
        ({"messages": ANSWERED}, Prompt(ASKED, {"completion": "Two."})),
        ({"conversations": [{"from": "human", "value": "How many?"}]}, Prompt(ASKED)),
        ({"instruction": "How many?", "input": "", "output": "2"}, Prompt(ASKED, {"output": "2"})),
    ],
)
def test_layouts(value, expected):
    assert read_prompt(value) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "not int"),
        (" ", "empty"),
        ({"answer": 1}, "known layouts"),
        ([{"role": "robot", "content": "x"}], "robot"),
        ([{"role": "assistant", "content": "x"}], "asks nothing"),
        ([{"role": "user", "content": 3}], "no text"),
    ],
)
def test_what_is_no_prompt(value, said):
    with pytest.raises(DataError, match=said):
        read_prompt(value)


def test_rows_hold_prompts_of_any_text_and_fields():
    kept = [
        (Prompt("a\0b ü 中 \U0001f600", {"answer": [1, None, {"x": "\0"}]}), [1, 2, 3], (0,)),
        (Prompt(ASKED), [4], (0, 7)),
    ]
    columns = columns_of(kept)
    assert all(column.dtype == np.int32 for column in columns.values())
    found = prompts_in({name: column.astype(np.int64) for name, column in columns.items()})
    assert found == [(prompt, tokens, ends) for prompt, tokens, ends in kept]


def test_prompts_without_space_for_an_answer_are_counted(tokenizer):
    prepared = prepare_prompts(
        ["one", "word " * 50, {"x": 1}, ANSWERED], tokenizer, end_tokens=(), length=48, max_new_tokens=8
    )
    assert len(prepared.store) == 2 and sum(prepared.left_out.values()) == 2
    assert all(reason in repr(prepared) for reason in prepared.left_out)
    _, (chat, tokens, ends) = prompts_in(prepared.store.take([0, 1]))
    assert chat == Prompt(ASKED, {"completion": "Two."})
    assert tokenizer.decode(tokens).endswith("Assistant:") and tokenizer.eos_token_id in ends
    with pytest.raises(DataError, match="no prompt"):
        prepare_prompts([""], tokenizer, end_tokens=(), length=40, max_new_tokens=8)
