import json
import math
import os
import re
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.core.report import (
    Bars,
    Change,
    Changes,
    Chart,
    Comparison,
    Comparisons,
    KeyValues,
    Measurement,
    Measurements,
    Report,
    Rows,
    Sample,
    Samples,
    Subject,
    Table,
    Text,
)
from nbllm.core.report.sections import KINDS
from tests.core.pages import foreign_scripts

HOSTILE = "</pre></style><script>alert('x')</script> | a_b *c* [l](javascript:1) `d` $e$ \u202e\x1b[31m\ud800"


def full(text="words"):
    """A report with every kind of section, `text` in every place that takes text."""
    subject = Subject(task=text, data=text, fingerprint=text, settings=((text, text),))
    return Report(text, generator=text).add(
        Measurements(
            title=text, note=text, prominent=True,
            measurements=(
                Measurement(
                    name=text, value=2.0987, unit=text, interval=(2.05, 2.151), note=text, metric="m", subject=subject,
                    settings=((text, text),), better="lower",
                ),
            ),
        ),
        Measurements(
            measurements=(Measurement(name="steps", value=600), Measurement(name="not measured yet", value=None))
        ),
        Changes(
            title="Changes", note=text, caption=text,
            changes=(
                Change(name=text, before=2.0987, after=1.9, interval=(-0.25, -0.1487)),
                Change(name="b", before=12, after=14.5)
            ),
        ),
        Comparisons(
            title="Compared", note=text, caption=text,
            comparisons=(
                Comparison(
                    name=text, models=(text, "b"), values=(0.5, 0.75), interval=(0.1, 0.4), num_rows=40,
                    subject=subject, better="higher", p_values={"mcnemar": 0.0001, "bootstrap": 0.02}, test="mcnemar",
                    p_corrected=0.0002, effect=0.4, needed=1200, alone=(3, 13), flips=(0, 5),
                ),
                Comparison(name="plain", models=("b", "c"), values=(1, 2), num_rows=4),
            ),
        ),
        Table(header=(text,), rows=((text,),), folded=text),
        Rows(
            title="Rows", subject=subject, num_examples=4, unit=text, cluster=text, shown=2,
            columns={text: (text, 500 * text, "c"), "value": (1.5, None, 3), "answers": ((text, "b"), (), ("c",))},
        ),
        Text(title="Text", text=f"{text}\n\n1. {text}\n# {text}"),
        Table(
            title="Table", header=(text, "number", "日本"), caption=text,
            rows=((text, 1.5, None), ("日本語", 100_000, True)),
        ),
        Chart(
            title="Chart", x_label=text, y_label=text, caption=text,
            lines=({"name": text, "x": (1, 2, 3), "y": (3.0, math.nan, 1.0)},),
            events=({"x": 2, "label": text},),
        ),
        Bars(
            title="Bars", caption=text, x_label=text, unit=text, marked=0.4,
            bars=(
                {"name": text, "value": 0.5, "interval": (0.4, 0.6), "count": 3},
                {"name": "b", "value": 0, "count": 1},
            ),
        ),
        Samples(title="Samples", samples=(Sample(prompt=text, text=text, label=text),)),
        KeyValues(title="Facts", entries={text: text, "count": 3}),
    )  # fmt: skip


def test_every_kind_of_section_is_shown_here():
    assert {section.kind for section in full().sections} == set(KINDS)


@pytest.mark.parametrize("text", ["words", HOSTILE, "ünï\ncödé 日本"])
def test_json_round_trip(tmp_path, text):
    report = full(text)
    path = report.save(tmp_path / "report.json")
    back = Report.load(path)
    assert back == report
    assert back.to_dict() == json.loads(path.read_text("utf-8"))
    assert back.to_dict()["schema"] == "nbllm-report/2"
    assert str(back) == str(report) and back._repr_html_() == report._repr_html_()


def test_numbers_of_numpy_and_what_is_not_finite_become_json():
    chart = Chart(
        x_label="x",
        y_label="y",
        lines=({"name": "a", "x": np.arange(3), "y": np.array([1.0, np.inf, 2.0], np.float32)},),
    )
    table = Table(header=("a", "b"), rows=[(np.int64(3), np.float64(math.nan))])
    report = Report("r").add(
        chart, table, Measurements(measurements=[Measurement(name="m", value=np.float32(0.5))])
    )
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)) == report
    assert chart.lines[0].y == (1.0, None, 2.0) and table.rows == ((3, None),)


