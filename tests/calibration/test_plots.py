"""Charts: well-formed, with everything on them that a reader needs, whatever the values are."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as Tree

import pytest

from edgepose.calibration.report.plots import Axis, Bars, Line, bar_chart, line_chart, scatter_chart

NAN, INF = math.nan, math.inf
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert("1")</script>\x00\ud800'


def bars(values: dict[str, float], name: str = "onnx-int8") -> str:
    return bar_chart("Drop per joint", "Bars.", list(values), [Bars(name, values, 1)], Axis("drop, points"))


def lines(points: list[tuple[float, float]], name: str = "onnx-int8") -> str:
    return line_chart("Errors", "Lines.", [Line(name, points, 1)], Axis("distance, px"), Axis("joints, %"), marks=True)


def scatter(points: list[tuple[float, float]], name: str = "onnx-int8") -> str:
    named = [Line(f"{name}-{i}", [point], i) for i, point in enumerate(points)]
    return scatter_chart("Speed", "Points.", named, Axis("latency, ms", low=0), Axis("PCK@0.2, points"))


def parsed(svg: str) -> Tree.Element:
    return Tree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in parsed(svg).iter(f"{SVG}text")]


def numbers(svg: str) -> list[float]:
    """Every coordinate and length of the drawing."""
    found = []
    for node in parsed(svg).iter():
        for key in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "points", "d"):
            found += re.findall(r"-?(?:nan|inf|\d+\.?\d*)", node.get(key, ""))
    return [float(value) for value in found]


AWKWARD = [
    [],
    [(NAN, NAN)],
    [(INF, 1.0), (1.0, -INF)],
    [(1.0, 2.0)],  # a single point
    [(3.0, 5.0), (3.0, 5.0)],  # zero range
    [(0.0, 0.0), (NAN, 1.0), (1e-12, 1e12)],
    [(-5.0, -1e9), (7.0, INF), (8.0, 1e9)],
]


@pytest.mark.parametrize("points", AWKWARD)
@pytest.mark.parametrize("draw", [lines, scatter, lambda points: bars({str(i): b for i, (_, b) in enumerate(points)})])
def test_any_values_give_a_finite_drawing(draw, points):
    svg = draw(points)
    root = parsed(svg)
    assert root.get("role") == "img"
    assert [root[0].tag, root[1].tag] == [f"{SVG}title", f"{SVG}desc"]
    assert all(math.isfinite(value) for value in numbers(svg))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert width > 0
    assert height > 0


@pytest.mark.parametrize("svg", [lines([]), scatter([(NAN, 1.0)]), bars({"nose": INF}), bars({})])
def test_nothing_to_draw_is_said(svg):
    assert "no data" in texts(svg)


@pytest.mark.parametrize("draw", [lines, scatter])
def test_names_stay_text(draw):
    root = parsed(draw([(1.0, 2.0)], HOSTILE))
    assert not list(root.iter(f"{SVG}script"))
    assert any("<script>" in (node.text or "") for node in root.iter())


def test_bars_name_every_joint_and_point_the_right_way():
    svg = bars({"left_wrist": 4.0, "nose": -2.0})
    assert {"left wrist", "nose", "4.00", "\N{MINUS SIGN}2.00", "drop, points", "onnx-int8"} <= set(texts(svg))
    worse, better = (r for r in parsed(svg).iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None)
    right_end = float(better.get("x", "")) + float(better.get("width", ""))
    assert right_end == pytest.approx(float(worse.get("x", "")), abs=0.2)  # both begin at zero; coordinates: 0.1
    assert float(worse.get("width", "")) == pytest.approx(2 * float(better.get("width", "")), abs=0.2)


def test_eight_variants_differ_by_more_than_colour():
    svg = line_chart("t", "d", [Line(f"v{i}", [(0, i), (1, i)], i) for i in range(8)], Axis("x"), Axis("y"), marks=True)
    shapes = {
        (mark.get("class"), re.sub(r"^M[-\d., ]+", "", mark.get("d", "")))
        for mark in parsed(svg).iter(f"{SVG}path")
        if "mark" in mark.get("class", "")
    }
    assert len(shapes) == 8
    assert {f"v{i}" for i in range(8)} <= set(texts(svg))


@pytest.mark.parametrize("count", [2, 8])
def test_labels_of_close_points_do_not_cover_each_other(count):
    svg = scatter([(20 + 0.1 * i, 50 + 0.01 * i) for i in range(count)] + [(45.0, 20.0)])
    labels = [node for node in parsed(svg).iter(f"{SVG}text") if (node.text or "").startswith("onnx-int8")]
    boxes = []
    for node in labels:
        x, y, wide = float(node.get("x", "")), float(node.get("y", "")), 7.1 * len(node.text or "")
        boxes.append((x if node.get("text-anchor") == "start" else x - wide, y, wide))
    assert len(boxes) == count + 1
    for i, (x, y, wide) in enumerate(boxes):
        for left, base, width in boxes[:i]:
            assert x >= left + width - 0.1 or left >= x + wide - 0.1 or abs(base - y) >= 11


def test_ticks_are_round_and_cover_the_axis():
    svg = lines([(0.0, 0.0), (9.7, 87.0)])
    assert {"0", "2", "4", "6", "8", "20", "40", "60", "80"} <= set(texts(svg))
