"""ZIP archives: members are read from the archive; nothing is extracted, whatever their names are."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from nbllm.core.io import open_regular
from nbllm.core.terminal import visible_line
from nbllm.data.sources.inputs import UNPACKERS, Input, inner_suffix

_ENCRYPTED = 1  # a bit of a member's flags


@contextlib.contextmanager
def open_zip(path: Path, name: str) -> Iterator[list[Input]]:
    """Open an archive and give its members in the order of their names, except hidden ones.

    Raises:
        OSError: It cannot be opened.
        zipfile.BadZipFile: It is no ZIP archive.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        infos = sorted(
            (info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename
        )
        yield [
            _member(archive, info, path, name)
            for info in infos
            if not any(part.startswith((".", "__MACOSX")) for part in _parts(info.filename))
        ]


def _parts(name: str) -> list[str]:
    return [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, name: str) -> Input:
    label = visible_line(info.filename)
    suffix = PurePosixPath(info.filename).suffix.lower()

    def opened() -> IO[bytes]:
        if info.flag_bits & _ENCRYPTED:
            raise OSError(0, "it is encrypted", label)
        try:
            return archive.open(info)
        except (NotImplementedError, RuntimeError) as error:
            raise OSError(0, str(error), label) from error

    return Input(
        visible_line(f"{name}/{label}"),
        visible_line(f"{path}, member {label}"),
        suffix if suffix in UNPACKERS else "",
        inner_suffix(info.filename),
        opened,
        0,  # the archive's own size was taken account of
        member=True,
    )
