"""A run over its steps as charts with words: metrics against step, every block of every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member, Trajectory
from condense.report.charts import Axis, Cells, Chart, Series
from condense.report.comparison.figures import called
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure
from condense.report.text import number, percent, typeset
from condense.report.treatment.figures import WITHOUT_TOP

MOST_TICKS = 9


def course_figures(comparison: Comparison) -> list[Figure]:
    """Mean cosine, rank, quality and trend against step, then the map of all blocks and checkpoints."""
    trajectory = comparison.trajectory
    if trajectory is None:
        return []
    members = comparison.members
    axis = step_axis([member.step or 0 for member in members], trajectory)
    figures = [_cone(members, axis, trajectory), _rank(members, axis), *_quality(members, axis), _trend(members, axis)]
    return [*figures, *_map(comparison)]


def step_axis(steps: Sequence[int], trajectory: Trajectory) -> Axis:
    """Steps on a line of numbers; on the logarithmic one step 0 stands a little before the first other one."""
    at = [position(step, steps, trajectory.scale) for step in steps]
    room = 0.03 * ((at[-1] - at[0]) or 1.0)
    title = "training step"
    if trajectory.scale == "linear":
        return Axis(title=title, at=tuple(at), span=(at[0] - room, at[-1] + room))
    title += ", logarithmic" + ("; step 0 set before it" if steps[0] == 0 else "")
    least = (at[-1] - at[0]) / MOST_TICKS
    marks: list[tuple[float, str]] = []
    for place, step in zip(at, steps, strict=True):
        if not marks or place - marks[-1][0] >= least:
            marks.append((place, f"{step:,}".replace(",", "\u202f")))
    return Axis(title=title, at=tuple(at), span=(at[0] - room, at[-1] + room), marks=tuple(marks))


def position(step: int, steps: Sequence[int], scale: str) -> float:
    """Where a step stands on the axis."""
    if scale == "linear":
        return float(step)
    if step > 0:
        return math.log10(step)
    positive = [math.log10(other) for other in steps if other > 0]
    return positive[0] - max(0.12 * (positive[-1] - positive[0]), 0.15)


def _line(
    members: Sequence[Member], axis: Axis, name: str, of: Sequence[Estimate], ink: str, dash: str, symbol: str,
    digits: int = 3, bands: bool = True,
) -> Series:  # fmt: skip
    known = bands and any(e.low is not None for e in of)
    return Series(
        name, [e.value for e in of], ink, [e.low for e in of] if known else None,
        [e.high for e in of] if known else None, dash, symbol if len(members) <= 40 else "none",
        2.5 if ink == "accent" else 2.0, digits, at=axis.at,
        places=tuple(called(member) for member in members),
    )  # fmt: skip


def _of(members: Sequence[Member], key: str) -> list[Estimate]:
    return [member.deep.get(key, NOTHING) for member in members]


def _cone(members: Sequence[Member], axis: Axis, trajectory: Trajectory) -> Figure:
    ends = [_output(member) for member in members]
    series = (
        _line(members, axis, "at the output, after the final norm", ends, "plum", "dot", "square", bands=False),
        _line(members, axis, "without each text’s top 3 dimensions", _of(members, WITHOUT_TOP), "warm", "longdash",
              "diamond"),
        _line(members, axis, "deep mean cosine", _of(members, "mean_cosine"), "accent", "solid", "circle"),
    )  # fmt: skip
    lowest = min((v for s in series for v in s.values if v is not None), default=0.0)
    peak = trajectory.peak
    moment = None
    if peak is not None:
        place = next(at for at, member in zip(axis.at, members, strict=True) if member.name == peak.name)
        moment = (place, f"peak {peak.value:.3f}")
    chart = Chart(
        "chart-course-cone", axis, "cosine", series, y_range=(min(0.0, lowest) - 0.02, 1.02), moment=moment, height=420,
    )  # fmt: skip
    first, last = members[0], members[-1]
    words = f"From {_value(first)} at step {first.step} to {_value(last)} at step {last.step}"
    if peak is not None:
        words += f", with a peak of {peak.value:.3f} at step {peak.step}"
        words += ", early in the run" if peak.early else ""
    words += ". Bands are 95 % intervals over the texts, not over training seeds: one run is one run."
    return Figure(chart, "How narrow is the cone, step by step?", typeset(words))


def _output(member: Member) -> Estimate:
    last = member.sites[-1]
    return last.metrics.get("mean_cosine", NOTHING) if last.site == "output" else NOTHING


def _value(member: Member) -> str:
    return number(member.deep.get("mean_cosine", NOTHING).value, 2)


def _rank(members: Sequence[Member], axis: Axis) -> Figure:
    of = [Estimate(e.null_ratio) for e in _of(members, "effective_rank")]
    variance = _of(members, "relative_variance")
    series = (
        _line(members, axis, "energy outside the mean (relative variance)", variance, "warm", "longdash", "diamond", 2),
        _line(members, axis, "effective rank, share of the Gaussian null", of, "accent", "solid", "circle", 2),
    )
    chart = Chart("chart-course-rank", axis, "share", series, y_range=(-0.02, 1.05), height=340, width=520)
    words = f"Effective rank over the deepest half: {percent(of[0].value)} of random directions at the first step, "
    words += f"{percent(of[-1].value)} at the last."
    return Figure(chart, "How many directions are left?", words, wide=False)


def _quality(members: Sequence[Member], axis: Axis) -> list[Figure]:
    for key, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
        of: list[Estimate] = [getattr(member.quality, key) for member in members]
        known = [e.value for e in of if e.value is not None]
        if not known:
            continue
        line = _line(members, axis, unit, of, "accent", "solid", "circle")
        values = [v for e in of for v in (e.value, e.low, e.high) if v is not None]
        chart = Chart("chart-course-quality", axis, unit, (line,), y_range=padded(values), height=340, width=520)
        words = f"On the same texts from {number(known[0], 2)} to {number(known[-1], 2)} {unit}."
        return [Figure(chart, "How well does it predict?", words, wide=False)]
    return []


def _trend(members: Sequence[Member], axis: Axis) -> Figure:
    def plain(values: Sequence[float | None]) -> list[Estimate]:
        return [Estimate(value) for value in values]

    series = (
        _line(members, axis, "rho as published: output normed", plain([m.paper.spearman.rho for m in members]), "plum",
              "dot", "square", 2),
        _line(members, axis, "Kendall tau", plain([m.trend.kendall.tau for m in members]), "warm", "longdash",
              "diamond", 2),
        _line(members, axis, "Spearman rho", plain([m.trend.spearman.rho for m in members]), "accent", "solid",
              "circle", 2),
    )  # fmt: skip
    chart = Chart(
        "chart-course-trend", axis, "rank correlation with depth", series, y_range=(-1.08, 1.08),
        edges=((0.0, "no trend"),), height=340, width=1000,
    )  # fmt: skip
    blocks = members[0].blocks
    words = f"Does the mean cosine rise with depth? A trend, never a severity; {blocks + 1} places make it coarse."
    return Figure(chart, "The trend over depth, as it is published", words)


def _map(comparison: Comparison) -> list[Figure]:
    """One column per checkpoint, one row per block."""
    members = comparison.members
    heights = {len([site for site in member.sites if site.site != "output"]) for member in members}
    if len(heights) != 1 or len(members) < 3:
        return []
    rows = heights.pop()
    columns = tuple(
        [_clamped(site.metrics.get("mean_cosine", NOTHING).value) for site in member.sites if site.site != "output"]
        for member in members
    )
    labels = tuple(called(member) for member in members)
    every = -(-len(members) // 12)
    ticks = tuple(
        f"{member.step:,}".replace(",", "\u202f") if i % every == 0 else "" for i, member in enumerate(members)
    )
    axis = Axis(labels, ticks, "training step, one column per checkpoint")
    chart = Chart(
        "chart-course-map", axis, "block (0: what block 1 receives)",
        cells=Cells(columns, -0.5, rows - 0.5, "mean cosine", 1.0, "mean cosine: 0 or less to 1",
                    "%{x}, block %{y:.0f}: mean cosine %{z:.3f}"),
        y_range=(-0.5, rows - 0.5), height=min(520, max(240, 90 + 26 * rows)),
    )  # fmt: skip
    words = "Columns are checkpoints in order, evenly spaced whatever their steps; dark is one direction."
    return [Figure(chart, "Every block of every checkpoint", words)]


def _clamped(value: float | None) -> float | None:
    return None if value is None else max(0.0, value)
