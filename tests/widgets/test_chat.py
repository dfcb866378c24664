"""The chat panel without a browser: what it tells its viewers, and what it does when they ask."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.tokenizer import train_tokenizer
from nbllm.inference.chat import AnswerToken
from nbllm.inference.runners import compiled
from nbllm.nn import kernels
from nbllm.widgets import base
from nbllm.widgets.conversation import Conversation
from tests.widgets.conftest import Viewer

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(1)</script>\u202egnp'


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, vocab_size=280)
    shape = dict(num_layers=2, hidden_size=32, num_heads=4, max_positions=512, initializer_range=0.4)
    return nb.LM.new("gpt2", tokenizer=tokenizer, seed=1, **shape)


@pytest.fixture
def talk(lm, listen):
    def talk(**options) -> Talk:
        panel = nb.chat(lm, **{"max_new_tokens": 12, "seed": 3, **options})
        viewer = listen(panel)
        viewer.say("hello")
        return Talk(panel, viewer)

    return talk


class Talk:
    """A panel with a viewer that folds what it hears into a conversation, as the front end does."""

    def __init__(self, panel, viewer: Viewer) -> None:
        self.panel, self.viewer = panel, viewer

    def ask(self, text: str, kind: str = "ask", **fields) -> None:
        self.viewer.say(kind, text=text, request=1, **fields)

    def turns(self) -> list[dict]:
        turns: list[dict] = []
        tokens: dict[int, list] = {}
        for message, _ in list(self.viewer.messages):
            if message.get("to", self.viewer.name) != self.viewer.name:
                continue
            if message["type"] == "state":
                turns = message["turns"]
            elif message["type"] == "tokens" and turns:  # what comes before the first state is for others
                known = tokens.setdefault(message["turn"], [])
                assert message["first"] <= len(known), "tokens are missing"
                known[message["first"] :] = message["tokens"]
        return [{**turn, "tokens": tokens.get(turn["id"], [])} for turn in turns]

    def ended(self, count: int = 2) -> list[dict]:
        """Return the turns once there are so many and the last has ended, and been told of."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            turns = self.turns()
            if len(turns) == count and turns[-1]["state"] != "running":
                time.sleep(0.15)
                return self.turns()
            time.sleep(0.01)
        raise AssertionError(f"it does not end: {self.turns()}")


def test_a_question_is_answered_token_by_token_and_a_second_one_too(talk, lm):
    chat = talk()
    chat.ask("the cat")
    user, model = chat.ended()
    assert (user["text"], user["state"], model["state"]) == ("the cat", "done", "done")
    expected = lm.chat("the cat", max_new_tokens=12, seed=3).result
    assert "".join(token[0] for token in model["tokens"]) == expected.lstrip()
    assert len(model["tokens"]) == model["facts"]["num_tokens"] == 12
    for _, shown, probability, alternatives in model["tokens"]:
        assert shown and 0 <= probability <= 1
        assert len(alternatives) == 3
        assert probability + sum(p for _, p in alternatives) < 1.0001
    assert model["facts"]["seed"] == "3"
    assert model["facts"]["tokens_per_second"] > 0
    order = [m["turns"][-1]["state"] if m["type"] == "state" else "tokens" for m, _ in chat.viewer.messages
             if m["type"] == "tokens" or (m["type"] == "state" and m["turns"])]  # fmt: skip
    assert order[-2:] == ["tokens", "done"]  # what is said to be complete is complete
    chat.ask("and the dog")
    turns = chat.ended(4)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [m["content"] for m in chat.panel.messages] == [
        "the cat", expected.strip(), "and the dog", "".join(t[0] for t in turns[3]["tokens"]).strip(),
    ]  # fmt: skip
    assert chat.panel.messages[-1]["role"] == "assistant"


def test_the_kernel_is_loaded_with_the_panel(lm, monkeypatch):
    loaded = []
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(kernels, "compiled", lambda name: loaded.append(threading.current_thread()))
    nb.chat(lm).close()
    assert loaded == [threading.main_thread()]


def test_it_stops_before_the_next_token(talk):
    chat = talk(max_new_tokens=400)
    chat.ask("the cat")
    chat.viewer.wait("tokens")
    with chat.panel.guard:  # meanwhile no token is taken; one waits for that, and one more is chosen
        chat.viewer.say("stop")
        count = len(chat.panel._conversation.turns[-1].tokens)
    model = chat.ended()[1]
    assert model["state"] == "stopped"
    assert 0 < len(model["tokens"]) == model["facts"]["num_tokens"] <= count + 2
    chat.ask("the dog")
    chat.viewer.say("stop")  # perhaps before the first token
    assert chat.ended(4)[3]["state"] == "stopped"


