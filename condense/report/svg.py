"""A chart as a small static SVG: seen at once, without JavaScript, and wherever plotly is left out.

Everything that is needed to read it stands in attributes, so that it is also drawn where a server forbids scripts,
styles and images of a page (Jenkins' default content policy).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from condense.report.charts import POINTS, Chart, Series, Values
from condense.report.escape import for_terminal

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 18, 42
HATCHES = ("", "M0 5L5 0", "M0 5L5 0M0 0L5 5", "M2.5 2.5h.6v.6", "M0 0L5 5")
LEVELS = 8  # shades of a heatmap
NARROWEST = 6.0  # pixels of its columns
STROKES = {"solid": "", "dash": "7 5", "dot": "2 4", "longdash": "12 5", "dashdot": "9 4 2 4"}


@dataclass(frozen=True)
class Frame:
    """Where a place on the axis and a value are drawn, in pixels."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float


@functools.cache
def _light() -> Mapping[str, str]:
    """The colours of the light skin by name: the first rule of the page's styles."""
    rule = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8").partition("}")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6}|rgba\([^)]*\));", rule))


def paint(ink: str) -> str:
    """A colour as a value of `fill` or `stroke`: the page's variable, the light skin's where there are no styles."""
    return f"var(--{ink}, {_light()[ink]})"


def sketch(chart: Chart) -> str:
    """The chart as SVG whose colours are the page's CSS variables, else those of the light skin on light paper."""
    frame = _frame(chart)
    parts = [*_ground(chart, frame), *_heat_cells(chart, frame), *_bars(chart, frame)]
    for series in chart.series:
        parts += _svg_curve(series, chart, frame)
    return (
        f'<svg class="sketch" width="{chart.width}" height="{chart.height}" viewBox="0 0 {chart.width} {chart.height}" '
        f'font-family="sans-serif" font-size="12" fill="{paint("muted")}" aria-hidden="true" focusable="false">'
        f'<rect width="{chart.width}" height="{chart.height}" fill="{paint("paper")}"/>{"".join(parts)}</svg>'
    )


def _frame(chart: Chart) -> Frame:
    right = chart.width - (66 if chart.edges else RIGHT)
    bottom = chart.height - BOTTOM
    low, high = _range(chart)
    first, last = chart.axis.span or (min(chart.axis.at, default=0), max(chart.axis.at, default=1))
    step = (right - LEFT) / (len(chart.axis.places) + 0.4)

    def along(position: float) -> float:
        if chart.axis.at:
            return LEFT + (position - first) / ((last - first) or 1.0) * (right - LEFT)
        return LEFT + (position + 0.7) * step

    def scaled(value: float) -> float:
        value = math.log10(value) if chart.log and value > 0 else value
        return bottom - (value - low) / ((high - low) or 1.0) * (bottom - TOP)

    return Frame(along, scaled, LEFT, right, TOP, bottom, low, high)


def _range(chart: Chart) -> tuple[float, float]:
    """The ends of the vertical axis, exponents of ten on a logarithmic one."""
    if chart.y_range:
        return chart.y_range
    values = [v for s in chart.series for v in (*s.values, *(s.low or ()), *(s.high or ())) if v is not None]
    for places in zip(*(bar.values for bar in chart.bars), strict=True):
        values += [sum(v for v in places if v and v > 0), sum(v for v in places if v and v < 0)]
    if chart.log:
        logs = [math.log10(v) for v in values if v > 0] or [0.0, 1.0]
        return min(logs) - 0.1, max(logs) + 0.1
    return min(0.0, *values, 0.0) * 1.04, max(values, default=1.0) * 1.04 or 1.0


