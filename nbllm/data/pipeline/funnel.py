"""The funnel: how much text each step of a pipeline kept, and why it removed the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.core import html
from nbllm.core.quantities import size
from nbllm.core.text_table import text_table
from nbllm.data.pipeline.counts import Amount, StepCount

HEADER = ("step", "documents", "bytes", "tokens", "kept")
_RULES = 12  # of a step; those that removed nothing are not shown
_BAR = 120  # pixels


@dataclasses.dataclass(frozen=True)
class Funnel:
    """What entered and what each step left; shown in a notebook as tables.

    Attributes:
        counts: One for each step, the first for reading.
        tokens: How tokens were counted.
        omitted: What could not be read, and how often.
        notes: What else is to be said of the input.
    """

    counts: Sequence[StepCount]
    tokens: str
    omitted: dict[str, int]
    notes: Sequence[str] = ()

    @property
    def raw(self) -> Amount:
        """What was read."""
        return self.counts[0].entered

    @property
    def kept(self) -> Amount:
        """What is left."""
        return self.counts[-1].left

    def __repr__(self) -> str:
        rows = [HEADER, ("(raw)", *_amounts(self.raw), "100%")]
        rows += [(count.step, *_amounts(count.left), _share(count.left, self.raw)) for count in self.counts]
        return f"{text_table(rows)}\ntokens: {self.tokens}"

    def _repr_html_(self) -> str:
        rows: list[list[object]] = [["(raw)", *_cells(self.raw), _bar(self.raw, self.raw)]]
        rows += [[count.step, *_cells(count.left), _bar(count.left, self.raw)] for count in self.counts]
        parts = [html.table(rows, HEADER, caption="What each step left", row_headers=True)]
        removed = [
            [count.step, name, rule.kind, rule.hits, rule.removed.documents, _cells(rule.removed)[1]]
            for count in self.counts
            for name, rule in sorted(count.rules.items(), key=lambda item: -item[1].removed.bytes)[:_RULES]
            if rule.hits
        ]  # fmt: skip
        if removed:
            header = ("step", "rule", "removes", "broken", "documents dropped", "bytes")
            parts.append(html.table(removed, header, caption="What was removed, and why"))
        notes = [f"Tokens are {self.tokens}.", *self.notes]
        notes += [
            f"Left out, since it could not be read: {count:,} x {kind}."
            for kind, count in self.omitted.items()
        ]
        parts += [html.Raw(f"<p>{html.escape(note)}</p>") for note in notes]
        return html.fragment("".join(parts))


def _amounts(amount: Amount) -> tuple[str, str, str]:
    return f"{amount.documents:,}", size(amount.bytes), f"{amount.tokens:,}"


def _cells(amount: Amount) -> list[object]:
    return [html.Raw(html.escape(text)) for text in _amounts(amount)]


def _share(part: Amount, whole: Amount) -> str:
    """Return the share of the bytes, in percent."""
    return f"{100 * part.bytes / max(whole.bytes, 1):.1f}%"


def _bar(part: Amount, whole: Amount) -> html.Raw:
    """Return a bar as wide as the share of the bytes, with the percentage."""
    width = _BAR * part.bytes / max(whole.bytes, 1)
    return html.Raw(
        f'<svg width="{_BAR}" height="10" role="img" aria-label="{_share(part, whole)}">'
        f'<rect width="{width:.1f}" height="10" rx="1.5" fill="var(--nbllm-series-1, #0072b2)"/></svg>'
        f" {_share(part, whole)}"
    )