def test_updates_come_at_most_twenty_times_a_second(talk):
    chat = talk(max_new_tokens=400)
    began = time.monotonic()
    chat.ask("the cat")
    chat.ended()
    assert len(chat.viewer.heard("tokens")) <= (time.monotonic() - began) / 0.05 + 2


def test_an_earlier_question_is_asked_anew_and_what_followed_is_gone(talk):
    chat = talk()
    chat.ask("the cat")
    chat.ended()
    chat.ask("the dog")
    first = chat.ended(4)[0]
    chat.ask("the log", kind="edit", turn=first["id"])
    turns = chat.ended(2)
    assert turns[0]["text"] == "the log"
    assert not {turn["id"] for turn in turns} & {first["id"]}
    chat.ask("again", kind="edit", turn=first["id"])
    assert "no longer part" in chat.viewer.heard("refused")[-1]["reason"]


def test_another_answer_has_another_seed(talk):
    chat = talk()
    chat.ask("the cat")
    before = chat.ended()[1]
    chat.viewer.say("regenerate", request=2)
    chat.viewer.wait("state", lambda m: m["turns"] and m["turns"][-1]["id"] > before["id"])
    after = chat.ended()[1]
    assert after["facts"]["seed"] != before["facts"]["seed"]
    assert [t[0] for t in after["tokens"]] != [t[0] for t in before["tokens"]]
    assert chat.ended()[0]["text"] == "the cat"


def test_controls_are_taken_and_bad_ones_refused_before_anything_changes(talk):
    chat = talk()
    good = dict(temperature="0", top_p="0.5", max_new_tokens="4", seed="", system="Be brief.")
    chat.ask("the cat", controls=good)
    assert len(chat.ended()[1]["tokens"]) == 4
    assert chat.panel.messages[0] == {"role": "system", "content": "Be brief."}
    state = chat.viewer.heard("state")[-1]["controls"]
    assert state == good
    for name, value, reason in (
        ("temperature", "-1", "at least 0"),
        ("temperature", "warm", "must be a number, not 'warm'"),
        ("max_new_tokens", "1.5", "whole number"),
        ("top_p", "nan", "top_p"),
        ("seed", "x", "whole number"),
        ("system", "\ud800", "surrogate"),
        ("system", [], "must be a text"),
    ):
        chat.ask("no", controls={**good, name: value})
        assert reason in chat.viewer.heard("refused")[-1]["reason"]
    assert len(chat.panel.messages) == 3
    assert chat.panel.config.temperature == 0


@pytest.mark.parametrize(
    "message", [dict(kind="dance", text=""), dict(kind="ask", text=" "), dict(kind="regenerate", text="")]
)
def test_what_cannot_be_done_is_said(talk, message):
    chat = talk()
    chat.ask(**message)
    assert chat.viewer.heard("refused")
    assert chat.panel.messages == []


def test_while_it_answers_only_stopping_is_possible(talk):
    chat = talk(max_new_tokens=400)
    chat.ask("the cat")
    for kind in ("ask", "regenerate", "clear"):
        chat.ask("the dog", kind=kind)
        assert "stop it first" in chat.viewer.heard("refused")[-1]["reason"]
    chat.viewer.say("stop")
    chat.ended()
    chat.ask("", kind="clear")
    chat.viewer.wait("state", lambda m: not m["turns"])
    assert chat.panel.messages == []


def test_a_second_viewer_gets_all_of_it_in_the_midst_of_an_answer(talk, listen):
    chat = talk(max_new_tokens=300)
    chat.ask("the cat")
    chat.viewer.wait("tokens")
    second = listen(chat.panel, "second")
    second.say("hello")
    chat.ended()
    other = Talk(chat.panel, second)
    assert other.turns() == chat.turns()


def test_a_failure_is_told_and_is_no_part_of_the_conversation(talk, lm):
    chat = talk()
    chat.ask("the cat " * 400)
    model = chat.ended()[1]
    assert model["state"] == "failed"
    assert "the model has positions for 512" in model["error"]
    assert chat.panel.messages == []
    chat.ask("the cat")
    assert chat.ended(4)[3]["state"] == "done"
    assert len(chat.panel.messages) == 2
    weights = lm.model.norm.bias
    kept = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.fill_(float("nan"))
        chat.viewer.say("regenerate", request=3)
        assert "not finite" in chat.ended(4)[3]["error"]
    finally:
        with torch.no_grad():
            weights.copy_(kept)


def test_the_prompt_is_shown_of_the_last_answer_or_with_a_draft(talk):
    chat = talk(system="Be brief.")
    for draft, expected in (
        ("hi", "Be brief.\n\nUser: hi\nAssistant:"),
        ("", "Be brief.\n\nUser: \nAssistant:"),
    ):
        chat.viewer.messages.clear()
        chat.ask(draft, kind="prompt")
        said = chat.viewer.wait("prompt")
        assert "".join(text for text, _ in said["parts"]) == expected
        assert said["count"] > 5
    chat.ask("the cat")
    chat.ended()
    chat.viewer.messages.clear()
    chat.ask("", kind="prompt")
    text = "".join(text for text, _ in chat.viewer.wait("prompt")["parts"])
    assert text == "Be brief.\n\nUser: the cat\nAssistant:"


