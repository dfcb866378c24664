"""Which files of a folder are training text: a test split must not become one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nbllm.core.errors import DataError, UserError, listed
from nbllm.data.sources.inputs import inner_suffix

# The words that the `datasets` library knows files of a split by.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
DATA_SUFFIXES = frozenset(".jsonl .ndjson .json .csv .tsv .parquet .arrow .feather .txt .text".split())

_CARD = re.compile(
    rb"---\s*\n(.*\n)*?(dataset_info|configs|license|language|pretty_name|[a-z]+_categories)\s*:"
)


def split_of(name: str) -> str | None:
    """Return the split that a file's name, or else its folder's, tells; the later word counts.

    >>> split_of("data/train-00000-of-00002.parquet"), split_of("contest.txt")
    ('train', None)
    """
    for part in reversed(name.replace(os.sep, "/").split("/")):
        words = re.split(r"[^a-z]+", part.lower())
        for word in words:
            for split, known in WORDS.items():
                if word in known:
                    return split
    return None


def is_clone(folder: Path) -> bool:
    """Return whether a folder is a data set's repository: it has a card, or what the hub's tools leave."""
    if (folder / "dataset_infos.json").is_file():
        return True
    card = folder / "README.md"
    if not card.is_file():
        return False
    with open(card, "rb") as file:
        beginning = file.read(1 << 16)
    return bool(_CARD.match(beginning))


def clone_files(folder: Path, subset: str | None, split: str) -> list[Path]:
    """Return the files of one split of a data set's repository, as its card or its file names say.

    Raises:
        UserError: There are several subsets and none was named, or no such subset or split.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(folder), subset)
        files = builder.config.data_files or {}
    except (OSError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            f"The files of this data set cannot be told: {' '.join(lines[:2])}",
            where=folder,
            hint="Name a subset: subset='...'; or give the files themselves.",
        ) from error
    if split not in files:
        raise UserError(
            f"The data set has no split {split!r}.",
            where=folder,
            hint=f"Its splits: {listed(map(str, files))}.",
        )
    return sorted(Path(str(file)) for file in files[split])


def choose_split(names: Sequence[str], wanted: str | None) -> tuple[list[str], str]:
    """Return the names of the files to read, and a sentence on those that are not.

    Files whose names tell no split are read. Where only one split is there and none is asked for, all are.

    Args:
        names: Relative to the folder.
        wanted: The split asked for; where several are there and none is asked for, it is "train".

    Raises:
        UserError: There is no such split.
    """
    told = {name: split_of(name) if inner_suffix(name) in DATA_SUFFIXES else None for name in names}
    found = sorted({split for split in told.values() if split is not None})
    if wanted is None and (len(found) < 2 or "train" not in found):
        return list(names), ""
    split = "train" if wanted is None else split_of(wanted) or wanted
    if split not in found:
        raise UserError(f"There are no files of a split {split!r}.", hint=f"Splits found: {listed(found)}.")
    kept = [name for name in names if told[name] == split or (wanted is None and told[name] is None)]
    others = ", ".join(name for name in found if name != split)
    note = f"Read: the split {split!r}. Not read: {others}." if others else ""
    return kept, note
