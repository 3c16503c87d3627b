"""Which charts a comparison is drawn with over depth and size, and how members are called. Records in, charts out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member
from condense.report.charts import Axis, Chart, Figure, Look, Panels, Series
from condense.report.depth import (
    depth_axis,
    differences,
    gaussian_null,
    heat_cells,
    heat_scale,
    overlay,
    pair_shares,
    readings,
    site_label,
)
from condense.report.tables import digits_of
from condense.report.text import (
    NOTHING,
    WITHOUT_TOP,
    difference,
    number,
    parameter_count,
    percent,
    shortened,
    thousands,
)
from condense.report.treatment.figures import COSINE, REST

MOST_CURVES = 12
MOST_STEPS = 8
DEEP = 48
WITH_BANDS = 4
INKS = ("accent", "warm", "leaf", "plum", "ink", "quiet")
DASHES = ("solid", "longdash", "dot", "dashdot", "dash")
SYMBOLS = ("circle", "diamond", "square", "none")
RAMP = 8
OUTPUT_AT = 1.08
MOST_CELLS = 8000


def looks(comparison: Comparison) -> dict[str, Look]:
    """How every member is drawn: a run from light to dark, others by ink, dash and mark together."""
    members = comparison.members
    if comparison.trajectory is not None:
        last = max(1, len(members) - 1)
        return {
            m.name: Look(called(m), f"t{round(i * (RAMP - 1) / last)}", DASHES[i % 2]) for i, m in enumerate(members)
        }
    marked = len(members) <= len(INKS)  # marks on more lines could not be distinguished
    made = {}
    for i, member in enumerate(members):
        dash = DASHES[(i + i // len(INKS)) % len(DASHES)]
        symbol = SYMBOLS[i % len(SYMBOLS)] if marked else "none"
        made[member.name] = Look(called(member), INKS[i % len(INKS)], dash, symbol)
    return made


def called(member: Member) -> str:
    """A member's name, shortened in its middle; in a run its step, of several runs with the run."""
    if member.run is not None:
        return f"{shortened(member.run, 30)}, step {thousands(member.step or 0)}"
    return shortened(member.name) if member.step is None else f"step {thousands(member.step)}"


def deep_of(member: Member, key: str) -> Estimate:
    """A metric of a member over the deepest half of its blocks."""
    return member.deep.get(key, NOTHING)


def change_of(member: Member, key: str) -> Estimate:
    """The difference of a member to the first, in a deep metric or in quality."""
    effect = member.difference
    return NOTHING if effect is None else {**effect.deep, **effect.quality}.get(key, NOTHING)


def word_of(member: Member, key: str) -> str:
    """What the difference of a member to the first comes to; empty where it was not judged."""
    word = member.difference.words.get(key) if member.difference else None
    return word.word if word else ""


def drawn(comparison: Comparison, most: int | None = None) -> tuple[Member, ...]:
    """The members that are drawn: all, or so many spread over them, with the first, the last and the peak."""
    members = comparison.members
    deep = max(member.blocks for member in members) > DEEP
    most = most or (MOST_STEPS if comparison.trajectory or deep else MOST_CURVES)
    if len(members) <= most:
        return members
    chosen = {round(i * (len(members) - 1) / (most - 1)) for i in range(most)}
    peak = comparison.trajectory.peak if comparison.trajectory else None
    top = next((i for i, member in enumerate(members) if peak and member.name == peak.name), None)
    if top is not None and top not in chosen:
        inner = chosen - {0, len(members) - 1}
        chosen = chosen - {min(inner, key=lambda other: abs(other - top))} | {top}
    return tuple(members[index] for index in sorted(chosen))


def left_out(comparison: Comparison, shown: Sequence[Member], where: str = "the table of members") -> str:
    """The sentence that says that not all are drawn, and where they are; nothing if all are."""
    if len(shown) == len(comparison.members):
        return ""
    return f" Shown are {len(shown)} of the {len(comparison.members)}; all are in {where}."


