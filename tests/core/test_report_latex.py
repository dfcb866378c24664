"""LaTeX, read by a small scanner: no TeX is needed, and nothing that a report holds is a command of its own."""

from __future__ import annotations

import re

import pytest

from nbllm.core.report import Measurement, Measurements, Report, Table
from tests.core.test_report import HOSTILE, full

COMMANDS = re.compile(r"\\([a-zA-Z]+\*?|.)", re.DOTALL)
OURS = {
    "documentclass", "usepackage", "ifPDFTeX", "else", "fi", "setlength", "emergencystretch", "title", "date", "author",
    "begin", "end", "maketitle", "section*", "toprule", "midrule", "endhead", "bottomrule", "caption*", "bigskip",
    "noindent", "textbf", "linewidth", "raggedright", "arraybackslash", "\\", "{", "}", "$", "&", "#", "_", "%",
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textasciigrave",
    "textquotesingle", "textquotedbl",
}  # fmt: skip
TEX = r"\input{/etc/passwd} \write18{ls} $x^2_3$ 50% & #1 ~ {unbalanced \end{document} ^^5cinput -- [a] * `q' \\"


def without_comments(text):
    return re.sub(r"(?<!\\)%.*", "", text)


@pytest.mark.parametrize("text", ["words", HOSTILE, TEX, "日本語"])
def test_only_our_own_commands_stand_in_it_and_braces_and_environments_match(text):
    latex = without_comments(export(full(text)))
    assert {each for each in COMMANDS.findall(latex)} <= OURS
    depth = 0
    for brace in re.findall(r"\\.|[{}]", latex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        assert depth >= 0
    assert depth == 0
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", latex):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones and latex.count(r"\end{document}") == 1
    assert "^^" not in latex and not set("\x1b\u202e") & set(latex)


def export(report):
    from nbllm.core.report.latex import to_latex

    return to_latex(report)


@pytest.mark.parametrize("text", ["words", HOSTILE, TEX])
def test_every_line_of_a_table_has_a_cell_for_each_column(text):
    latex = without_comments(export(full(text)))
    tables = re.findall(r"\\begin\{longtable\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{longtable\}", latex, re.DOTALL)
    assert len(tables) >= 8
    for kinds, body in tables:
        width = len(re.sub(r">\{[^}]*\}p\{[^}]*\}", "p", kinds))
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 1
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == width - 1


def test_it_looks_as_booktabs_asks():
    report = Report("r").add(
        Measurements(
            measurements=(Measurement(name="accuracy", value=0.5, interval=(0.4, 0.6), signature="metric:a"),)
        ),
        Table(header=("model", "score"), rows=(("a_b", 1.25), ("c", None))),
    )
    latex = export(report)
    assert "accuracy & 0.5000 & 0.4000 to 0.6000 (95 \\%) \\\\" in latex and "% accuracy: metric:a" in latex
    assert "@{}lr@{}" in latex and "a\\_b & 1.25 \\\\\nc & -- \\\\" in latex
    assert (
        all(rule in latex for rule in ("\\toprule", "\\midrule", "\\bottomrule")) and "\\hline" not in latex
    )


def test_it_is_saved_by_its_suffix(tmp_path):
    assert full(TEX).save(tmp_path / "report.tex").read_text("utf-8").startswith("\\documentclass")
