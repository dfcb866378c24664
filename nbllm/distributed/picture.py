"""A plan as a picture: which parameters of which block lie on which rank, between steps and during one.

A row is a part of the network, a column a rank. Each cell stands for all parameters of the part: tensor ranks share out
its width, data ranks its height. So what is filled is what the rank holds, and where in the matrices it lies.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from nbllm.core.html import Raw, escape
from nbllm.core.quantities import counted, size
from nbllm.distributed.memory import Workload
from nbllm.distributed.mesh import AXES, axis_sizes
from nbllm.distributed.placement import Parameter, Unit, count
from nbllm.distributed.plan import Plan

_ROW, _GAP, _LEFT, _FONT = 15, 3, 132, 11
_MOST_RANKS = 64
_MOST_BLOCKS = 4  # of a stage, of which the parts are shown; of more only the first and the last are
_HELD, _GATHERED = "var(--nbllm-series-1, #0072b2)", "var(--nbllm-series-2, #d55e00)"
_PARTS = {
    "attention": ("attention", "cross_attention", "time_mixing"),
    "feed-forward": ("feed_forward", "channel_mixing"),
}


@dataclasses.dataclass(frozen=True)
class _Row:
    """A part of the network.

    Attributes:
        label: Beside it.
        parameters: Of each stage that holds it; none: the row stands for blocks that are left out.
        is_block: Whether it is gathered and let go on its own under ZeRO-3.
    """

    label: str
    parameters: dict[int, list[Parameter]]
    is_block: bool = True


@dataclasses.dataclass(frozen=True)
class _Rank:
    """A column: its number and its place on each axis."""

    number: int
    place: dict[str, int]

    def __str__(self) -> str:
        return f"rank {self.number}"


def picture(plan: Plan, stages: Sequence[Sequence[Unit]], work: Workload) -> Raw:
    """Return the picture as an SVG that follows the theme, with what each cell means as its tooltip.

    Args:
        plan: The plan, sized.
        stages: The units that each rank of the pipeline computes.
        work: What is trained, for the dtype.
    """
    sizes = axis_sizes(plan)
    places = itertools.product(*(range(sizes[axis]) for axis in AXES))
    all_ranks = [_Rank(number, dict(zip(AXES, place, strict=True))) for number, place in enumerate(places)]
    ranks, rows = all_ranks[:_MOST_RANKS], list(_rows(stages))
    cell = max(8.0, min(40.0, 520 / len(ranks)))
    panels = [("between steps", False)]
    if plan.is_sharded:
        when = "while a part computes" if plan.zero == 3 else "from its forward to its backward pass"
        panels.append((when, True))
    width = _LEFT + cell * len(ranks) + 8
    beside = len(panels) * (width - _LEFT) + _LEFT < 760
    height = 34 + len(rows) * (_ROW + _GAP)
    parts = []
    for number, (title, during) in enumerate(panels):
        x, y = (_LEFT + number * (width - _LEFT), 0.0) if beside else (_LEFT, number * height)
        labels = number == 0 or not beside
        parts.append(_panel(title, rows, ranks, plan, work, during=during, at=(x, y, cell), labels=labels))
    total_width = _LEFT + len(panels) * (width - _LEFT) if beside else width
    total_height = height * (1 if beside else len(panels)) + 20
    legend = _legend(plan, total_height - 6, left_out=len(all_ranks) - len(ranks))
    spoken = f"Which parameters lie on which of {counted(len(all_ranks), 'ranks')}"
    return Raw(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}" '
        f'width="{total_width:.0f}" height="{total_height:.0f}" role="img" aria-label="{escape(spoken)}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}" style="max-width:100%;height:auto">'
        f"{_PATTERN}{''.join(parts)}{legend}</svg>"
    )


# Stripes, so that what is gathered differs in more than colour.
_PATTERN = (
    '<defs><pattern id="nbllm-gathered" width="4" height="4" patternUnits="userSpaceOnUse" '
    f'patternTransform="rotate(45)"><rect width="4" height="4" fill="{_GATHERED}" fill-opacity=".35"/>'
    f'<rect width="2" height="4" fill="{_GATHERED}"/></pattern></defs>'
)


def _rows(stages: Sequence[Sequence[Unit]]) -> Iterator[_Row]:
    """Yield the rows: embedding, the blocks in their order with their parts, and the head."""
    yield _outside("embedding", stages)
    order = sorted(
        ((unit, stage) for stage, units in enumerate(stages) for unit in units if unit.is_block),
        key=lambda pair: _place(pair[0]),
    )
    for stage, run in itertools.groupby(order, key=lambda pair: pair[1]):
        units = [unit for unit, _ in run]
        shown = units if len(units) <= _MOST_BLOCKS else [units[0], units[-1]]
        for unit in shown:
            if unit is units[-1] and len(shown) < len(units):
                yield _Row(f"{counted(len(units) - 2, 'blocks')} alike", {})
            for label, names in _PARTS.items():
                inside = {each: each.name.removeprefix(f"{unit.name}.") for each in unit.parameters}
                own = [each for each, name in inside.items() if name.split(".")[0] in names]
                if own:
                    yield _Row(f"{unit.name} {label}", {stage: own})
    yield _outside("head", stages)


def _outside(name: str, stages: Sequence[Sequence[Unit]]) -> _Row:
    held = {
        stage: list(unit.parameters)
        for stage, units in enumerate(stages)
        for unit in units
        if unit.name == name and unit.parameters
    }
    return _Row(name, held, is_block=False)


def _place(unit: Unit) -> tuple[bool, int]:
    """Return a block's place in the order of computing: the encoder's before the decoder's."""
    stack, _, number = unit.name.rpartition(".")
    return stack.startswith("decoder"), int(number)


