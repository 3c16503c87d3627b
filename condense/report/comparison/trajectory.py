"""A run over its steps as charts with words: metrics against step, every block of every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member, Trajectory
from condense.report.charts import Axis, Cells, Chart, Figure, Look, Series, known_values, padded
from condense.report.comparison.figures import called, deep_of, spaced_ticks
from condense.report.text import NOTHING, WITHOUT_TOP, number, percent, quality_of, thousands

MOST_TICKS = 9
MOST_MARKS = 40
QUALITY = {"bits_per_byte": "bits per byte", "loss": "nats per token"}


def trajectory_figures(comparison: Comparison) -> list[Figure]:
    """Mean cosine, rank, quality and trend against step, then the map of all blocks and checkpoints."""
    trajectory = comparison.trajectory
    if trajectory is None:
        return []
    members = comparison.members
    axis = step_axis([member.step or 0 for member in members], trajectory.scale)
    figures = [
        _cone_figure(members, axis, trajectory),
        _rank_figure(members, axis),
        *_quality_figure(members, axis),
        _trend(members, axis),
    ]
    return [*figures, *_map(comparison)]


def step_axis(steps: Sequence[int], scale: str) -> Axis:
    """Steps on a line of numbers; on the logarithmic one step 0 stands a little before the first other one."""
    at = [position(step, steps, scale) for step in steps]
    room = 0.03 * ((at[-1] - at[0]) or 1.0)
    axis = Axis(title="training step", at=tuple(at), span=(at[0] - room, at[-1] + room))
    if scale == "linear":
        return axis
    title = "training step, logarithmic" + ("; step 0 set before it" if steps[0] == 0 else "")
    return replace(axis, title=title, marks=spaced_ticks(at, list(map(thousands, steps)), MOST_TICKS))


def position(step: int, steps: Sequence[int], scale: str) -> float:
    """Where a step stands on the axis."""
    if scale == "linear":
        return float(step)
    if step > 0:
        return round(math.log10(step), 4)
    positive = [math.log10(other) for other in steps if other > 0]
    return round(positive[0] - max(0.12 * (positive[-1] - positive[0]), 0.15), 4)


def _steps_series(
    members: Sequence[Member], axis: Axis, look: Look, estimates: Sequence[Estimate], digits: int = 3
) -> Series:
    style = look if len(members) <= MOST_MARKS else look._replace(symbol="none")
    return style.curve(estimates, digits, at=axis.at, places=tuple(map(called, members)))


def _deep(members: Sequence[Member], key: str) -> list[Estimate]:
    return [deep_of(member, key) for member in members]


def _output(member: Member) -> Estimate:
    last = member.sites[-1]
    change = last.metrics.get("mean_cosine", NOTHING) if last.site == "output" else NOTHING
    return Estimate(change.value)


def _cone_figure(members: Sequence[Member], axis: Axis, trajectory: Trajectory) -> Figure:
    output = Look("at the output, after the final norm", "plum", "dot", "square")
    rest = Look("without each text’s top 3 dimensions", "warm", "longdash", "diamond")
    cone = Look("deep mean cosine", "accent", symbol="circle")
    series = (
        _steps_series(members, axis, output, [_output(member) for member in members]),
        _steps_series(members, axis, rest, _deep(members, WITHOUT_TOP)),
        _steps_series(members, axis, cone, _deep(members, "mean_cosine")),
    )
    lowest = min((v for s in series for v in s.values if v is not None), default=0.0)
    peak, moment = trajectory.peak, None
    first, last = members[0], members[-1]
    values = [number(deep_of(member, "mean_cosine").value, 2) for member in (first, last)]
    words = f"From {values[0]} at step {first.step} to {values[1]} at step {last.step}"
    if peak is not None:
        at = next(at for at, member in zip(axis.at, members, strict=True) if member.name == peak.name)
        moment = (at, f"peak {peak.value:.3f}")
        early = ", early in the run" if peak.early else ""
        words += f", with a peak of {peak.value:.3f} at step {peak.step}{early}"
    words += ". Bands are 95 % intervals over the documents, not over training seeds: one run is one run."
    chart = Chart("chart-course-cone", axis, "cosine", series, y_range=(min(0.0, lowest) - 0.02, 1.02), height=420)
    return Figure(replace(chart, moment=moment), "How narrow is the cone, step by step?", words)


def _rank_figure(members: Sequence[Member], axis: Axis) -> Figure:
    shares = [Estimate(estimate.null_ratio) for estimate in _deep(members, "effective_rank")]
    variance = Look("energy outside the mean (relative variance)", "warm", "longdash", "diamond")
    rank = Look("effective rank, share of the Gaussian null", "accent", symbol="circle")
    series = (
        _steps_series(members, axis, variance, _deep(members, "relative_variance"), 2),
        _steps_series(members, axis, rank, shares, 2),
    )
    chart = Chart("chart-course-rank", axis, "share", series, y_range=(-0.02, 1.05), height=340, width=520)
    words = f"Effective rank over the deepest half: {percent(shares[0].value)} of random directions at the first step, "
    return Figure(
        chart, "How many directions are left?", f"{words}{percent(shares[-1].value)} at the last.", wide=False
    )


def _quality_figure(members: Sequence[Member], axis: Axis) -> list[Figure]:
    for key, unit in QUALITY.items():
        qualities = [quality_of(member.quality, key) for member in members]
        known = [estimate.value for estimate in qualities if estimate.value is not None]
        if not known:
            continue
        line = _steps_series(members, axis, Look(unit, "accent", symbol="circle"), qualities)
        span = padded(known_values([line]))
        chart = Chart("chart-course-quality", axis, unit, (line,), y_range=span, height=340, width=520)
        words = f"On the same texts from {number(known[0], 2)} to {number(known[-1], 2)} {unit}."
        return [Figure(chart, "How well does it predict?", words, wide=False)]
    return []


def _trend(members: Sequence[Member], axis: Axis) -> Figure:
    trends = {
        Look("rho as published: output normed", "plum", "dot", "square"): [m.paper.spearman.rho for m in members],
        Look("Kendall tau", "warm", "longdash", "diamond"): [m.trend.kendall.tau for m in members],
        Look("Spearman rho", "accent", symbol="circle"): [m.trend.spearman.rho for m in members],
    }
    series = tuple(
        _steps_series(members, axis, look, list(map(Estimate, values)), 2) for look, values in trends.items()
    )
    chart = Chart("chart-course-trend", axis, "rank correlation with depth", series, y_range=(-1.08, 1.08), height=340)
    blocks = members[0].blocks
    words = f"Does the mean cosine rise with depth? A trend, never a severity; {blocks + 1} places make it coarse."
    return Figure(replace(chart, edges=((0.0, "no trend"),)), "The trend over depth, as it is published", words)


def _map(comparison: Comparison) -> list[Figure]:
    """One column per checkpoint, one row per block."""
    members = comparison.members
    blocks = [[site for site in member.sites if site.site != "output"] for member in members]
    rows = len(blocks[0])
    if len({len(sites) for sites in blocks}) != 1 or len(members) < 3:
        return []
    values = [[site.metrics.get("mean_cosine", NOTHING).value for site in sites] for sites in blocks]
    columns = tuple([None if v is None else max(0.0, v) for v in column] for column in values)
    every = -(-len(members) // 12)
    steps = [thousands(member.step or 0) for member in members]
    ticks = tuple(step if i % every == 0 else "" for i, step in enumerate(steps))
    axis = Axis(tuple(map(called, members)), ticks, "training step, one column per checkpoint")
    hover = "%{x}, block %{y:.0f}: mean cosine %{z:.3f}"
    cells = Cells(columns, -0.5, rows - 0.5, "mean cosine", 1.0, "mean cosine: 0 or less to 1", hover)
    title, span = "block (0: what block 1 receives)", (-0.5, rows - 0.5)
    chart = Chart("chart-course-map", axis, title, cells=cells, y_range=span, height=min(520, max(240, 90 + 26 * rows)))
    words = "Columns are checkpoints in order, evenly spaced whatever their steps; dark is one direction."
    return [Figure(chart, "Every block of every checkpoint", words)]
