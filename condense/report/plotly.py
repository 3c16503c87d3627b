"""Charts as plain values: what is drawn, and the same as a plotly figure. No numbers are made here.

A `Chart` says what is to be seen; `plotly_figure` turns it into plotly JSON and `condense.report.svg` into
a static SVG. Colours are names (`@accent`) that the page resolves for the light, dark and printed skin, so
that a chart is described once. `plotly.graph_objects` is not needed and not imported.
"""

from __future__ import annotations

from html import escape
from typing import Any

from condense.report.charts import DASHES, PATTERNS, POINTS, SYMBOLS, Axis, Cells, Chart, Series, Values
from condense.report.escape import for_terminal


def plotly_figure(chart: Chart) -> dict[str, Any]:
    """The chart as plotly JSON `{id, height, data, layout}`, colours still by name."""
    data = [_cells(chart.cells, chart.axis)] if chart.cells else []
    data += [_bar(bar, rank, chart.axis) for rank, bar in enumerate(chart.bars)]
    for series in chart.series:
        data += _curve(series, chart)
    return {"id": chart.id, "height": chart.height, "data": data, "layout": _layout(chart)}


def _curve(series: Series, chart: Chart) -> list[dict[str, Any]]:
    """The traces of a curve: its interval band, the line over the joined places, a marker where set apart."""
    axis, size = chart.axis, len(_along(series, chart.axis))
    inner = size - axis.apart
    if series.dash == POINTS:
        return [_cross(series, chart) if series.barred else _points(series, axis)]
    band = _band(series, axis, inner)
    line = {
        "color": f"@{series.ink}", "width": series.width, "dash": DASHES[series.dash],
    }  # fmt: skip
    mode = "lines" if series.symbol == "none" else "lines+markers"
    traces = [_trace(series, chart, 0, inner) | {"mode": mode, "line": line}]
    if series.marks:
        traces[0]["marker"] |= {"maxdisplayed": series.marks, "size": 7}
    if chart.cells:  # a halo, so that the line is seen on cells of any colour
        halo = {"mode": "lines", "line": line | {"color": "@paper", "width": series.width + 3}, "hoverinfo": "skip"}
        traces.insert(0, {k: v for k, v in (traces[0] | halo).items() if k not in ("hovertemplate", "customdata")})
    if axis.apart:
        whiskers = _whiskers(series, inner) if series.whiskers else {}
        traces.append(_trace(series, chart, inner, size) | {"mode": "markers"} | whiskers)
    return [*band, *traces]


def _cross(series: Series, chart: Chart) -> dict[str, Any]:
    """Points over two quantities, each with its interval along both; only those that are there."""
    plain = {"type": "data", "symmetric": False, "color": f"@{series.ink}", "thickness": 1.5, "width": 0}
    there = [i for i, value in enumerate(series.values) if value is not None]

    def kept(values: Values | None) -> list[float | None]:
        return [values[i] if values else None for i in there]

    at, up = kept(chart.axis.at), kept(series.values)
    return {
        "type": "scatter", "mode": "markers", "x": _short(at), "y": _short(up), "name": _label(series.name),
        "showlegend": False, "hovertemplate": f"%{{y:.{series.digits}f}} at %{{x:.{series.digits + 1}f}}",
        "marker": {"symbol": SYMBOLS[series.symbol] or "circle", "size": 11, "color": f"@{series.ink}"},
        "error_y": plain | _arms(up, kept(series.low), kept(series.high)),
        "error_x": plain | _arms(at, kept(series.left), kept(series.right)),
    }  # fmt: skip


def _arms(values: Values, low: Values | None, high: Values | None) -> dict[str, Any]:
    """How far the bars of an interval reach from each value."""
    none: Values = [None] * len(values)
    ends = list(zip(values, low or none, high or none, strict=True))
    return {
        "array": _short([None if v is None or b is None else b - v for v, _, b in ends]),
        "arrayminus": _short([None if v is None or a is None else v - a for v, a, _ in ends]),
    }


def _along(series: Series, axis: Axis) -> list[Any]:
    """Where the values of a series stand on the axis: numbers, or the names of places."""
    return list(series.at or axis.at or axis.labels)


def _points(series: Series, axis: Axis) -> dict[str, Any]:
    """A cloud of points that no line joins; nothing is said of a single one."""
    return {
        "type": "scatter", "mode": "markers", "x": _short(axis.at), "y": _short(series.values), "showlegend": False,
        "name": _label(series.name), "hoverinfo": "skip",
        "marker": {"symbol": SYMBOLS[series.symbol] or "circle", "size": 2 * series.width, "opacity": 0.55,
                   "color": f"@{series.ink}", "line": {"width": 0}},
    }  # fmt: skip