# --- over depth ------------------------------------------------------------------------------------------


def depth_figures(comparison: Comparison) -> list[Figure]:
    """The members over depth, overlaid; and their differences to the first where the blocks correspond."""
    made = [
        _members(comparison, "mean_cosine", "How alike are two tokens of one text?"),
        _members(comparison, WITHOUT_TOP, "The same, without each text’s top three dimensions"),
    ]
    if comparison.kind != "trajectory":
        made += _differences(comparison)
    return [*made, _members(comparison, "effective_rank", "How many directions are in use?")]


def same_depth(members: Sequence[Member]) -> bool:
    """Whether the sites of all members correspond one to one."""
    return len({tuple(site.label for site in member.sites) for member in members}) == 1


def _members(comparison: Comparison, key: str, title: str) -> Figure:
    shown, styles = drawn(comparison), looks(comparison)
    bands, same = len(shown) <= WITH_BANDS and comparison.trajectory is None, same_depth(shown)
    series = [
        styles[member.name].curve(
            readings(member.sites, key),
            digits_of(key),
            bands=bands,
            width=2.0,
            at=() if same else tuple(OUTPUT_AT if s.site == "output" else s.depth for s in member.sites),
            places=() if same else tuple(s.label for s in member.sites),
        )
        for member in reversed(shown)
    ]
    if key == "effective_rank":
        series += _null(shown)
    axis = depth_axis(shown[0].sites) if same else _relative_axis(shown)
    chart = overlay(key, axis, series, height=420)
    return Figure(chart, title, _member_words(comparison, key) + left_out(comparison, shown))


def _null(shown: Sequence[Member]) -> list[Series]:
    """The Gaussian null, where it is one for all."""
    nulls = {tuple(estimate.null for estimate in readings(member.sites, "effective_rank")) for member in shown}
    return gaussian_null(shown[0].sites, "edge") if len(nulls) == 1 else []


def _relative_axis(shown: Sequence[Member]) -> Axis:
    """Depth from 0 to 1 for models of different depth; the output stands apart on the right."""
    apart = int(all(member.sites[-1].site == "output" for member in shown))
    marks = [(quarter / 4, f"{quarter / 4:g}") for quarter in range(5)] + ([(OUTPUT_AT, "out")] if apart else [])
    title = "depth: 0 what block 1 receives, 1 what the last block leaves"
    return Axis(title=title, apart=apart, at=(0.0, 1.0), span=(-0.02, OUTPUT_AT + 0.03), marks=tuple(marks))


def _member_words(comparison: Comparison, key: str) -> str:
    digits = 1 if key == "effective_rank" else 2
    if comparison.kind == "pair":
        first, other = comparison.members
        change = change_of(other, key)
        values = [f"{number(deep_of(member, key).value, digits)} in {called(member)}" for member in (first, other)]
        words = f"Over the deepest half {values[0]} and {values[1]}"
        fine = 3 if digits == 2 else 1
        return f"{words}: a difference of {difference(change, fine)}." if change.value is not None else f"{words}."
    known = [(deep_of(member, key).value, member) for member in comparison.members]
    ordered = sorted((pair for pair in known if pair[0] is not None), key=lambda pair: pair[0] or 0.0)
    if not ordered:
        return "It is not defined for any of them."
    (low, least), (high, most) = ordered[0], ordered[-1]
    if comparison.trajectory is not None:
        return (
            f"Light is early, dark is late. Over the deepest half: lowest {number(low, digits)} at {called(least)}, "
            f"highest {number(high, digits)} at {called(most)}."
        )
    ends = f"from {number(low, digits)} ({called(least)}) to {number(high, digits)} ({called(most)})"
    return f"Over the deepest half {ends}."


