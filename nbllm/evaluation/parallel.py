"""Parallel text in two plain files, line n of one being the translation of line n of the other, as WMT has it."""

from __future__ import annotations

import re
from pathlib import Path

from nbllm.core.errors import DataError
from nbllm.core.quantities import counted
from nbllm.evaluation.records import Record, stem_of, text_of

_NAME = re.compile(
    r"(?P<stem>.+?)(?P<role>-src|-ref)?\.(?P<end>[a-z]{2,3})(?P<packing>(?:\.txt)?(?:\.gz)?)", re.ASCII
)
_PAIR = re.compile(r"(?<![a-z])([a-z]{2})-([a-z]{2})(?![a-z])")


def parallel_files(path: Path, languages: tuple[str, str]) -> tuple[Path, Path] | None:
    """Return the files of source and target text, one of which is `path`; `None` where its name tells neither.

    Known names: newstest2014.de with newstest2014.en, newstest2014-deen-src.de with newstest2014-deen-ref.en, and
    wmt14.de-en.src with wmt14.de-en.ref; each also with ".txt", ".gz" or both after it.

    Args:
        path: Of one of the two.
        languages: From which, and into which: ("de", "en").
    """
    found = _NAME.fullmatch(path.name)
    if found is None:
        return None
    stem, role, end, packing = found["stem"], found["role"] or "", found["end"], found["packing"]
    source, target = languages
    if end in ("src", "ref"):
        ends = (".src", ".ref")
        pair = _PAIR.search(stem)
        if pair and pair.groups() != languages:
            return None
    else:
        ends = (f"-src.{source}", f"-ref.{target}") if role else (f".{source}", f".{target}")
    if f"{role}.{end}" not in ends:
        return None
    return path.with_name(f"{stem}{ends[0]}{packing}"), path.with_name(f"{stem}{ends[1]}{packing}")


def read_parallel(path: Path, languages: tuple[str, str]) -> list[Record]:
    """Return the pairs of lines as records with a column for each language.

    Args:
        path: One of the two files.
        languages: From which, and into which.

    Raises:
        DataError: The name does not tell which language it is, one of the files is missing or cannot be read, or they
            do not have the same number of lines.
    """
    files = parallel_files(path, languages)
    if files is None:
        raise DataError(
            f"The name does not say that this is text in {languages[0]} or its translation into {languages[1]}.",
            where=path,
            hint=f"Name the two files as newstest.{languages[0]} and newstest.{languages[1]}, or newstest.src and "
            "newstest.ref; or set source_language and target_language.",
        )
    sources, targets = (_lines(file) for file in files)
    if len(sources) != len(targets):
        raise DataError(
            f"{files[0].name} has {counted(len(sources), 'lines')}, and {files[1].name} has "
            f"{counted(len(targets), 'lines')}.",
            where=path.parent,
            hint="Line n of one file must be the translation of line n of the other.",
        )
    return [
        Record(
            dict(zip(languages, pair, strict=True)),
            f"{files[0]} and {files[1].name}, line {number}",
            file=stem_of(files[0]),
        )
        for number, pair in enumerate(zip(sources, targets, strict=True), 1)
    ]


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; only a line feed ends one, other line separators of Unicode are text."""
    try:
        text = text_of(path)
    except FileNotFoundError:
        raise DataError(
            f"The other file of the pair, {path.name}, is missing.", where=path.parent, hint="Give both."
        ) from None
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror or error}.", where=path) from error
    if not text.strip():
        raise DataError("The file is empty: it has no line.", where=path, hint="Give the file as published.")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