def _whiskers(series: Series, inner: int) -> dict[str, Any]:
    """The interval of places that are set apart, as plotly's error bars."""
    if series.low is None or series.high is None:
        return {}
    return {
        "error_y": {
            "type": "data", "symmetric": False, "color": f"@{series.ink}", "thickness": 1.5, "width": 4,
            **_arms(series.values[inner:], series.low[inner:], series.high[inner:]),
        }
    }  # fmt: skip


def _trace(series: Series, chart: Chart, start: int, stop: int) -> dict[str, Any]:
    symbol = SYMBOLS[series.symbol] or "circle"
    apart = start > 0
    interval = series.low is not None and series.high is not None
    number = f"%{{y:.{series.digits}f}}"
    if interval:
        number += f" [%{{customdata[0]:.{series.digits}f}}, %{{customdata[1]:.{series.digits}f}}]"
    if series.places:
        number = f"{_label(series.name)}<br>%{{text}}: {number}<extra></extra>"
    trace = {
        "type": "scatter", "x": _along(series, chart.axis)[start:stop],
        "y": _short(series.values[start:stop]),
        "name": _label(series.name), "showlegend": False, "connectgaps": False,
        "hovertemplate": number,
        "marker": {
            "symbol": f"{symbol}-open" if apart else symbol, "size": 9 if apart else 5, "color": f"@{series.ink}",
            "line": {"color": f"@{series.ink}", "width": 1.75 if apart else 0},
        },
    }  # fmt: skip
    if interval:
        pairs = zip(_short((series.low or ())[start:stop]), _short((series.high or ())[start:stop]), strict=True)
        trace["customdata"] = [list(pair) for pair in pairs]
    if series.places:
        trace["text"] = [_label(place) for place in series.places[start:stop]]
    return trace


def _band(series: Series, axis: Axis, inner: int) -> list[dict[str, Any]]:
    if series.low is None or series.high is None:
        return []
    shape = {
        "type": "scatter", "x": _along(series, axis)[:inner], "mode": "lines", "hoverinfo": "skip",
        "showlegend": False, "line": {"width": 0, "color": f"@{series.ink}"},
    }  # fmt: skip
    return [
        shape | {"y": _short(series.low[:inner])},
        shape | {"y": _short(series.high[:inner]), "fill": "tonexty", "fillcolor": f"@{series.ink}/0.22"},
    ]


def _bar(bar: Series, rank: int, axis: Axis) -> dict[str, Any]:
    """A layer of stacked bars; told apart by a pattern as well as by colour."""
    return {
        "type": "bar", "x": list(axis.labels), "y": _short(bar.values), "name": _label(bar.name), "showlegend": False,
        "hovertemplate": f"%{{y:.{bar.digits}f}}",
        "marker": {
            "color": f"@{bar.ink}", "line": {"width": 0},
            "pattern": {"shape": PATTERNS[rank % len(PATTERNS)] if bar.symbol != "none" else "", "size": 5,
                        "solidity": 0.28, "fgcolor": "@paper", "fillmode": "overlay"},
        },
    }  # fmt: skip


def _cells(cells: Cells, axis: Axis) -> dict[str, Any]:
    rows = [_short([column[row] for column in cells.columns]) for row in range(len(cells.columns[0]))]
    return {
        "type": "heatmap", "x": list(axis.labels), "y": cells.row_centres(), "z": rows, "zmin": 0, "zmax": cells.peak,
        "colorscale": "@scale", "showscale": False, "hoverongaps": False, "name": _label(cells.name),
        "hovertemplate": f"{cells.hover}<extra></extra>",
    }  # fmt: skip


