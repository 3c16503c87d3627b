"""The cosines of all pairs of tokens, member beside member, over the same scale. Records in, charts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from condense.records.comparison import Comparison, Member
from condense.report.charts import Axis, Cells, Chart, Series
from condense.report.comparison.figures import called, drawn, left_out
from condense.report.depth import depth_axis
from condense.report.diagnosis.figures import NOTHING
from condense.report.text import number, percent
from condense.report.treatment.curves import Panels

MOST_PANELS = 12
MOST_OF_A_RUN = 8
ROOM = 2
MOST_CELLS = 8000


def heat_panels(comparison: Comparison) -> list[Panels]:
    """One heatmap per member: depth across, cosine up, the same rows and the same ink for the same share."""
    shown = drawn(comparison, MOST_OF_A_RUN if comparison.trajectory else MOST_PANELS)
    shares = {member.name: [_shares(site.histogram.counts) for site in member.sites] for member in shown}
    used = [
        row for columns in shares.values() for column in columns for row, share in enumerate(column) if share >= 0.05
    ]
    bins = len(next(iter(shares.values()))[0]) if shares else 0
    if not used or not bins:
        return []
    first, last = max(0, min(used) - ROOM), min(bins, max(used) + 1 + ROOM)
    peaks = sorted(max(column) for columns in shares.values() for column in columns)
    peak = round(peaks[len(peaks) // 2] * 1.25, 1) or 1.0
    ends = (-1 + 2 * first / bins, -1 + 2 * last / bins)
    charts = tuple(
        _panel(member, shares[member.name], slice(first, last), ends, peak, rank) for rank, member in enumerate(shown)
    )
    names = tuple((called(member), _note(member)) for member in shown)
    words = (
        "Depth runs from left to right, the cosine of a pair of tokens from bottom to top; darkest is "
        f"{peak:g} % of the pairs of a site in one step, in every panel alike. The line is the mean."
        + left_out(comparison, shown)
    )
    return [Panels(charts, names, "The cosines of all pairs of tokens", words)]


def interactive(panels: Panels) -> bool:
    """Whether the panels are few and small enough to be drawn by a script; else they are still pictures."""
    cells = sum(len(c.cells.columns) * len(c.cells.columns[0]) for c in panels.charts if c.cells and c.cells.columns)
    return cells <= MOST_CELLS


def columns_of(count: int) -> int:
    """How many panels stand in a row."""
    return {1: 1, 2: 2, 3: 3, 4: 4}.get(count, 3 if count <= 6 else 4)


def _panel(
    member: Member, shares: Sequence[Sequence[float]], rows: slice, ends: tuple[float, float], peak: float, rank: int
) -> Chart:
    cells = Cells(tuple([share or None for share in column[rows]] for column in shares), *ends, "pairs", peak)
    means = [site.metrics.get("mean_cosine", NOTHING).value for site in member.sites]
    line = Series("mean cosine", means, "ink", width=2.0)
    return Chart(
        f"chart-heat-{rank}", _few_ticks(depth_axis(member.sites)), "cosine", (line,), cells=cells, y_range=ends,
        height=250, width=340,
    )  # fmt: skip


def _few_ticks(axis: Axis) -> Axis:
    """The ticks that a narrow chart has room for: the first, the last block, the output."""
    last = max((i for i, tick in enumerate(axis.ticks) if tick and tick not in ("emb.", "out")), default=None)
    kept = tuple(tick if tick in ("emb.", "out") or i == last else "" for i, tick in enumerate(axis.ticks))
    return replace(axis, ticks=kept)


def _shares(counts: Sequence[int]) -> list[float]:
    """Counts as percent of their sum."""
    total = sum(counts) or 1
    return [round(100 * count / total, 3) for count in counts]


def _note(member: Member) -> str:
    rank = member.deep.get("effective_rank", NOTHING).null_ratio
    cosine = number(member.deep.get("mean_cosine", NOTHING).value, 2)
    return f"deep mean cosine {cosine}" + (f", rank {percent(rank)} of random" if rank is not None else "")
