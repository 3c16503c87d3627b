"""Which charts a diagnosis is drawn with, and what each one says in words. Records in, charts out."""

from __future__ import annotations

import math
from collections.abc import Callable

from condense.comparison.atlas import Standing
from condense.metrics import SINK_FACTOR
from condense.records.base import Estimate
from condense.report.charts import Axis, Chart, Figure, Look, Series, Shade, Values, thinned
from condense.report.depth import (
    StackView,
    deepest_half,
    depth_axis,
    gaussian_null,
    heat_cells,
    heat_scale,
    overlay,
    pair_shares,
    readings,
)
from condense.report.text import NOTHING, WITHOUT_TOP, number, percent

MOST_BARS = 40
BAR_INKS = ("accent", "warm", "leaf", "plum")
ATLAS_DASHES = ("solid", "dot", "longdash", "dashdot")
TWIN = Look("random twin: same shape, random weights", "quiet", "dash")
MOST_DRAWN = 64


def figures(view: StackView, prefix: str, standing: Standing | None = None) -> list[Figure]:
    """The figures of one stack; `prefix` makes their ids unique on the page.

    standing: where the model stands in the atlas, whose curves are drawn behind its own.
    """
    if not view.blocks:
        return []
    axis, deepest = depth_axis(view.sites), deepest_half(view.sites)
    return [
        _cone_figure(view, f"{prefix}-cosine", axis, deepest, standing),
        _histogram(view, f"{prefix}-histogram", axis),
        _dimensions(view, f"{prefix}-dimensions", axis),
        _rank_figure(view, f"{prefix}-rank", axis, deepest),
        _relative(view, f"{prefix}-relative", axis),
        _growth(view, f"{prefix}-growth", axis),
        *_updates(view, f"{prefix}-updates", axis, deepest),
        *_lens(view, f"{prefix}-lens", axis, deepest),
    ]


def left_out_figures(view: StackView, prefix: str, *, tokens: bool = True) -> list[Figure]:
    """Where sinks begin and end over depth and, with `tokens`, how many kinds of token each window holds."""
    if not view.blocks:
        return []
    drawn = [_sink_depth(view, f"{prefix}-sinks", depth_axis(view.sites))]
    return [*drawn, *([_kinds(view, f"{prefix}-tokens")] if tokens and view.tokens else [])]


# --- curves --------------------------------------------------------------------------------------------


def _depth_curve(
    view: StackView, key: str, look: Look, digits: int = 3, bands: bool = True, width: float | None = None
) -> Series:
    return look.curve(readings(view.sites, key), digits, bands=bands, width=width)


def _twin(view: StackView, key: str, digits: int = 3) -> list[Series]:
    estimates = readings(view.twin, key)
    if len(estimates) != len(view.sites) or all(estimate.value is None for estimate in estimates):
        return []
    return [TWIN.curve(estimates, digits, bands=False)]


def _values(view: StackView, key: str) -> list[float | None]:
    """A metric at the embedding and every block."""
    return [estimate.value for estimate in readings(view.blocks, key)]


def _extreme(values: Values, choose: Callable[[list[tuple[float, int]]], tuple[float, int]]) -> int | None:
    """Index of the largest (`max`) or smallest (`min`) defined value, the first of several."""
    defined = [(value, -index) for index, value in enumerate(values) if value is not None]
    return -choose(defined)[1] if defined else None


def _atlas(view: StackView, standing: Standing | None) -> list[Series]:
    """The mean cosine of the atlas's models nearest in size, at the relative depth of this model's sites."""
    if standing is None:
        return []
    series = []
    for other, dash in zip(standing.nearest, ATLAS_DASHES, strict=False):
        values = [None if site.site == "output" else other.at("mean_cosine", site.depth) for site in view.sites]
        look = Look(f"atlas: {other.name}", "quiet", dash)
        series.append(look.curve([Estimate(value) for value in values], bands=False, width=1.2))
    return series


