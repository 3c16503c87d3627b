"""Sums readings of single texts to the numbers of a diagnosis: per-window values are kept, everything else is summed.

Memory per text is a few kilobytes, and per document one float64 vector of the model's width for each site. Sums are
taken in text order, so that the same texts give the same bytes however they were batched, resumed or distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense import geometry
from condense.diagnosis.verdict import REPETITION, Inputs
from condense.geometry import Measurement
from condense.intervals import (
    Spread,
    document_weights,
    jackknife,
    over_documents,
    stretch,
    weighted_means,
)
from condense.metrics import METRICS, PER_TEXT, SPECTRAL, UPDATES
from condense.models.layers import Site
from condense.records.base import Estimate
from condense.records.diagnosis import (
    Histogram,
    Kendall,
    Paper,
    SiteReading,
    Spearman,
    TopDimension,
    Trend,
)

Floats = NDArray[np.float64]
REASONS = {
    **dict.fromkeys(UPDATES, "there is no block here, or all that it receives is zero"),
    "top_dimension_share": f"mean cosine is below {geometry.SHARE_FLOOR} in every text",
    "cross_text_cosine": "needs at least two documents",
    "dimension": "needs four tokens of a text that vary in more than noise",
    "dimension_share": "needs four tokens of a text that vary in more than noise",
}
_MOMENTS = ("dimension_numerator", "dimension_denominator")
_DISTINCT = ("without_distinct", "sink_distinct")


class SiteTally:
    """The sums over texts measured so far at one site."""

    def __init__(self, site: Site, documents: Sequence[int] = ()) -> None:
        """Start empty; documents: the document of each window, empty where it is not known."""
        self.site, self.documents = site, tuple(documents)
        alone = [key for key in PER_TEXT if not key.startswith("dimension")]
        self.values: dict[str, list[float]] = {key: [] for key in (*alone, *UPDATES)}
        self.extra: dict[str, list[float]] = {key: [] for key in ("paper", *_MOMENTS, *_DISTINCT)}
        self.sinks: list[Tensor] = []
        self.width = 0
        self._repeats: list[tuple[tuple[int, int], ...]] = []
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, float] = {}
        self._shared: dict[int, Tensor] = {}
        self._parts: Tensor | None = None
        self._measured = 0
        self._histogram = torch.zeros(geometry.BINS, dtype=torch.int64)

    def add(self, measurement: Measurement) -> None:
        """Add the next text."""
        document = self.documents[len(self)] if self.documents else len(self)
        for key, values in self.values.items():
            values.append(measurement.values[key] if key not in UPDATES else measurement.values.get(key, math.nan))
        for key, values in self.extra.items():
            values.append(measurement.extra[key])
        self.sinks.append(measurement.sinks)
        self._repeats.append(tuple((int(size), int(tokens)) for size, tokens in measurement.repeats.tolist()))
        _add_to(self._sums, document, measurement.unit_sum)
        _add_to(self._shared, document, measurement.shared)
        self._counts[document] = self._counts.get(document, 0.0) + measurement.count
        parts = measurement.contributions
        self._parts = parts.clone() if self._parts is None else self._parts.add_(parts)
        self._measured += measurement.count > 1
        self._histogram += measurement.histogram
        self.width = len(measurement.unit_sum)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.sinks)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Every metric over the texts, with its interval over documents."""
        return {key: self._site_estimate(key) for key in METRICS}

    @cached_property
    def repeats_itself(self) -> bool:
        """Whether the same tokens of a text make the mean cosine larger by more than `REPETITION`."""
        return bool(
            _mean_of_defined(self.values["mean_cosine"]) - _mean_of_defined(self.values["mean_cosine_distinct"])
            > REPETITION
        )

    def table(self, key: str) -> Floats:
        """A metric of each window, (N,), NaN where undefined; of `dimension*` the contribution to the ratio."""
        if not key.startswith("dimension"):
            return np.array(self.values[key], dtype=np.float64)
        numerators, denominators = (np.array(self.extra[name]) for name in _MOMENTS)
        known = np.isfinite(numerators) & np.isfinite(denominators)
        mean = denominators[known].mean() if known.any() else 0.0
        if mean <= 0:
            return np.full(len(self), np.nan)
        ratio = float(numerators[known].mean() / mean)
        if key == "dimension_share":
            ratio, numerators = ratio / self.width, numerators / self.width
        contributions: Floats = ratio + (numerators - ratio * denominators) / mean
        return contributions

    def null_table(self, key: str) -> Floats:
        """The value of a spectral metric for Gaussian rows of each window's shape, (N,)."""
        name = "effective_rank" if key == "effective_rank" else "entropy_rank"
        nulls = []
        for repeats in self._repeats:
            shape = repeats if self.repeats_itself else ((1, sum(size * tokens for size, tokens in repeats)),)
            nulls.append(geometry.repeated_null(name, shape, self.width))
        return np.array(nulls, dtype=np.float64)

    def null_ratios(self, key: str) -> Floats:
        """A spectral metric of each window as a share of its null, (N,)."""
        return self.table(key) / self.null_table(key)

    @cached_property
    def products(self) -> tuple[Tensor, Tensor]:
        """Products of the documents' sums of unit rows, and their numbers of pairs of rows: two tables (G, G)."""
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64)
        sums = torch.stack(list(self._sums.values()))
        return sums @ sums.T, counts.outer(counts)

    @cached_property
    def distinct_products(self) -> tuple[Tensor, Tensor]:
        """The same over pairs of different tokens, of those tokens whose sums are known by themselves."""
        products, pairs = self.products
        shared = torch.stack(list(self._shared.values()))
        rows, counts = shared[:, :, :-1].flatten(1), shared[:, :, -1]
        return products - rows @ rows.T, pairs - counts @ counts.T

    def without_each_document(self) -> list[float | None]:
        """The cross-text cosine without each document in turn."""
        count = len(self._sums)
        left = torch.ones(count, count, dtype=torch.float64) - torch.eye(count, dtype=torch.float64)
        return [_finite_or_none(value) for value in geometry.cross_cosines(*self.products, left).tolist()]

    def reading(self) -> SiteReading:
        """The record of this site."""
        return SiteReading(
            site=self.site.name,
            stack=self.site.stack,
            index=self.site.index,
            depth=self.site.depth,
            metrics=self.estimates,
            top_dimensions=self._top_coordinates(),
            histogram=Histogram(tuple(self._histogram.tolist())),
        )

    def contributions(self) -> Tensor:
        """What each coordinate adds to the mean cosine, mean over texts, (d,)."""
        if self._parts is None:
            raise ValueError("no text was measured")
        return self._parts / max(1, self._measured)

    def _site_estimate(self, key: str) -> Estimate:
        if key == "cross_text_cosine":
            whole = torch.ones(1, len(self._sums), dtype=torch.float64)
            value = _finite_or_none(float(geometry.cross_cosines(*self.products, whole)))
            return pooled(value, self.without_each_document(), self.documents, key)
        table = self.table(key)
        nulls = self.null_table(key) if key in SPECTRAL else None
        return estimated(over_documents(table, self.documents), key, table, nulls)

    def _top_coordinates(self) -> tuple[TopDimension, ...]:
        mean = self.contributions()
        total = float(mean.sum())
        top = mean.topk(min(geometry.TOP, len(mean)))
        share = total >= geometry.SHARE_FLOOR
        return tuple(
            TopDimension(int(k), float(v), float(v) / total if share else None)
            for k, v in zip(top.indices, top.values, strict=True)
        )


