"""The scripts as they are sent: one module each, whose names do not meet."""

from __future__ import annotations

import collections
import re

import pytest

from nbllm.widgets.modules import STATIC, script, style

ENTRIES = sorted(path.stem for path in STATIC.glob("*.css"))
DECLARED = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|const|let|class) ([A-Za-z_$][\w$]*)", re.MULTILINE
)


def test_there_are_panels():
    assert {"training", "runs"} <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_script_imports_nothing_and_exports_one_thing(name):
    text = script(name)
    assert not re.search(r"^\s*import\b", text, re.MULTILINE)
    assert re.findall(r"^export .*", text, re.MULTILINE) in (
        ["export default { render };"],
        ["export default widget;"],  # a function, called once for each model
    )


@pytest.mark.parametrize("name", ENTRIES)
def test_all_names_at_the_top_are_distinct(name):
    counted = collections.Counter(DECLARED.findall(script(name)))
    assert [name for name, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_text_reaches_the_page_only_as_text_and_nothing_comes_from_outside(name):
    text = script(name)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"https?://(?!www\.w3\.org/)", text + style(name))
    assert "@import" not in style(name)