def _differences(comparison: Comparison) -> list[Figure]:
    """Each member − the first, block by block, with intervals while there are few."""
    first = comparison.reference
    others = [m for m in drawn(comparison)[1:] if m.difference and len(m.difference.sites) == len(first.sites)]
    if not others:
        return []
    styles = looks(comparison)
    pairs = [(member, "mean_cosine", styles[member.name]) for member in reversed(others)]
    if comparison.kind == "pair":
        pairs = [(others[0], WITHOUT_TOP, REST), (others[0], "mean_cosine", COSINE)]
    bands = len(pairs) <= WITH_BANDS
    series = []
    for member, key, style in pairs:
        differences_here = [
            site.metrics.get(key, NOTHING) for site in (member.difference.sites if member.difference else ())
        ]
        series.append(style.curve(differences_here, 4, bands=bands, whiskers=bands, width=2.0))
    axis, title, least = depth_axis(first.sites), f"− {called(first)}", comparison.least
    chart = differences("chart-difference", axis, series, title, least, "the same")
    return [Figure(chart, "Where they differ, layer by layer", _difference_words(others, first))]


def _difference_words(others: Sequence[Member], first: Member) -> str:
    parts = []
    for member in others[:3]:
        sites = member.difference.sites if member.difference else ()
        known = [site for site in sites if site.metrics.get("mean_cosine", NOTHING).value is not None]
        far = max(known, key=lambda site: abs(site.metrics["mean_cosine"].value or 0.0), default=None)
        if far is not None:
            parts.append(f"{called(member)} most at {site_label(far)}: {difference(far.metrics['mean_cosine'])}")
    words = f"Mean cosine, each minus {called(first)} on the same texts."
    return f"{words} {'; '.join(parts)}." if parts else words


# --- over size -------------------------------------------------------------------------------------------


def size_figures(comparison: Comparison) -> list[Figure]:
    """The published family plot: trend over depth beside the number of parameters, and the cone beside it."""
    members = sorted(comparison.members, key=lambda m: (m.model.parameters, m.name))
    if comparison.trajectory is not None or len({m.model.parameters for m in members}) < 2:
        return []
    axis = _size_axis([m.model.parameters for m in members])
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.model.architecture, []).append(member)
    trend: list[Series] = []
    cone: list[Series] = []
    for rank, (architecture, own) in enumerate(groups.items()):
        ink = INKS[rank % len(INKS)]
        name = f"{architecture}: " if len(groups) > 1 else ""
        tau = _sized(own, Look(f"{name}Kendall tau", ink, "longdash", "diamond"), [m.trend.kendall.tau for m in own])
        rho = _sized(own, Look(f"{name}Spearman rho", ink, symbol="circle"), [m.trend.spearman.rho for m in own])
        trend += [tau, rho]
        if len(groups) == 1:
            paper = Look("rho as published: output normed", "quiet", "dot", "square")
            trend.insert(0, _sized(own, paper, [m.paper.spearman.rho for m in own]))
        deep = Look(f"{name}deep mean cosine", ink, symbol="circle")
        cone.append(_sized(own, deep, [deep_of(m, "mean_cosine") for m in own]))
    rhos = Chart("chart-size-trend", axis, "rank correlation with depth", tuple(trend), y_range=(-1.08, 1.08))
    rhos = replace(rhos, edges=((0.0, "no trend"),), width=520)
    cosines = Chart("chart-size-cone", axis, "cosine", tuple(cone), y_range=(-0.02, 1.02), width=520)
    return [
        Figure(rhos, "Does condensation with depth fade with size?", _trend_words(members), wide=False),
        Figure(cosines, "And how narrow is the cone?", _cone_words(members), wide=False),
    ]


def spaced_ticks(at: Sequence[float], labels: Sequence[str], most: int) -> tuple[tuple[float, str], ...]:
    """A tick for every value that does not stand on another, about `most` of them."""
    least = (at[-1] - at[0]) / most
    ticks: list[tuple[float, str]] = []
    for value, label in zip(at, labels, strict=True):
        if not ticks or value - ticks[-1][0] >= least:
            ticks.append((value, label))
    return tuple(ticks)