def _ground(chart: Chart, f: Frame) -> Iterator[str]:
    """The shade, the grid with its numbers, the edges of the bands, the axis with its ticks."""
    if chart.shade:
        a, b = f.x(chart.shade.first - 0.5), f.x(chart.shade.last + 0.5)
        yield f'<rect x="{a:.1f}" y="{f.top}" width="{b - a:.1f}" height="{f.bottom - f.top}" fill="{paint("shade")}"/>'
        yield _svg_text(b, f.top - 5, chart.shade.label, "end")
    if chart.zone:
        high, low = f.y(chart.zone[1]), f.y(chart.zone[0])
        yield (
            f'<rect x="{f.left}" y="{high:.1f}" width="{f.right - f.left}" height="{low - high:.1f}" '
            f'fill="{paint("zone")}"/>'
        )
    if chart.moment:
        x = f.x(chart.moment[0])
        yield _svg_line(x, f.top, x, f.bottom, "edge", "2 3")
        yield _svg_text(x, f.top - 5, chart.moment[1], "middle")
    for value in _ticks(chart, f):
        y = f.y(value)
        yield _svg_line(f.left, y, f.right, y, "grid")
        yield _svg_text(f.left - 7, y + 4, f"{value:g}".replace("-", "−"), "end")
    for value, label in chart.edges:
        yield _svg_line(f.left, f.y(value), f.right, f.y(value), "edge", "2 3")
        yield _svg_text(f.right + 5, f.y(value) + 4, label, "start", "side")
    for value, label in chart.uprights:
        yield _svg_line(f.x(value), f.top, f.x(value), f.bottom, "edge", "2 3")
        if label:
            yield _svg_text(f.x(value), f.top - 5, label, "middle", "side")
    yield _svg_line(f.left, f.bottom, f.right, f.bottom, "rule")
    for position, tick in _marked(chart):
        x = f.x(position)
        if chart.equal:
            yield _svg_line(x, f.top, x, f.bottom, "grid")
        yield _svg_line(x, f.bottom, x, f.bottom + 4, "rule")
        yield _svg_text(x, f.bottom + 18, tick, "middle")
    yield _svg_text((f.left + f.right) / 2, chart.height - 5, chart.axis.title, "middle", "title")
    left, middle = 9 if chart.axis.at else 13, (f.top + f.bottom) / 2
    yield (
        f'<text transform="translate({left} {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(for_terminal(chart.y_title))}</text>"
    )


def _marked(chart: Chart) -> list[tuple[float, str]]:
    """The places of the axis that have a tick, and its text."""
    axis = chart.axis
    if not axis.at:
        return [(axis.position(index), tick) for index, tick in enumerate(axis.ticks) if tick]
    if axis.marks:
        return list(axis.marks)
    low, high = axis.span or (min(axis.at), max(axis.at))
    return [(value, f"{value:g}".replace("-", "−")) for value in _round(low, high, 4 if chart.equal else 6)]


def _ticks(chart: Chart, f: Frame) -> list[float]:
    if chart.log:
        return [10.0**k for k in range(math.ceil(f.low), math.floor(f.high) + 1)]
    return _round(f.low, f.high, 5)


def _round(low: float, high: float, steps: int) -> list[float]:
    """Round numbers from low to high, about `steps` apart."""
    rough = (high - low) / steps
    unit = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg_curve(series: Series, chart: Chart, f: Frame) -> Iterator[str]:
    along = _along(series, chart, f)
    inner = len(along) - chart.axis.apart
    points = [(x, None if v is None else f.y(v)) for x, v in zip(along, series.values, strict=True)]
    if series.barred:
        yield from _cross(points, series, f)
        return
    if series.low is not None and series.high is not None:
        yield _band(along, series.low[:inner], series.high[:inner], series.ink, f)
    if series.dash == POINTS:
        yield _scatter(points, series)
        return
    path = _svg_path(points[:inner])
    dash = f' stroke-dasharray="{STROKES[series.dash]}"' if STROKES[series.dash] else ""
    halo = (
        f'<path d="{path}" fill="none" stroke="{paint("paper")}" stroke-width="{series.width + 3}"/>'
        if chart.cells
        else ""
    )
    yield f'{halo}<path d="{path}" fill="none" stroke="{paint(series.ink)}" stroke-width="{series.width}"{dash}/>'
    if series.symbol != "none":
        step = -(-inner // series.marks) if series.marks else 1
        yield _dots([(x, y) for x, y in points[:inner:step] if y is not None], series, 4.0 if series.marks else 3.0)
    for x, low, high in _whiskers(series, along[inner:], f):
        yield f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{paint(series.ink)}" stroke-width="1.5"/>'
    for x, y in points[inner:]:
        if y is not None:
            yield _mark(x, y, series)


def _along(series: Series, chart: Chart, f: Frame) -> list[float]:
    """Where the values of a series stand, in pixels."""
    places = series.at or [chart.axis.position(i) for i in range(len(series.values))]
    return [f.x(position) for position in places]


def _whiskers(series: Series, apart: Sequence[float], f: Frame) -> Iterator[tuple[float, float, float]]:
    """Where the intervals of the places that are set apart begin and end."""
    if not series.whiskers or series.low is None or series.high is None or not apart:
        return
    for x, low, high in zip(apart, series.low[-len(apart) :], series.high[-len(apart) :], strict=True):
        if low is not None and high is not None:
            yield x, f.y(low), f.y(high)


def _cross(points: Sequence[tuple[float, float | None]], series: Series, f: Frame) -> Iterator[str]:
    """Points with their intervals along both axes, as bars."""
    none: Values = [None] * len(points)
    ends = (series.low or none, series.high or none, series.left or none, series.right or none)
    path = ""
    for (x, y), low, high, left, right in zip(points, *ends, strict=True):
        if y is not None:
            path += f"M{x:.1f} {f.y(low):.1f}V{f.y(high):.1f}" if low is not None and high is not None else ""
            path += f"M{f.x(left):.1f} {y:.1f}H{f.x(right):.1f}" if left is not None and right is not None else ""
    yield f'<path d="{path}" stroke="{paint(series.ink)}" stroke-width="1.5"/>'
    yield _dots([(x, y) for x, y in points if y is not None], series, 5.0)


def _scatter(points: Sequence[tuple[float, float | None]], series: Series) -> str:
    """Points that no line joins, in one path."""
    path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points if y is not None)
    return (
        f'<path d="{path}" stroke="{paint(series.ink)}" stroke-width="{2 * series.width}" stroke-linecap="round" '
        'stroke-opacity=".55"/>'
    )