def _panel(
    title: str,
    rows: Sequence[_Row],
    ranks: Sequence[_Rank],
    plan: Plan,
    work: Workload,
    *,
    during: bool,
    at: tuple[float, float, float],
    labels: bool,
) -> str:
    x, y, cell = at
    parts = [_text(title, x, y + 12, "start", weight=True)]
    every = 1 if cell >= 16 else 8
    parts += [
        _text(str(rank.number), x + cell * (number + 0.5), y + 27, "middle")
        for number, rank in enumerate(ranks)
        if number % every == 0
    ]
    for place, row in enumerate(rows):
        top = y + 32 + place * (_ROW + _GAP)
        if labels:
            parts.append(_text(row.label, x - 6, top + 11, "end"))
        parts += [
            _cell(row, rank, plan, work, during=during, at=(x + cell * number, top, cell - 2))
            for number, rank in enumerate(ranks)
            if row.parameters
        ]
    return "".join(parts)


def _cell(
    row: _Row, rank: _Rank, plan: Plan, work: Workload, *, during: bool, at: tuple[float, float, float]
) -> str:
    x, y, width = at
    own = row.parameters.get(rank.place["pipeline"])
    frame = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_ROW}" fill="none" '
        'stroke="var(--nbllm-line, #8886)"/>'
    )
    if own is None:
        return f"<g><title>{escape(f'{rank}, {row.label}: nothing')}</title>{frame}</g>"
    shards = plan.num_shards if plan.is_sharded else 1
    whole = sum(count(each.shape) for each in own)
    split = sum(count(each.of_rank(tensor=plan.tensor)) for each in own)
    held = sum(
        count(
            each.of_rank(
                tensor=plan.tensor,
                shards=shards,
                tensor_rank=rank.place["tensor"],
                shard=rank.place["shard"] if shards > 1 else 0,
            )
        )
        for each in own
    )
    said = f"{rank}, {row.label}: {held:,} of {whole:,} elements, {size(held * work.itemsize)}"
    across = (
        split / whole if plan.tensor > 1 else 1.0
    )  # of the width: more than a share where some are on all
    left = x + (width * (1 - across) * rank.place["tensor"] / (plan.tensor - 1) if plan.tensor > 1 else 0.0)
    top, tall = y + _ROW * rank.place["shard"] / shards if shards > 1 else y, _ROW / shards
    fills = [_fill(left, top, width * across, tall, _HELD)]
    if during and shards > 1:
        said += f"; while it computes all {split:,}, {size(split * work.itemsize)}"
        fills.insert(0, _fill(left, y, width * across, _ROW, "url(#nbllm-gathered)"))
    return f"<g><title>{escape(said)}</title>{frame}{''.join(fills)}</g>"


def _fill(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0.8):.1f}" fill="{colour}"/>'
    )


def _legend(plan: Plan, y: float, *, left_out: int) -> str:
    entries = [(_HELD, "held")]
    if plan.is_sharded:
        entries.append(("url(#nbllm-gathered)", "gathered from the other data ranks"))
    parts, x = [], float(_LEFT)
    for colour, label in entries:
        parts += [_fill(x, y - 9, 10, 10, colour), _text(label, x + 15, y, "start")]
        x += 30 + 6.2 * len(label)
    if left_out:
        parts.append(_text(f"{counted(left_out, 'ranks')} more, alike", x, y, "start"))
    return "".join(parts)


def _text(text: str, x: float, y: float, anchor: str, *, weight: bool = False) -> str:
    bold = ' font-weight="600"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{bold}>{escape(text)}</text>'
