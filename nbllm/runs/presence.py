"""Whether a run is still in its folder while it is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.runs.store import RECORD, read_record

GONE = "the run's folder is gone: it was deleted, renamed or moved"


class Presence:
    """Watches the folder of a run that is being trained.

    A trainer whose folder is gone must end: it would make the folder anew, or write into another run of the same name.

    Args:
        path: The run's folder.
        record: What its `run.json` said when the trainer began.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        self._record = record
        self._stamp: tuple[int, ...] | None = None

    def is_gone(self) -> bool:
        """Say whether the folder was deleted or moved, or holds another run now; quick enough for every step."""
        try:
            found = os.stat(self.path / RECORD)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # a network drive that does not answer just now, say
        stamp = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            if self._is_another():
                return True
            self._stamp = stamp
        return False

    def _is_another(self) -> bool:
        try:
            record = read_record(self.path)
        except UserError:
            return not (self.path / RECORD).exists()
        return any(record.get(name) != self._record.get(name) for name in ("created", "host", "name"))
