"""From a name to what `load` opens, downloaded where it is not here yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nbllm.core.errors import FetchError, UserError, WeightsError, nearest
from nbllm.core.io import expand_user
from nbllm.models.zoo.known import MODELS, PublishedModel


def fetch(name: str) -> Path:
    """Download a published model, unless it is here, and verify its checksum.

    The sources are tried in their order, but first the one whose copy is here; a damaged copy is fetched again.

    Returns:
        What `nbllm.load` opens.

    Raises:
        UserError: No model of this name is known; the nearest name is given.
        FetchError: No source has it; the message says why, and the two ways to get it.
        CacheError: The disk is full or the cache cannot be written; nothing half-written is left.
    """
    if name not in MODELS:
        raise UserError(f"No published model named {name!r} is known.", hint=nearest(name.lower(), MODELS))
    model = MODELS[name]
    reasons = []
    for source in sorted(model.sources, key=lambda source: source.find() is None):
        try:
            return source.fetch()
        except FetchError as error:
            reasons.append(f"{source.what}: {error.what.rstrip('.')}")
    raise _unavailable(model, reasons)


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
    if path in MODELS:
        return MODELS[path].find() or fetch(path)
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
