"""What ended a rank, as it says itself in a file for its supervisor; and which rank was the first to fail."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.config import Config
from nbllm.core.errors import UserError
from nbllm.core.io import read_json, write_json
from nbllm.distributed.process_group import lost_a_peer
from nbllm.distributed.ranks import RankZeroError
from nbllm.training.journal import reason_of

MAX_BYTES = 1 << 20  # of a report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure(Config):
    """What ended a rank.

    Args:
        rank: Which one.
        reason: Its error with the line where it was raised, or the signal that killed it.
        step: Steps done.
        time: When, in seconds since 1970; all ranks whose order matters run on one machine.
        follows: Whether the error only shows that another rank has failed.
        is_error: Whether the program raised it: it would again. Otherwise the process was killed.
    """

    rank: int
    reason: str
    step: int
    time: float
    follows: bool = False
    is_error: bool = True


def report_failure(folder: Path, rank: int, error: BaseException, step: int) -> None:
    """Write down what ended this rank; never fails, since the error itself must not be hidden."""
    failure = Failure(
        rank=rank,
        reason=reason_of(error),
        step=step,
        time=time.time(),
        follows=isinstance(error, RankZeroError) or lost_a_peer(error),
    )
    with contextlib.suppress(OSError):
        write_json(folder / f"rank-{rank}.json", failure.to_dict())


def read_failures(folder: Path, codes: Mapping[int, int]) -> list[Failure]:
    """Return what ended the ranks: by their reports, and of those that were killed by the exit code.

    Args:
        folder: Where they report.
        codes: Exit codes of the ranks that ended otherwise than well; negative ones are signals.
    """
    found: dict[int, Failure] = {}
    for file in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, UserError, TypeError):
            failure = Failure.from_dict(read_json(file, MAX_BYTES, follow=False))
            found[failure.rank] = failure
    for rank, code in codes.items():
        if rank not in found:
            found[rank] = _silent(rank, code)
    return sorted(found.values(), key=lambda failure: failure.time)


def first_cause(failures: Sequence[Failure]) -> Failure | None:
    """Return the earliest error that does not follow from another; else a rank that was killed; else any."""
    errors = [each for each in failures if each.is_error and not each.follows]
    killed = [each for each in failures if not each.is_error]
    return next(iter([*errors, *killed, *failures]), None)


def _silent(rank: int, code: int) -> Failure:
    """Return what is known of a rank that could not report."""
    reason, is_error = f"it ended with exit code {code}", code > 0
    if code < 0:
        with contextlib.suppress(ValueError):
            reason = f"it was killed by {signal.Signals(-code).name}"
    return Failure(rank=rank, reason=reason, step=0, time=time.time(), is_error=is_error)


def described(failure: Failure) -> dict[str, Any]:
    """Return the fields of the event that records the end of a run by this failure."""
    return {"reason": f"rank {failure.rank}: {failure.reason}", "rank": failure.rank}