def test_a_broken_template_is_told_where_it_is_shown_and_where_it_answers(talk, lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", "{{ ''.__class__.__mro__ }}")
    chat = talk()
    chat.ask("hi", kind="prompt")
    assert "SecurityError" in chat.viewer.wait("prompt")["reason"]
    chat.ask("hi")
    assert "SecurityError" in chat.ended()[1]["error"]


def test_stop_ends_a_template_that_loops(talk, lm, monkeypatch):
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(lm.tokenizer, "chat_template", loop)
    chat = talk()
    chat.ask("hi")
    chat.viewer.wait("state", lambda message: message["turns"])
    chat.viewer.say("stop")
    model = chat.ended()[1]
    assert (model["state"], model["facts"]["num_tokens"], model["tokens"]) == ("stopped", 0, [])
    monkeypatch.setattr(lm.tokenizer, "chat_template", None)
    chat.ask("hi")
    assert chat.ended(4)[3]["state"] == "done"


def test_exports_hold_the_conversation(talk):
    chat = talk(system="Be brief.")
    chat.ask(f"say ```` {HOSTILE}")
    model = chat.ended()[1]
    for form in ("json", "md", "exe"):
        chat.viewer.say("export", format=form)
    told = {m["media"]: m for m in chat.viewer.heard("exported")}
    made = json.loads(told["application/json"]["text"])
    assert made["messages"] == chat.panel.messages
    assert [t["probability"] for t in made["answers"][0]["tokens"]] == pytest.approx(
        [t[2] for t in model["tokens"]], abs=1e-6
    )
    assert made["settings"]["max_new_tokens"] == 12
    assert made["model"] == "a new gpt2 model" and "2 layers x 32" in made["shape"]
    markdown = told["text/markdown"]["text"]
    assert f"## User\n\n`````text\nsay ```` {HOSTILE}\n`````" in markdown
    assert told["text/markdown"]["name"].endswith(".md")
    assert "cannot be exported" in chat.viewer.heard("refused")[-1]["reason"]


def test_the_picture_shows_everything_and_does_nothing(talk):
    chat = talk(system=HOSTILE)
    assert "No messages" in nb.chat(chat.panel.lm)._repr_html_()
    chat.ask(HOSTILE)
    chat.ended()
    html = chat.panel._repr_html_()
    assert "<script" not in html and "<img" not in html and "\u202e" not in html
    assert html.count("&lt;script&gt;") == 2
    assert repr(chat.panel).count("<script>") == 2


def test_a_panel_that_is_closed_stops_its_answer(talk):
    chat = talk(max_new_tokens=400)
    chat.ask("the cat")
    chat.panel.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "chat answer" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_no_model_and_no_setting_is_refused(lm):
    with pytest.raises(UserError, match="no chat with str"):
        nb.chat("gpt2")
    with pytest.raises(UserError, match="temprature"):
        nb.chat(lm, temprature=1)
    with pytest.raises(UserError, match="must be a text"):
        nb.chat(lm, system=3)


def test_an_answer_begins_without_the_space_that_its_first_token_has():
    turn = Conversation().add("assistant")
    for text in (" ", "\n The", " cat"):
        turn.take(AnswerToken(text, text, 0.5, ()))
    assert turn.text == "The cat"
    assert [token.text for token in turn.tokens] == ["", "The", " cat"]


def test_a_viewer_hears_that_the_kernel_lives_while_nothing_happens(talk, monkeypatch):
    monkeypatch.setattr(base, "BEAT", 0.02)
    chat = talk()
    chat.viewer.messages.clear()
    chat.viewer.wait("alive")


def test_it_is_headed_by_where_the_model_comes_from(talk, lm, listen, monkeypatch):
    assert talk().viewer.wait("state")["name"] == "a new gpt2 model"
    monkeypatch.setattr(lm, "origin", f"my-model\n{HOSTILE}")
    chat = talk()
    said = chat.viewer.wait("state")
    assert said["name"] == f"my-model\ufffd{HOSTILE}".replace("\u202e", "\ufffd")
    assert said["shape"].startswith("gpt2, 2 layers x 32, 4 heads")
    assert repr(chat.panel).splitlines()[0] == f"Chat with {said['name']}"
    assert "Chat with my-model\ufffd&lt;img" in chat.panel._repr_html_()


def test_no_more_of_the_context_is_used_than_there_is(talk):
    facts = talk().panel._facts(num_tokens=500, context=513, stopped_by="context")
    assert facts["context"] == facts["max_positions"] == 512
