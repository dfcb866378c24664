"""Checkpoints: folders that are complete or absent, with SHA-256 sums, since a flipped bit would load silently.

A checkpoint of a step that already has one (the run was resumed or rewound) is written beside the old one, which is
deleted when the new one is in place: at every moment there is a complete one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from nbllm.core.base_weights import REFERENCE, BaseWeights
from nbllm.core.errors import RunError
from nbllm.core.io import (
    ASIDE,
    atomic_directory,
    is_link,
    read_json,
    remove_leftovers,
    sha256_file,
    sync_directory,
    write_json,
)
from nbllm.runs.events import is_number

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
SCHEMA = "nbllm-checkpoint/1"
MAX_JSON = 64 << 20
NAME = re.compile(r"step-(?P<step>[0-9]{8,15})(-[0-9]{1,6})?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What the manifest of a checkpoint says.

    Args:
        path: Its folder, itself a model directory.
        step: Optimizer steps done.
        num_actions: State actions (see `Timeline`) that the run had recorded when it was saved.
        sequence: 1 for the first that the run saved, and so on: the order of saving, which steps do not
            tell after a rewind, and clocks never do.
        bytes: Size of its files.
        time: When it was saved, in seconds since 1970.
    """

    path: Path
    step: int
    num_actions: int = 0
    sequence: int = 0
    bytes: int = 0
    time: float = 0.0

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.name


class Draft:
    """A checkpoint that is being written: a folder beside the checkpoints, which becomes one when it is complete.

    Args:
        run_folder: The run's folder.
        step: Optimizer steps done.
        fill: Writes its files, but for `state.json` and `manifest.json`; more may be put into the folder later.

    Attributes:
        folder: Its folder for the time being.

    Raises:
        OSError: Disk full, no right to write, the run's folder gone; nothing is then left behind.
    """

    def __init__(self, run_folder: Path | str, step: int, fill: Callable[[Path], None]) -> None:
        parent = Path(run_folder) / FOLDER
        parent.mkdir(exist_ok=True)  # without parents: a run that was deleted is not to be made anew
        if is_link(parent):
            raise OSError(errno.ELOOP, f"{FOLDER}/ is a link", str(parent))
        self.step = step
        self._target = _free_name(parent, step)
        self._aside = contextlib.ExitStack()
        self.folder = self._aside.enter_context(atomic_directory(self._target))
        try:
            fill(self.folder)
        except BaseException:
            self.discard()
            raise

    def complete(
        self, state: Mapping[str, Any], sums: Mapping[str, str] = MappingProxyType({})
    ) -> CheckpointInfo:
        """Add state and manifest, and put the checkpoint in place of an older one of its step.

        Args:
            state: The rest of the trainer's state, as JSON; `num_actions` in it is `Timeline.num_actions`.
            sums: SHA-256 of files that is known already, by their name in the folder.

        Raises:
            OSError: As the class; nothing is then left behind.
        """
        parent, existing = self._target.parent, checkpoints(self._target.parents[1])
        with self._aside:
            write_json(self.folder / STATE, dict(state))
            files = {
                file.relative_to(self.folder).as_posix(): file
                for file in sorted(self.folder.rglob("*"))
                if file.is_file()
            }
            entries = {
                name: {"sha256": sums.get(name) or sha256_file(file), "bytes": file.stat().st_size}
                for name, file in files.items()
            }
            manifest = {
                "schema": SCHEMA,
                "step": self.step,
                "num_actions": int(state.get("num_actions", 0)),
                "sequence": 1 + max((info.sequence for info in existing), default=0),
                "bytes": sum(file.stat().st_size for file in files.values()),
                "time": time.time(),
                "files": entries,
            }
            write_json(self.folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})
        for _, path in _folders(parent):
            if _step_of(path.name) == self.step and path != self._target:
                _remove(path)
        return _info(self._target, manifest)

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save(
    run_folder: Path | str, step: int, fill: Callable[[Path], None], state: Mapping[str, Any]
) -> CheckpointInfo:
    """Write a checkpoint: `fill` puts files into the folder it is given, then state and manifest are added.

    Args:
        run_folder: The run's folder.
        step: Optimizer steps done.
        fill: Writes model, optimizer, ...: anything but `state.json` and `manifest.json`.
        state: See `Draft.complete`.

    Raises:
        OSError: Disk full, no right to write, the run's folder gone; nothing is then left behind.
    """
    return Draft(run_folder, step, fill).complete(state)