def _cone_figure(view: StackView, chart: str, axis: Axis, deepest: Shade | None, standing: Standing | None) -> Figure:
    words = {"cone_moderate": "moderate", "cone_high": "high", "cone_severe": "severe"}
    edges = tuple((view.verdict.bands[key], word) for key, word in words.items() if key in view.verdict.bands)
    sink = Look("with the sink token kept", "plum", "dot")
    series = (
        *_atlas(view, standing),
        *_twin(view, "mean_cosine"),
        _depth_curve(view, "mean_cosine_with_sink", sink, bands=False, width=5),
        _depth_curve(view, WITHOUT_TOP, Look("without each text’s top 3 dimensions", "warm", "longdash", "diamond")),
        _depth_curve(view, "mean_cosine", Look("mean cosine", "accent", symbol="circle")),
    )
    drawn = overlay("mean_cosine", axis, series, chart_id=chart, shade=deepest, edges=edges, height=420)
    said = _cone_words(view) + (f" The model is {standing.words}." if standing else "")
    return Figure(drawn, "How alike are two tokens of one text?", said)


def _cone_words(view: StackView) -> str:
    sites, values = view.blocks, _values(view, "mean_cosine")
    peak = _extreme(values, max)
    if peak is None:
        return "The mean cosine is not defined at any site."
    words = f"The mean cosine is {number(values[0], 2)} at the {sites[0].label}, "
    if peak < len(values) - 1:
        words += f"peaks at {number(values[peak], 2)} at {sites[peak].label} "
        words += f"and leaves {sites[-1].label} at {number(values[-1], 2)}."
    else:
        words += f"and reaches its highest value, {number(values[-1], 2)}, at {sites[-1].label}."
    without = _values(view, WITHOUT_TOP)
    top = _extreme(without, max)
    if top is not None:
        words += f" Without each text’s three strongest dimensions it is never above {number(without[top], 2)}."
    kept = zip(_values(view, "mean_cosine_with_sink"), values, strict=True)
    gaps = [abs(a - b) for a, b in kept if a is not None and b is not None]
    if gaps:
        words += f" Keeping the sink token moves it by at most {number(max(gaps), 2 if max(gaps) >= 0.01 else 3)}."
    twin = view.twin_deep.get("mean_cosine", NOTHING).value
    if twin is not None:
        words += f" The same architecture with random weights has {number(twin, 2)} over its deepest half."
    return words


def _rank_figure(view: StackView, chart: str, axis: Axis, deepest: Shade | None) -> Figure:
    naive = Look("effective rank, naive: sink kept, not centred", "plum", "dot")
    series = (
        *gaussian_null(view.sites),
        *_twin(view, "effective_rank", 1),
        _depth_curve(view, "entropy_rank", Look("entropy rank", "warm", "longdash", "diamond"), 1),
        _depth_curve(view, "effective_rank_with_sink", naive, 1, bands=False, width=2.5),
        _depth_curve(view, "effective_rank", Look("effective rank", "accent", symbol="circle"), 1),
    )
    drawn = overlay("effective_rank", axis, series, chart_id=chart, shade=deepest)
    return Figure(drawn, "How many directions are in use?", _rank_words(view))


def _rank_words(view: StackView) -> str:
    deep = view.deep.get("effective_rank", NOTHING)
    if deep.value is None:
        return "The effective rank is not defined."
    words = f"Over the deepest half the effective rank is {deep.value:.0f}"
    words += f", {percent(deep.null_ratio)} of the {deep.null:.0f} of random directions." if deep.null else "."
    naive = _values(view, "effective_rank_with_sink")
    low = _extreme(naive, min)
    if low is not None:
        words += f" A naive rank that keeps the sink token would say {number(naive[low], 0)}"
        words += f" at {view.blocks[low].label}."
    return words


def _relative(view: StackView, chart: str, axis: Axis) -> Figure:
    look = Look("relative variance", "accent", symbol="circle")
    series = (*_twin(view, "relative_variance"), _depth_curve(view, "relative_variance", look))
    values = _values(view, "relative_variance")
    words = "The relative variance is not defined."
    if values[0] is not None and values[-1] is not None:
        words = (
            f"The share of energy that is not in the mean goes from {number(values[0], 2)} at the "
            f"{view.blocks[0].label} to {number(values[-1], 2)} at {view.blocks[-1].label}."
        )
    drawn = Chart(chart, axis, "share of energy outside the mean", series, y_range=(0, 1.02), height=320, width=520)
    return Figure(drawn, "How much lies outside the mean?", words, wide=False)


