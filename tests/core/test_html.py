import html as standard_html
import html.parser
import re

import pytest

from nbllm.core.html import THEME_CSS, Raw, cell, escape, fragment, key_values, page, table
from nbllm.core.terminal import visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></pre></title><b>",
    "&lt;already&gt;",
]


class _Elements(html.parser.HTMLParser):
    """Collects what a browser would see: elements, attributes and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parse(text):
    parser = _Elements()
    parser.feed(text)
    parser.close()
    return parser


@pytest.mark.parametrize("text", HOSTILE)
def test_escape_shows_the_text_and_makes_no_element(text):
    found = parse(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert found.tags == ["p"] and found.attributes == ["title"]
    assert "".join(found.text) == text
    assert standard_html.unescape(escape(text)) == text


@pytest.mark.parametrize(
    "sign", ["\x00", "\x1b", "\x85", "\x7f", "\u202e", "\u2066", "\u200f", "\ud800", "\r"]
)
def test_signs_that_act_are_shown_as_replacement(sign):
    assert escape(f"a{sign}b") == "a\ufffdb"
    escape(f"a{sign}b").encode()  # a lone surrogate would not go through


def test_harmless_text_is_left_as_it_is():
    text = "naïve 日本語 👩\u200d💻 שלום\ttab\nline"
    assert escape(text) == text
    assert visible("a\r\nb") == "a\nb"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_escapes_every_place(text):
    found = parse(
        table([(text, 1.0)], (text, "n"), caption=text, row_headers=True) + key_values({text: text})
    )
    assert set(found.tags) <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "".join(found.text).count(text) == 5


def test_columns_of_numbers_stand_right():
    drawn = table([("a", 1.5, "x"), ("b", None, 2)], ("name", "value", "mixed"))
    assert drawn.count('class="number"') == 3  # header and two cells of one column
    numbers = re.findall(r'<td class="number" data-label="value">(.*?)</td>', drawn)
    assert numbers == ["1.5", "&ndash;"]  # a phone shows the column's name beside each cell


def test_raw_is_not_escaped_twice():
    inner = table([("<", "x")])
    assert inner in table([(inner, "y")])
    assert cell(Raw("<b>x</b>")) == "<b>x</b>" and cell("<b>") == "&lt;b&gt;" and cell(True) == "True"


def test_an_empty_table_is_a_table():
    assert parse(table([])).tags == ["div", "table", "tbody"]


def test_a_page_is_self_contained():
    text = page("<title>", "<p>body</p>")
    assert "<title>&lt;title&gt;</title>" in text
    assert not re.search(r"<script|<link|@import|url\(|https?:", text)
    assert "default-src 'none'" in text and 'content="light dark"' in text
    assert parse(text).tags.count("main") == 1


def test_the_theme_follows_the_notebook_and_else_the_system():
    for needed in ("--jp-content-font-color1", "--vscode-editor-foreground", "prefers-color-scheme: dark"):
        assert needed in THEME_CSS
    assert THEME_CSS.count("{") == THEME_CSS.count("}")
    assert fragment("<p>x</p>").startswith('<div class="nbllm"><style>')


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_of_the_theme_stand_out_from_the_ground(theme):
    block = THEME_CSS.split("prefers-color-scheme: dark")[theme == "dark"]
    colours = dict(re.findall(r"--nbllm-([\w-]+):[^;#]*(#[0-9a-f]{6})", block))
    ground = colours["ground"]
    for name, least in [("text", 7), ("muted", 4.5), *((f"series-{i}", 3) for i in range(1, 7))]:
        assert contrast(colours[name], ground) >= least, name


def contrast(first, second):
    """WCAG 2.2 contrast ratio."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_decimal_points_stand_below_one_another():
    drawn = table([(2.294,), (3.13,), (None,), (12,)], ("bits",))
    assert re.findall(r'<td class="number"[^>]*>([^<]*)', drawn) == ["2.294", "3.130", "&ndash;", "12.000"]