def checkpoints(run_folder: Path | str) -> list[CheckpointInfo]:
    """Return the checkpoints whose manifest can be read, in the order in which they were saved."""
    found = []
    for _, path in _folders(Path(run_folder) / FOLDER):
        with contextlib.suppress(OSError, ValueError):
            found.append(_info(path, _read_manifest(path)))
    return sorted(found, key=lambda info: (info.sequence, info.step, info.name))


def named(run_folder: Path | str, name: str) -> CheckpointInfo:
    """Return the checkpoint of that name.

    Raises:
        OSError: There is none, or its manifest cannot be read.
        ValueError: Its manifest is damaged.
    """
    path = Path(run_folder) / FOLDER / name
    return _info(path, _read_manifest(path))


def verify(path: Path | str) -> list[str]:
    """Return what is wrong with a checkpoint, file by file; nothing, when every byte is as it was saved."""
    path = Path(path)
    try:
        manifest = _read_manifest(path)
    except FileNotFoundError:
        return [f"{path.name}: {MANIFEST} is missing"]
    except (OSError, ValueError) as error:
        return [f"{path.name}: {MANIFEST} is damaged ({error})"]
    problems = []
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            size = file.stat().st_size
            if file.resolve() != path.resolve() / name or not file.is_file():
                problems.append(f"{path.name}: {name} is a link, or not a file")
            elif size != entry["bytes"]:
                problems.append(f"{path.name}: {name} has {size:,} bytes, not {entry['bytes']:,}")
            elif sha256_file(file) != entry["sha256"]:
                problems.append(f"{path.name}: {name} is damaged (SHA-256 differs)")
        except FileNotFoundError:
            problems.append(f"{path.name}: {name} is missing")
        except OSError as error:
            problems.append(f"{path.name}: {name} cannot be read ({error.strerror})")
    if REFERENCE in manifest["files"] and not problems:
        try:
            base = BaseWeights.referred_to_by(path)
        except (OSError, ValueError) as error:
            return [f"{path.name}: {error}"]
        assert base is not None
        problems += [f"{path.name}: {problem}" for problem in base.problems()]
    return problems


def checksums(path: Path | str) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by name, as its manifest says.

    Raises:
        OSError: There is no manifest, or it cannot be read.
        ValueError: It is damaged.
    """
    return {name: entry["sha256"] for name, entry in _read_manifest(Path(path))["files"].items()}


def newest_good(
    run_folder: Path | str, on_branch: Callable[[CheckpointInfo], bool] | None = None
) -> tuple[CheckpointInfo | None, list[str]]:
    """Return the newest checkpoint that is whole, and what was wrong with newer ones.

    Where the run goes on and deletes a checkpoint for a newer one meanwhile, the newest of what there is then.

    Args:
        run_folder: The run's folder.
        on_branch: Says whether a checkpoint still belongs to the run's current branch (`Timeline.on_branch`).

    Returns:
        The checkpoint, or `None` when no good one is left; and what was found damaged on the way.
    """
    problems: list[str] = []
    folder = Path(run_folder) / FOLDER
    readable = checkpoints(run_folder)
    infos = [info for info in readable if on_branch is None or on_branch(info)]
    paths = {info.path for info in readable}
    for _, path in _folders(folder):
        if path not in paths:  # where it stands in the order is unknown, so it is said in any case
            found = verify(path)
            problems.extend(found if path.exists() else [])
    for info in reversed(infos):
        found = verify(info.path)
        if not found:
            return info, problems
        if not info.path.exists():
            return newest_good(run_folder, on_branch)
        problems.extend(found)
    return None, problems


def load_state(path: Path | str) -> dict[str, Any]:
    """Return the `state` that a checkpoint was saved with.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        state = _read_json(Path(path) / STATE)
    except (OSError, ValueError) as error:
        raise RunError(f"The checkpoint's {STATE} cannot be read: {error}.", where=path) from error
    return state


