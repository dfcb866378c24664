"""Several data sets trained together, each with its share, and with a loss of its own."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Self

from nbllm.core.errors import UserError, nearest

MOST_SOURCES = 24  # each adds a metric to every event
_NAME = re.compile(r"\w[\w .-]{0,39}")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data sets by name, and how often each is drawn.

    Args:
        sources: Data sets by name; each as for `nb.finetune`.
        weights: What share of the rows each gets, in proportion to the others (rows are of one length, so it is about
            the share of the tokens); a small data set is repeated more often. None: each row is drawn once an epoch.

    Raises:
        UserError: A name is too long or has other characters than letters, digits, "_", ".", "-" and spaces; there are
            too many, none, or a weight that is missing, surplus or not above 0.
    """

    sources: Mapping[str, Any]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check names and weights."""
        if not 1 <= len(self.sources) <= MOST_SOURCES:
            raise UserError(f"A mixture has 1 to {MOST_SOURCES} data sets, not {len(self.sources)}.")
        for name in self.sources:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise UserError(
                    f"{name!r} cannot be the name of a data set.",
                    hint='Up to 40 letters, digits, spaces and "_.-".',
                )
        for name, weight in (self.weights or {}).items():
            if name not in self.sources:
                raise UserError(
                    f"There is no data set {name!r} to weigh.", hint=nearest(str(name), list(self.sources))
                )
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not is_number or not 0 < weight < math.inf:
                raise UserError(f"The weight of {name!r} must be a number above 0, not {weight!r}.")
        if self.weights is not None and (missing := self.sources.keys() - self.weights.keys()):
            raise UserError(f"The data set {min(missing)!r} has no weight.", hint="Give each one a weight.")

    @classmethod
    def of(cls, data: Any) -> Self | None:
        """Return the mixture that is given, as itself or as a mapping of names to data sets; None for one data set."""
        if data is None or isinstance(data, cls):
            return data
        return cls(data) if isinstance(data, Mapping) else None
