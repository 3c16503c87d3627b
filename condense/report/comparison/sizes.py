"""The published family plot: trend over depth, and the cone, beside the number of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member
from condense.report.charts import Axis, Chart, Series
from condense.report.comparison.figures import INKS, called
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure
from condense.report.text import number, parameter_count, shortened, typeset


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
        several = f"{architecture}: " if len(groups) > 1 else ""
        trend += [
            _sized(own, f"{several}Kendall tau", [m.trend.kendall.tau for m in own], ink, "longdash", "diamond"),
            _sized(own, f"{several}Spearman rho", [m.trend.spearman.rho for m in own], ink, "solid", "circle"),
        ]
        if len(groups) == 1:
            published = [m.paper.spearman.rho for m in own]
            trend.insert(0, _sized(own, "rho as published: output normed", published, "quiet", "dot", "square"))
        deep = [m.deep.get("mean_cosine", NOTHING) for m in own]
        cone.append(_sized(own, f"{several}deep mean cosine", [e.value for e in deep], ink, "solid", "circle", deep))
    charts = (
        Chart("chart-size-trend", axis, "rank correlation with depth", tuple(trend), y_range=(-1.08, 1.08),
              edges=((0.0, "no trend"),), height=360, width=520),
        Chart("chart-size-cone", axis, "cosine", tuple(cone), y_range=(-0.02, 1.02), height=360, width=520),
    )  # fmt: skip
    return [
        Figure(charts[0], "Does condensation with depth fade with size?", typeset(_trend_words(members)), wide=False),
        Figure(charts[1], "And how narrow is the cone?", typeset(_cone_words(members)), wide=False),
    ]


def _size_axis(sizes: Sequence[int]) -> Axis:
    """Parameters on a logarithmic line, a tick for every size that does not stand on another."""
    at = [math.log10(max(1, size)) for size in sizes]
    room = 0.06 * (at[-1] - at[0]) or 0.1
    least = (at[-1] - at[0]) / 6
    marks: list[tuple[float, str]] = []
    for place, size in zip(at, sizes, strict=True):
        if not marks or place - marks[-1][0] >= least:
            marks.append((place, parameter_count(size)))
    return Axis(title="parameters, logarithmic", at=tuple(at), span=(at[0] - room, at[-1] + room), marks=tuple(marks))


def _sized(
    own: Sequence[Member], name: str, values: Sequence[float | None], ink: str, dash: str, symbol: str,
    of: Sequence[Estimate] = (),
) -> Series:  # fmt: skip
    at = tuple(math.log10(max(1, m.model.parameters)) for m in own)
    known = bool(of) and any(e.low is not None for e in of)
    places = tuple(f"{shortened(m.name)}, {parameter_count(m.model.parameters)}" for m in own)
    return Series(
        name, list(values), ink, [e.low for e in of] if known else None, [e.high for e in of] if known else None, dash,
        symbol, 2.0, 2, at=at, places=places,
    )  # fmt: skip


def _trend_words(members: Sequence[Member]) -> str:
    first, last = members[0], members[-1]
    return (
        f"Spearman rho of the mean cosine with depth: {number(first.trend.spearman.rho, 2)} at "
        f"{parameter_count(first.model.parameters)} ({called(first)}), {number(last.trend.spearman.rho, 2)} at "
        f"{parameter_count(last.model.parameters)} ({called(last)}). A trend is no severity: random weights score +1."
    )


def _cone_words(members: Sequence[Member]) -> str:
    first, last = members[0], members[-1]
    return (
        f"Deep mean cosine {number(first.deep.get('mean_cosine', NOTHING).value, 2)} at "
        f"{parameter_count(first.model.parameters)}, {number(last.deep.get('mean_cosine', NOTHING).value, 2)} at "
        f"{parameter_count(last.model.parameters)}. Lines join models of one architecture; bands are 95 % over texts."
    )
