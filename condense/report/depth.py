"""Which charts a diagnosis is drawn with, and what each one says in words. Records in, charts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, Paper, SiteReading, Trend, Verdict
from condense.report.charts import Axis, Shade, Values


def depth_axis(sites: Sequence[SiteReading]) -> Axis:
    """Embedding, the blocks, and the output set apart on the right."""
    blocks = sum(site.site == "block" for site in sites)
    step = next((s for s in (1, 2, 5, 10, 20, 50) if blocks / s <= 7), 100)
    ticks = {"embedding": "emb.", "output": "out"}
    return Axis(
        tuple(site.label for site in sites),
        tuple(ticks.get(site.site, "" if site.index % step else str(site.index)) for site in sites),
        "block", sum(site.site == "output" for site in sites), max(1, round(blocks * 0.07)),
    )  # fmt: skip


def _deepest(view: StackView) -> Shade | None:
    """The blocks ⌊L/2⌋+1..L, from which the verdict is drawn."""
    places = [i for i, site in enumerate(view.sites) if site.site == "block"]
    if len(places) < 2:
        return None
    return Shade(places[len(places) // 2], places[-1], "deepest half: what the verdict reads")


def padded(values: Values) -> tuple[float, float]:
    """The range of the values with a little room at both ends."""
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class StackView:
    """One stack as it is drawn: its sites in depth order, its summary, the same sites of the twin."""

    name: str
    sites: tuple[SiteReading, ...]
    deep: Mapping[str, Estimate]
    trend: Trend
    paper: Paper
    verdict: Verdict
    twin: tuple[SiteReading, ...]
    twin_deep: Mapping[str, Estimate]

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
        summary = diagnosis if name == main else diagnosis.stacks[name]
        other = None if twin is None else twin if name == main else twin.stacks.get(name)
        views.append(
            StackView(
                name, _of(diagnosis, name), summary.deep, summary.trend, summary.paper, summary.verdict,
                _of(twin, name) if twin else (), other.deep if other else {},
            )
        )  # fmt: skip
    return views


def _of(diagnosis: Diagnosis, stack: str) -> tuple[SiteReading, ...]:
    own = [site for site in diagnosis.sites if site.stack == stack]
    return tuple(sorted(own, key=lambda site: (site.site == "output", site.site == "block", site.index)))