def _layout(chart: Chart) -> dict[str, Any]:
    right = 62 if chart.edges else 12
    title = {"text": _label(chart.y_title), "font": {"size": 12, "color": "@muted"}, "standoff": 8}
    return {
        "margin": {"l": 52, "r": right, "t": 18, "b": 42}, "paper_bgcolor": "@clear", "plot_bgcolor": "@clear",
        "font": {"family": "@sans", "size": 12, "color": "@ink"}, "showlegend": False, "barmode": "relative",
        "bargap": 0.18, "dragmode": False, "hovermode": "closest" if _pointed(chart) else "x unified",
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@rule", "font": {"color": "@ink", "size": 12}},
        "xaxis": {
            **(_numbers(chart) if chart.axis.at else _places(chart.axis)), "fixedrange": True,
            "showgrid": chart.equal, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": "@rule",
            "linecolor": "@rule", "showline": True, "tickangle": 0, "spikecolor": "@edge", "spikethickness": 1,
            "spikedash": "solid", "tickfont": {"color": "@muted"},
            "title": {"text": _label(chart.axis.title), "font": {"size": 12, "color": "@muted"}, "standoff": 6},
        },
        "yaxis": {
            "type": "log" if chart.log else "linear", "title": title, "gridcolor": "@grid", "zeroline": False,
            "fixedrange": True, "ticks": "", "tickfont": {"color": "@muted"}, "nticks": 6,
            **({"dtick": 1, "exponentformat": "none"} if chart.log else {}),
            **({"scaleanchor": "x", "scaleratio": 1, "constrain": "domain"} if chart.equal else {}),
            **({"range": list(chart.y_range)} if chart.y_range else {"rangemode": "normal" if chart.log else "tozero"}),
        },
        "shapes": _shapes(chart), "annotations": _annotations(chart),
    }  # fmt: skip


def _pointed(chart: Chart) -> bool:
    """Whether the pointer names the nearest thing instead of everything at one place."""
    return bool(chart.cells) or chart.equal or any(series.barred or series.places for series in chart.series)


def _places(axis: Axis) -> dict[str, Any]:
    places = axis.places
    return {
        "type": "category", "categoryorder": "array", "categoryarray": places, "range": [-0.7, len(places) - 0.3],
        "tickvals": [label for label, tick in zip(axis.labels, axis.ticks, strict=True) if tick],
        "ticktext": [tick for tick in axis.ticks if tick],
    }  # fmt: skip


def _numbers(chart: Chart) -> dict[str, Any]:
    span = chart.axis.span or (min(chart.axis.at), max(chart.axis.at))
    return {
        "type": "linear", "range": list(span), "nticks": 5 if chart.equal else 7,
        **({"tickvals": [at for at, _ in chart.axis.marks], "ticktext": [_label(text) for _, text in chart.axis.marks]}
           if chart.axis.marks else {}),
        **({"constrain": "domain", "gridcolor": "@grid"} if chart.equal else {}),
    }  # fmt: skip


def _shapes(chart: Chart) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below",
         "line": {"color": "@edge", "width": 1, "dash": "dot"}}
        for value, _ in chart.edges
    ]  # fmt: skip
    shapes += [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": value, "x1": value, "layer": "below",
         "line": {"color": "@edge", "width": 1, "dash": "dot"}}
        for value, _ in chart.uprights
    ]  # fmt: skip
    if chart.shade:
        shapes.append(
            {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": chart.shade.first - 0.5,
             "x1": chart.shade.last + 0.5, "fillcolor": "@shade", "line": {"width": 0}, "layer": "below"}
        )  # fmt: skip
    if chart.zone:
        shapes.append(
            {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": chart.zone[0], "y1": chart.zone[1],
             "fillcolor": "@zone", "line": {"width": 0}, "layer": "below"}
        )  # fmt: skip
    if chart.moment:
        shapes.append(
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": chart.moment[0], "x1": chart.moment[0],
             "layer": "below", "line": {"color": "@edge", "width": 1, "dash": "dot"}}
        )  # fmt: skip
    return shapes


def _annotations(chart: Chart) -> list[dict[str, Any]]:
    plain = {"showarrow": False, "font": {"size": 11, "color": "@muted"}}
    notes: list[dict[str, Any]] = [
        plain | {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 4, "y": value, "yanchor": "middle",
                 "text": _label(label)}
        for value, label in chart.edges
    ]  # fmt: skip
    notes += [
        plain | {"yref": "paper", "y": 1, "yanchor": "bottom", "x": value, "xanchor": "center", "text": _label(label)}
        for value, label in chart.uprights
        if label
    ]  # fmt: skip
    if chart.shade:
        notes.append(
            plain | {"yref": "paper", "y": 1, "yanchor": "bottom", "x": chart.shade.last + 0.5, "xanchor": "right",
                     "text": _label(chart.shade.label)}
        )  # fmt: skip
    if chart.moment:
        notes.append(
            plain | {"yref": "paper", "y": 1, "yanchor": "bottom", "x": chart.moment[0], "xanchor": "center",
                     "text": _label(chart.moment[1])}
        )  # fmt: skip
    return notes


def _short(values: Values) -> list[float | None]:
    """Four significant digits are enough for drawing."""
    return [None if value is None else float(f"{value:.4g}") for value in values]


def _label(text: str) -> str:
    """Text that plotly shows as it is: it would take <b>, <a> and <br> for markup."""
    return escape(for_terminal(text))
