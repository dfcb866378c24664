import io
import json
import sys

import pytest

from nbllm.core.terminal import json_only, say, shorten, visible, visible_line

HOSTILE = {
    "colour": "\x1b[31mred",
    "window title": "\x1b]0;owned\x07",
    "hyperlink": "\x1b]8;;http://evil\x1b\\click",
    "8-bit control sequence": "\x9b31m",
    "backspace": "safe\x08\x08\x08\x08evil",
    "carriage return": "evil\rgood",
    "override": "a\u202eb",
    "isolate": "a\u2066b",
    "line separator": "a\u2028b",
    "half an emoji": "\ud83d",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_would_obey_is_replaced(text):
    shown = visible(text)
    assert "\ufffd" in shown
    assert all(sign == "\ufffd" or sign.isprintable() for sign in shown)
    shown.encode()


def test_lines_and_tabs_stay_in_a_text_and_not_in_a_line():
    assert visible("a\r\nb\tc") == "a\nb\tc"
    assert visible_line("a\nb\tc") == "a\ufffdb\ufffdc"
    assert visible("Grüße 日本語 👩‍👩‍👧 שלום") == "Grüße 日本語 👩‍👩‍👧 שלום"


def test_a_long_text_keeps_its_ends():
    text = "begin " + "x" * 10_000 + " end"
    short = shorten(text, 100)
    assert len(short) < 200 and short.startswith("begin") and short.endswith("end") and "9,910" in short
    assert shorten("short", 100) == "short"


def test_saying_cleans_and_never_fails_for_an_encoding(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("Grüße\x1b[2J \ud800")
    assert raw.getvalue() == b"Gr??e?[2J ?\n"


def test_what_json_cannot_hold_is_replaced_wherever_a_message_holds_it():
    message = {"text": "a \ud83d b", "\udca9": ["\ud83d", ("fine \U0001f4a9", 1)], "n": 2.5, "none": None}
    message |= {"nan": float("nan"), "far": [float("inf")]}
    sent = json_only(message)
    assert sent == {
        "text": "a \ufffd b",
        "\ufffd": ["\ufffd", ["fine \U0001f4a9", 1]],
        "n": 2.5,
        "none": None,
        "nan": None,
        "far": [None],
    }
    json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
