"""Charts as plotly figures: plain JSON values, colours still by name. `plotly.graph_objects` is not imported."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from condense.report.charts import DASHES, PATTERNS, POINTS, SYMBOLS, Axis, Cells, Chart, Series, Values
from condense.report.escape import for_terminal

Json = dict[str, Any]


def plotly_figure(chart: Chart) -> Json:
    """The chart as plotly JSON `{id, height, data, layout}`, colours still by name."""
    data = [_heatmap(chart.cells, chart.axis)] if chart.cells else []
    data += [_bar(bar, rank, chart.axis) for rank, bar in enumerate(chart.bars)]
    for series in chart.series:
        data += _plotly_curve(series, chart)
    return {"id": chart.id, "height": chart.height, "data": data, "layout": _layout(chart)}


# --- traces --------------------------------------------------------------------------------------------


def _plotly_curve(series: Series, chart: Chart) -> list[Json]:
    """The traces of a curve: its interval band, the line over the joined places, a marker where set apart."""
    axis, size = chart.axis, len(_along(series, chart.axis))
    inner = size - axis.apart
    if series.dash == POINTS:
        return [_crosses(series, chart) if series.barred else _points(series, axis)]
    line = {"color": f"@{series.ink}", "width": series.width, "dash": DASHES[series.dash]}
    mode = "lines" if series.symbol == "none" else "lines+markers"
    traces = [_trace(series, chart, 0, inner) | {"mode": mode, "line": line}]
    if series.marks:
        traces[0]["marker"] |= {"maxdisplayed": series.marks, "size": 7}
    if chart.cells:  # a halo, so that the line is seen on cells of any colour
        wide = {"mode": "lines", "line": line | {"color": "@paper", "width": series.width + 3}, "hoverinfo": "skip"}
        traces.insert(0, {k: v for k, v in (traces[0] | wide).items() if k not in ("hovertemplate", "customdata")})
    if axis.apart:
        whiskers = _whiskers(series, inner) if series.whiskers else {}
        traces.append(_trace(series, chart, inner, size) | {"mode": "markers"} | whiskers)
    return [*_band(series, axis, inner), *traces]


def _scatter(series: Series, x: Any, y: Any) -> Json:
    return {"type": "scatter", "x": x, "y": y, "name": _label(series.name), "showlegend": False}


def _trace(series: Series, chart: Chart, start: int, stop: int) -> Json:
    apart, interval = start > 0, series.low is not None and series.high is not None
    number = f"%{{y:.{series.digits}f}}"
    if interval:
        number += f" [%{{customdata[0]:.{series.digits}f}}, %{{customdata[1]:.{series.digits}f}}]"
    if series.places:
        number = f"{_label(series.name)}<br>%{{text}}: {number}<extra></extra>"
    trace = _scatter(series, _along(series, chart.axis)[start:stop], _short_numbers(series.values[start:stop]))
    symbol, ink = SYMBOLS[series.symbol] or "circle", f"@{series.ink}"
    marker: Json = {"symbol": f"{symbol}-open" if apart else symbol, "size": 9 if apart else 5, "color": ink}
    marker["line"] = {"color": ink, "width": 1.75 if apart else 0}
    trace |= {"connectgaps": False, "hovertemplate": number, "marker": marker}
    if interval:
        pairs = zip(
            _short_numbers((series.low or ())[start:stop]), _short_numbers((series.high or ())[start:stop]), strict=True
        )
        trace["customdata"] = [list(pair) for pair in pairs]
    if series.places:
        trace["text"] = [_label(position) for position in series.places[start:stop]]
    return trace


def _crosses(series: Series, chart: Chart) -> Json:
    """Points over two quantities, each with its interval along both; only those that are there."""
    there = [i for i, value in enumerate(series.values) if value is not None]

    def kept(values: Values | None) -> list[float | None]:
        return [values[i] if values else None for i in there]

    at, up = kept(chart.axis.at), kept(series.values)
    trace = _scatter(series, _short_numbers(at), _short_numbers(up)) | {"mode": "markers"}
    trace["hovertemplate"] = f"%{{y:.{series.digits}f}} at %{{x:.{series.digits + 1}f}}"
    trace["marker"] = {"symbol": SYMBOLS[series.symbol] or "circle", "size": 11, "color": f"@{series.ink}"}
    trace["error_y"] = _error_bars(series, 0, up, kept(series.low), kept(series.high))
    trace["error_x"] = _error_bars(series, 0, at, kept(series.left), kept(series.right))
    return trace


def _error_bars(series: Series, width: int, values: Values, low: Values, high: Values) -> Json:
    """How far the bars of an interval reach from each value."""
    ends = list(zip(values, low, high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "color": f"@{series.ink}",
        "thickness": 1.5,
        "width": width,
        "array": _short_numbers([None if v is None or b is None else b - v for v, _, b in ends]),
        "arrayminus": _short_numbers([None if v is None or a is None else v - a for v, a, _ in ends]),
    }


def _whiskers(series: Series, inner: int) -> Json:
    """The interval of places that are set apart, as plotly's error bars."""
    if series.low is None or series.high is None:
        return {}
    return {"error_y": _error_bars(series, 4, series.values[inner:], series.low[inner:], series.high[inner:])}