def _updates(view: StackView, chart: str, axis: Axis, deepest: Shade | None) -> list[Figure]:
    """What each block writes, as a share of what it receives; none for older runs. The cosine is in the table."""
    values = _values(view, "update_ratio")
    known = [(value, site.label) for value, site in zip(values, view.blocks, strict=True) if value is not None]
    if not known or len(values) > MOST_DRAWN:  # a page of a very deep model stays small: the table has it
        return []
    series = (_depth_curve(view, "update_ratio", Look("update ratio", "accent", symbol="circle"), bands=False),)
    (least, where), (most, other) = min(known), max(known)
    words = f"A block writes between {number(least, 2)} ({where}) and {number(most, 2)} ({other}) of what it receives."
    top = 1.05 * max(1.0, min(most, 3.0))  # the first block of many models writes many times what it receives
    drawn = Chart(chart, axis, "share of what is received", series, y_range=(0, top), shade=deepest, height=320)
    return [Figure(drawn, "What does each block change?", words)]


def _lens(view: StackView, chart: str, axis: Axis, deepest: Shade | None) -> list[Figure]:
    """What the head would predict from every block; none where the lens was not asked for."""
    losses = [value for value in _values(view, "lens.cross_entropy") if value is not None]
    if not losses:
        return []
    series = (
        _depth_curve(view, "lens.kl", Look("KL from the final prediction", "warm", "longdash", "diamond"), 2),
        _depth_curve(view, "lens.cross_entropy", Look("cross-entropy", "accent", symbol="circle"), 2),
    )
    top = 1.1 * max(losses[1:], default=losses[0])  # the embedding of many models is far above, and in the table
    drawn = Chart(chart, axis, "nats per token", series, y_range=(0.0, top), shade=deepest, height=320)
    words = f"Read through the model’s head the embedding loses {number(losses[0], 2)} nats per token, the last block "
    words += f"{number(losses[-1], 2)}: the model’s own loss on these windows."
    return [Figure(drawn, "Where does the prediction form?", words)]


def _growth(view: StackView, chart: str, axis: Axis) -> Figure:
    series = (
        _depth_curve(view, "median_norm", Look("median norm", "warm", "longdash", "diamond"), 1, False),
        _depth_curve(view, "total_variance", Look("variance per dimension", "accent", symbol="circle"), 2, False, 2.0),
    )
    norms = _values(view, "median_norm")
    words = ""
    if norms[0] is not None and norms[-1] is not None:
        words = f"The median state goes from a length of {norms[0]:.3g} to {norms[-1]:.3g}."
    drawn = Chart(chart, axis, "logarithmic scale", series, log=True, height=320, width=520)
    return Figure(drawn, "How long do the states grow?", words or "The norms are not defined.", wide=False)


def _sink_depth(view: StackView, chart: str, axis: Axis) -> Figure:
    """The longest state over the median at every site, with the stretch in which half of the windows have a sink."""
    look, labels = Look("longest state ÷ median state", "plum", symbol="square"), [site.label for site in view.sites]
    sinks, values = view.sinks, _values(view, "sink_ratio")
    shade = None
    if sinks is not None and sinks.up in labels:
        end = labels.index(sinks.down) - 1 if sinks.down in labels else len(view.blocks) - 1
        shade = Shade(labels.index(sinks.up), end, "half of the windows have a sink")
    peak = max([200.0, *(value for value in values if value is not None)])
    drawn = Chart(
        chart,
        axis,
        "times the median, logarithmic",
        (_depth_curve(view, "sink_ratio", look, 1, False),),
        log=True,
        y_range=(-0.1, math.log10(peak) + 0.1),
        edges=((SINK_FACTOR, "sink"), (view.verdict.bands.get("sink_ratio", 100.0), "massive")),
        shade=shade,
        height=320,
        width=520,
    )
    return Figure(drawn, "Where do sinks begin and end?", _sink_words(view, values), wide=False)


def _sink_words(view: StackView, values: Values) -> str:
    top = _extreme(values, max)
    if top is None:
        return "The length of the longest state is not defined."
    longest = f"The longest state of a window is {number(values[top], 0)} times its median at {view.blocks[top].label}"
    if view.tokens is None:
        return f"{longest}. Which tokens are sinks was not kept by the version that measured this."
    if view.sinks is None:
        return f"{longest}: no window has a sink, a state beyond {SINK_FACTOR:g} times the median."
    end = f"until before {view.sinks.down}" if view.sinks.down else "to the last block"
    return f"{longest}. Half of the windows have a sink from {view.sinks.up} on, {end}."


