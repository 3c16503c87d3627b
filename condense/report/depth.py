"""Curves over depth: the axis of a model's sites, all curves of one metric in one chart, differences to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from condense.metrics import METRICS
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, Paper, SinkAnatomy, SiteReading, TokenCounts, Trend, Verdict
from condense.report.charts import Axis, Cells, Chart, Look, Series, Shade, known_values, padded
from condense.report.text import NOTHING

NULL = "Gaussian null: random directions of the same shape"
READS = "deepest half: what the verdict reads"
HEAT_BINS, MANY_SITES = 100, 60  # half as many bins for more sites, so that a page stays below 2.3 MB


class Site(Protocol):
    """Where something was measured or compared: the embedding, a block, the output."""

    @property
    def site(self) -> str:
        """`embedding`, `block` or `output`."""

    @property
    def index(self) -> int:
        """The number of the block."""


def site_label(site: Site) -> str:
    """Short name of a site: `embedding`, `block 7`, `output`."""
    return f"block {site.index}" if site.site == "block" else site.site


def depth_axis(sites: Sequence[Site]) -> Axis:
    """Embedding, the blocks, and the output set apart on the right."""
    blocks = sum(site.site == "block" for site in sites)
    step = next((s for s in (1, 2, 5, 10, 20, 50) if blocks / s <= 7), 100)
    ticks = {"embedding": "emb.", "output": "out"}
    return Axis(
        labels=tuple(map(site_label, sites)),
        ticks=tuple(ticks.get(site.site, "" if site.index % step else str(site.index)) for site in sites),
        title="block",
        apart=sum(site.site == "output" for site in sites),
        gap=max(1, round(blocks * 0.07)),
    )


def deepest_half(sites: Sequence[Site], words: str = READS) -> Shade | None:
    """The blocks ⌊L/2⌋+1..L, from which deep numbers are read."""
    blocks = [index for index, site in enumerate(sites) if site.site == "block"]
    return Shade(blocks[len(blocks) // 2], blocks[-1], words) if len(blocks) > 1 else None


def readings(sites: Sequence[SiteReading], key: str) -> list[Estimate]:
    """One metric at every site."""
    return [site.metrics.get(key, NOTHING) for site in sites]


def gaussian_null(sites: Sequence[SiteReading], ink: str = "ink") -> list[Series]:
    """The effective rank of random directions of the same shape; nothing where it is not known."""
    nulls = [Estimate(estimate.null) for estimate in readings(sites, "effective_rank")]
    known = any(estimate.value is not None for estimate in nulls)
    return [Look(NULL, ink, "dashdot").curve(nulls, 1, width=1.5)] if known else []


def overlay(
    key: str,
    axis: Axis,
    series: Sequence[Series],
    *,
    chart_id: str = "",
    shade: Shade | None = None,
    edges: tuple[tuple[float, str], ...] = (),
    top: float | None = 1.02,
    height: int = 380,
    width: int = 1000,
) -> Chart:
    """Every curve of one metric in one chart; a cosine from 0 (or lower) to `top`, None: to the highest.

    chart_id: from the metric's key unless given; the rest as in `Chart`.
    """
    values, unit = known_values(series), METRICS[key].unit
    cosine = unit == "cosine"
    low = min(0.0, *values, 0.0) - 0.02
    high = top if top is not None else max(values, default=1.0) + 0.05
    if axis.at and not cosine:
        low, high, cosine = 0.0, 1.05 * max(values, default=1.0), True
    return Chart(
        id=chart_id or f"chart-{key.replace('_', '-')}",
        axis=axis,
        y_title="directions" if unit == "dimensions" else unit,
        series=tuple(series),
        y_range=(low, high) if cosine else None,
        edges=edges,
        shade=shade,
        height=height,
        width=width,
    )


def differences(
    chart: str,
    axis: Axis,
    series: Sequence[Series],
    title: str,
    least: float | None,
    same: str,
    shade: Shade | None = None,
) -> Chart:
    """Differences over depth: a line at 0 called `same`; what is too small to count (within ±`least`) is tinted."""
    bound = least or 0.0
    span = padded([*known_values(series), -2 * bound, 2 * bound])
    drawn = Chart(chart, axis, title, tuple(series), y_range=span, shade=shade, height=400)
    return replace(drawn, edges=((0.0, same),), zone=None if least is None else (-least, least))


# --- the cosines of all pairs --------------------------------------------------------------------------


def pair_shares(sites: Sequence[SiteReading]) -> list[list[float]]:
    """Per site the share of pairs in each step of the cosine, in percent, in at most `HEAT_BINS` steps."""
    columns = []
    for site in sites:
        counts = site.histogram.counts
        total, step = (
            sum(counts) or 1,
            max(1, len(counts) // (HEAT_BINS if len(sites) <= MANY_SITES else HEAT_BINS // 2)),
        )
        columns.append([round(100 * sum(counts[i : i + step]) / total, 2) for i in range(0, len(counts), step)])
    return columns


def heat_scale(columns: Sequence[Sequence[float]]) -> tuple[slice, tuple[float, float], float]:
    """Which steps hold any pairs, from which cosine to which they reach, and the share that is drawn darkest."""
    bins = max(map(len, columns), default=0) or HEAT_BINS
    used = [row for column in columns for row, share in enumerate(column) if share >= 0.05]
    first = max(0, min(used, default=0) - 2) // 5 * 5
    last = min(bins, -(-(max(used, default=bins - 1) + 3) // 5) * 5)
    peaks = sorted(max(column) for column in columns)
    peak = round(peaks[len(peaks) // 2] * 1.25, 1) or 1.0
    return slice(first, last), (-1 + 2 * first / bins, -1 + 2 * last / bins), peak


def heat_cells(columns: Sequence[Sequence[float]], rows: slice, ends: tuple[float, float], peak: float) -> Cells:
    """The shares as cells; what no pair has stays empty."""
    return Cells(tuple([share or None for share in column[rows]] for column in columns), *ends, "pairs", peak)


# --- one stack -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StackView:
    """One stack as it is drawn: its sites in depth order, its summary, the same sites of the twin, its sinks.

    `tokens` is None in a run of a version that counted neither tokens nor sinks.
    """

    name: str
    sites: tuple[SiteReading, ...]
    deep: Mapping[str, Estimate]
    trend: Trend
    paper: Paper
    verdict: Verdict
    twin: tuple[SiteReading, ...]
    twin_deep: Mapping[str, Estimate]
    sinks: SinkAnatomy | None = None
    tokens: TokenCounts | None = None

    @property
    def blocks(self) -> list[SiteReading]:
        """The sites that a curve joins: embedding to the last block."""
        return [site for site in self.sites if site.site != "output"]


def stack_views(diagnosis: Diagnosis) -> list[StackView]:
    """The main stack first, then the further ones of an encoder–decoder model."""
    names = list(dict.fromkeys(site.stack for site in diagnosis.sites))
    main = next((name for name in names if name not in diagnosis.stacks), names[0] if names else "model")
    twin = diagnosis.twin
    views = []
    for name in [main, *diagnosis.stacks]:
        own = diagnosis if name == main else diagnosis.stacks[name]
        other = None if twin is None else twin if name == main else twin.stacks.get(name)
        sites, twins = _stack_sites(diagnosis, name), _stack_sites(twin, name) if twin else ()
        deep = other.deep if other else {}
        view = StackView(name, sites, own.deep, own.trend, own.paper, own.verdict, twins, deep)
        sinks = next((sinks for sinks in diagnosis.sinks if sinks.stack == name), None)
        views.append(replace(view, sinks=sinks, tokens=diagnosis.tokens))
    return views


def _stack_sites(diagnosis: Diagnosis, stack: str) -> tuple[SiteReading, ...]:
    own = [site for site in diagnosis.sites if site.stack == stack]
    return tuple(sorted(own, key=lambda site: (site.site == "output", site.site == "block", site.index)))
