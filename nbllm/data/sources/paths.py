"""Which files a name, a pattern or a list means. What exists as a file is never taken for text."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import DataError
from nbllm.core.terminal import visible_line
from nbllm.data.sources.inputs import inner_suffix
from nbllm.data.sources.splits import DATA_SUFFIXES

MOST_CHARACTERS = 4096  # of a path
LOOKED_AT = (
    1000  # entries of a list, to tell texts from paths: asking the disk for a million texts takes its time
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HUB_PAGE = re.compile(
    r"(?:https?://(?:www\.)?huggingface\.co|hf:/)/datasets/([\w.-]+/[\w.-]+)/?", re.IGNORECASE
)


def paths_of(source: object) -> list[tuple[Path, str]]:
    """Return the files and folders that a name means, each with what to call it; none where it means none.

    `~` is the home folder. A name that does not exist but has `*`, `?` or `[` is a pattern (`**`: any folders); it
    means files, or where it matches none, folders.
    """
    if not isinstance(source, str | os.PathLike):
        return []
    name = os.fspath(source)
    if not isinstance(name, str) or not name or len(name) > MOST_CHARACTERS or "\n" in name or "\0" in name:
        return []
    expanded = os.path.expanduser(name)
    if os.path.lexists(expanded):
        path = Path(expanded)
        return [(path, "" if path.is_dir() else path.name)]
    if not glob.has_magic(expanded):
        return []
    found = [Path(match) for match in sorted(glob.glob(expanded, recursive=True))]
    files = [path for path in found if not path.is_dir()] or found
    return [(path, str(path)) for path in files]


def paths_of_list(entries: Sequence[Any]) -> list[tuple[Path, str]]:
    """Return the files and folders that a list means; none for a list of texts.

    Raises:
        DataError: Some entries are files and another is none, or a text looks like the name of a file.
    """
    if not all(isinstance(entry, str | os.PathLike) for entry in entries):
        return []
    begin = [(entry, paths_of(entry)) for entry in entries[:LOOKED_AT]]
    rest = entries[LOOKED_AT:] if any(paths for _, paths in begin) else []
    found = [*begin, *((entry, paths_of(entry)) for entry in rest)]
    is_list_of_paths = any(paths for _, paths in found) or any(
        isinstance(entry, os.PathLike) for entry in entries
    )
    for number, (entry, paths) in enumerate(found):
        if not paths and (is_list_of_paths or _looks_like_a_file(entry)):
            check_no_url(str(entry))
            raise DataError(
                f"There is no file or folder {visible_line(entry)[:200]!r}.",
                where=f"entry {number} of the list",
                hint="Check the path. A text that is to be taken as it is: [{'text': '...'}].",
            )
    return [(path, name or str(entry)) if len(paths) > 1 else (path, str(entry)) for entry, paths in found
            for path, name in paths]  # fmt: skip


def check_no_url(name: str) -> None:
    """Raise `DataError` for a URL: nothing is fetched from one."""
    if not _URL.match(name):
        return
    page = _HUB_PAGE.fullmatch(name)
    raise DataError(
        "A URL is not fetched.",
        where=name,
        hint=f"Load it by its name on the hub: {page[1]!r}."
        if page
        else "Download it, for example with `curl -LO URL`, and give the file.",
    )


def _looks_like_a_file(entry: object) -> bool:
    name = str(entry)
    if len(name) > 256 or len(name.split()) != 1:
        return False
    return bool(_URL.match(name)) or inner_suffix(name) in DATA_SUFFIXES or name.endswith(".zip")
