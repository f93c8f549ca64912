"""Charts as SVG text: grouped bars, lines, labelled points. Pure functions of values; colours are in ``PLOT_CSS``.

A chart is 430 units wide and scales with its box, so that its text stays readable on a telephone. Variants differ
by colour, dashes and marks, never by colour alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edgepose.calibration.report.wording import clean, number

__all__ = ["PLOT_CSS", "TONES", "Axis", "Bars", "Line", "bar_chart", "line_chart", "scatter_chart", "swatch"]

TONES = 8
"""How many variants can be told apart; tone 0 is the baseline's."""

_WIDTH, _PLOT_HEIGHT = 430, 225
_CHAR, _LINE = 7.1, 18  # width of a letter and height of a line, generous for 13-unit system fonts
_RIGHT = 16

_LIGHT = ("#4a5160", "#0072b2", "#d55e00", "#009e73", "#b0558c", "#8a6d00", "#3d9bd1", "#6b4fb3")
_DARK = ("#c3c9d4", "#58aee6", "#f08a4b", "#35c79f", "#e09ac3", "#e3b93c", "#9ad4f5", "#b7a1f2")
_DASHES = ("5 3", "none", "9 3", "none", "9 3 2 3", "none", "3 3", "none")


def _tones(colors: Sequence[str]) -> str:
    return "".join(f"--tone{i}:{color};" for i, color in enumerate(colors))


PLOT_CSS = (
    f":root{{{_tones(_LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{_tones(_DARK)}}}}}"
    f"@media print{{:root{{{_tones(_LIGHT)}}}}}"
    ".plot{display:block;width:100%;height:auto;color:inherit;font:13px system-ui,sans-serif}"
    ".plot text{fill:currentColor}.plot .title{font-size:14.5px;font-weight:600}.plot .muted{opacity:.72}"
    ".plot .grid{stroke:currentColor;stroke-opacity:.13}.plot .axis{stroke:currentColor;stroke-opacity:.55}"
    ".plot .line{fill:none;stroke-width:2;stroke-linejoin:round}.plot .faint{fill-opacity:0}"
    ".plot .mark{stroke-width:1.5}.plot .diagonal{stroke:currentColor;stroke-opacity:.4;stroke-dasharray:2 4}"
    ".plot .value{font-size:12px}.plot .leader{stroke:currentColor;stroke-opacity:.4}"
) + "".join(
    f".tone{i}{{fill:var(--tone{i});stroke:var(--tone{i})}}.line.tone{i}{{stroke-dasharray:{dash}}}"
    for i, dash in enumerate(_DASHES)
)
"""Style of every chart; a page includes it once."""


@dataclass(frozen=True)
class Axis:
    """Title of an axis with its unit, and limits where the data should not choose them."""

    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """One variant's bars: group -> value. ``tone`` is its colour, 0 the baseline's."""

    name: str
    values: Mapping[str, float]
    tone: int


@dataclass(frozen=True)
class Line:
    """One variant's points (x, y), left to right; those whose index is in ``faint`` rest on few data."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: int
    faint: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Scale:
    """Values to SVG units, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """(value, text) at round numbers."""
        step = _round_step((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-6)
        values = [i * step for i in range(first, math.floor(self.high / step + 1e-6) + 1)]
        return [(value, number(value, digits)) for value in values]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.9)


