"""Which charts a diagnosis is drawn with, and what each one says in words. Records in, charts out."""

from __future__ import annotations

from collections.abc import Sequence

from condense.records.base import Estimate
from condense.records.diagnosis import SiteReading
from condense.report.charts import Axis, Cells, Chart, Series, Shade, Values
from condense.report.depth import StackView, _deepest, depth_axis
from condense.report.parts import Figure
from condense.report.text import number, percent

NOTHING = Estimate(None)
BAR_INKS = ("accent", "warm", "leaf", "plum")
HEAT_BINS = 100


def figures(view: StackView, prefix: str) -> list[Figure]:
    """The figures of one stack; `prefix` makes their ids unique on the page."""
    if not view.blocks:
        return []
    axis, deepest = depth_axis(view.sites), _deepest(view)
    return [
        _cone(view, f"{prefix}-cosine", axis, deepest),
        _histogram(view, f"{prefix}-histogram", axis),
        _dimensions(view, f"{prefix}-dimensions", axis),
        _rank(view, f"{prefix}-rank", axis, deepest),
        _relative(view, f"{prefix}-relative", axis),
        _growth(view, f"{prefix}-growth", axis),
    ]


# --- curves --------------------------------------------------------------------------------------------


def _values(sites: Sequence[SiteReading], key: str) -> list[float | None]:
    return [site.metrics.get(key, NOTHING).value for site in sites]


def _series(
    view: StackView, key: str, name: str, ink: str, *, dash: str = "solid", symbol: str = "none", band: bool = False,
    width: float = 2.0, digits: int = 3,
) -> Series:  # fmt: skip
    estimates = [site.metrics.get(key, NOTHING) for site in view.sites]
    drawn = band and any(e.low is not None for e in estimates)
    return Series(
        name, [e.value for e in estimates], ink, [e.low for e in estimates] if drawn else None,
        [e.high for e in estimates] if drawn else None, dash, symbol, width, digits,
    )  # fmt: skip


def _twin(view: StackView, key: str, digits: int = 3) -> list[Series]:
    values = _values(view.twin, key)
    if len(values) != len(view.sites) or all(value is None for value in values):
        return []
    return [Series("random twin: same shape, random weights", values, "quiet", dash="dash", digits=digits)]


def _cone(view: StackView, id: str, axis: Axis, deepest: Shade | None) -> Figure:
    bands = view.verdict.bands
    edges = tuple(
        (bands[key], word)
        for key, word in (("cone_moderate", "moderate"), ("cone_high", "high"), ("cone_severe", "severe"))
        if key in bands
    )
    series = (
        *_twin(view, "mean_cosine"),
        _series(view, "mean_cosine_with_sink", "with the sink token kept", "plum", dash="dot", width=5),
        _series(view, "mean_cosine_without_top_dimensions", "without each text’s top 3 dimensions", "warm",
                dash="longdash", symbol="diamond", band=True),
        _series(view, "mean_cosine", "mean cosine", "accent", symbol="circle", band=True, width=2.5),
    )  # fmt: skip
    lowest = min((v for s in series for v in s.values if v is not None), default=0.0)
    chart = Chart(
        id, axis, "cosine", series, y_range=(min(0.0, lowest) - 0.02, 1.02), edges=edges, shade=deepest, height=420,
    )  # fmt: skip
    return Figure(chart, "How alike are two tokens of one text?", _cone_words(view))


def _cone_words(view: StackView) -> str:
    places, values = view.blocks, _values(view.blocks, "mean_cosine")
    peak = _extreme(values, max)
    if peak is None:
        return "The mean cosine is not defined at any site."
    last = f"and leaves {places[-1].label} at {number(values[-1], 2)}"
    words = f"The mean cosine is {number(values[0], 2)} at the {places[0].label}, "
    words += f"peaks at {number(values[peak], 2)} at {places[peak].label} {last}." if peak < len(values) - 1 else (
        f"and reaches its highest value, {number(values[-1], 2)}, at {places[-1].label}."
    )  # fmt: skip
    without = _values(view.blocks, "mean_cosine_without_top_dimensions")
    top = _extreme(without, max)
    if top is not None:
        words += f" Without each text’s three strongest dimensions it is never above {number(without[top], 2)}."
    gaps = [
        abs(a - b) for a, b in zip(_values(view.blocks, "mean_cosine_with_sink"), values, strict=True)
        if a is not None and b is not None
    ]  # fmt: skip
    if gaps:
        words += f" Keeping the sink token moves it by at most {number(max(gaps), 2 if max(gaps) >= 0.01 else 3)}."
    twin = view.twin_deep.get("mean_cosine", NOTHING).value
    if twin is not None:
        words += f" The same architecture with random weights has {number(twin, 2)} over its deepest half."
    return words


def _rank(view: StackView, id: str, axis: Axis, deepest: Shade | None) -> Figure:
    nulls = [site.metrics.get("effective_rank", NOTHING).null for site in view.sites]
    series = (
        Series("Gaussian null: random directions of the same shape", nulls, "ink", dash="dashdot", width=1.5, digits=1),
        *_twin(view, "effective_rank", 1),
        _series(view, "entropy_rank", "entropy rank", "warm", dash="longdash", symbol="diamond", band=True, digits=1),
        _series(view, "effective_rank_with_sink", "effective rank, naive: sink kept, not centred", "plum", dash="dot",
                width=2.5, digits=1),
        _series(view, "effective_rank", "effective rank", "accent", symbol="circle", band=True, width=2.5, digits=1),
    )  # fmt: skip
    chart = Chart(id, axis, "directions", series, shade=deepest, height=380)
    deep = view.deep.get("effective_rank", NOTHING)
    words = "The effective rank is not defined."
    if deep.value is not None:
        words = f"Over the deepest half the effective rank is {deep.value:.0f}"
        words += f", {percent(deep.null_ratio)} of the {deep.null:.0f} of random directions." if deep.null else "."
        naive = _values(view.blocks, "effective_rank_with_sink")
        low = _extreme(naive, min)
        if low is not None:
            words += f" A naive rank that keeps the sink token would say {number(naive[low], 0)}"
            words += f" at {view.blocks[low].label}."
    return Figure(chart, "How many directions are in use?", words)