def _kinds(view: StackView, chart: str) -> Figure:
    """Distinct tokens of each window, as bars."""
    distinct = () if view.tokens is None else view.tokens.distinct
    size = max(1, -(-len(distinct) // MOST_BARS))
    starts, values = range(1, len(distinct) + 1, size), thinned([float(count) for count in distinct], MOST_BARS)
    labels = tuple(f"window {n}" if size == 1 else f"from window {n} on, mean" for n in starts)
    step = max(1, -(-len(labels) // 8))
    ticks = tuple(str(start) if index % step == 0 else "" for index, start in enumerate(starts))
    name = "distinct tokens of a window" if size == 1 else f"distinct tokens, mean of {size} windows"
    bars = (Series(name, values, "leaf", digits=0),)
    drawn = Chart(chart, Axis(labels, ticks, "window"), "tokens", bars=bars, height=320, width=520)
    words = "A text of few kinds of token looks condensed by itself."
    if distinct:
        words = f"{min(distinct)} to {max(distinct)} kinds of token in a window. {words}"
    return Figure(drawn, "How many kinds of token?", words, wide=False)


# --- cells and bars ------------------------------------------------------------------------------------


def _histogram(view: StackView, chart: str, axis: Axis) -> Figure:
    columns = pair_shares(view.sites)
    rows, ends, peak = heat_scale(columns)
    mean = _depth_curve(view, "mean_cosine", Look("mean cosine", "ink"), bands=False, width=2.5)
    cells = heat_cells(columns, rows, ends, peak)
    drawn = Chart(chart, axis, "cosine", (mean,), cells=cells, y_range=ends, height=400)
    end = view.blocks[-1]
    q05, q50, q95 = (end.metrics.get(f"cosine_q{q}", NOTHING).value for q in ("05", "50", "95"))
    words = "The quantiles of the cosines are not defined."
    if q05 is not None:
        words = (
            f"At {end.label} nine pairs in ten lie between {number(q05, 2)} and {number(q95, 2)}, "
            f"half of them above {number(q50, 2)}: a mean alone would hide the spread."
        )
    return Figure(drawn, "The cosines of all pairs of tokens", words)


def _dimensions(view: StackView, chart: str, axis: Axis) -> Figure:
    """Stacked parts of the mean cosine: the few dimensions that matter most anywhere, and everything else."""
    weight: dict[int, float] = {}
    for site in view.sites:
        for top in site.top_dimensions:
            weight[top.dimension] = weight.get(top.dimension, 0.0) + max(0.0, top.contribution)
    chosen = sorted(weight, key=lambda k: (-weight[k], k))[: len(BAR_INKS)]
    parts = [{top.dimension: top.contribution for top in site.top_dimensions} for site in view.sites]
    bars = [
        Series(f"dimension {k}", [part.get(k) for part in parts], ink, symbol="pattern")
        for k, ink in zip(chosen, BAR_INKS, strict=False)
    ]
    rest = [
        None if estimate.value is None else estimate.value - sum(part.get(k, 0.0) for k in chosen)
        for estimate, part in zip(readings(view.sites, "mean_cosine"), parts, strict=True)
    ]
    bars.append(Series("all other dimensions together", rest, "faint", symbol="none"))
    drawn = Chart(chart, axis, "part of the mean cosine", bars=tuple(bars), height=360)
    return Figure(drawn, "Which dimensions make the cosine?", _dimension_words(view))


def _dimension_words(view: StackView) -> str:
    end = view.blocks[-1]
    names = ", ".join(str(top.dimension) for top in end.top_dimensions)
    if not names:
        return "No dimension stands out: none was listed."
    share = view.deep.get("top_dimension_share", NOTHING).value
    first = end.top_dimensions[0]
    words = f"At {end.label} the strongest dimensions are {names}"
    if first.share:
        words += f"; number {first.dimension} alone makes {percent(first.share)} of the mean cosine there"
    words += "."
    if share is not None:
        words += f" Over the deepest half, each text’s own top three make {percent(share)}."
    return words