def _points(series: Series, axis: Axis) -> Json:
    """A cloud of points that no line joins, without hover texts."""
    marker = {"symbol": SYMBOLS[series.symbol] or "circle", "size": 2 * series.width, "opacity": 0.55}
    marker |= {"color": f"@{series.ink}", "line": {"width": 0}}
    return _scatter(series, _short_numbers(series.at or axis.at), _short_numbers(series.values)) | {
        "mode": "markers",
        "hoverinfo": "skip",
        "marker": marker,
    }


def _band(series: Series, axis: Axis, inner: int) -> list[Json]:
    if series.low is None or series.high is None:
        return []
    shape: Json = {"type": "scatter", "x": _along(series, axis)[:inner], "mode": "lines", "hoverinfo": "skip"}
    shape |= {"showlegend": False, "line": {"width": 0, "color": f"@{series.ink}"}}
    upper = {"y": _short_numbers(series.high[:inner]), "fill": "tonexty", "fillcolor": f"@{series.ink}/0.22"}
    return [shape | {"y": _short_numbers(series.low[:inner])}, shape | upper]


def _bar(bar: Series, rank: int, axis: Axis) -> Json:
    """A layer of stacked bars; distinguished by a pattern as well as by colour."""
    pattern: Json = {"shape": PATTERNS[rank % len(PATTERNS)] if bar.symbol != "none" else "", "size": 5}
    pattern |= {"solidity": 0.28, "fgcolor": "@paper", "fillmode": "overlay"}
    trace = _scatter(bar, list(axis.labels), _short_numbers(bar.values)) | {"type": "bar"}
    marker = {"color": f"@{bar.ink}", "line": {"width": 0}, "pattern": pattern}
    return trace | {"hovertemplate": f"%{{y:.{bar.digits}f}}", "marker": marker}


def _heatmap(cells: Cells, axis: Axis) -> Json:
    rows = [_short_numbers([column[row] for column in cells.columns]) for row in range(len(cells.columns[0]))]
    trace: Json = {"type": "heatmap", "x": list(axis.labels), "y": cells.row_centres(), "z": rows}
    trace |= {"name": _label(cells.name), "hovertemplate": f"{cells.hover}<extra></extra>"}
    return trace | {"zmin": 0, "zmax": cells.peak, "colorscale": "@scale", "showscale": False, "hoverongaps": False}


def _along(series: Series, axis: Axis) -> list[Any]:
    """Where the values of a series stand on the axis: numbers, or the names of places."""
    return list(series.at or axis.at or axis.labels)


# --- layout --------------------------------------------------------------------------------------------


def _layout(chart: Chart) -> Json:
    pointed = chart.cells or chart.equal or any(series.barred or series.places for series in chart.series)
    return {
        "margin": {"l": 52, "r": 62 if chart.edges else 12, "t": 18, "b": 42},
        "paper_bgcolor": "@clear",
        "plot_bgcolor": "@clear",
        "font": {"family": "@sans", "size": 12, "color": "@ink"},
        "showlegend": False,
        "barmode": "relative",
        "bargap": 0.18,
        "dragmode": False,
        "hovermode": "closest" if pointed else "x unified",
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@rule", "font": {"color": "@ink", "size": 12}},
        "xaxis": _across(chart),
        "yaxis": _up(chart),
        "shapes": _shapes(chart),
        "annotations": _annotations(chart),
    }


def _title(text: str, standoff: int) -> Json:
    return {"text": _label(text), "font": {"size": 12, "color": "@muted"}, "standoff": standoff}