def _scale(values: Iterable[float], axis: Axis, start: float, end: float, pad: float = 0.0) -> _Scale:
    """A scale over the finite values; never of zero length."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low = min(finite) if axis.low is None else axis.low
    high = max(finite) if axis.high is None else axis.high
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-6):
        around = abs(high) * 0.1 or 1.0
        low, high = (low, low + around) if axis.low is not None else (low - around, high + around)
    room = pad * (high - low)
    return _Scale(low - (room if axis.low is None else 0), high + (room if axis.high is None else 0), start, end)


def bar_chart(title: str, description: str, groups: Sequence[str], bars: Sequence[Bars], axis: Axis) -> str:
    """Grouped horizontal bars, one group per joint.

    Args:
        title: Above the chart.
        description: For readers who do not see it.
        groups: Names of the groups, top to bottom.
        bars: One per variant; a group that a variant lacks stays empty.
        axis: The values'.
    """
    values = [v for bar in bars for v in (bar.values.get(g, math.nan) for g in groups) if math.isfinite(v)]
    if not values:
        return _no_data(title, description)
    head, top = _head(title, [(bar.name, _block(bar.tone)) for bar in bars])
    thick = max(5.0, min(14.0, 22.0 / len(bars)))
    pitch = thick * len(bars) + max(7.0, thick * 0.6)
    left = min(140.0, max(len(_label(group)) for group in groups) * _CHAR + 12)
    bottom = top + pitch * len(groups)
    x = _scale([0.0, *values], axis, left, _WIDTH - _RIGHT, pad=0.0)
    x = _with_room(x, values, 40.0 if thick >= 9 else 4.0)
    body = [head, _x_axis(x, top, bottom, axis.label)]
    for i, group in enumerate(groups):
        y = top + pitch * i + (pitch - thick * len(bars)) / 2
        middle = top + pitch * (i + 0.5)
        body.append(_text(left - 8, middle + 4, _label(group), anchor="end"))
        for j, bar in enumerate(bars):
            body.append(_bar(x, y + thick * j, thick, bar, bar.values.get(group, math.nan)))
    body.append(f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{bottom:.1f}"/>')
    return _svg(title, description, bottom + 40, body)


def _with_room(x: _Scale, values: Sequence[float], units: float) -> _Scale:
    """The scale with room for the numbers at the ends of the bars, on the sides that have bars."""
    room = units * (x.high - x.low) / (x.end - x.start - 2 * units)
    return _Scale(
        x.low - room * (min(values) < 0), x.high + room * (max(values) > 0 or min(values) >= 0), x.start, x.end
    )


def _bar(x: _Scale, y: float, thick: float, bar: Bars, value: float) -> str:
    if not math.isfinite(value):
        return ""
    start, end = sorted((x(0), x(value)))
    hint = escape(f"{clean(bar.name)}: {number(value)}")
    box = (
        f'<rect class="tone{bar.tone % TONES}" stroke="none" x="{start:.1f}" y="{y:.1f}" '
        f'width="{max(end - start, 0.5):.1f}" height="{thick - 1:.1f}"><title>{hint}</title></rect>'
    )
    if thick < 9:
        return box
    at, anchor = (end + 4, "start") if value >= 0 else (start - 4, "end")
    return box + _text(at, y + thick / 2 + 3.5, number(value), anchor=anchor, css="value muted")


def line_chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    x_axis: Axis,
    y_axis: Axis,
    *,
    marks: bool = False,
    diagonal: bool = False,
) -> str:
    """One line per variant; the baseline is dashed and drawn last, so that it shows where lines coincide.

    Args:
        title: Above the chart.
        description: For readers who do not see it.
        lines: The variants; points that are not finite are left out.
        x_axis, y_axis: Titles and limits.
        marks: Whether points get marks; faint ones are hollow.
        diagonal: Whether to draw the line from the lower left to the upper right corner.
    """
    kept = [(line, _finite(line)) for line in lines]
    points = [point for _, found in kept for _, point in found]
    if not points:
        return _no_data(title, description)
    head, top = _head(title, [(line.name, _stroke(line.tone, marks)) for line in lines])
    x, y, body = _frame(points, x_axis, y_axis, top)
    body.insert(0, head)
    if diagonal:
        body.append(_segment(x.start, y.start, x.end, y.end, "diagonal"))
    for line, found in sorted(kept, key=lambda item: item[0].tone == 0):
        body.append(_curve(line, found, x, y, marks))
    return _svg(title, description, y.start + 42, body)


def _finite(line: Line) -> list[tuple[int, tuple[float, float]]]:
    return [(i, (a, b)) for i, (a, b) in enumerate(line.points) if math.isfinite(a) and math.isfinite(b)]


def _curve(line: Line, found: Sequence[tuple[int, tuple[float, float]]], x: _Scale, y: _Scale, marks: bool) -> str:
    tone = line.tone % TONES
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for _, (a, b) in found)
    parts = [f'<polyline class="line tone{tone}" points="{path}"/>']
    if marks or len(found) == 1:
        parts += [_mark(x(a), y(b), tone, faint=i in line.faint) for i, (a, b) in found]
    return f"<g><title>{escape(clean(line.name))}</title>{''.join(parts)}</g>"


def scatter_chart(title: str, description: str, points: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """One labelled point per variant: the first point of each line."""
    kept = [(line, found[0][1]) for line in points if (found := _finite(line))]
    if not kept:
        return _no_data(title, description)
    head, top = _head(title, [])
    x, y, body = _frame([point for _, point in kept], x_axis, y_axis, top, pad=0.12)
    spots = [(x(a), y(b)) for _, (a, b) in kept]
    body.insert(0, head)
    body += [_mark(px, py, line.tone % TONES, radius=5.5) for (line, _), (px, py) in zip(kept, spots, strict=True)]
    taken = [(px - 7, py - 7, px + 7, py + 7) for px, py in spots]
    for (line, _), (px, py) in zip(kept, spots, strict=True):
        room = max(px - x.start, x.end - px) - 12
        label = _shorten(clean(line.name), max(4, int(room / _CHAR)))
        body.append(_placed(label, px, py, (x.start, y.end, x.end, y.start), taken))
    return _svg(title, description, y.start + 42, body)


_Box = tuple[float, float, float, float]


def _placed(label: str, px: float, py: float, limits: _Box, taken: list[_Box]) -> str:
    """A label beside its point where it covers no mark and no other label; a thin line leads to one further away."""
    wide = len(label) * _CHAR
    spots = [
        (px + side if side > 0 else px + side - wide, py + 4 + dy)
        for dy in (0, *(sign * 14 * step for step in range(1, 12) for sign in (-1, 1)))
        for side in (11, -11)
    ]
    boxes = [(left, base - 11, left + wide, base + 3) for left, base in spots]
    fits = [box for box in boxes if _inside(box, limits) and not any(_overlap(box, other) for other in taken)]
    left, top, right, bottom = (fits or [box for box in boxes if _inside(box, limits)] or boxes)[0]
    taken.append((left, top, right, bottom))
    anchor, at = ("start", left) if left > px else ("end", right)
    far = abs(bottom - 7 - py) > 16
    leader = _segment(px, py, at, bottom - 7, "leader") if far else ""
    return leader + _text(at, bottom - 3, label, anchor=anchor)


def _inside(box: _Box, limits: _Box) -> bool:
    return box[0] >= limits[0] and box[1] >= limits[1] and box[2] <= limits[2] and box[3] <= limits[3]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _frame(
    points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, top: float, pad: float = 0.04
) -> tuple[_Scale, _Scale, list[str]]:
    """Scales and drawn axes of a plot area below ``top``."""
    bottom = top + _PLOT_HEIGHT
    y = _scale([b for _, b in points], y_axis, bottom, top + 18, pad)
    left = 14 + max(len(text) for _, text in y.ticks()) * _CHAR
    x = _scale([a for a, _ in points], x_axis, left, _WIDTH - _RIGHT, pad)
    body = [_text(0, top + 8, y_axis.label, css="muted")]
    for value, text in y.ticks():
        body.append(_segment(left, y(value), x.end, y(value), "grid"))
        body.append(_text(left - 6, y(value) + 4, text, anchor="end", css="muted"))
    return x, y, [*body, _x_axis(x, top + 18, bottom, x_axis.label), _segment(left, bottom, x.end, bottom, "axis")]


def _x_axis(x: _Scale, top: float, bottom: float, label: str) -> str:
    parts = [_text((x.start + x.end) / 2, bottom + 35, label, anchor="middle", css="muted")]
    for value, text in x.ticks():
        parts.append(_segment(x(value), top, x(value), bottom, "grid"))
        parts.append(_text(x(value), bottom + 17, text, anchor="middle", css="muted"))
    return "".join(parts)


def _head(title: str, legend: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Title and legend, and where the plot begins below them."""
    lines = textwrap.wrap(clean(title), 50) or [""]
    parts = [_text(0, 14 + 18 * i, line, css="title") for i, line in enumerate(lines)]
    x, y = 0.0, 14.0 + 18 * len(lines) + 4
    for name, key in legend:
        label = _shorten(clean(name), 50)
        wide = 28 + len(label) * _CHAR + 16
        if x and x + wide - 16 > _WIDTH:
            x, y = 0.0, y + _LINE
        parts.append(f'<g transform="translate({x:.1f},{y - 4:.1f})">{key}{_text(28, 4, label)}</g>')
        x += wide
    return "".join(parts), y + (12 if legend else -8)