def estimated(spread: Spread, key: str, per_text: Floats | None = None, nulls: Floats | None = None) -> Estimate:
    """The record of an estimate; its interval ends where the metric's own range does."""
    metric = METRICS[key]
    reason = spread.reason if spread.value is not None else REASONS.get(key, "undefined in every window")
    low, high = spread.clipped(metric.low, metric.high)
    null = ratio = None
    if nulls is not None and per_text is not None and np.isfinite(per_text).any():
        known = np.isfinite(per_text)
        null, ratio = (
            _finite_or_none(_mean_of_defined(nulls[known])),
            _finite_or_none(_mean_of_defined(per_text[known] / nulls[known])),
        )
    values = None if per_text is None else tuple(_finite_or_none(value) for value in per_text.tolist())
    return Estimate(spread.value, low, high, values, null, ratio, reason)


def pooled(value: float | None, deleted: Sequence[float | None], documents: Sequence[int], key: str) -> Estimate:
    """The record of a number over pairs of documents, with its value without each of them."""
    return replace(estimated(jackknife(value, deleted, documents), key), deleted=tuple(deleted))


class DepthSummary:
    """The deepest half of a stack's blocks: a window's deep value is the mean over them, undefined if one is."""

    def __init__(self, tallies: Sequence[SiteTally], documents: Sequence[int] = (), seed: int = 0) -> None:
        """From the tallies of one stack's sites."""
        blocks = [tally for tally in tallies if tally.site.name == "block"]
        self.half = [tally for tally in blocks if tally.site.index > tally.site.blocks // 2]
        self.documents, self.seed = tuple(documents), seed

    def table(self, key: str) -> Floats:
        """The deep value of a metric of each window, (N,)."""
        return _mean_over_blocks([tally.table(key) for tally in self.half])

    def null_ratios(self, key: str) -> Floats:
        """The deep null ratio of a spectral metric of each window, (N,)."""
        return _mean_over_blocks([tally.null_ratios(key) for tally in self.half])

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """`deep`: the mean over windows of every metric, with its interval over documents."""
        return {key: self._deep_estimate(key) for key in METRICS}

    @cached_property
    def repeats_itself(self) -> bool:
        """Whether the same tokens of a text make the deep mean cosine larger by more than `REPETITION`."""
        return bool(
            _mean_of_defined(self.table("mean_cosine")) - _mean_of_defined(self.table("mean_cosine_distinct"))
            > REPETITION
        )

    def inputs(self) -> Inputs:
        """What the verdict's rules read; over pairs of different tokens where the text repeats itself."""
        return Inputs(*map(_finite_or_none, self._from_weights(np.ones((1, len(self.half[0]))))[0].tolist()))

    def draws(self) -> list[Inputs]:
        """The same on seeded resamples of the documents, each deviation stretched; empty without documents.

        Empty for one window too: every resample would be equal, and a word would look certain.

        The cross-text cosine stays as it is where a resample holds copies of one document only.
        """
        if len(self.documents) < 2:
            return []
        estimate = self._from_weights(np.ones((1, len(self.documents))))
        drawn = self._from_weights(document_weights(self.documents, self.seed))
        deviations = np.where(np.isfinite(drawn), drawn - estimate, 0.0)
        rows = (estimate + stretch(self.documents) * deviations).tolist()
        return [Inputs(*map(_finite_or_none, row)) for row in rows]

    def dimensions(self) -> list[int]:
        """The coordinates that add most to the mean cosine, strongest first."""
        parts = torch.stack([tally.contributions() for tally in self.half]).mean(0)
        return [int(k) for k in parts.topk(min(geometry.TOP, len(parts))).indices]

    def _from_weights(self, weights: Floats) -> Floats:
        """The numbers of `Inputs` where each window is taken so many times: weights (R, N) -> (R, 7)."""
        repeated = self.repeats_itself
        without = self._extra("without_distinct") if repeated else self.table("mean_cosine_without_top_dimensions")
        columns = [
            self.table("mean_cosine_distinct" if repeated else "mean_cosine"),
            self.null_ratios("effective_rank"),
            without,
            self._extra("sink_distinct") if repeated else self.table("mean_cosine_with_sink"),
            self.table("effective_rank"),
            self.table("effective_rank_with_sink"),
        ]
        means = weighted_means(np.stack(columns, axis=1), weights)
        return np.insert(means, 3, self._cross_cosines(weights), axis=1)

    def _extra(self, key: str) -> Floats:
        return _mean_over_blocks([np.array(tally.extra[key]) for tally in self.half])

    def _cross_cosines(self, weights: Floats) -> Floats:
        """The deep cross-text cosine where each window's document is taken so many times, (R,)."""
        first = np.unique(np.array(self.documents or range(weights.shape[1])), return_index=True)[1]
        documents = torch.from_numpy(np.ascontiguousarray(weights[:, np.sort(first)]))
        tables = [t.distinct_products if self.repeats_itself else t.products for t in self.half]
        return _mean_over_blocks([geometry.cross_cosines(*table, documents).numpy() for table in tables])

    def _deep_estimate(self, key: str) -> Estimate:
        if not self.half:
            return Estimate(None, reason="no blocks")
        if key == "cross_text_cosine":
            whole = [tally.estimates[key].value for tally in self.half]
            value = None if None in whole else float(np.mean([v for v in whole if v is not None]))
            deleted = _mean_over_blocks([_floats_with_nan(tally.without_each_document()) for tally in self.half])
            return pooled(value, [_finite_or_none(v) for v in deleted.tolist()], self.documents, key)
        table = self.table(key)
        nulls = _mean_over_blocks([tally.null_table(key) for tally in self.half]) if key in SPECTRAL else None
        estimate = estimated(over_documents(table, self.documents), key, table, nulls)
        if nulls is None or estimate.null_ratio is None:
            return estimate
        return replace(estimate, null_ratio=_finite_or_none(_mean_of_defined(self.null_ratios(key))))


def trend(tallies: Sequence[SiteTally]) -> Trend:
    """Rank correlation of mean cosine with depth over embedding..block L."""
    curve = [tally.estimates["mean_cosine"].value for tally in tallies if tally.site.name != "output"]
    return trend_of([v for v in curve if v is not None])


def trend_of(curve: Sequence[float]) -> Trend:
    """Rank correlation of a curve with its order."""
    return Trend(*_correlations(curve))


def paper(tallies: Sequence[SiteTally]) -> Paper:
    """The published curve: hidden_states 0..L with the last one normed, all pairs, position 0 kept."""
    *inner, _, last = tallies
    curve = [float(np.mean(tally.extra["paper"])) for tally in [*inner, last]]
    return Paper(tuple(curve), *_correlations(curve))


def _correlations(curve: Sequence[float]) -> tuple[Spearman, Kendall]:
    import scipy.stats

    if len(curve) < 3 or len(set(curve)) < 2:
        return Spearman(None, None), Kendall(None, None)
    depth = range(len(curve))
    rho, tau = scipy.stats.spearmanr(depth, curve), scipy.stats.kendalltau(depth, curve)
    return Spearman(float(rho.statistic), float(rho.pvalue)), Kendall(float(tau.statistic), float(tau.pvalue))


def _mean_over_blocks(tables: Sequence[Floats]) -> Floats:
    """Mean of equal arrays, NaN where one of them is."""
    means: Floats = np.mean(tables, axis=0)
    return means


def _add_to(sums: dict[int, Tensor], key: int, value: Tensor) -> None:
    sums[key] = value.clone() if key not in sums else sums[key].add_(value)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _floats_with_nan(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _mean_of_defined(values: Sequence[float] | Floats) -> float:
    """Mean of the defined values, NaN where there is none; of equal values it is that value."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return math.nan
    return float(known[0] if known.min() == known.max() else known.mean())
