"""JavaScript modules made one: a front end loads a panel from a Blob, from which nothing can be imported."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from nbllm.core.theme import THEME_CSS

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(?P<file>[a-z_]+\.js)";[ \t]*$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async |)(function|const|let|class)\b)", re.MULTILINE)


@functools.cache
def script(name: str) -> str:
    """Return `static/<name>.js` with every module that it imports in front of it, each once.

    Modules import by `import { a, b } from "./other.js";` and export where they declare, so that taking the
    imports and the word `export` away leaves the same program: all names are distinct, as a test makes sure.
    """
    parts: dict[str, str] = {}
    _collect(f"{name}.js", parts, exported=True)
    return "\n".join(parts.values())


@functools.cache
def style(name: str) -> str:
    """Return `static/<name>.css` after the theme that everything shown shares."""
    return f"{THEME_CSS}\n{(STATIC / f'{name}.css').read_text(encoding='utf-8')}"


def _collect(
    file: str, parts: dict[str, str], *, exported: bool = False, open_: tuple[str, ...] = ()
) -> None:
    assert file not in open_, f"modules import one another: {' -> '.join((*open_, file))}"
    if file in parts:
        return
    text = (STATIC / file).read_text(encoding="utf-8")
    for match in _IMPORT.finditer(text):
        _collect(match["file"], parts, open_=(*open_, file))
    text = _IMPORT.sub("", text)
    parts[file] = f"// {file}\n{text if exported else _EXPORT.sub('', text)}"
