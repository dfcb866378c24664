"""Text inside every Python installation: offline, nothing downloaded, nothing copied."""

from __future__ import annotations

import importlib
import os
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nbllm.core.errors import DataError
from nbllm.core.registry import Registry
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.repeats import repeated

Source = Callable[[Omissions], Iterator[Document]]
SOURCES: Registry[Source] = Registry("embedded source")

# Not the library itself, or (pydoc_data) the text of another source.
FOREIGN_FOLDERS = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data", "lib-dynload"
}  # fmt: skip


@SOURCES.register("pydocs")
def pydocs(omissions: Omissions) -> Iterator[Document]:
    """Yield the running Python's reference topics that do not repeat one another: one document a topic.

    About a quarter of the topics are parts of others ("while" stands in "compound", "customization" in
    "specialnames"). A split by document would hold out text that is trained on; so a topic is dropped when
    half of its runs of 13 words occur in longer ones. `pydocs-all` has every topic.
    """
    topics = _topics()
    dropped = repeated(topics)
    if dropped:
        omissions.note(
            f"{len(dropped)} of {len(topics)} topics repeat others and were dropped, so that held-out text "
            f"is not trained on: {', '.join(sorted(dropped))}."
        )
    yield from (Document(topics[name], name, f"pydocs: {name}") for name in topics if name not in dropped)


@SOURCES.register("pydocs-all")
def pydocs_all(omissions: Omissions) -> Iterator[Document]:
    """Yield every reference topic of the running Python, repetitions included."""
    yield from (Document(text, name, f"pydocs: {name}") for name, text in _topics().items())


@SOURCES.register("pystdlib")
def pystdlib(omissions: Omissions) -> Iterator[Document]:
    """Yield the standard library's source files without its tests: one document a file."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - FOREIGN_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder) / name
                try:
                    with tokenize.open(path) as file:  # reads the file's declared encoding
                        text = file.read()
                except (OSError, SyntaxError, UnicodeDecodeError) as error:
                    omissions.add(
                        "unreadable source",
                        f"A source file of the standard library cannot be read: {error}.",
                        where=str(path),
                        hint="Repair the Python installation.",
                    )
                    continue
                if text.strip():  # an empty __init__.py says nothing
                    yield Document(text, path.relative_to(root).as_posix(), str(path))


def _topics() -> Mapping[str, str]:
    try:
        topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "This Python was installed without its reference topics (pydoc_data).",
            hint="Install the full standard library (Debian: libpython3-stdlib), or load a file of your own.",
        ) from error
    return dict(sorted(topics.items()))