def prune(run_folder: Path | str, keep: int, protect: Collection[Path] = ()) -> list[str]:
    """Delete all but the first checkpoint and the `keep` saved last; return the names of those deleted.

    The first is the one of the lowest step: what a replay begins with.

    Args:
        run_folder: The run's folder.
        keep: So many of the newest stay, at least 1.
        protect: Folders that stay too.
    """
    assert keep >= 1, keep
    folder = Path(run_folder) / FOLDER
    if is_link(folder):
        return []
    remove_leftovers(folder)
    removed = []
    infos = checkpoints(run_folder)
    first = min(infos, key=lambda info: (info.step, info.sequence), default=None)
    for info in infos[:-keep]:
        if info is not first and info.path not in protect and _remove(info.path):
            removed.append(info.name)
    return removed


def adopt(info: CheckpointInfo, run_folder: Path | str, **changes: Any) -> CheckpointInfo:
    """Copy a checkpoint into another run, as the start of a fork.

    Args:
        info: A checkpoint of the parent.
        run_folder: The child's folder.
        **changes: Replace entries of the state. `num_actions` is 0 in the child, whose record begins empty.

    Raises:
        RunError: The checkpoint is damaged.
    """
    problems = verify(info.path)
    if problems:
        raise RunError(
            f"The checkpoint is damaged: {'; '.join(problems)}.",
            where=info.path,
            hint="Fork from another checkpoint.",
        )

    base = BaseWeights.referred_to_by(info.path)

    def fill(aside: Path) -> None:
        if base is not None:
            base.share_with(Path(run_folder))
        for name in _read_manifest(info.path)["files"]:
            if name != STATE:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(info.path / name, aside / name)

    return save(run_folder, info.step, fill, {**load_state(info.path), "num_actions": 0, **changes})


def _free_name(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"step-{step:08d}-{number}"
    return path


def _remove(path: Path) -> bool:
    """Delete a checkpoint: renamed first, so that a crash half-way leaves no half checkpoint."""
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    try:
        os.replace(path, aside)
    except OSError:
        return False
    sync_directory(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _step_of(name: str) -> int:
    match = NAME.fullmatch(name)
    return int(match["step"]) if match else -1


def _folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (step, path) of what is named like a checkpoint, by step."""
    if is_link(folder):
        return  # its checkpoints are another run's
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return
    for name in sorted(names, key=lambda name: (_step_of(name), name)):
        yield _step_of(name), folder / name


def _read_json(path: Path) -> dict[str, Any]:
    value = read_json(path, MAX_JSON, follow=False)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest, which may come from anywhere.

    Raises:
        ValueError: It is damaged, or names files outside the folder.
    """
    manifest = _read_json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"schema is {str(manifest.get('schema'))[:40]!r}, not {SCHEMA!r}")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise ValueError("its own checksum differs")
    for name in ("step", "num_actions", "sequence", "bytes"):
        if type(manifest.get(name)) is not int or not 0 <= manifest[name] < 1 << 53:
            raise ValueError(f"{name} is not a count")
    if not is_number(manifest.get("time")):
        raise ValueError("time is not a number")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        if not _inside(name):
            raise ValueError(f"{name[:60]!r} is not a name inside the checkpoint")
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or "sha256" not in entry:
            raise ValueError(f"{name[:60]!r} has no size and checksum")
    return manifest


def _inside(name: str) -> bool:
    pure = PurePosixPath(name)
    plain = not pure.is_absolute() and bool(pure.parts) and ".." not in pure.parts
    return plain and "\\" not in name and "\0" not in name and ":" not in name


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _info(path: Path, manifest: Mapping[str, Any]) -> CheckpointInfo:
    return CheckpointInfo(
        path=path,
        step=manifest["step"],
        num_actions=manifest["num_actions"],
        sequence=manifest["sequence"],
        bytes=manifest["bytes"],
        time=manifest["time"],
    )
