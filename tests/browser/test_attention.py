"""The attention picture in a real browser without a network, and in JupyterLab, trusted and not."""

import nbformat
import pytest
import torch

from nbllm.widgets.attention import AttentionPicture
from tests.browser.lab import Notebook

TOKENS = ["The", " cat", " sat", " on", " it"]
HOSTILE = [
    "</script><script>parent.hit=hit=1</script>",
    "<img src=x onerror=parent.hit=hit=1>",
    "<svg onload=parent.hit=hit=1>",
    "a\u202eb",
    "`${parent.hit=hit=1}`",
    "entrar<!--#exec",
    "-->",
    "<s>",
]


def picture(view, tokens=TOKENS, layers=3, heads=4):
    weights = torch.rand(
        layers, heads, len(tokens), len(tokens), generator=torch.Generator().manual_seed(0)
    ).tril()
    weights /= weights.sum(-1, keepdim=True)
    return AttentionPicture(weights, tokens, layers=range(layers), heads=range(heads), view=view)


@pytest.fixture
def show(page, context):
    """Show a picture in a page that has no network; what went wrong is gathered and must be nothing."""
    wrong = []
    context.set_offline(True)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: wrong.append(request.url))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))

    def show(picture):
        page.set_content(f"<!DOCTYPE html><html><body>{picture._repr_html_()}</body></html>")
        frame = page.frames[1]
        frame.wait_for_selector("svg line", state="attached")
        return frame

    yield show
    assert not wrong


def lines(frame, more=""):
    return frame.locator(f"svg line{more}").count()


def test_the_head_view_is_drawn_and_answers(show):
    frame = show(picture("head"))
    assert lines(frame) == 4 * 5 * 5
    assert frame.locator("#layer option").all_text_contents() == ["0", "1", "2"]
    assert frame.locator("#left text").all_text_contents() == TOKENS
    first = frame.locator("svg line").nth(5).get_attribute("stroke-opacity")
    frame.locator("#layer").select_option("2")
    assert frame.locator("svg line").nth(5).get_attribute("stroke-opacity") != first
    frame.locator("#left text").nth(2).hover()
    assert lines(frame, "[visibility=visible]") == 4 * 5
    squares = frame.locator("svg > g:last-child rect")
    assert squares.count() == 4
    squares.nth(1).dblclick()
    drawn = frame.locator("svg line").evaluate_all(
        "all => all.filter(l => +l.getAttribute('stroke-opacity') > 0).map(l => l.parentNode.parentNode"
        ".getAttribute('head-index'))"
    )
    assert set(drawn) == {"1"} and len(drawn) == 15


def test_the_model_view_is_drawn_and_answers(show):
    frame = show(picture("model"))
    assert lines(frame) == 3 * 4 * 15  # a later token is never looked at
    frame.locator("svg > g > rect:last-child").nth(6).click()
    assert lines(frame) == 13 * 15
    texts = frame.locator("svg text").all_text_contents()
    assert "Layer 1, Head 2" in texts and texts.count(" cat") == 2


def test_two_pictures_in_one_notebook_are_both_drawn(page, context):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    context.set_offline(True)
    shown = "".join(picture(view)._repr_html_() for view in ("head", "model"))
    page.set_content(f"<!DOCTYPE html><html><body>{shown}</body></html>")
    for frame, count in zip(page.frames[1:], (4 * 25, 3 * 4 * 15), strict=True):
        frame.wait_for_selector("svg line", state="attached")
        assert lines(frame) == count
    assert not requests


@pytest.mark.parametrize("view", ["head", "model"])
def test_the_frame_is_high_and_wide_enough(show, view):
    frame = show(picture(view))
    assert frame.evaluate(
        "() => { const e = document.scrollingElement;"
        "return e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth }"
    )


@pytest.mark.parametrize("view", ["head", "model"])
def test_hostile_text_is_text(show, page, view):
    frame = show(picture(view, HOSTILE))
    if view == "model":
        frame.locator("svg > g > rect:last-child").first.click()
    shown = frame.locator("svg text").all_text_contents()
    assert all(token.replace("\u202e", "\ufffd") in shown for token in HOSTILE)
    assert frame.locator("img, svg svg").count() == 0 and frame.locator("script").count() == 4
    assert frame.evaluate("() => typeof hit") == page.evaluate("() => typeof hit") == "undefined"
    assert page.locator("img, script").count() == 0


def test_the_frame_is_a_stranger_to_the_page_around_it(show):
    frame = show(picture("head"))
    reach = "() => { try { return parent.document.body.innerHTML } catch (error) { return error.name } }"
    assert frame.evaluate(reach) == "SecurityError"


def test_what_goes_wrong_in_the_page_is_said_in_it(page):
    page.set_content(picture("head").document.replace('"left_text"', '"wrong"', 1))
    page.get_by_text("The picture could not be drawn").wait_for()


def test_it_is_seen_in_jupyterlab_and_its_table_in_an_untrusted_notebook(lab, page):
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    code = (
        "import torch\nfrom nbllm.widgets.attention import AttentionPicture\n"
        "AttentionPicture(torch.tensor([[[[1.0, 0], [0.7, 0.3]]]]), ['one', 'two'], layers=[0], heads=[0], view='head')"
    )
    path = lab.write("attention.ipynb", code)
    notebook = Notebook(lab, page, "attention.ipynb").open()
    notebook.run(0)
    inside = notebook.output(0).frame_locator("iframe")
    inside.locator("svg line").first.wait_for(state="attached")
    assert inside.locator("svg line").count() == 4

    book = nbformat.read(path, 4)
    shown = picture("head", HOSTILE)._repr_html_()
    book.cells[0].outputs = [
        nbformat.v4.new_output("execute_result", {"text/html": shown, "text/plain": ""}, execution_count=1)
    ]
    nbformat.write(book, lab.root / "untrusted.ipynb")
    notebook = Notebook(lab, page, "untrusted.ipynb").open("two")
    output = notebook.output(0)
    output.locator("summary").click()
    output.get_by_text("1: <img src=x onerror=parent.hit=hit=1>").first.wait_for()
    assert output.locator("iframe, script, img").count() == 0
    assert not wrong
