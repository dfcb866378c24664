"""Which parts of a model are frozen, as a list of patterns that is read in order; `training.freezing` matches them.

A pattern freezes what it names; one that begins with "!" takes what it names away from what the patterns before it
freeze. A later pattern overrides an earlier one, as in a `.gitignore`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RefusedError
from nbllm.runs.arguments import MAX_PATTERNS

if TYPE_CHECKING:
    from nbllm.runs.actions import Action

NOT = "!"
EVERYTHING = "*"
_OURS = frozenset({"blocks", "embedding", "positions", "norm"})  # parts that we name so; a head may be tied


def from_everything(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return patterns of which the first may take something away: from everything, then."""
    begins_with_not = bool(patterns) and patterns[0].startswith(NOT)
    return (EVERYTHING, *patterns) if begins_with_not else tuple(patterns)


def after(action: str, frozen: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the frozen patterns after an action, those that have no effect any more left out.

    Args:
        action: "freeze" or "unfreeze".
        frozen: The patterns before.
        patterns: What the action names.

    Raises:
        RefusedError: `unfreeze` was given a pattern with "!", or there would be too many.
    """
    if action == "freeze":
        new = from_everything(patterns)
    else:
        for pattern in patterns:
            if pattern.startswith(NOT):
                raise RefusedError(
                    f"unfreeze names what is to be trained, without '!': not {pattern!r}.",
                    hint=f"freeze({pattern!r}) freezes all but {pattern.removeprefix(NOT)!r}.",
                )
        new = tuple(NOT + pattern for pattern in patterns)
    newest = {pattern.removeprefix(NOT): pattern for pattern in frozen}
    for pattern in new:
        named = pattern.removeprefix(NOT)
        if named == EVERYTHING:
            newest.clear()
        newest.pop(named, None)  # what it said before is overridden, and it now comes last
        newest[named] = pattern
    kept = list(newest.values())
    if len(kept) > MAX_PATTERNS:
        raise RefusedError(f"More than {MAX_PATTERNS} patterns would say what is frozen.")
    return tuple(p for at, p in enumerate(kept) if not p.startswith(NOT) or _takes_away(p, kept[:at]))


def frozen_after(frozen: object, actions: Iterable[Action]) -> tuple[str, ...]:
    """Return the frozen patterns of a run by its record, which may hold anything.

    Args:
        frozen: Those that it began with.
        actions: Its actions on the current branch.
    """
    patterns = _texts(frozen)
    for action in actions:
        if action.action not in ("freeze", "unfreeze"):
            continue
        try:
            patterns = after(action.action, patterns, _texts(action.args.get("patterns")))
        except RefusedError:
            continue  # no loop of ours records such an action
    return patterns


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value[:MAX_PATTERNS])) if isinstance(value, (list, tuple)) else ()


def _takes_away(pattern: str, before: Sequence[str]) -> bool:
    """Say whether a pattern with "!" may take something away from what those before it freeze."""
    named = pattern.removeprefix(NOT)
    return any(_may_overlap(named, old) for old in before if not old.startswith(NOT))


def _may_overlap(first: str, second: str) -> bool:
    """Say whether two patterns may name the same parameter: not where both begin with other names of ours."""
    begins = [_beginning(pattern) for pattern in (first, second)]
    if not all(begin.partition(".")[0] in _OURS for begin in begins):
        return True  # the same parameter has another name in transformers
    return begins[0].startswith(begins[1]) or begins[1].startswith(begins[0])


@functools.lru_cache(4096)
def _beginning(pattern: str) -> str:
    """Return what stands before the first "*", "?" or "["; "blocks" for layers in brackets."""
    begin = pattern[: re.search(r"[*?\[]|$", pattern).start()]  # type: ignore[union-attr]
    return "blocks" if begin in ("layers", "layer") else begin