class _Checker(HTMLParser):
    """Fails where elements do not nest; collects element names and attributes."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    checker = _Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return checker


def test_html_is_self_contained_and_hostile_text_stays_text(tmp_path):
    text = full(HOSTILE).save(tmp_path / "report.html").read_text("utf-8")
    plain, hostile = check(full().save(tmp_path / "plain.html").read_text("utf-8")), check(text)
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes  # text added nothing
    assert not hostile.tags & {"link", "iframe", "img", "a", "object"} and not foreign_scripts(text)
    assert not [name for name in hostile.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(|src=", text) and "\u202e" not in text and "\x1b" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_a_cell_shows_what_the_page_shows():
    report = full()
    fragment = report._repr_html_()
    check(fragment)
    for section in report.sections:
        assert section.title in fragment
    assert "2.099" in fragment and "2.050 to 2.151 (95 %)" in fragment and "<svg" in fragment
    assert "not measured" in fragment and "Figure 1. words" in fragment and "Table 1. words" in fragment


def tables(markdown):
    """The tables of a Markdown text, each a list of lines; code blocks left out."""
    without_code = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", markdown)
    return [block.splitlines() for block in re.findall(r"(?m)(?:^\|.*\|$\n?)+", without_code)]


@pytest.mark.parametrize("text", ["words", HOSTILE, "日本 é"])
def test_markdown_tables_align_in_the_source(text):
    found = tables(str(full(text)))
    assert len(found) == 13
    for lines in found:
        columns = [
            [i for i, sign in enumerate(spread(line)) if sign == "|" and spread(line)[i - 1] != "\\"]
            for line in lines
        ]
        assert all(places == columns[0] for places in columns), "\n".join(lines)
        assert re.fullmatch(r"\|( -{3,} \|| -{2,}: \|)+", lines[1])


def spread(line):
    """A line with one character for each column that a fixed-width font gives it."""
    return "".join(sign + " " * (unicodedata.east_asian_width(sign) in "WF") for sign in line)


def test_markdown_aligns_numbers_right():
    lines = next(lines for lines in tables(str(full())) if "number" in lines[0])
    assert lines[2].split("|")[2] == "     1.5 " and lines[3].split("|")[2] == " 100,000 "


def test_hostile_text_is_no_markup_in_markdown():
    markdown = str(full(HOSTILE))
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", markdown)
    assert "<" not in outside and "\u202e" not in markdown and "\x1b" not in markdown
    assert not re.search(r"(?<!\\)\]\(", outside)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(headings) == 1 + 10  # the title and the sections' titles: no text became one
    assert "1\\. " in outside and "\n\\# " in outside


def test_the_fence_around_a_sample_is_longer_than_any_inside():
    sample = Sample(prompt="", text="```\n# not a heading\n`````")
    markdown = str(Report("r").add(Samples(samples=(sample,))))
    assert "\n``````text\n```\n# not a heading\n`````\n``````\n" in markdown


def test_figures_are_found_by_name():
    report = full()
    assert report.metric("words").value == 2.0987
    assert report.metric("m").name == "words"  # the name that its metric is registered by
    assert report.change("b").after == 14.5
    with pytest.raises(UserError, match="Did you mean 'steps'"):
        report.metric("step")
    with pytest.raises(UserError, match="no change named 'c'"):
        report.change("c")


def test_what_changed_ends_at_the_same_decimal_in_every_format():
    shown = ("2.099", "1.900", "-0.199", "-0.250 to -0.149 (95 %)")
    report = full()
    assert report.sections[2].changes[0].texts == shown
    assert report.sections[2].changes[1].texts == ("12.00", "14.50", "+2.50", "")
    for text in (report._repr_html_(), str(report)):
        assert all(part in text for part in (*shown, "+2.50", "interval of the change"))


def test_reports_are_added():
    first, second = full(), Report("other").add(Text(text="more"))
    both = first + second
    assert both.title == "words" and len(both.sections) == 13
    assert len(first.sections) == 12 and len(second.sections) == 1


@pytest.mark.parametrize("name", ["report.docx", "report", "report.json.gz"])
def test_an_unknown_format_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"Use one of \.json, \.html, \.md, \.pdf, \.tex, \.csv, \.parquet"):
        full().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_folders_are_made_and_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert full().save("~/new/deeper/report.json") == tmp_path / "new" / "deeper" / "report.json"
    assert Report.load("~/new/deeper/report.json") == full()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: (Not a directory|File exists)"):
        full().save(tmp_path / "file" / "report.md")


def rows(**changes):
    subject = {"task": "mmlu", "data": "", "fingerprint": "0"}
    return {"kind": "rows", "subject": subject, "columns": {"a": [1]}, "num_examples": 1} | changes


BAD = {
    "newer": (lambda r: r | {"schema": "nbllm-report/3"}, "(?s)'nbllm-report/3'.*newer nbllm wrote it"),
    "unknown schema": (lambda r: r | {"schema": "other/1"}, "its schema is 'other/1'"),
    "odd version": (lambda r: r | {"schema": "nbllm-report/x"}, "its schema is 'nbllm-report/x'"),
    "no schema": (lambda r: {k: v for k, v in r.items() if k != "schema"}, "its schema is None"),
    "no sections": (lambda r: {"schema": "nbllm-report/2"}, "has no sections"),
    "a list": (lambda r: [1], "has no sections"),
    "section of no kind": (lambda r: r | {"sections": [{}]}, "(?s)needs a kind.*section 1"),
    "unknown kind": (lambda r: r | {"sections": [{"kind": "tabel"}]}, "(?s)'tabel'.*Did you mean 'table'"),
    "unknown field": (
        lambda r: r | {"sections": [{"kind": "text", "txt": "a"}]},
        "(?s)no field 'txt'.*Did you mean 'text'"),
    "missing field": (lambda r: r | {"sections": [{"kind": "text"}]}, "text section is malformed"),
    "uneven rows": (
        lambda r: r | {"sections": [{"kind": "table", "header": ["a"], "rows": [[1, 2]]}]}, "needs 1 cells"),
    "no number": (
        lambda r: r | {"sections": [{"kind": "measurements", "measurements": [{"name": "a", "value": "b"}]}]},
        "'b' is not a number"),
    "uneven line": (
        lambda r: r | {"sections": [{"kind": "chart", "x_label": "", "y_label": "",
                                     "lines": [{"name": "a", "x": [1], "y": []}]}]}, "an x for every y"),
    "uneven columns": (lambda r: r | {"sections": [rows(columns={"a": [1], "b": []})]}, "a value for every row"),
    "no columns": (lambda r: r | {"sections": [rows(columns={})]}, "a value for every row"),
    "more rows than examples": (lambda r: r | {"sections": [rows(num_examples=0)]}, "more rows .* than examples"),
    "no such cluster": (lambda r: r | {"sections": [rows(cluster="b")]}, "no column 'b' to cluster by"),
    "no subject": (lambda r: r | {"sections": [rows(subject="mmlu")]}, "subject: 'mmlu' is not a Subject"),
    "a number for a text": (lambda r: r | {"sections": [{"kind": "text", "text": 5}]}, "text: 5 is not a text"),
    "a text for a list": (
        lambda r: r | {"sections": [{"kind": "samples", "samples": "abc"}]}, "samples: 'abc' is not a list"),
    "a number for a truth value": (
        lambda r: r | {"sections": [{"kind": "measurements", "measurements": [], "prominent": 2}]},
        "prominent: 2 is not a truth value"),
    "a long text for a number": (
        lambda r: r | {"sections": [{"kind": "chart", "x_label": "", "y_label": "", "lines": [],
                                     "events": [{"x": "9" * 10_000, "label": ""}]}]}, r"'9+\.\.\.9+' is not a number"),
    "no direction": (
        lambda r: r | {"sections": [{"kind": "measurements", "measurements": [
            {"name": "a", "value": 1, "better": "up"}]}]}, "better is 'up'"),
    "a title that is none": (lambda r: r | {"title": ["a"]}, "its title is not a text"),
    "no change": (
        lambda r: r | {"sections": [{"kind": "changes",
                                     "changes": [{"name": "a", "before": 1, "after": math.nan}]}]},
        "after: nan is not a finite number"),
    "no interval": (
        lambda r: r | {"sections": [{"kind": "measurements",
                                     "measurements": [{"name": "a", "value": 1, "interval": [1]}]}]}, "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_report_of_ours_is_refused_clearly(tmp_path, case):
    spoil, message = BAD[case]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(spoil(full().to_dict())))
    with pytest.raises(DataError, match=message) as caught:
        Report.load(path)
    assert "report.json" in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [(b"{", "not JSON"), (b"\xff\xfe\x00", "not JSON"), (b"[" * 100_000, "not JSON"), (None, "No such")],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, message):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Report.load(path)


def test_loading_the_html_says_where_to_read_from(tmp_path):
    with pytest.raises(DataError, match=r"read from their \.json"):
        Report.load(full().save(tmp_path / "report.html"))


def test_repr_has_the_title_and_the_first_figures():
    title, *lines = repr(full()).splitlines()
    first = next(section for section in full().sections if isinstance(section, Measurements)).measurements
    assert title == "Report('words')"
    assert [line.split("  ")[1] for line in lines] == [figure.name for figure in first]
    assert all(figure.value_text in line for figure, line in zip(first, lines, strict=True))
    assert repr(Report("empty")) == "Report('empty')"


ODD = [None, True, -1, 0, 1.5, 1e308, 10**400, float("nan"), "", HOSTILE, "x" * 5000, [], [[]], [None], ["a", 1], {},
       {"a": 1}, {"name": [], "x": {}, "y": None}, 2**63, "²", [[[[[]]]]] ]  # fmt: skip


def places(value, path=()):
    """Every place in a record."""
    yield path
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in entries:
        yield from places(item, (*path, key))


def changed(record, path, value):
    if not path:
        return value
    copy = dict(record) if isinstance(record, dict) else list(record)
    copy[path[0]] = changed(record[path[0]], path[1:], value)
    return copy


def test_what_loads_can_be_shown_whatever_stands_in_the_file(tmp_path):
    """Each value of a report in turn is replaced by others: an error that names the file, or a report that is shown."""
    record = full().to_dict()
    path = tmp_path / "report.json"
    refused = shown = 0
    for place in places(record):
        for value in ODD:
            path.write_text(json.dumps(changed(record, place, value)))
            try:
                report = Report.load(path)
            except DataError as error:
                assert str(path) in str(error) and len(str(error)) < 5000, (place, value)
                refused += 1
                continue
            assert str(report) and check(report._repr_html_()) and repr(report), (place, value)
            json.dumps(report.to_dict(), allow_nan=False)
            list(report.measurements())
            shown += 1
    assert refused > 1000 and shown > 200


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"sections":' * 50_000, b"\xff\xfe", b"9" * 5000, b"null"]
)
def test_files_that_are_no_json_of_ours(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(DataError):
        Report.load(tmp_path / "report.json")


def test_a_report_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(DataError, match="cannot be read"):
        Report.load(tmp_path / "report.json")


def test_what_can_be_added():
    class Two:
        def sections(self):
            return [Text(text="one"), Text(text="two")]

    report = Report("r").add(Text(text="first"), Two(), Report("other").add(Text(text="last")))
    assert [section.text for section in report.sections] == ["first", "one", "two", "last"]
    for wrong in ("words", 7):
        with pytest.raises(UserError, match=f"{type(wrong).__name__} is no part of a report"):
            report.add(wrong)


def test_rows_are_shown_rounded_cut_and_without_columns_of_nothing(tmp_path):
    columns = {
        "text": ("x" * 300, "short"),
        "log_probabilities": ((-1.23456789, -12.5), (-2.0, -3.25)),
        "dropped_shots": (0, 0),
        "dropped_tokens": (0, 7),
    }
    rows = Rows(subject=Subject(task="t", data="", fingerprint=""), columns=columns, num_examples=2)
    assert rows.shown_columns == ("text", "log_probabilities", "dropped_tokens")
    first, second = rows.first_rows()
    assert first[1:] == ("-1.235, -12.5", 0) and second == ("short", "-2, -3.25", 7)
    assert len(first[0]) == 200 and first[0].endswith("x…")
    page = Report("r").add(rows).save(tmp_path / "r.html").read_text("utf-8")
    assert '<div class="long">xxx' in page and ">short</td>" in page