def _relative(view: StackView, id: str, axis: Axis) -> Figure:
    series = (
        *_twin(view, "relative_variance"),
        _series(view, "relative_variance", "relative variance", "accent", symbol="circle", band=True, width=2.5),
    )
    values = _values(view.blocks, "relative_variance")
    words = "The relative variance is not defined."
    if values[0] is not None and values[-1] is not None:
        words = (
            f"The share of energy that is not in the mean goes from {number(values[0], 2)} at the "
            f"{view.blocks[0].label} to {number(values[-1], 2)} at {view.blocks[-1].label}."
        )
    chart = Chart(id, axis, "share of energy outside the mean", series, y_range=(0, 1.02), height=320, width=520)
    return Figure(chart, "How much lies outside the mean?", words, wide=False)


def _growth(view: StackView, id: str, axis: Axis) -> Figure:
    series = (
        _series(view, "total_variance", "variance per dimension", "accent", symbol="circle", digits=2),
        _series(view, "median_norm", "median norm", "warm", dash="longdash", symbol="diamond", digits=1),
        _series(view, "sink_ratio", "sink ratio: longest state over the median", "plum", dash="dot", symbol="square",
                digits=1),
    )  # fmt: skip
    norms, sinks = _values(view.blocks, "median_norm"), _values(view.blocks, "sink_ratio")
    peak = _extreme(sinks, max)
    words = ""
    if norms[0] is not None and norms[-1] is not None:
        words = f"The median state grows from a length of {norms[0]:.3g} to {norms[-1]:.3g}. "
    if peak is not None:
        words += f"The longest state is {number(sinks[peak], 0)} times the median at {view.blocks[peak].label}."
    chart = Chart(id, axis, "logarithmic scale", tuple(reversed(series)), log=True, height=320, width=520)
    return Figure(chart, "How long do the states grow?", words or "The norms are not defined.", wide=False)


def _extreme(values: Values, choose: object) -> int | None:
    """Index of the largest (`max`) or smallest (`min`) defined value."""
    defined = [(value, -i) for i, value in enumerate(values) if value is not None]
    if not defined:
        return None
    return -(max(defined) if choose is max else min(defined))[1]


# --- cells and bars ------------------------------------------------------------------------------------


def _histogram(view: StackView, id: str, axis: Axis) -> Figure:
    columns = [_percentages(site.histogram.counts) for site in view.sites]
    width = 2.0 / HEAT_BINS
    used = [row for column in columns for row, share in enumerate(column) if share >= 0.05]
    first = max(0, min(used, default=0) - 2) // 5 * 5
    last = min(HEAT_BINS, -(-(max(used, default=HEAT_BINS - 1) + 3) // 5) * 5)
    cells = tuple([share or None for share in column[first:last]] for column in columns)
    ends = (-1 + first * width, -1 + last * width)
    peaks = sorted(max(column) for column in columns)
    chart = Chart(
        id, axis, "cosine", (_series(view, "mean_cosine", "mean cosine", "ink", width=2.5),),
        cells=Cells(cells, *ends, "pairs", round(peaks[len(peaks) // 2] * 1.25, 1) or 1.0), y_range=ends, height=400,
    )  # fmt: skip
    end = view.blocks[-1]
    q05, q50, q95 = (end.metrics.get(f"cosine_q{q}", NOTHING).value for q in ("05", "50", "95"))
    words = "The quantiles of the cosines are not defined."
    if q05 is not None:
        words = (
            f"At {end.label} nine pairs in ten lie between {number(q05, 2)} and {number(q95, 2)}, "
            f"half of them above {number(q50, 2)}: a mean alone would hide the spread."
        )
    return Figure(chart, "The cosines of all pairs of tokens", words)


def _percentages(counts: Sequence[int]) -> list[float]:
    """Counts as percent of their sum, neighbouring bins put together until `HEAT_BINS` are left."""
    total, step = sum(counts) or 1, max(1, len(counts) // HEAT_BINS)
    return [round(100 * sum(counts[i : i + step]) / total, 3) for i in range(0, len(counts), step)]


def _dimensions(view: StackView, id: str, axis: Axis) -> Figure:
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
    rest: list[float | None] = []
    for site, part in zip(view.sites, parts, strict=True):
        mean = site.metrics.get("mean_cosine", NOTHING).value
        rest.append(None if mean is None else mean - sum(part.get(k, 0.0) for k in chosen))
    bars.append(Series("all other dimensions together", rest, "faint", symbol="none"))
    chart = Chart(id, axis, "part of the mean cosine", bars=tuple(bars), height=360)
    return Figure(chart, "Which dimensions make the cosine?", _dimension_words(view))


def _dimension_words(view: StackView) -> str:
    end = view.blocks[-1]
    names = ", ".join(str(top.dimension) for top in end.top_dimensions)
    if not names:
        return "No dimension stands out: none was listed."
    share = view.deep.get("top_dimension_share", NOTHING).value
    first = end.top_dimensions[0]
    words = f"At {end.label} the strongest dimensions are {names}"
    words += (
        f"; number {first.dimension} alone makes {percent(first.share)} of the mean cosine there."
        if first.share
        else "."
    )
    if share is not None:
        words += f" Over the deepest half, each text’s own top three make {percent(share)}."
    return words