def _across(chart: Chart) -> Json:
    """The horizontal axis: places by name, or a line of numbers."""
    axis = chart.axis
    made: Json = {"showgrid": chart.equal, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": "@rule"}
    made |= {"linecolor": "@rule", "showline": True, "tickangle": 0, "spikecolor": "@edge", "spikethickness": 1}
    made |= {"spikedash": "solid", "tickfont": {"color": "@muted"}, "title": _title(axis.title, 6), "fixedrange": True}
    if not axis.at:
        places, ticks = axis.places, [pair for pair in zip(axis.labels, axis.ticks, strict=True) if pair[1]]
        made |= {"type": "category", "categoryorder": "array", "categoryarray": places}
        made |= {"range": [-0.7, len(places) - 0.3], "tickvals": [label for label, _ in ticks]}
        return made | {"ticktext": [tick for _, tick in ticks]}
    made |= {"type": "linear", "range": list(axis.span or (min(axis.at), max(axis.at)))}
    made |= {"nticks": 5 if chart.equal else 7}
    if axis.marks:
        made |= {"tickvals": [at for at, _ in axis.marks], "ticktext": [_label(text) for _, text in axis.marks]}
    return made | ({"constrain": "domain", "gridcolor": "@grid"} if chart.equal else {})


def _up(chart: Chart) -> Json:
    """The vertical axis."""
    made: Json = {"type": "log" if chart.log else "linear", "title": _title(chart.y_title, 8), "gridcolor": "@grid"}
    made |= {"zeroline": False, "fixedrange": True, "ticks": "", "tickfont": {"color": "@muted"}, "nticks": 6}
    if chart.log:
        tiny = chart.y_range is not None and chart.y_range[0] < -3
        made |= {"dtick": 2 if tiny else 1, "exponentformat": "power" if tiny else "none"}
    made |= {"scaleanchor": "x", "scaleratio": 1, "constrain": "domain"} if chart.equal else {}
    if chart.y_range:
        return made | {"range": list(chart.y_range)}
    return made | {"rangemode": "normal" if chart.log else "tozero"}


def _shapes(chart: Chart) -> list[Json]:
    """What lies behind the curves: edges across and up, the shade of places, the zone of values."""
    dotted: Json = {"type": "line", "layer": "below", "line": {"color": "@edge", "width": 1, "dash": "dot"}}
    filled: Json = {"type": "rect", "layer": "below", "line": {"width": 0}}
    wide, tall = {"xref": "paper", "x0": 0, "x1": 1}, {"yref": "paper", "y0": 0, "y1": 1}
    upright = [*chart.uprights, *([chart.moment] if chart.moment else [])]
    shapes = [dotted | wide | {"y0": value, "y1": value} for value, _ in chart.edges]
    shapes += [dotted | tall | {"x0": value, "x1": value} for value, _ in upright]
    if chart.shade:
        ends = {"x0": chart.shade.first - 0.5, "x1": chart.shade.last + 0.5}
        shapes.append(filled | tall | ends | {"fillcolor": "@shade"})
    if chart.zone:
        shapes.append(filled | wide | {"y0": chart.zone[0], "y1": chart.zone[1], "fillcolor": "@zone"})
    return shapes


def _annotations(chart: Chart) -> list[Json]:
    """The words on edges, places and the shade."""
    plain: Json = {"showarrow": False, "font": {"size": 11, "color": "@muted"}}
    side = plain | {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 4, "yanchor": "middle"}
    above = plain | {"yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "center"}
    upright = [*chart.uprights, *([chart.moment] if chart.moment else [])]
    high = math.log10 if chart.log else float  # plotly wants the exponent of an annotation, not of a shape
    notes = [side | {"y": high(value), "text": _label(label)} for value, label in chart.edges]
    notes += [above | {"x": value, "text": _label(label)} for value, label in upright if label]
    if chart.shade:
        end = {"x": chart.shade.last + 0.5, "xanchor": "right", "text": _label(chart.shade.label)}
        notes.append(above | end)
    return notes


def _short_numbers(values: Values) -> list[float | None]:
    """Four significant digits are enough for drawing."""
    return [None if value is None else float(f"{value:.4g}") for value in values]


def _label(text: str) -> str:
    """Text that plotly shows as it is: it would take <b>, <a> and <br> for markup."""
    return escape(for_terminal(text))