def swatch(tone: int) -> str:
    """A line with a mark, as in the legends, for use in text."""
    key = _stroke(tone % TONES, True)
    return f'<svg class="swatch" viewBox="0 -7 22 14" width="22" height="14" aria-hidden="true">{key}</svg>'


def _block(tone: int) -> str:
    return f'<rect class="tone{tone % TONES}" stroke="none" x="0" y="-5" width="20" height="10"/>'


def _stroke(tone: int, mark: bool) -> str:
    line = f'<path class="line tone{tone % TONES}" d="M0,0H22"/>'
    return line + (_mark(11, 0, tone % TONES) if mark else "")


def _mark(x: float, y: float, tone: int, radius: float = 4.0, faint: bool = False) -> str:
    """Circle, square, diamond or triangle, by tone."""
    r = radius
    shapes = (
        f"M{x - r:.1f},{y:.1f}a{r},{r} 0 1 0 {2 * r},0a{r},{r} 0 1 0 {-2 * r},0z",
        f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:.1f},{y - r * 1.3:.1f}l{r * 1.3},{r * 1.3}l{-r * 1.3},{r * 1.3}l{-r * 1.3},{-r * 1.3}z",
        f"M{x:.1f},{y - r * 1.2:.1f}l{r * 1.2},{r * 2.1}h{-r * 2.4}z",
    )
    return f'<path class="mark tone{tone}{" faint" if faint else ""}" d="{shapes[tone % len(shapes)]}"/>'


def _segment(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(text))}</text>'


def _label(group: str) -> str:
    return _shorten(clean(group).replace("_", " "), 20)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _no_data(title: str, description: str) -> str:
    head, top = _head(title, [])
    note = _text(_WIDTH / 2, top + 48, "no data", anchor="middle", css="muted")
    return _svg(title, description, top + 90, [head, note])


def _svg(title: str, description: str, height: float, body: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
        f"<title>{escape(clean(title))}</title><desc>{escape(clean(description))}</desc>{''.join(body)}</svg>"
    )
