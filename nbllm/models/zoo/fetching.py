"""From a name to what `load` opens, downloaded where it is not here yet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nbllm.core.errors import FetchError, UserError, WeightsError, nearest
from nbllm.core.io import expand_user
from nbllm.models.zoo.hub import Hub
from nbllm.models.zoo.known import MODELS, PublishedModel

_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")  # owner/name


def fetch(name: str) -> Path:
    """Download a published model, known by its name or its repository's, unless it is here; verify its checksum.

    The sources are tried in their order, but first the one whose copy is here; a damaged copy is fetched again.

    Returns:
        What `nbllm.load` opens.

    Raises:
        UserError: No model of this name is known; the nearest name is given.
        FetchError: No source has it; the message says why, and the two ways to get it.
        CacheError: The disk is full or the cache cannot be written; nothing half-written is left.
    """
    model = published(name)
    if model is None:
        raise UserError(f"No published model named {name!r} is known.", hint=nearest(name.lower(), MODELS))
    reasons = []
    for source in sorted(model.sources, key=lambda source: source.find() is None):
        try:
            return source.fetch()
        except FetchError as error:
            reasons.append(f"{source.what}: {error.what.rstrip('.')}")
    raise _unavailable(model, reasons)


def published(name: str) -> PublishedModel | None:
    """Return the published model of a name: its own or that of its repository on the hub, in any case of letters."""
    wanted = name.lower()
    for model in MODELS.values():
        repositories = [source.repository for source in model.sources if isinstance(source, Hub)]
        if wanted in (model.name, *(repository.lower() for repository in repositories)):
            return model
    return None


def locate(path: Path | str, *, also: Iterable[str] = ()) -> Path:
    """Return the file or folder that a path, or a published model's name, means; download it if need be.

    A path that exists comes before a name.

    Args:
        path: The path or the name.
        also: Other names that may have been meant, for the error.

    Raises:
        WeightsError: It is neither; the nearest name is given.
        FetchError, CacheError: As `fetch`.
    """
    place = expand_user(path)
    if isinstance(path, Path) or place.exists():
        return place
    model = published(path)
    if model is not None:
        return model.find() or fetch(model.name)
    if _REPOSITORY.fullmatch(path) and not place.parent.exists():
        raise WeightsError(
            f"There is no folder {path!r}, and no published model of this name is known.",
            hint=f"A model of the Hugging Face hub opens from a folder: `hf download {path} --local-dir FOLDER`, then "
            "nb.load('FOLDER'). nb.models() lists those that open by name.",
        )
    if len(place.parts) > 1:
        return place  # a path, not a name: opening it reports what is missing
    raise WeightsError(
        f"There is no file or folder {path!r}, and no run or published model of this name.",
        hint=f"{nearest(path.lower(), [*MODELS, *also])} nb.models() and nb.runs() list them.",
    )


def _unavailable(model: PublishedModel, reasons: list[str]) -> FetchError:
    sources = " or ".join(source.what for source in model.sources)
    return FetchError(
        f"{model.name} is not on this machine and could not be fetched.\n"
        + "\n".join(f"  tried: {reason}" for reason in reasons),
        hint=f"There are two ways to get it.\n"
        f"    With a network: `nbllm fetch {model.name}` downloads {sources}.\n"
        f"    Without: on a machine that has one {model.sources[-1].by_hand}.",
    )
