import doctest
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nbllm.core import chart
from nbllm.core.chart import Mark, Series, line_chart, sparkline, ticks

SVG = "{http://www.w3.org/2000/svg}"


def draw(*series, **options):
    """The chart as a browser's XML parser reads it."""
    return ElementTree.fromstring(line_chart(series, **{"x_label": "step", "y_label": "loss", **options}))


def points(drawing, index=0):
    path = drawing.findall(f"{SVG}path")[index].get("d")
    return [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def texts(drawing):
    return [element.text for element in drawing.iter(f"{SVG}text")]


def test_points_lie_where_the_data_are():
    found = points(draw(Series("a", [0, 10, 20], [1.0, 3.0, 2.0])))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y2 == pytest.approx((y0 - y1) / 2, abs=0.2)  # y grows downwards
    assert y0 > y2 > y1


def test_a_logarithmic_axis_spaces_equal_factors_equally():
    (_, y0), (_, y1), (_, y2) = points(draw(Series("a", [0, 1, 2], [1, 10, 100]), log=True))
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_leaves_a_gap(gap):
    path = draw(Series("a", range(5), [1, 2, gap, 4, 5])).find(f"{SVG}path").get("d")
    assert path.count("M") == 2 and path.count("L") == 2 and "nan" not in path and "inf" not in path


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm():
    assert len(points(draw(Series("a", range(4), [1, 0, -5, 10]), log=True))) == 2


@pytest.mark.parametrize("log", [False, True])
def test_no_data_is_said(log):
    assert "no data yet" in texts(draw(log=log))
    assert "no data yet" in texts(draw(Series("a", [], []), log=log))
    draw(Series("a", [1, 2], [float("nan")] * 2), log=log)


def test_one_point_is_a_dot_and_equal_values_a_level_line():
    assert draw(Series("a", [3], [2.0])).find(f"{SVG}circle") is not None
    assert len({y for _, y in points(draw(Series("a", range(9), [2.5] * 9)))}) == 1


def test_long_series_keep_their_extremes_and_stay_small():
    values = np.random.default_rng(0).normal(size=100_000)
    values[54_321], values[77_777] = 40.0, -40.0
    svg = line_chart([Series("a", np.arange(100_000), values)], x_label="step", y_label="loss", width=600)
    assert len(svg) < 60_000
    ys = [y for _, y in points(ElementTree.fromstring(svg))]
    top, bottom = sorted(ys)[0], sorted(ys)[-1]
    rest = sorted(ys)[1:-1]
    assert top < rest[0] - 50 and bottom > rest[-1] + 50


def test_text_is_escaped_everywhere():
    hostile = '</svg><script>"&\u202e'
    svg = line_chart(
        [Series(hostile, [0, 1], [1, 2]), Series(hostile, [0, 1], [2, 2])],
        x_label=hostile, y_label=hostile, marks=[Mark(0.5, hostile)],
    )  # fmt: skip
    drawing = ElementTree.fromstring(svg)
    assert not list(drawing.iter(f"{SVG}script")) and "\u202e" not in svg
    assert texts(drawing).count('</svg><script>"&\ufffd') == 5  # both legends, both axes, the mark


def test_marks_stand_at_their_step_and_their_labels_do_not_overlap():
    marks = [
        Mark(50, "lr=0.001"),
        Mark(52, "pause"),
        Mark(54, "resume"),
        Mark(56, "stop"),
        Mark(99, "rewind to 50"),
    ]
    drawing = draw(Series("a", range(101), range(101)), marks=marks)
    groups = drawing.findall(f"{SVG}g")
    assert [group.find(f"{SVG}title").text for group in groups] == [
        "lr=0.001 at 50", "pause at 52", "resume at 54", "stop at 56", "rewind to 50 at 99",
    ]  # fmt: skip
    (x0, _), *_, (x100, _) = points(drawing)
    assert float(groups[0].find(f"{SVG}line").get("x1")) == pytest.approx((x0 + x100) / 2, abs=0.2)
    boxes = []
    for group in groups:
        for text in group.iter(f"{SVG}text"):
            x, width = float(text.get("x")), 6 * len(text.text)
            left = x if text.get("text-anchor") == "start" else x - width
            boxes.append((float(text.get("y")), left, left + width))
            assert left >= 0 and left + width <= 722
    assert len(boxes) >= 4  # only one may be left to its tooltip
    for i, (y, left, right) in enumerate(boxes):
        assert not any(y == v and left < end and start < right for v, start, end in boxes[i + 1 :])


def test_marks_beyond_the_data_widen_the_axis():
    drawing = draw(Series("a", [0, 10], [1, 2]), marks=[Mark(20, "stop")])
    assert points(drawing)[-1][0] < float(drawing.find(f"{SVG}g/{SVG}line").get("x1"))


def test_series_differ_by_more_than_colour():
    drawing = draw(*(Series(str(i), [0, 1], [i, i + 1]) for i in range(6)))
    paths = drawing.findall(f"{SVG}path")
    assert len({path.get("stroke-dasharray") for path in paths}) == 6
    assert len({path.get("stroke") for path in paths}) == 6
    assert all(re.fullmatch(r"var\(--nbllm-series-\d, #\w{6}\)", path.get("stroke")) for path in paths)


@pytest.mark.parametrize(
    "low, high", [(0, 1), (2.1, 8.7), (-5, 3), (0.00031, 0.00092), (0, 1e7), (99.9, 100.1)]
)
@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_ticks_are_few_round_and_inside(low, high, most):
    found = ticks(low, high, most)
    assert len(found) <= most and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    if most >= 5:
        assert len(found) >= 2
        assert len(set(np.round(np.diff(found) / (found[1] - found[0]), 6))) == 1


def test_tick_labels_tell_the_ticks_apart():
    for high in (1e-5, 1e-3, 0.5, 3, 1e4, 1e7):
        labels = [t for t in texts(draw(Series("a", [0, 1], [0.9 * high, high]))) if re.match(r"[\d.]", t)]
        assert len(labels) == len(set(labels)) or high == 1, labels


def test_sparkline():
    assert not doctest.testmod(chart).failed
    assert sparkline([]) == "" == sparkline([float("nan")])
    assert sparkline([1, float("nan"), 1]) == "▁ ▁"
    assert len(sparkline(range(1000), width=30)) == 30


@pytest.mark.parametrize("width", [360, 860])
def test_a_legend_stays_within_the_chart(width):
    names = ["baseline", "a much longer name of a run", "warmer", "w" * 80, "last"]
    drawing = draw(*(Series(name, [0, 1], [1, 2]) for name in names), width=width)
    legend = [text for text in drawing.iter(f"{SVG}text") if text.text[:4] in {name[:4] for name in names}]
    assert [text.text for text in legend][:3] == names[:3]
    assert all(float(text.get("x")) + 6 * len(text.text) <= width for text in legend)
    rows = [float(text.get("y")) for text in legend]
    assert rows == sorted(rows) and len(set(rows)) == (4 if width == 360 else 2)
    assert len({(text.get("x"), text.get("y")) for text in legend}) == len(names)
    assert max(rows) < min(y for index in range(len(names)) for _, y in points(drawing, index))
