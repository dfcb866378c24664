"""Commands: what a person, a rule or an agent asks of a loop, a file each, taken at a step boundary."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError
from nbllm.core.io import is_link, read_regular, write_atomic
from nbllm.runs.events import is_number

FOLDER = "commands"
REJECTED = "rejected"
LINKED = "commands/ is a link, and a run holds no links"
MAX_BYTES = 1 << 20
NAME = re.compile(r"(?P<time>[0-9]{20})-(?P<id>[0-9a-f]{16})\.json")
_ID = re.compile(r"[0-9a-f]{16}")
_ACTION = re.compile(r"[a-z_]{1,32}")
_ACTOR = re.compile(r"person|(rule|agent):[^\x00-\x1f\x7f]{1,80}")


@dataclasses.dataclass(frozen=True)
class Command:
    """One thing asked.

    Args:
        id: 16 hexadecimal digits; the action event that answers it carries the same.
        action: "pause", "set", ...; the loop decides what it knows.
        args: The action's arguments. They come from outside: check them.
        actor: "person", "rule:<name>" or "agent:<name>".
        time: When it was asked, in seconds since 1970.
    """

    id: str
    action: str
    args: dict[str, Any]
    actor: str
    time: float


def check_actor(actor: str) -> str:
    """Return `actor` if it is one.

    Raises:
        RunError: It is not one of "person", "rule:<name>", "agent:<name>".
    """
    if not isinstance(actor, str) or not _ACTOR.fullmatch(actor):
        raise RunError(
            f"{actor!r} is not an actor.",
            hint='Use "person", "rule:<name>" or "agent:<name>", at most 80 characters.',
        )
    return actor


def send(
    folder: Path | str, action: str, args: dict[str, Any] | None = None, actor: str = "person"
) -> Command:
    """Put a command where the loop of the run in `folder` finds it, whole or not at all; return it at once.

    Raises:
        RunError: The folder cannot be written or is a link, or the arguments are not JSON, or too long.
    """
    inbox = Path(folder) / FOLDER
    _refuse_link(inbox)
    assert _ACTION.fullmatch(action), action
    command = Command(uuid.uuid4().hex[:16], action, dict(args or {}), check_actor(actor), time.time())
    try:
        data = json.dumps(dataclasses.asdict(command), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"The arguments of {action} cannot be sent: {error}.") from error
    if len(data) > MAX_BYTES:
        raise RunError(
            f"The arguments of {action} are too long: {len(data):,} bytes; {MAX_BYTES:,} are taken."
        )
    try:
        inbox.mkdir(exist_ok=True)
        write_atomic(inbox / f"{_next_time(inbox):020d}-{command.id}.json", data)
    except OSError as error:
        raise RunError(
            f"The command {action} cannot be sent: {error.strerror or error}.",
            where=inbox,
            hint="You need the right to write in the run's folder, and some disk space.",
        ) from error
    return command


def withdraw(folder: Path | str, command: Command) -> bool:
    """Take a command back that was not taken yet; return whether it was still there."""
    for path in (Path(folder) / FOLDER).glob(f"*-{command.id}.json"):
        with contextlib.suppress(OSError):
            path.unlink()
            return True
    return False


def discard(folder: Path | str) -> int:
    """Remove every command still queued, and return how many there were; other files are left alone.

    Whoever starts a run again calls this before the new trainer exists: what was asked of the session that
    died, perhaps days ago, must not be obeyed by the next; what is asked of the new one as it starts must.

    Raises:
        RunError: The folder of the commands is a link.
    """
    inbox = Path(folder) / FOLDER
    _refuse_link(inbox)
    count = 0
    for path in inbox.glob("*.json"):
        if NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count


def _refuse_link(inbox: Path) -> None:
    if is_link(inbox):
        raise RunError(f"{LINKED}.", where=inbox)


class CommandInbox:
    """The loop's end: takes what was asked, in the order it was asked.

    A command is taken at most once: its file is gone before the loop acts on it.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / FOLDER
        self._warnings: list[str] = []
        self._stuck: set[str] = set()

    def take(self) -> list[Command]:
        """Return the commands that wait, oldest first. Never raises.

        What is named like a command and is none is moved to `rejected/`; a file of any other name stays where it is.
        """
        if is_link(self.folder):
            self._complain(f"{LINKED}; commands are not taken.")
            return []
        try:
            with os.scandir(self.folder) as entries:
                # Dots hide what is half-written; folders (rejected/ too) have no .json.
                names = [e.name for e in entries if e.name.endswith(".json") and e.name[0] != "."]
        except OSError:
            return []
        commands = []
        for name in sorted(names):
            if not NAME.fullmatch(name):
                self._complain("A file in commands/ is not named like a command; it is ignored.")
            elif name not in self._stuck:
                command = self._take_one(self.folder / name)
                if command is not None:
                    commands.append(command)
        return commands

    def drain_warnings(self) -> list[str]:
        """Return what was wrong with files since the last call, for `warning` events."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def _complain(self, text: str) -> None:
        """Warn of something that stays as it is, once."""
        if text not in self._stuck:
            self._stuck.add(text)
            self._warnings.append(text)

    def _take_one(self, path: Path) -> Command | None:
        try:
            command = _read(path)
        except FileNotFoundError:
            return None  # withdrawn
        except OSError as error:
            self._reject(path, error.strerror or str(error))
            return None
        except (ValueError, RecursionError) as error:
            self._reject(path, str(error) or type(error).__name__)
            return None
        try:
            path.unlink()
        except FileNotFoundError:
            return None  # withdrawn while we read
        except OSError as error:  # a command that cannot be removed would be obeyed at every step
            self._reject(path, f"it cannot be removed: {error.strerror}")
            return None
        return command

    def _reject(self, path: Path, reason: str) -> None:
        text = f"A file in commands/ is not a command ({path.name[:60]!r}: {reason[:200]})"
        rejected = self.folder / REJECTED
        try:
            rejected.mkdir(exist_ok=True)
            if is_link(rejected):
                raise NotADirectoryError(errno.ENOTDIR, "Is a link", str(rejected))
            os.replace(path, rejected / path.name)
            self._warnings.append(f"{text}; it was moved to commands/{REJECTED}/.")
        except FileNotFoundError:
            return
        except OSError:
            self._stuck.add(path.name)
            self._warnings.append(f"{text}; it is ignored.")


def _read(path: Path) -> Command:
    """Read a command file that may hold anything.

    Raises:
        OSError: It is too long, a link, a pipe, ...
        ValueError: It is not a command; the text says why.
    """
    data = read_regular(path, MAX_BYTES, follow=False)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict) or value.keys() != {"id", "action", "args", "actor", "time"}:
        raise ValueError("not the fields id, action, args, actor, time")
    command = Command(**value)
    if not isinstance(command.id, str) or not _ID.fullmatch(command.id):
        raise ValueError("id is not 16 hexadecimal digits")
    if not isinstance(command.action, str) or not _ACTION.fullmatch(command.action):
        raise ValueError("action is not a name")
    if not isinstance(command.args, dict):
        raise ValueError("args is not an object")
    if not isinstance(command.actor, str) or not _ACTOR.fullmatch(command.actor):
        raise ValueError("actor is not one of person, rule:<name>, agent:<name>")
    if not is_number(command.time):
        raise ValueError("time is not a number")
    return command


def _next_time(inbox: Path) -> int:
    """Return the time in ns, but more than any name there: the clock may go backwards, the order must not."""
    now = time.time_ns()
    with os.scandir(inbox) as entries:
        times = [int(match["time"]) for entry in entries if (match := NAME.fullmatch(entry.name))]
    return min(max([now, *(moment + 1 for moment in times)]), 10**20 - 1)
