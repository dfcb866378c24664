"""A panel's modules in the one script of `nbllm.widgets.modules`, as a browser runs them."""

from __future__ import annotations

import pytest

from nbllm.widgets.modules import script

LOAD = """async (code) => {
  window.order = [];
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } catch (error) {
    return String(error.stack);
  } finally {
    URL.revokeObjectURL(url);
  }
}"""


@pytest.fixture
def load(page, tmp_path):
    """Write modules, and run the first as a front end does; return what it exports by default, or its error's stack."""

    def load(**modules: str):
        for name, text in modules.items():
            (tmp_path / f"{name}.js").write_text(text)
        return page.evaluate(LOAD, script(next(iter(modules)), tmp_path))

    return load


def test_two_modules_may_use_one_name_and_each_runs_once_in_the_order_of_the_imports(load):
    assert load(
        top="""import { a } from "./a.js";
import { b } from "./b.js";
const own = "top";
order.push(own);
export default { a: a(), b: b(), own, order };
""",
        a='import "./shared.js";\nconst own = "a";\norder.push(own);\nexport const a = () => own;',
        b='import "./shared.js";\nconst own = "b";\norder.push(own);\nexport function b() { return own; }',
        shared='const own = "shared";\norder.push(own);',
    ) == {"a": "a", "b": "b", "own": "top", "order": ["shared", "a", "b", "top"]}


def test_imports_by_default_by_namespace_and_by_another_name(load):
    assert load(
        top="""import whole, { one, two as other } from "./a.js";
import * as all from "./again.js";
add();
export default [whole, one, other, Object.keys(all), all.count];
import {
  add,
} from "./a.js";
""",
        a="""export const one = 1;
const hidden = 2;
export { hidden as two };
export let count = 0;
export function add() { count++; }
export default "whole";
""",
        again='export * from "./a.js";',
    ) == ["whole", 1, 2, ["add", "count", "one", "two"], 1]


def test_an_error_names_the_file_and_the_line(load):
    stack = load(
        top='import { fail } from "./fails.js";\nconst local = 1;\nfail(local);\nexport default 0;',
        fails="// A comment.\n\nexport function fail() {\n  throw new Error('as asked');\n}",
    )
    assert "as asked" in stack
    assert "nbllm:///fails.js:4:" in stack
    assert "nbllm:///top.js:3:" in stack
