"""Readings of single texts to the numbers of a diagnosis: per-text values kept, everything else summed.

Memory per text is a few kilobytes; unit sums and contributions are summed in float64 in text order, so
that the same texts give the same bytes however they were batched, resumed or spread over processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense import geometry
from condense.diagnosis.forward import TextReading
from condense.geometry import Measurement
from condense.intervals import bootstrap_interval, mean_interval
from condense.metrics import METRICS, PER_TEXT
from condense.models.layers import Site
from condense.records.base import Estimate
from condense.records.diagnosis import Histogram, Kendall, Paper, SiteReading, Spearman, TopDimension, Trend

REASONS = {
    "top_dimension_share": f"mean cosine is below {geometry.SHARE_FLOOR} in every text",
    "cross_text_cosine": "needs at least two texts",
}


class SiteTally:
    """What has been seen of one site so far."""

    def __init__(self, site: Site) -> None:
        """Start empty."""
        self.site = site
        self.values: dict[str, list[float]] = {key: [] for key in PER_TEXT}
        self.paper: list[float] = []
        self.width = 0
        self.spectral_rows = 0
        self._total: Tensor | None = None
        self._parts: Tensor | None = None
        self._histogram = torch.zeros(geometry.BINS, dtype=torch.int64)
        self._squares = self._count = self._count_squares = 0.0

    def add(self, measured: Measurement, spectral_tokens: int) -> None:
        """Add one text."""
        for key, values in self.values.items():
            values.append(measured.values[key])
        self.paper.append(measured.paper)
        total = measured.unit_sum
        self._total = total.clone() if self._total is None else self._total.add_(total)
        parts = measured.contributions
        self._parts = parts.clone() if self._parts is None else self._parts.add_(parts)
        self._histogram += measured.histogram
        self._squares += float(total.square().sum())
        self._count += measured.count
        self._count_squares += measured.count**2
        self.width = len(total)
        self.spectral_rows = min(spectral_tokens, measured.count)

    def estimate(self, key: str) -> Estimate:
        """Mean over texts with its interval; pooled for `cross_text_cosine`."""
        if key == "cross_text_cosine":
            value = self._cross_text()
            return Estimate(value, reason=None if value is not None else REASONS[key])
        per_text = tuple(v if np.isfinite(v) else None for v in self.values[key])
        value, low, high = mean_interval(per_text)
        reason = REASONS.get(key, "undefined for every text") if value is None else None
        null = self.null(key)
        ratio = value / null if null and value is not None else None
        return Estimate(value, low, high, per_text, null, ratio, reason)

    def null(self, key: str) -> float | None:
        """Value of a spectral metric for Gaussian rows of the same shape; None for the others."""
        if key == "effective_rank":
            return geometry.gaussian_null("effective_rank", self.spectral_rows, self.width)
        if key == "entropy_rank":
            return geometry.gaussian_null("entropy_rank", self.spectral_rows, self.width)
        return None

    def reading(self) -> SiteReading:
        """The record of this site."""
        return SiteReading(
            site=self.site.name,
            stack=self.site.stack,
            index=self.site.index,
            depth=self.site.depth,
            metrics={key: self.estimate(key) for key in METRICS},
            top_dimensions=self._top(),
            histogram=Histogram(tuple(self._histogram.tolist())),
        )

    def contributions(self) -> Tensor:
        """What each coordinate adds to the mean cosine, mean over texts, (d,)."""
        if self._parts is None:
            raise ValueError("no text was measured")
        return self._parts / len(self.paper)

    def _cross_text(self) -> float | None:
        if self._total is None:
            return None
        value = float(
            geometry.pooled_cosine(
                self._total,
                torch.tensor(self._squares, dtype=torch.float64),
                torch.tensor(self._count, dtype=torch.float64),
                torch.tensor(self._count_squares, dtype=torch.float64),
            )
        )
        return value if np.isfinite(value) else None

    def _top(self) -> tuple[TopDimension, ...]:
        mean = self.contributions()
        total = float(mean.sum())
        top = mean.topk(min(geometry.TOP, len(mean)))
        share = total >= geometry.SHARE_FLOOR
        return tuple(
            TopDimension(int(k), float(v), float(v) / total if share else None)
            for k, v in zip(top.indices, top.values, strict=True)
        )


def tally(sites: Sequence[Site], readings: Sequence[TextReading], spectral_tokens: int) -> list[SiteTally]:
    """Tallies of all sites over readings, added in the order given."""
    tallies = [SiteTally(site) for site in sites]
    for reading in readings:
        for place, measured in zip(tallies, reading.sites, strict=True):
            place.add(measured, spectral_tokens)
    return tallies


def deep(tallies: Sequence[SiteTally], seed: int) -> dict[str, Estimate]:
    """Median over the deepest half of the blocks of every metric, with a bootstrap interval over texts."""
    blocks = [place for place in tallies if place.site.name == "block"]
    half = [place for place in blocks if place.site.index > place.site.blocks // 2]
    return {key: _deep(half, key, seed) for key in METRICS}


def deep_dimensions(tallies: Sequence[SiteTally]) -> list[int]:
    """The coordinates that add most to the mean cosine over the deepest half of the blocks, strongest first."""
    half = [place for place in tallies if place.site.name == "block" and place.site.index > place.site.blocks // 2]
    parts = torch.stack([place.contributions() for place in half]).mean(0)
    return [int(k) for k in parts.topk(min(geometry.TOP, len(parts))).indices]


def _deep(half: Sequence[SiteTally], key: str, seed: int) -> Estimate:
    estimates = [place.estimate(key) for place in half]
    known = [e.value for e in estimates if e.value is not None]
    if not known:
        return Estimate(None, reason=estimates[0].reason if estimates else "no blocks")
    value = float(np.median(known))
    if key not in PER_TEXT:
        return Estimate(value)
    table: NDArray[np.float64] = np.array([place.values[key] for place in half], dtype=np.float64).T
    low, high = bootstrap_interval(table, _median, seed)
    per_text = tuple(float(v) if np.isfinite(v) else None for v in _median(table))
    null = half[0].null(key)
    ratios = [e.null_ratio for e in estimates if e.null_ratio is not None]
    return Estimate(value, low, high, per_text, null, float(np.median(ratios)) if ratios else None)


def _median(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over the last axis of the defined values, NaN where there is none."""
    result = np.full(len(table), np.nan)
    some = np.isfinite(table).any(axis=1)
    result[some] = np.nanmedian(table[some], axis=1)
    return result


def trend(tallies: Sequence[SiteTally]) -> Trend:
    """Rank correlation of mean cosine with depth over embedding..block L."""
    curve = [place.estimate("mean_cosine").value for place in tallies if place.site.name != "output"]
    spearman, kendall = _correlations([v for v in curve if v is not None])
    return Trend(spearman, kendall)


def paper(tallies: Sequence[SiteTally]) -> Paper:
    """The published curve: hidden_states 0..L with the last one normed, all pairs, position 0 kept."""
    *inner, _, last = tallies
    curve = [float(np.mean(place.paper)) for place in [*inner, last]]
    return Paper(tuple(curve), *_correlations(curve))


def _correlations(curve: Sequence[float]) -> tuple[Spearman, Kendall]:
    import scipy.stats

    if len(curve) < 3 or len(set(curve)) < 2:
        return Spearman(None, None), Kendall(None, None)
    depth = range(len(curve))
    rho, tau = scipy.stats.spearmanr(depth, curve), scipy.stats.kendalltau(depth, curve)
    return Spearman(float(rho.statistic), float(rho.pvalue)), Kendall(float(tau.statistic), float(tau.pvalue))
