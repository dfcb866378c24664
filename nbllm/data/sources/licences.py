"""Under which licence a file of a source tree stands."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from nbllm.core.errors import UserError
from nbllm.core.io import read_regular

HEADER_BYTES = 4096  # of a file, in which it names its licence
MOST_BYTES = 1 << 18  # of a licence's text
PERMISSIVE = frozenset(
    "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 ISC MIT MIT-0 PSF-2.0 Unlicense Zlib".split()
)
_NAMES = re.compile(r"(?:LICEN[CS]E|COPYING|UNLICENSE)(?:[.-].{1,20})?", re.IGNORECASE)
_SPDX = re.compile(rb"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+() -]{1,200})")
# What each text says, in the order of the tests; a text that quotes several is the first.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license", "version 2")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("BSL-1.0", ("boost software license",)),
    ("Zlib", ("this software is provided 'as-is', without any express or implied warranty",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy",
             "shall be included in all copies")),
    ("MIT-0", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software", "provided that the above")),
    ("ISC", ("permission to use, copy, modify, and distribute this software", "provided that the above")),
    ("0BSD", ("permission to use, copy, modify, and/or distribute this software",)),
)  # fmt: skip


def wanted_licences(wanted: str | Collection[str]) -> frozenset[str]:
    """Return the SPDX identifiers that are wanted; "permissive" stands for `PERMISSIVE`.

    Raises:
        UserError: It is neither that nor a list of identifiers.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"licences is {wanted!r}.", hint="Give 'permissive', or SPDX identifiers: ['MIT', 'Apache-2.0']."
        )
    found: frozenset[str] = frozenset()
    for name in names:
        found |= PERMISSIVE if name == "permissive" else {name}
    return found


def licence_of(path: Path, root: Path, known: dict[Path, str | None]) -> str | None:
    """Return what a file says in its header (SPDX-License-Identifier), else what the nearest licence's text is.

    Args:
        path: The file.
        root: The source tree: licences are looked for in the file's folder and those above it, up to this.
        known: Licences of folders; new ones are added.

    Returns:
        An SPDX expression; None where none is known.
    """
    try:
        with open(path, "rb") as file:
            found = _SPDX.search(file.read(HEADER_BYTES))
    except OSError:
        return None
    if found:
        return re.sub(r"\s*(?:\*/|-->).*", "", found[1].decode()).strip()
    folder = path.parent
    while True:
        if folder not in known:
            known[folder] = _of_folder(folder)
        licence = known[folder]
        if licence is not None or folder in (root, folder.parent):
            return licence
        folder = folder.parent


def _of_folder(folder: Path) -> str | None:
    """Return the licence whose text lies in a folder; "unknown" where the text is none that we know."""
    try:
        files = sorted(path for path in folder.iterdir() if _NAMES.fullmatch(path.name) and path.is_file())
    except OSError:
        return None
    found = set()
    for file in files:
        try:
            text = " ".join(read_regular(file, MOST_BYTES).decode(errors="replace").lower().split())
        except OSError:
            continue
        found.add(next((name for name, said in _TEXTS if all(part in text for part in said)), "unknown"))
    return " AND ".join(sorted(found)) or None


def allows(expression: str | None, wanted: frozenset[str]) -> bool:
    """Return whether an SPDX expression can be met with the wanted licences alone.

    >>> allows("MIT OR GPL-3.0", frozenset({"MIT"})), allows("MIT AND GPL-3.0", frozenset({"MIT"}))
    (True, False)
    """
    if expression is None:
        return False
    choices = re.sub(r"[()]", " ", expression).split(" OR ")
    return any(
        all(
            re.sub(r" WITH .*|-only$|-or-later$|\+$", "", part.strip()) in wanted
            for part in choice.split(" AND ")
        )
        for choice in choices
    )