def _svg_path(points: Sequence[tuple[float, float | None]]) -> str:
    """Lines through the defined points, broken where one is missing."""
    words, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
        else:
            words.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
    return "".join(words)


def _band(along: Sequence[float], low: Values, high: Values, ink: str, f: Frame) -> str:
    both = [(x, a, b) for x, a, b in zip(along, low, high, strict=False) if a is not None and b is not None]
    there = [f"{x:.1f},{f.y(b):.1f}" for x, _, b in both]
    back = [f"{x:.1f},{f.y(a):.1f}" for x, a, _ in reversed(both)]
    return f'<polygon points="{" ".join(there + back)}" fill="{paint(ink)}" fill-opacity=".22"/>'


def _dots(points: Sequence[tuple[float, float]], series: Series, r: float = 3.0) -> str:
    """Small filled marks on a line: one path for all of them."""
    shapes = {
        "diamond": f"m0 {-r:g}l{r:g} {r:g} {-r:g} {r:g} {-r:g} {-r:g}z",
        "triangle": f"m0 {-r:g}l{r:g} {1.8 * r:g}h{-2 * r:g}z",
    }
    if series.symbol in shapes:
        path = "".join(f"M{x:.1f} {y:.1f}{shapes[series.symbol]}" for x, y in points)
        return f'<path d="{path}" fill="{paint(series.ink)}"/>'
    cap = "square" if series.symbol == "square" else "round"
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path d="{path}" stroke="{paint(series.ink)}" stroke-width="{1.73 * r:.1f}" stroke-linecap="{cap}"/>'


def _mark(x: float, y: float, series: Series) -> str:
    """The open mark of a place that is set apart."""
    r, colours = 4.5, f'fill="{paint("paper")}" stroke="{paint(series.ink)}" stroke-width="1.75"'
    if series.symbol == "diamond":
        return f'<path d="M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z" {colours}/>'
    if series.symbol == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" {colours}/>'
    if series.symbol == "triangle":
        return f'<path d="M{x:.1f} {y - r:.1f}l{r} {1.8 * r:g}h{-2 * r:g}z" {colours}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {colours}/>'


