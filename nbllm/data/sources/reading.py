"""What all readers of one `load` share."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Collection

from nbllm.core.errors import UserError
from nbllm.data.sources.budget import Budget
from nbllm.data.sources.licences import wanted_licences
from nbllm.data.sources.omissions import Omissions

SAMPLE_BY = ("document", "paragraph", "line")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The settings of one `load`, and what it leaves out; see `load` for their meaning.

    Raises:
        UserError: A setting has no such value.
    """

    omissions: Omissions
    column: str | None = None
    sample_by: str = "document"
    encoding: str | None = None
    split: str | None = None
    subset: str | None = None
    min_score: int | None = None
    licences: str | Collection[str] | None = None
    budget: Budget = dataclasses.field(default_factory=lambda: Budget(None))

    def __post_init__(self) -> None:
        for name in ("column", "split", "subset", "encoding"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{name} must be a name, not {value!r}.")
        if self.sample_by not in SAMPLE_BY:
            raise UserError(
                f"sample_by is {self.sample_by!r}; it must be one of {', '.join(map(repr, SAMPLE_BY))}."
            )
        if self.min_score is not None and (
            isinstance(self.min_score, bool) or not isinstance(self.min_score, int)
        ):
            raise UserError(f"min_score must be a whole number, not {self.min_score!r}.")
        if self.licences is not None:
            wanted_licences(self.licences)
        if self.encoding is None:
            return
        try:
            known = "".encode(self.encoding) is not None
            codecs.lookup(self.encoding)
        except (LookupError, ValueError):
            known = False
        if not known:
            raise UserError(
                f"There is no text encoding {self.encoding!r}.",
                hint="Some are: utf-8, utf-16, latin-1, cp1252, cp1251, gb18030, big5, shift_jis, euc_kr.",
            )
