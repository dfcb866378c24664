"""A model of the Hugging Face hub: its directory in the hub's own cache, one revision, pinned."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

from nbllm.core.cache import unwritable
from nbllm.core.errors import FetchError
from nbllm.core.io import sha256_file
from nbllm.models.zoo.source import Source

WEIGHTS = "model.safetensors"
# All that loading reads: no code, no pickle.
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
TIMEOUT = 5.0  # seconds in which the hub must answer; else this machine counts as offline
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A repository of the hub, as a source of a model.

    The hub's library downloads: it resumes, it locks, and it keeps files where other programs find them too.

    Attributes:
        repository: "owner/name".
        revision: The commit, so that what a name means never changes.
    """

    repository: str
    revision: str

    @property
    def what(self) -> str:
        """The repository."""
        return f"{self.repository} on the Hugging Face hub"

    @property
    def by_hand(self) -> str:
        """The hub's own command line, and the folder that it makes."""
        return (
            f"`hf download {self.repository} {' '.join(FILES)} --revision {self.revision} --local-dir FOLDER`, "
            "then here nb.load('FOLDER')"
        )

    def find(self) -> Path | None:
        """Return the model's directory in the hub's cache, if all its files are there."""
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(self.repository, name, revision=self.revision) for name in FILES]
        paths = [Path(path) for path in found if isinstance(path, str)]
        return paths[-1].parent if len(paths) == len(FILES) else None

    def fetch(self) -> Path:
        """Return that directory, its weights verified, downloaded if need be; errors as in `Source`."""
        from huggingface_hub import constants

        try:
            directory = self.find()
            if directory is None or not self._whole(directory):
                directory = self._download()
                if not self._whole(directory):
                    raise FetchError("the weights that came have another checksum than the pinned one")
        except OSError as error:
            raise unwritable(Path(constants.HF_HUB_CACHE), error, variable="HF_HUB_CACHE") from error
        return directory

    def _whole(self, directory: Path) -> bool:
        """Say whether the weights are the pinned ones; take them out of the cache where they are not."""
        weights = directory / WEIGHTS
        if sha256_file(weights) == self.sha256:
            return True
        weights.resolve().unlink()  # the cache's link leads to the file itself
        weights.unlink(missing_ok=True)
        return False

    def _download(self) -> Path:
        from huggingface_hub import HfApi, snapshot_download

        try:
            # Without a network a download is tried again for 23 s, this question is not.
            HfApi().model_info(self.repository, revision=self.revision, timeout=TIMEOUT)
            found = snapshot_download(self.repository, revision=self.revision, allow_patterns=list(FILES))
        except Exception as error:  # its transports raise errors of many libraries
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise
            raise FetchError(str(error).partition("\n")[0] or type(error).__name__) from error
        missing = [name for name in FILES if not (Path(found) / name).is_file()]
        if missing:
            raise FetchError(f"the repository lacks {', '.join(missing)}")
        return Path(found)
