"""What nbllm keeps in its cache, and how to clear it; all of it can be downloaded or computed again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from nbllm.core.cache import cache_folder, is_abandoned, unwritable
from nbllm.core.errors import UserError, nearest
from nbllm.core.html import fragment, table
from nbllm.core.io import is_link
from nbllm.core.kernel_cache import cached_kernels
from nbllm.core.quantities import moment, size
from nbllm.core.text_table import text_table

HEADER = ("kind", "what", "size", "files", "last used", "where")
_TOKENS = re.compile(r"[0-9a-f]{32}(\.lock)?")
_PROFILE = re.compile(r"[a-z]+-[0-9a-f]{16}\.json")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of things in the cache.

    Args:
        name: "models", "tokens", ...
        what: What they are, in a few words.
        lost: What clearing them costs.
        folder: Where they are.
        find: Yields the paths of what is there: nothing that only lies in the same folder.
    """

    name: str
    what: str
    lost: str
    folder: Callable[[], Path]
    find: Callable[[], Iterator[Path]]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the cache holds of a kind.

    Args:
        kind: The kind.
        paths: Files and folders.
        num_files: Files, those in the folders too.
        num_bytes: Their size.
        last_used: When one of them was last read or written, in seconds since 1970; `None` where there is none.
    """

    kind: Kind
    paths: tuple[Path, ...]
    num_files: int
    num_bytes: int
    last_used: float | None


class Cache:
    """What the cache holds, kind by kind; shown in a cell as a table."""

    def __init__(self) -> None:
        self.kept = [_measure(kind) for kind in KINDS.values()]

    @property
    def num_bytes(self) -> int:
        """The size of all of it."""
        return sum(kept.num_bytes for kept in self.kept)

    def clear(self, kind: str | None = None) -> int:
        """Delete what the table shows, of one kind or of all, and return how many bytes that freed.

        Nothing is lost that cannot be had again: a model is downloaded, a text packed, a kernel compiled. A run whose
        tokens were deleted goes on once its text has been packed again.

        Args:
            kind: "models", "tokens", "texts", "prepared", "profiles" or "kernels"; `None` is all.

        Raises:
            UserError: There is no such kind; the nearest is named.
            CacheError: Something cannot be deleted.
        """
        chosen = self.of(kind)
        for kept in chosen:
            for path in kept.paths:
                _remove(path)
        self.kept = [_measure(each) for each in KINDS.values()]
        return sum(kept.num_bytes for kept in chosen)

    def of(self, kind: str | None) -> list[Kept]:
        """Return what there is of one kind, or of all; errors as `clear`."""
        if kind is not None and kind not in KINDS:
            raise UserError(f"The cache holds nothing of the kind {kind!r}.", hint=nearest(str(kind), KINDS))
        return [kept for kept in self.kept if kind in (None, kept.kind.name)]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows as text: kind, what, size, files, last use, folder."""
        return [
            (
                kept.kind.name,
                kept.kind.what,
                size(kept.num_bytes),
                f"{kept.num_files:,}",
                "" if kept.last_used is None else moment(kept.last_used),
                str(kept.kind.folder()),
            )
            for kept in self.kept
        ]

    def __repr__(self) -> str:
        return text_table([HEADER, *self.rows(), ("all", "", size(self.num_bytes), "", "", "")])

    def _repr_html_(self) -> str:
        return fragment(table([*self.rows(), ("all", "", size(self.num_bytes), "", "", "")], HEADER))


def cache() -> Cache:
    """Return what nbllm keeps in its cache, with sizes and last use; `nb.cache().clear("tokens")` deletes some."""
    return Cache()


def _measure(kind: Kind) -> Kept:
    paths = tuple(sorted(kind.find()))
    found = [stat for path in paths for stat in _stats(path)]
    return Kept(
        kind,
        paths,
        len(found),
        sum(stat.st_size for stat in found),
        max((max(stat.st_atime, stat.st_mtime) for stat in found), default=None),
    )


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Yield the facts of a file, or of all files in a folder; links are not followed."""
    files = [path]
    if path.is_dir() and not is_link(path):
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    for file in files:
        with contextlib.suppress(OSError):  # deleted meanwhile
            yield file.lstat()


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not is_link(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """Yield what is named like ours in a folder, and what a killed process left there."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if pattern.fullmatch(path.name) or is_abandoned(path):
                yield path


def _models() -> Iterator[Path]:
    """Yield the published models in our own cache; those in the hub's cache are other programs' too."""
    from nbllm.models.zoo.known import MODELS
    from nbllm.models.zoo.wheel import Wheel

    ours = [source.path for model in MODELS.values() for source in model.sources if isinstance(source, Wheel)]
    names = "|".join(re.escape(path.name) for path in ours)
    yield from _entries(cache_folder() / "models", re.compile(names))


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "models",
            "published models",
            "They are downloaded again when they are asked for.",
            lambda: cache_folder() / "models",
            _models,
        ),
        Kind(
            "tokens",
            "texts as tokens",
            "Runs that were trained on them can go on, be forked or replayed after the same text was packed again.",
            lambda: cache_folder() / "tokens",
            lambda: _entries(cache_folder() / "tokens", _TOKENS),
        ),
        Kind(
            "texts",
            "large texts that ended kernels left",
            "Nobody uses them any more.",
            lambda: cache_folder() / "texts",
            lambda: _entries(cache_folder() / "texts", re.compile("(?!)")),
        ),
        Kind(
            "prepared",
            "prepared text, with what was removed of it",
            "It is prepared again when it is asked for; a data set that was made of it loses its ledger.",
            lambda: cache_folder() / "prepared",
            lambda: _entries(cache_folder() / "prepared", _TOKENS),
        ),
        Kind(
            "profiles",
            "how fast this machine is",
            "They are measured again, in a second or two.",
            lambda: cache_folder() / "machine-profiles",
            lambda: _entries(cache_folder() / "machine-profiles", _PROFILE),
        ),
        Kind(
            "kernels",
            "compiled kernels",
            "They are compiled again at their next use.",
            lambda: Path(__file__).parent,
            cached_kernels,
        ),
    )
}
