"""A panel's JavaScript modules as the one script that a front end loads.

anywidget loads a script from a Blob URL, from which `import "./other.js"` leads nowhere. So the script carries every
module that the panel needs, gives each a Blob URL of its own, and puts that URL wherever another module imports it.
Each stays a module of the browser: with a scope of its own, evaluated once and after those that it imports, and with
its own file name and lines in every error. That the files and names which are imported exist is checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nbllm.core.theme import THEME_CSS

STATIC = Path(__file__).parent / "static"
ORIGIN = "nbllm:///"  # what file names begin with in a browser's errors and debugger

# Statements that import or export begin at the start of a line and end with a semicolon, as in all of our files.
_STATEMENT = re.compile(r"^(?:import|export)(?!\w)", re.MULTILINE)
_IMPORT = re.compile(r'import\s+(?:(?P<names>[\w$\s,{}*]+?)\s*from\s+)?"\./(?P<file>[\w-]+\.js)";')
_EXPORT_FROM = re.compile(
    r'export\s*(?P<names>\{[^}]*\}|\*(?:\s+as\s+\w+)?)\s*from\s+"\./(?P<file>[\w-]+\.js)";'
)
_EXPORT_LIST = re.compile(r"export\s*(?P<names>\{[^}]*\});")
_EXPORT_DECLARED = re.compile(
    r"export\s+(?:(?:async\s+)?function\b\s*\*?|class|const|let|var)\s*(?P<name>[\w$]+)"
)
_EXPORT_DEFAULT = re.compile(r"export\s+default\b")

_LOADER = """\
// Modules in an order in which each follows those that it imports: names, and texts with places for their URLs.
const modules = {modules};
const urls = [];
let entry;
try {{
  for (const [name, ...parts] of modules) {{
    const text = parts.map((part) => (typeof part === "number" ? urls[part] : part));
    const module = new Blob([...text, `\\n//# sourceURL=${{name}}`], {{ type: "text/javascript" }});
    urls.push(URL.createObjectURL(module));
  }}
  entry = await import(urls.at(-1));
}} finally {{
  for (const url of urls) URL.revokeObjectURL(url);
}}
export default entry.default;
"""


@dataclasses.dataclass
class _Import:
    """One module's use of another.

    Attributes:
        file: The other module's file.
        names: What must be exported there; `None`: all that is, by `export * from`.
        span: Where the file's name, with "./", stands in the text.
        line: Of the statement, from 1.
    """

    file: str
    names: list[str] | None
    span: tuple[int, int]
    line: int


@dataclasses.dataclass
class _Module:
    """A module's text, with what it imports and exports by its own statements."""

    text: str
    imports: list[_Import] = dataclasses.field(default_factory=list)
    exports: set[str] = dataclasses.field(default_factory=set)


@functools.cache
def script(name: str, folder: Path = STATIC) -> str:
    """Return one ES module that loads `<name>.js` and all that it imports, and exports its default.

    Raises:
        ValueError: A statement is not understood, a file or a name that is imported does not exist, or modules import
            one another in a circle. The message begins with the file and the line.
    """
    modules: dict[str, _Module] = {}
    _collect(f"{name}.js", folder, modules)
    order = {file: place for place, file in enumerate(modules)}
    texts = [[ORIGIN + file, *_parts(module, order)] for file, module in modules.items()]
    return _LOADER.format(modules=json.dumps(texts, ensure_ascii=False, separators=(",", ":")))


@functools.cache
def style(name: str) -> str:
    """Return `static/<name>.css` after the theme that everything shown shares."""
    return f"{THEME_CSS}\n{(STATIC / f'{name}.css').read_text(encoding='utf-8')}"


def _collect(file: str, folder: Path, modules: dict[str, _Module], above: tuple[str, ...] = ()) -> None:
    """Read a module, those that it imports first, and check that what it imports is there."""
    module = _read(file, (folder / file).read_text(encoding="utf-8"))
    for used in module.imports:
        where = f"{file}:{used.line}"
        if used.file in (*above, file):
            raise ValueError(f"{where}: modules import one another: {' -> '.join((*above, file, used.file))}")
        if not (folder / used.file).is_file():
            raise ValueError(f"{where}: there is no {used.file} in {folder}")
        if used.file not in modules:
            _collect(used.file, folder, modules, (*above, file))
        exported = modules[used.file].exports
        missing = [name for name in used.names or () if name not in exported]
        if missing:
            raise ValueError(f"{where}: {used.file} does not export {', '.join(missing)}")
        if used.names is None:
            module.exports |= exported - {"default"}
    modules[file] = module


def _read(file: str, text: str) -> _Module:
    """Find what a module imports and exports."""
    module = _Module(text)
    for start in _STATEMENT.finditer(text):
        line = 1 + text.count("\n", 0, start.start())
        if found := _IMPORT.match(text, start.start()) or _EXPORT_FROM.match(text, start.start()):
            own, theirs = _names(found["names"])
            span = found.start("file") - 2, found.end("file")
            module.imports.append(_Import(found["file"], theirs, span, line))
            if text.startswith("export", start.start()):
                module.exports |= own
        elif found := _EXPORT_LIST.match(text, start.start()):
            module.exports |= _names(found["names"])[0]
        elif found := _EXPORT_DECLARED.match(text, start.start()):
            module.exports.add(found["name"])
        elif _EXPORT_DEFAULT.match(text, start.start()):
            module.exports.add("default")
        else:
            raise ValueError(f"{file}:{line}: not understood: {text[start.start() :].splitlines()[0]}")
    return module


def _names(clause: str | None) -> tuple[set[str], list[str] | None]:
    """Return the names that a clause such as `a, {b as c}` gives, and those that the other module must export."""
    clause = (clause or "").strip()
    if clause == "*":
        return set(), None
    given: set[str] = set()
    needed: list[str] = []
    before, _, braced = clause.partition("{")
    for name in filter(None, map(str.strip, before.split(","))):
        star, _, alias = name.partition(" as ")
        given.add(alias.strip() or name)
        if star.strip() != "*":
            needed.append("default")
    for name in filter(None, map(str.strip, braced.rstrip("}").split(","))):
        theirs, _, own = name.partition(" as ")
        needed.append(theirs.strip())
        given.add(own.strip() or theirs.strip())
    return given, needed


def _parts(module: _Module, order: dict[str, int]) -> Iterator[str | int]:
    """Cut a text where it names another module; there stands that module's place in the script."""
    end = 0
    for used in sorted(module.imports, key=lambda used: used.span):
        yield module.text[end : used.span[0]]
        yield order[used.file]
        end = used.span[1]
    yield module.text[end:]
