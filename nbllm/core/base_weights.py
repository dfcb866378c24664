"""Weights that many checkpoints of a run share: written once, and referred to by path and checksums.

A run that trains an adapter alone leaves the model's own weights as they are. They lie in `base/` in the run's folder;
each checkpoint, in `checkpoints/step-.../`, has the adapter and a file that names the base's files and their SHA-256.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nbllm.core.io import atomic_directory, link_or_copy, read_json, sha256_file, write_json

REFERENCE = "base.json"  # in a checkpoint
FOLDER = "base"  # in a run's folder
_FROM_CHECKPOINT = f"../../{FOLDER}"
_MAX_JSON = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class BaseWeights:
    """A run's base.

    Attributes:
        folder: The folder of its files.
        files: SHA-256 and size in bytes of each, by name.
    """

    folder: Path
    files: Mapping[str, tuple[str, int]]

    @classmethod
    def of_run(cls, run: Path) -> Self:
        """Return the base that lies in a run's folder; reads all of it.

        Raises:
            OSError: There is none.
        """
        folder = run / FOLDER
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        return cls(
            folder, {name: (sha256_file(folder / name), (folder / name).stat().st_size) for name in names}
        )

    @classmethod
    def referred_to_by(cls, checkpoint: Path) -> Self | None:
        """Return the base that a checkpoint refers to, or None where it holds its weights itself.

        Raises:
            OSError: The reference cannot be read.
            ValueError: It is damaged, or names files that are not in a run's base.
        """
        if not (checkpoint / REFERENCE).is_file():
            return None
        stored: Any = read_json(checkpoint / REFERENCE, _MAX_JSON)
        try:
            files = {str(name): (str(sha256), int(size)) for name, (sha256, size) in stored["files"].items()}
            if (
                stored["path"] != _FROM_CHECKPOINT
                or not files
                or any(Path(name).name != name for name in files)
            ):
                raise ValueError("it refers to files elsewhere")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{REFERENCE} is damaged: {error!r}") from error
        return cls(checkpoint / _FROM_CHECKPOINT, files)

    def refer(self, checkpoint: Path) -> None:
        """Write the reference into a checkpoint's folder."""
        files = {name: list(entry) for name, entry in self.files.items()}
        write_json(checkpoint / REFERENCE, {"path": _FROM_CHECKPOINT, "files": files})

    def problems(self) -> list[str]:
        """Return what is wrong with its files; nothing, when every byte is as it was written."""
        found = []
        for name, (sha256, size) in self.files.items():
            file = self.folder / name
            try:
                if file.is_symlink() or file.stat().st_size != size or sha256_file(file) != sha256:
                    found.append(f"{FOLDER}/{name} is damaged, or not a file")
            except OSError as error:
                found.append(f"{FOLDER}/{name} cannot be read ({error.strerror})")
        return found

    def share_with(self, run: Path) -> None:
        """Let another run have the same base: the same files where the disk allows that, else copies.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        if (run / FOLDER).exists():
            return
        with atomic_directory(run / FOLDER) as aside:
            for name in self.files:
                link_or_copy(self.folder / name, aside / name)