def _size_axis(sizes: Sequence[int]) -> Axis:
    """Parameters on a logarithmic line."""
    at = [math.log10(max(1, size)) for size in sizes]
    room = 0.06 * (at[-1] - at[0]) or 0.1
    marks = spaced_ticks(at, [parameter_count(size) for size in sizes], 6)
    return Axis(title="parameters, logarithmic", at=tuple(at), span=(at[0] - room, at[-1] + room), marks=marks)


def _sized(own: Sequence[Member], look: Look, values: Sequence[Estimate | float | None]) -> Series:
    at = tuple(math.log10(max(1, m.model.parameters)) for m in own)
    places = tuple(f"{shortened(m.name)}, {parameter_count(m.model.parameters)}" for m in own)
    estimates = [value if isinstance(value, Estimate) else Estimate(value) for value in values]
    return look.curve(estimates, 2, width=2.0, at=at, places=places)


def _trend_words(members: Sequence[Member]) -> str:
    ends = [
        f"{number(m.trend.spearman.rho, 2)} at {parameter_count(m.model.parameters)} ({called(m)})"
        for m in (members[0], members[-1])
    ]
    words = f"Spearman rho of the mean cosine with depth: {', '.join(ends)}."
    return f"{words} A trend is no severity: random weights score +1."


def _cone_words(members: Sequence[Member]) -> str:
    ends = [
        f"{number(deep_of(m, 'mean_cosine').value, 2)} at {parameter_count(m.model.parameters)}"
        for m in (members[0], members[-1])
    ]
    words = f"Deep mean cosine {', '.join(ends)}."
    return f"{words} Lines join models of one architecture; bands are 95 % over documents."


# --- the cosines of all pairs ----------------------------------------------------------------------------


def heat_panels(comparison: Comparison) -> list[Panels]:
    """One heatmap per member: depth across, cosine up, the same rows and the same ink for the same share."""
    shown = drawn(comparison, MOST_STEPS if comparison.trajectory else MOST_CURVES)
    shares = [pair_shares(member.sites) for member in shown]
    columns = [column for member in shares for column in member]
    if not any(share for column in columns for share in column):
        return []
    rows, ends, peak = heat_scale(columns)
    charts = []
    for rank, (member, own) in enumerate(zip(shown, shares, strict=True)):
        line = Look("mean cosine", "ink").curve(readings(member.sites, "mean_cosine"), bands=False)
        axis, cells = _few_ticks(depth_axis(member.sites)), heat_cells(own, rows, ends, peak)
        chart = Chart(f"chart-heat-{rank}", axis, "cosine", (line,), cells=cells, y_range=ends)
        charts.append(replace(chart, height=250, width=340))
    words = (
        "Depth runs from left to right, the cosine of a pair of tokens from bottom to top; darkest is "
        f"{peak:g} % of the pairs of a site in one step, in every panel alike. The line is the mean."
    )
    return [
        Panels(
            tuple(charts),
            tuple((called(member), _note(member)) for member in shown),
            "The cosines of all pairs of tokens",
            words + left_out(comparison, shown),
            columns=min(len(charts), 4) if len(charts) <= 4 else 3 if len(charts) <= 6 else 4,
            still=len(columns) * (rows.stop - rows.start) > MOST_CELLS,
        )
    ]


def _few_ticks(axis: Axis) -> Axis:
    """The ticks that fit a narrow chart: the first, the last block, the output."""
    last = max((i for i, tick in enumerate(axis.ticks) if tick and tick not in ("emb.", "out")), default=None)
    kept = tuple(tick if tick in ("emb.", "out") or i == last else "" for i, tick in enumerate(axis.ticks))
    return replace(axis, ticks=kept)


def _note(member: Member) -> str:
    rank = deep_of(member, "effective_rank").null_ratio
    cosine = number(deep_of(member, "mean_cosine").value, 2)
    return f"deep mean cosine {cosine}" + (f", rank {percent(rank)} of random" if rank is not None else "")
