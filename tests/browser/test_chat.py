"""The chat panel: its front end on a model that only pretends, and all of it in a real JupyterLab."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat_page import (
    ChatPage,
    answered,
    answers,
    ask,
    has_tokens,
    question,
    stop_after,
    token,
    tokens_of,
)
from tests.browser.lab import Notebook

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\u202egnp.exe'


@pytest.fixture
def fresh(page: Page) -> Callable[..., ChatPage]:
    """Open a panel to which the kernel has said nothing yet."""
    return lambda **options: ChatPage(page, **options)


@pytest.fixture
def chat(fresh: Callable[..., ChatPage]) -> ChatPage:
    """A panel after one question and its answer."""
    chat = fresh()
    chat.state(question(1, "Where did the cat sit?"), answered(2))
    sat = token(" sat", 0.623, (" lay", 0.2), ("\n", 0.1), (" slept", 0.0004))
    chat.tokens(2, [token("The", 0.9995), token(" cat", 0.5), sat])
    return chat


def focus(chat: ChatPage, name: str) -> None:
    chat.panel.get_by_label(name, exact=True).focus()


# Asking


def test_it_says_hello_and_waits_for_an_answer_of_its_own(fresh):
    chat = fresh()
    assert [message["type"] for message in chat.page.evaluate("sent")] == ["hello"]
    chat.say("refused", to="somebody else", reason="not for you")
    expect(chat.panel.get_by_role("alert")).to_be_hidden()
    chat.state()
    expect(chat.panel).to_contain_text("No messages yet")
    expect(chat.button("New conversation")).to_be_hidden()


def test_a_kernel_that_does_not_answer_is_spoken_of(fresh):
    chat = fresh()
    expect(chat.panel).to_contain_text("The kernel has not answered yet", timeout=5000)
    chat.state()
    expect(chat.panel).not_to_contain_text("The kernel has not answered yet")


def test_a_question_before_the_kernel_has_said_anything_leaves_its_settings_alone(fresh):
    chat = fresh()
    chat.panel.get_by_text("System prompt and sampling").click()
    chat.panel.get_by_label("Seed").fill("12")
    field = chat.panel.get_by_label("Question", exact=True)
    field.fill("one")
    field.press("Enter")
    assert [message["controls"] for message in chat.sent("ask")] == [{"seed": "12"}]


def test_enter_asks_and_the_field_is_empty_once_the_kernel_has_it(chat):
    field = chat.panel.get_by_label("Question", exact=True)
    field.fill("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    assert chat.sent("ask") == []
    field.press("Enter")
    [asked] = chat.sent("ask")
    assert asked["text"] == "one\ntwo"
    controls = {"temperature": "0.7", "top_p": "0.95", "max_new_tokens": "512", "seed": "", "system": ""}
    assert asked["controls"] == controls
    expect(field).to_have_value("one\ntwo")
    chat.say("refused", to=chat.viewer, request=asked["request"], reason="temperature must be at least 0.")
    expect(chat.panel.get_by_role("alert")).to_contain_text("temperature must be at least 0.")
    expect(field).to_have_value("one\ntwo")
    chat.button("Send").click()
    expect(chat.panel.get_by_role("alert")).to_be_hidden()
    chat.accept()
    expect(field).to_have_value("")
    field.press("Enter")
    assert len(chat.sent("ask")) == 2  # nothing is not asked


def test_text_grows_with_its_speed_and_stop_is_there(chat):
    turns = (question(1, "a"), answered(2), question(3, "b"))
    focus(chat, "Question")
    chat.state(*turns, answered(4, "running"))
    expect(chat.panel).to_contain_text("reading the conversation")
    expect(chat.button("Send")).to_be_hidden()
    expect(chat.button("Regenerate")).to_have_count(0)
    expect(chat.panel.get_by_role("log")).to_have_attribute("aria-busy", "true")
    chat.tokens(4, [token("It"), token(" sat")], seconds=0.5)
    chat.tokens(4, [token(" there")], first=2, seconds=1.0)
    chat.tokens(4, [token(" sat"), token(" there")], first=1, seconds=1.0)  # twice does not matter
    expect(chat.panel.locator(".chat-model .chat-text").last).to_have_text("It sat there")
    expect(chat.panel.locator(".chat-model").last).to_contain_text("3 tokens, 3 tokens/s")
    chat.panel.get_by_label("Question", exact=True).press("Escape")
    chat.button("Stop").click()
    assert len(chat.sent("stop")) == 2
    expect(chat.button("Stop")).to_have_attribute("aria-busy", "true")
    chat.state(*turns, answered(4, "stopped", num_tokens=3, stopped_by="caller"))
    expect(chat.panel.locator(".chat-model").last).to_contain_text(
        "3 tokens, 23.4 tokens/s, stopped by you, context 120 of 2,048"
    )
    expect(chat.button("Stop")).to_be_hidden()
    expect(chat.panel.get_by_label("Question", exact=True)).to_be_focused()
    expect(chat.panel.get_by_role("status")).to_have_text("The answer is stopped.")


def test_tokens_that_were_lost_are_asked_for_again(chat):
    chat.tokens(2, [token("?")], first=7)
    assert len(chat.sent("hello")) == 2
    chat.state(question(1, "Where did the cat sit?"), answered(2))
    chat.tokens(2, [token("The"), token(" cat"), token(" sat"), token(" down")])
    expect(chat.panel.locator(".chat-model .chat-text")).to_have_text("The cat sat down")


def test_hello_is_said_again_until_it_is_answered(fresh):
    chat = fresh()
    chat.page.wait_for_function("sent.filter(({ type }) => type === 'hello').length === 2")
    chat.state()
    chat.page.wait_for_timeout(6000)
    assert len(chat.sent("hello")) == 2


def test_what_is_asked_comes_into_view_and_what_is_read_stays_there(chat):
    log = chat.panel.get_by_role("log")
    turns = [question(1, "Where did the cat sit?"), answered(2)]
    chat.state(*turns)
    chat.tokens(2, tokens_of("\n".join(f"line {i}" for i in range(60))), first=3)
    log.evaluate("(node) => { node.scrollTop = 0; }")
    turns += [question(3, "And the dog?"), answered(4, "running")]
    chat.state(*turns)
    expect(chat.panel.get_by_text("And the dog?")).to_be_in_viewport()
    log.evaluate("(node) => { node.scrollTop = 0; }")
    chat.tokens(4, tokens_of("beside it\n" * 9))
    chat.state(*turns[:-1], answered(4))
    assert log.evaluate("(node) => node.scrollTop") == 0


def test_sending_while_an_answer_is_written_is_spoken_of(chat):
    chat.state(question(1, "a"), answered(2, "running"))
    field = chat.panel.get_by_label("Question", exact=True)
    field.fill("b")
    field.press("Enter")
    assert chat.sent("ask") == []
    expect(chat.panel).to_contain_text("Escape stops the answer; then Enter sends")
    expect(field).to_have_value("b")


def test_a_kernel_that_is_gone_is_spoken_of(chat):
    chat.page.evaluate("() => { model.send = () => { throw new Error('Cannot send'); }; }")
    field = chat.panel.get_by_label("Question", exact=True)
    field.fill("Are you there?")
    field.press("Enter")
    expect(chat.panel.locator(".nbllm-loss")).to_contain_text("run the cell again")
    expect(field).to_have_value("Are you there?")  # can be copied
    expect(chat.panel.get_by_role("alert")).to_be_hidden()


def test_a_kernel_that_falls_silent_greys_the_chat_and_leaves_no_live_button(fresh):
    chat = fresh()
    chat.state(question(1, "a"), answered(2, "running"))
    chat.tokens(2, [token("The"), token(" cat")])
    chat.page.evaluate("() => { window.was = Date.now; Date.now = () => was() + 20_000; }")
    note = chat.panel.locator(".nbllm-loss")
    expect(note).to_contain_text("The kernel has not been heard since", timeout=5000)
    expect(note).to_contain_text("run the cell again")
    buttons = chat.panel.locator("button:visible")
    assert buttons.evaluate_all("(all) => all.every((one) => one.closest('[inert]'))")
    expect(chat.panel.locator(".chat-model .chat-text")).to_have_text("The cat")
    before = len(chat.page.evaluate("sent"))
    chat.panel.get_by_label("Question", exact=True).press("Escape")
    ask(chat.panel, "b")
    assert len(chat.page.evaluate("sent")) == before
    chat.page.evaluate("() => { Date.now = was; }")
    chat.say("alive")  # it was only held up
    expect(note).to_be_hidden()
    expect(chat.button("Stop")).to_be_enabled()
    assert chat.panel.locator("[inert]").count() == 0


def test_it_is_headed_by_the_name_of_the_model_with_its_shape_beside(fresh):
    chat = fresh()
    chat.name = HOSTILE
    chat.state()
    expect(chat.panel.locator(".chat-name")).to_contain_text("<script>window.hacked=1</script>")
    expect(chat.panel.locator(".chat-about")).to_have_text(re.compile("^llama, 30 layers x 576"))
    expect(chat.page.get_by_role("region", name=re.compile("^Chat with <img"))).to_be_visible()
    assert chat.panel.locator("img, script").count() == 0
    assert "\u202e" not in chat.panel.inner_text()


# Probabilities


def tip_rows(chat: ChatPage) -> list[str]:
    return [" ".join(text.split()) for text in chat.panel.locator(".chat-tip-row").all_inner_texts()]


def test_pointing_at_a_token_tells_its_probability_and_three_alternatives(chat):
    chat.panel.locator(".chat-token").nth(2).hover()
    tip = chat.panel.get_by_role("tooltip")
    expect(tip).to_be_visible()
    assert tip_rows(chat) == ["␣sat 62.3 %", "␣lay 20.0 %", "↵ 10.0 %", "␣slept < 0.1 %"]
    chat.panel.get_by_label("Question", exact=True).hover()
    expect(tip).to_be_hidden()


def test_arrow_keys_do_the_same_and_it_is_spoken(chat):
    chat.panel.get_by_label(re.compile("Answer; arrow keys")).focus()
    chat.page.keyboard.press("ArrowRight")
    assert tip_rows(chat)[0] == "The > 99.9 %"
    chat.page.keyboard.press("End")
    assert tip_rows(chat)[0] == "␣sat 62.3 %"
    expect(chat.panel.get_by_role("status")).to_have_text(
        "␣sat 62.3 %; instead: ␣lay 20.0 %, ↵ 10.0 %, ␣slept < 0.1 %."
    )
    chat.page.keyboard.press("ArrowLeft")
    assert tip_rows(chat)[0] == "␣cat 50.0 %"
    chat.page.keyboard.press("Escape")
    expect(chat.panel.get_by_role("tooltip")).to_be_hidden()


def test_a_character_of_several_tokens_tells_of_each(chat):
    chat.state(question(1, "?"), answered(3))
    chat.tokens(3, [token("", 0.25, shown="\ufffd"), token("é", 0.75, shown="\ufffd")])
    chat.panel.locator(".chat-token").hover()
    assert tip_rows(chat) == ["\ufffd 25.0 %", "\ufffd 75.0 %"]


def test_the_tip_stays_within_a_narrow_panel(fresh):
    chat = fresh(width=304)
    chat.page.set_viewport_size({"width": 320, "height": 700})
    chat.state(question(1, "Where?"), answered(2))
    chat.tokens(2, tokens_of("The cat sat on the mat and the dog sat on the log for a long long time"))
    box = chat.panel.bounding_box()
    for i in range(chat.panel.locator(".chat-token").count()):
        chat.panel.locator(".chat-token").nth(i).hover()
        tip = chat.panel.get_by_role("tooltip").bounding_box()
        assert box["x"] <= tip["x"] and tip["x"] + tip["width"] <= box["x"] + box["width"]
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_tint_is_a_choice_and_says_how_doubtful_a_token_was(chat):
    last = chat.panel.locator(".chat-token").nth(1)
    background = "(node) => getComputedStyle(node).backgroundColor"
    assert last.evaluate(background) == "rgba(0, 0, 0, 0)"
    chat.panel.get_by_label("Tint by probability").check()
    assert last.evaluate(background) != "rgba(0, 0, 0, 0)"
    assert last.evaluate("(node) => node.style.getPropertyValue('--doubt')") == "0.5"


def test_fenced_code_has_its_own_type(chat):
    chat.state(question(1, "?"), answered(3))
    chat.tokens(3, [token(text) for text in ("See\n", "```", "python\n", "x = 1\n", "```\n", "done")])
    code = [" ".join(text.split()) for text in chat.panel.locator(".chat-code").all_text_contents()]
    assert code == ["```", "python", "x = 1", "```"]


# Editing, anew, controls, export


def test_an_earlier_question_is_edited_where_it_stands(chat):
    chat.button("Edit this question").click()
    field = chat.panel.get_by_label("Edited question")
    expect(field).to_be_focused()
    expect(field).to_have_value("Where did the cat sit?")
    field.press("Escape")
    expect(chat.button("Edit this question")).to_be_focused()
    chat.page.keyboard.press("Enter")
    field.fill("Where did the dog sit?")
    field.press("Enter")
    [edit] = chat.sent("edit")
    assert (edit["turn"], edit["text"]) == (1, "Where did the dog sit?")
    chat.state(question(3, "Where did the dog sit?"), answered(4, "running"))
    expect(chat.panel.locator(".chat-user")).to_have_count(1)
    expect(chat.panel).not_to_contain_text("The cat sat")


def test_another_answer_and_a_new_conversation(chat):
    chat.button("Regenerate").click()
    assert len(chat.sent("regenerate")) == 1
    chat.button("New conversation").click()
    assert chat.sent("clear") == []
    chat.button("Delete this one?").click()
    assert len(chat.sent("clear")) == 1


def test_a_failure_is_shown_in_its_place(chat):
    chat.state(question(1, "?"), answered(3, "failed", error=f"It is broken {HOSTILE}"))
    expect(chat.panel.locator(".chat-model")).to_contain_text("It is broken <img")
    chat.button("Try again").click()
    assert len(chat.sent("regenerate")) == 1
    assert chat.page.evaluate("window.hacked") is None


def test_controls_are_sent_when_changed_and_follow_the_kernel_but_not_over_what_is_typed(chat):
    chat.panel.get_by_text("System prompt and sampling").click()
    chat.panel.get_by_label("Temperature").fill("0")
    chat.panel.get_by_label("Temperature").press("Tab")
    assert chat.sent("controls")[-1]["controls"]["temperature"] == "0"
    chat.panel.get_by_label("Seed").fill("12")
    turns = (question(1, "Where did the cat sit?"), answered(2))
    chat.state(*turns, temperature="0", system="Be brief.")
    expect(chat.panel.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(chat.panel.get_by_label("Seed")).to_have_value("12")


def test_the_prompt_is_shown_when_asked_for(chat):
    assert chat.sent("prompt") == []
    chat.panel.get_by_label("Question", exact=True).fill("draft")
    chat.panel.get_by_text("Prompt as the model reads it").click()
    chat.page.wait_for_function("sent.some(({ type }) => type === 'prompt')")
    assert chat.sent("prompt")[0]["text"] == "draft"
    parts = [["<|im_start|>", True], [f"user\n{HOSTILE}", False]]
    chat.say("prompt", to=chat.viewer, parts=parts, count=12, reason="")
    expect(chat.panel).to_contain_text("12 tokens; marked: the template's own control tokens")
    assert chat.panel.locator(".chat-prompt b").all_text_contents() == ["<|im_start|>"]
    assert "\u202e" not in chat.panel.inner_text()
    chat.say("prompt", to=chat.viewer, parts=[], count=0, reason="The template cannot render this.")
    expect(chat.panel).to_contain_text("The template cannot render this.")
    assert chat.page.evaluate("window.hacked") is None


def test_an_export_is_a_file(chat):
    chat.button("Export as JSON").click()
    assert chat.sent("export")[0]["format"] == "json"
    with chat.page.expect_download() as download:
        chat.say("exported", to=chat.viewer, name="chat.json", media="application/json", text='{"a": "é"}')
    assert download.value.suggested_filename == "chat.json"
    assert json.loads(download.value.path().read_text(encoding="utf-8")) == {"a": "é"}


def test_hostile_text_is_text_everywhere(chat):
    turns = (question(1, HOSTILE), answered(3))
    chat.state(*turns, system=HOSTILE, temperature=HOSTILE)
    chat.tokens(3, [token(HOSTILE, 0.5, (HOSTILE, 0.2)), token(f"\n```html\n{HOSTILE}\n```")])
    chat.panel.locator(".chat-token").first.hover()
    chat.say("problem", to=chat.viewer, text=HOSTILE)
    expect(chat.panel.locator(".chat-text").last).to_contain_text("<script>")
    assert chat.panel.locator("img, script, iframe, a").count() == 0
    assert "\u202e" not in chat.panel.inner_text()
    assert chat.page.evaluate("window.hacked") is None


def test_leaving_says_so_and_listens_no_more(chat):
    chat.page.evaluate("leave()")
    assert len(chat.sent("bye")) == 1
    assert chat.page.evaluate("listeners.size") == 0


# In JupyterLab

BEGIN = """
import time
import nbllm as nb
text = nb.data.load("pydocs").select(range(12))
tokenizer = nb.data.train_tokenizer(text, vocab_size=320)
tokenizer.eos_token = None  # a model made of noise would soon end its answer
lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=4096)
panel = nb.chat(lm, max_new_tokens=60, seed=1)
panel
"""


@pytest.fixture
def book(opened: Callable[..., Notebook]) -> Callable[..., Notebook]:
    """Open a notebook whose first cell has made a panel."""

    def book(*cells: str) -> Notebook:
        notebook = opened(BEGIN, *cells)
        notebook.run(0)
        return notebook

    return book


def test_it_streams_stops_and_goes_on_and_a_reload_restores_it(book, page):
    notebook = book("panel.messages")
    panel = notebook.panel(0)
    ask(panel, "What is a list?")
    expect(panel.locator(".chat-model")).to_contain_text("60 tokens", timeout=30_000)
    expect(panel.locator(".chat-model")).to_contain_text("tokens/s")
    first = answers(panel).inner_text()

    panel.get_by_text("System prompt and sampling").click()
    panel.get_by_label("Maximum tokens").fill("3000")
    ask(panel, "And a second question?")
    expect(panel.locator(".chat-user")).to_have_count(2)
    grown = []
    for least in (3, 40, 80):
        has_tokens(page, least)
        grown.append(answers(panel).last.inner_text())
    assert grown[1].startswith(grown[0]) and grown[2].startswith(grown[1])
    print(f"stopped {stop_after(page, 20):.0f} ms after the click")

    panel.locator(".chat-token").first.hover()
    expect(panel.locator(".chat-tip-table").last.locator(".chat-tip-row")).to_have_count(4)
    expect(panel.locator(".chat-tip-row").first).to_contain_text("%")
    panel.get_by_text("Prompt as the model reads it").click()
    expect(panel.locator(".chat-prompt")).to_contain_text(f"User: What is a list?\nAssistant: {first[:5]}")

    before = panel.locator(".chat-text").all_inner_texts()
    notebook.save()
    notebook.reload()
    panel = notebook.panel(0)
    expect(panel.locator(".chat-text")).to_have_text(before, timeout=30_000)
    panel.locator(".chat-token").first.hover()
    expect(panel.locator(".chat-tip-table").last.locator(".chat-tip-row")).to_have_count(4)
    expect(panel.get_by_label("Maximum tokens")).to_have_value("3000")
    notebook.run(1)
    expect(notebook.output(1)).to_contain_text("And a second question?")

    panel.get_by_label("Edit this question").first.click()
    panel.get_by_label("Edited question").first.fill("What is a dict?")
    panel.get_by_role("button", name="Ask again").first.click()
    expect(panel.locator(".chat-user")).to_have_count(1)
    expect(panel.locator(".chat-user")).to_contain_text("What is a dict?")
    stop_after(page, 5)


def test_it_stops_while_a_cell_computes(book, page):
    busy = "deadline = time.monotonic() + 15\nwhile time.monotonic() < deadline:\n    sum(range(1000))"
    notebook = book(busy)
    panel = notebook.panel(0)
    panel.get_by_text("System prompt and sampling").click()
    panel.get_by_label("Maximum tokens").fill("3000")
    notebook.run(1, wait=False)
    time.sleep(0.5)
    ask(panel, "What is a list?")
    print(f"stopped {stop_after(page, 5):.0f} ms after the click, beside a cell that computes")
    assert notebook.is_running(1)

    notebook.restart()  # the comm is closed, and the panel says so before anybody has pressed anything
    expect(panel.locator(".nbllm-loss")).to_contain_text("run the cell again")
    buttons = panel.locator("button:visible")
    assert buttons.evaluate_all("(all) => all.every((one) => one.closest('[inert]'))")
    expect(panel.locator(".chat-user .chat-text")).to_have_text("What is a list?")


def test_hostile_output_is_inert_and_the_saved_notebook_shows_it_as_text(lab, book, page):
    hostile = f"""
lm.model = lm.model.eval()
spoken = tokenizer({HOSTILE!r})["input_ids"]
import nbllm.inference.sampler as sampler, torch
said = iter(spoken)
sampler.choose = lambda logits, *_: torch.tensor([next(said, 0)])  # a model that says the worst
text = panel.lm.chat("x").text
said = iter(spoken)
print(text)
"""
    notebook = book(hostile)
    notebook.run(1)
    panel = notebook.panel(0)
    ask(panel, HOSTILE)
    expect(answers(panel)).to_contain_text("<script>", timeout=20_000)
    assert "\u202e" not in panel.inner_text()
    assert panel.locator("img, script").count() == 0
    notebook.run(1)  # the picture beneath is brought up to date
    notebook.save()
    saved = (lab.root / notebook.name).read_text()
    assert "&lt;script&gt;window.hacked" in saved
    assert page.evaluate("window.hacked") is None
    notebook.shut_down()
    notebook.reload()
    expect(notebook.output(0)).to_contain_text("<script>")  # without its kernel: the picture
    assert page.evaluate("window.hacked") is None
