"""The scripts as they are sent: what they import is there, and comes before."""

from __future__ import annotations

import re

import pytest

from nbllm.widgets.modules import STATIC, script, style

ENTRIES = sorted(path.stem for path in STATIC.glob("*.css"))


@pytest.fixture
def write(tmp_path):
    """Write modules into a folder; return the folder."""

    def write(**modules: str):
        for name, text in modules.items():
            (tmp_path / f"{name}.js").write_text(text)
        return tmp_path

    return write


def order(text: str) -> list[str]:
    return re.findall(r'"nbllm:///(\w+\.js)"', text)


def test_there_are_panels():
    assert {"training", "runs", "chat"} <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_script_has_every_module_once_and_leaves_no_import_to_resolve(name):
    text = script(name)
    found = order(text)
    assert len(set(found)) == len(found) > 1
    assert found[-1] == f"{name}.js"
    assert not re.search(r'^\s*(import|export)\b.*"\./', text.replace(r"\n", "\n"), re.MULTILINE)


@pytest.mark.parametrize("name", ENTRIES)
def test_text_reaches_the_page_only_as_text_and_nothing_comes_from_outside(name):
    text = script(name)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"https?://(?!www\.w3\.org/)", text + style(name))
    assert "@import" not in style(name)


def test_modules_come_after_what_they_import_in_the_order_of_the_imports(write):
    folder = write(
        top='import "./b.js";\nimport { a } from "./a.js";\nexport default a;',
        a='import "./c.js";\nexport const a = 1;',
        b='import { c } from "./c.js";',
        c="export const c = 1;",
    )
    assert order(script("top", folder)) == ["c.js", "b.js", "a.js", "top.js"]


@pytest.mark.parametrize(
    "imported",
    [
        'import whole, { one, two as other } from "./a.js";',
        'import * as all from "./a.js";',
        'import {\n  one,\n  two,\n  default as three,\n} from "./a.js";',
        'export { one as four } from "./a.js";',
        'export * from "./a.js";',
        'export * as all from "./a.js";',
    ],
)
def test_every_form_of_import_is_understood(write, imported):
    exported = (
        "export async function one() {}\nconst hidden = 2;\nexport { hidden as two };\nexport default 3;"
    )
    assert order(script("top", write(top=imported, a=exported))) == ["a.js", "top.js"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"top": '\nimport { no, b } from "./b.js";', "b": "export let b;"},
            "top.js:2: b.js does not export no",
        ),
        (
            {"top": 'import b from "./b.js";', "b": "export class b {}"},
            "top.js:1: b.js does not export default",
        ),
        ({"top": 'export { no } from "./b.js";', "b": ""}, "top.js:1: b.js does not export no"),
        (
            {
                "top": 'import { c } from "./b.js";',
                "b": 'export * from "./d.js";',
                "d": "export const d = 1;",
            },
            "top.js:1: b.js does not export c",
        ),
        ({"top": 'import "./b.js";', "b": '\nimport "./gone.js";'}, "b.js:2: there is no gone.js in "),
        (
            {"top": 'import "./b.js";', "b": 'import "./c.js";', "c": 'import "./b.js";'},
            "c.js:1: modules import one another: top.js -> b.js -> c.js -> b.js",
        ),
        ({"top": 'import "./top.js";'}, "top.js:1: modules import one another: top.js -> top.js"),
        ({"top": 'import { a } from "other";'}, 'top.js:1: not understood: import { a } from "other";'),
        ({"top": "const a = 1;\nexport a;"}, "top.js:2: not understood: export a;"),
    ],
)
def test_what_cannot_be_linked_is_named_with_file_and_line(write, modules, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        script("top", write(**modules))