def _bars(chart: Chart, f: Frame) -> Iterator[str]:
    """Stacked bars, a path per layer; distinguished by a pattern as well as by colour."""
    places = range(len(chart.axis.labels))
    width = (f.x(1) - f.x(0)) * 0.82
    up, down = [0.0 for _ in places], [0.0 for _ in places]
    for rank, bar in enumerate(chart.bars):
        path = ""
        for index in places:
            value = bar.values[index] or 0.0
            pile = up if value >= 0 else down
            x, y, pile[index] = f.x(chart.axis.position(index)) - width / 2, f.y(pile[index]), pile[index] + value
            path += f"M{x:.1f} {y:.1f}h{width:.1f}V{f.y(pile[index]):.1f}h{-width:.1f}z" if value else ""
        yield f'<path d="{path}" fill="{paint(bar.ink)}" stroke="{paint("paper")}" stroke-width=".7"/>'
        name = f"{chart.id}-hatch-{rank}"
        pattern = _hatch(name, rank) if bar.symbol != "none" else ""
        if pattern:
            yield f'{pattern}<path d="{path}" fill="url(#{name})"/>'


def swatch(bar: Series, rank: int, chart: Chart) -> str:
    """The legend's sample of a layer of bars: its colour and its pattern."""
    name = f"{chart.id}-legend-{rank}"
    box, pattern = '<rect width="18" height="14"', _hatch(name, rank) if bar.symbol != "none" else ""
    hatch = f'{pattern}{box} fill="url(#{name})"/>' if pattern else ""
    return f'<svg width="18" height="14" focusable="false">{box} fill="{paint(bar.ink)}"/>{hatch}</svg>'


def _hatch(name: str, rank: int) -> str:
    """The pattern that distinguishes a layer of bars without colour; "" for the first, which has none."""
    marks = HATCHES[rank % len(HATCHES)]
    if not marks:
        return ""
    return (
        f'<pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse"><path d="{marks}" '
        f'stroke="{paint("paper")}" stroke-linecap="square"/></pattern>'
    )


def _heat_cells(chart: Chart, f: Frame) -> Iterator[str]:
    """The heatmap: paper where nothing is, the accent where most is; columns of a few pixels are drawn together."""
    cells, axis = chart.cells, chart.axis
    if cells is None or not cells.columns:
        return
    inner = len(axis.labels) - axis.apart
    top, bottom = f.y(cells.top), f.y(cells.bottom)
    for start, stop in ((0, inner), (inner, len(axis.labels))):
        if stop > start:
            left, wide = f.x(axis.position(start) - 0.5), (stop - start) * (f.x(1) - f.x(0))
            count = min(stop - start, max(1, int(wide / NARROWEST)))
            columns = _joined_points(cells.columns[start:stop], count)
            scale = f"{wide / count:.4f} 0 0 {(bottom - top) / len(columns[0]):.4f}"
            yield (
                f'<g transform="matrix({scale} {left + wide / count / 2:.2f} {top:.2f})" stroke="#1e76a5" '
                f'shape-rendering="crispEdges">{_shades(columns, cells.peak)}</g>'
            )


def _joined_points(columns: Sequence[Values], count: int) -> list[list[float]]:
    """Means of neighbouring columns, `count` of them; what is undefined is as good as nothing."""
    ends = [round(k * len(columns) / count) for k in range(count + 1)]
    groups = [columns[start:stop] for start, stop in itertools.pairwise(ends)]
    return [[sum(v or 0.0 for v in row) / len(group) for row in zip(*group, strict=True)] for group in groups]


def _shades(columns: Sequence[Sequence[float]], peak: float) -> str:
    """Cells of one by one, the first column's middle at 0, the last row at the top: layers of more and more ink.

    Each layer covers what reaches its level, so that a path holds a stretch per column and not one per cell.
    """
    layers, under = "", 0.0
    for level in range(1, LEVELS + 1):
        path, pen = "", (0, 0)
        for number, column in enumerate(columns):
            row = 0
            for inked, run in itertools.groupby(value * LEVELS >= (level - 0.5) * peak for value in reversed(column)):
                length = len(list(run))
                if inked:
                    down = row - pen[1]
                    path += f"m{number - pen[0]}{'' if down < 0 else ' '}{down}v{length}"
                    pen = (number, row + length)
                row += length
        shade = (level / LEVELS) ** 0.8
        if path:
            layers += f'<path d="{path}" stroke-opacity="{1 - (1 - shade) / (1 - under):.3f}"/>'
        under = shade
    return layers


def _svg_line(x1: float, y1: float, x2: float, y2: float, ink: str, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{paint(ink)}"{dashes}/>'


def _svg_text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    words = escape(for_terminal(text))
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{words}</text>'
