"""The messages of a conversation as OpenAI's interface has them."""

import pytest

from nbllm.core.errors import UserError
from nbllm.inference.messages import check_messages

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


class Reply:
    """A message as OpenAI's client returns it: a pydantic model."""

    def model_dump(self):
        return {
            "role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "audio": None,
            "function_call": None, "tool_calls": None,
        }  # fmt: skip


def test_a_text_is_a_message_of_the_user():
    assert check_messages("Hi") == [{"role": "user", "content": "Hi"}]


def test_what_says_nothing_is_left_out():
    chat = [{"role": "user", "content": "Hi", "tool_calls": None, "name": ""}, Reply()]
    assert check_messages(chat) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    assert check_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "Hi there"}]
    assert check_messages([{"role": "user", "content": ()}])[0]["content"] == ""


def test_other_keys_reach_the_template():
    (message,) = check_messages([{"role": "user", "content": "Hi", "name": "Zoë", "custom": {"a": [1]}}])
    assert message == {"role": "user", "content": "Hi", "name": "Zoë", "custom": {"a": [1]}}


def test_the_newer_name_of_the_system_message():
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert check_messages(chat)[0]["role"] == "system"


def test_an_answer_may_be_begun():
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    assert check_messages(chat) == chat


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "does not end with a message of the user"),
        ([{"role": "system", "content": "Hi"}], "does not end with a message of the user"),
        (3, "not int"),
        (["Hi"], "a mapping"),
        ([{"content": "Hi"}], "a role and a content; this one has 'content'"),
        ([{"role": "user"}], "a role and a content; this one has 'role'"),
        ([{"role": "robot", "content": "Hi"}], "no role 'robot'"),
        ([{"role": "tool", "content": "4", "tool_call_id": "1"}], "no role 'tool'"),
        ([{"role": ["user"], "content": "4"}], "no role"),
        ([{"role": "user", "content": None}], "must be a text, not NoneType"),
        ([{"role": "user", "content": 3}], "must be a text, not int"),
        ([{"role": "user", "content": ["Hi"]}], "of type 'str', which is not understood"),
        ([{"role": "user", "content": [IMAGE]}], "of type 'image_url', which is not understood"),
        ([{"role": "user", "content": [{"type": "text"}]}], "of type 'text', which is not understood"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], "has 'tool_calls'"),
        ([{"role": "assistant", "content": "", "audio": {"id": "1"}}], "has 'audio'"),
        ([{"role": "user", "content": "Hi", "when": object()}], "no JSON"),
        ([{"role": "user", "content": "Hi", "deep": DEEP}], "no JSON"),
        ([{"role": "user", "content": "Hi", "name": "\ud800"}], "no JSON"),
        ("\ud800", "half a character"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(messages, what):
    with pytest.raises(UserError, match=what):
        check_messages(messages)
