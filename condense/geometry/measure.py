"""All metrics of one text at one site, in float32 with float64 sums: what the streaming analysis needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condense.geometry.cosine import BINS, QUANTILES, TOP, pair_cosines, pair_metrics, share_of_mean
from condense.geometry.rows import quantile, sink_positions
from condense.geometry.spectrum import SPECTRAL_TOKENS, Spectra, ranks_of
from condense.metrics import SINK_FACTOR

_CHANNELS = 2  # coordinates that are named of a sink
_BLOCK = 2**16  # values that are held in float64 at once
_MANY = 0.05  # of all pairs are one token's: the rounding of their float32 cosines no longer averages out


@dataclass(frozen=True)
class Measurement:
    """The metrics of one text at one site, and what is pooled over texts; every tensor on the CPU.

    `values` has one entry per scalar key, NaN where undefined; the spectral ones are missing until `settled`, because
    eigenvalues of many sites are cheaper together. `extra` has what has no key of its own: the paper's mean cosine
    (`paper`), the moments of the dimension (`dimension_numerator`, `dimension_denominator`), and the mean cosine
    without the top dimensions and with the sink over pairs of different tokens (`without_distinct`, `sink_distinct`).
    `count` rows are in the primary numbers. `sinks` (k, 4): position, times the median, two coordinates, longest
    first. `repeats` (m, 2): how often a token occurs among the spectral rows, and how many tokens do. `shared`
    (M, d + 1): Σu of each token that the corpus repeats, and how often it occurs.
    """

    values: dict[str, float]
    extra: dict[str, float]
    count: int
    unit_sum: Tensor
    contributions: Tensor
    histogram: Tensor
    sinks: Tensor
    repeats: Tensor
    shared: Tensor
    spectra: Spectra | None = None

    def reduced(self) -> Measurement:
        """The same, no longer holding the Gram matrix."""
        if self.spectra is not None:
            self.spectra.reduce()
        return self

    def settled(self) -> Measurement:
        """The same with its spectral metrics."""
        return settle([self])[0]


def settle(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Measurements with their spectral metrics, which are cheaper for many sites together."""
    waiting = [one.spectra for one in measurements if one.spectra is not None]
    ranks = iter(ranks_of(waiting))
    made = []
    for one in measurements:
        if one.spectra is not None:
            numerator, denominator = one.spectra.moments
            extra = {**one.extra, "dimension_numerator": numerator, "dimension_denominator": denominator}
            one = replace(one, values={**one.values, **next(ranks)}, extra=extra, spectra=None)
        made.append(one)
    return made


def measure(
    states: Tensor,
    keep: Tensor | None = None,
    spectral: Tensor | None = None,
    ids: Tensor | None = None,
    shared: Tensor | None = None,
    same: Tensor | None = None,
    sink_factor: float = SINK_FACTOR,
) -> Measurement:
    """Every metric of one text at one site, all pairs from one Gram matrix.

    states (m, d), all positions; keep (m,) bool, the tokens that count (default: all); spectral (k,) indices into the
    positions, used by the spectral metrics (default: the first 256 kept ones); ids (m,) token ids (default: all
    different); shared (M, m) bool, the positions of each token whose sum is wanted by itself (default: none); same
    (2, P), `same_pairs(ids)` where it is known already.
    Sinks are left out of the primary numbers at every position. NaN where fewer than two rows with a direction are
    left. ValueError if the states are not finite.
    """
    x = states.detach()
    x = (x.cpu() if x.device.type == "mps" else x).to(torch.promote_types(x.dtype, torch.float32))
    keep = torch.ones(len(x), dtype=torch.bool, device=x.device) if keep is None else keep.to(x.device)
    spectral = torch.nonzero(keep).flatten()[:SPECTRAL_TOKENS] if spectral is None else spectral.to(x.device)
    ids = torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device)
    text = _Text(x, keep, (same_pairs(ids) if same is None else same).to(x.device), sink_factor)
    values, pooled = text.metrics() if text.count > 1 else text.too_few()
    numbers = dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist(), strict=True))
    chosen = spectral[text.counted[spectral]]
    return Measurement(
        extra={key: numbers.pop(key) for key in ("paper", "without_distinct", "sink_distinct")},
        values=numbers,
        count=text.count,
        unit_sum=pooled.unit_sum.cpu(),
        contributions=pooled.contributions.cpu(),
        histogram=pooled.histogram.cpu(),
        sinks=text.anatomy().cpu(),
        repeats=_repeats(ids[chosen]).cpu(),
        shared=text.shared(torch.zeros(0, len(x), dtype=torch.bool) if shared is None else shared).cpu(),
        spectra=text.spectra(chosen),
    )


def same_pairs(ids: Tensor) -> Tensor:
    """The pairs i<j of positions that hold the same token, ordered by i; ids (m,) -> (2, P)."""
    return torch.nonzero((ids.unsqueeze(1) == ids).triu(1)).T.contiguous()


def _repeats(ids: Tensor) -> Tensor:
    """Pairs of (how often a token occurs, how many tokens do) among the ids, (m, 2)."""
    return torch.stack(torch.unique(torch.unique(ids, return_counts=True)[1], return_counts=True), dim=1)


@dataclass(frozen=True)
class _Pooled:
    """What is summed over texts: Σu (d,), contributions of the coordinates (d,), counts of the pairs (200,)."""

    unit_sum: Tensor
    contributions: Tensor
    histogram: Tensor


class _Text:
    """The rows of one text at one site and the sums that its metrics share."""

    def __init__(self, x: Tensor, keep: Tensor, same: Tensor, sink_factor: float) -> None:
        """From x (m, d) float32 or wider, the tokens that count if they are no sinks, and the pairs of one token."""
        self.x, self.same = x, same
        self.lengths = _finite_lengths(x)
        self.directed = self.lengths > 1e-6 * self.lengths.square().mean().sqrt()
        self.sinks = sink_positions(self.lengths, keep & self.directed, sink_factor)
        self.keep = keep & ~self.sinks
        self.counted = self.keep & self.directed
        self.count = int(self.counted.sum())
        self.inverse = torch.where(self.directed, 1 / self.lengths, 0.0)

    def metrics(self) -> tuple[dict[str, Tensor], _Pooled]:
        """Every metric but the spectral ones, and what is pooled."""
        n, inner = self.count, self.inverse * self.keep
        sums, squares = _weighted_sums(self.x, torch.stack([inner, self.inverse, self.keep.double()]), inner.square())
        s, everyone, raw = sums
        parts = (s.square() - squares) / (n * (n - 1))
        top = parts.topk(min(TOP, len(parts)))
        kept = torch.nonzero(self.counted).flatten()
        units = self.x.index_select(0, kept) * self.inverse[kept].to(self.x.dtype).unsqueeze(-1)
        mean = parts.sum().clamp(-1, 1)
        inside = self.counted[self.same].all(0)
        same, others = self.same[:, inside], self.same[:, ~inside]
        chosen = (self.counted.cumsum(0) - 1)[same]
        pairs, histogram, cosines = pair_metrics(units, mean, chosen)
        if 2 * same.shape[1] > _MANY * n * (n - 1):
            units = self.x.index_select(0, kept).double() * self.inverse[kept].unsqueeze(-1)
            cosines = pair_cosines(units, chosen)[1]
        cosines = cosines.double()
        square = s.square().sum()
        values = {
            "mean_cosine": mean,
            "mean_cosine_distinct": _distinct(square, n, cosines),
            "top_dimension_share": share_of_mean(top.values.sum(), mean),
            **self._without_top(top.indices, same, cosines),
            **self._with_sink(everyone, others, cosines),
            **self._length_values(raw),
            **pairs,
        }
        return values, _Pooled(s, parts, histogram)

    def too_few(self) -> tuple[dict[str, Tensor], _Pooled]:
        """The same where fewer than two rows are left: undefined, but for what keeps the sinks."""
        keys = (
            *(
                "mean_cosine",
                "mean_cosine_distinct",
                "cosine_std",
                *(f"cosine_q{round(100 * q):02d}" for q in QUANTILES),
            ),
            *("mean_cosine_without_top_dimensions", "without_distinct", "top_dimension_share", "participation_ratio"),
            *("relative_variance", "total_variance", "median_norm", "sink_ratio"),
        )
        values = dict.fromkeys(keys, self.lengths.new_full((), torch.nan))
        sums, _ = _weighted_sums(self.x, torch.stack([self.inverse * self.keep, self.inverse]))
        values |= self._with_sink(sums[1], self.same, sums.new_zeros(0))
        return values, _Pooled(sums[0], torch.zeros_like(sums[0]), torch.zeros(BINS, dtype=torch.int64))

    def spectra(self, chosen: Tensor) -> Spectra:
        """The Gram matrix of the chosen spectral rows and of all positions that are left out of the primary numbers."""
        positions = torch.cat([chosen, torch.nonzero(~self.keep).flatten()])
        return Spectra(self.x.index_select(0, positions).double(), self.lengths[positions], len(chosen))

    def anatomy(self) -> Tensor:
        """The sinks, longest first: position, times the median, and the coordinates that carry them, (k, 4)."""
        positions = torch.nonzero(self.sinks).flatten()
        if not len(positions) or not self.count:
            return self.lengths.new_zeros(0, 2 + _CHANNELS)
        positions = positions[self.lengths[positions].argsort(descending=True, stable=True)]
        largest = self.x[positions].abs().topk(min(_CHANNELS, self.x.shape[1]), dim=1).indices
        ratios = self.lengths[positions] / quantile(self.lengths[self.counted], 0.5)
        return torch.cat([torch.stack([positions.double(), ratios], dim=1), largest.double()], dim=1)

    def shared(self, members: Tensor) -> Tensor:
        """Σu of the rows that are members of each group (M, m), and how many they are, (M, d + 1)."""
        counted = members.to(self.counted.device) & self.counted
        rows = torch.nonzero(counted.any(0)).flatten()
        sums, _ = _weighted_sums(self.x.index_select(0, rows), counted[:, rows] * self.inverse[rows])
        return torch.cat([sums, counted.sum(1, keepdim=True).double()], dim=1)

    def _without_top(self, top: Tensor, same: Tensor, cosines: Tensor) -> dict[str, Tensor]:
        """Mean cosine of the rows that count with the coordinates `top` zeroed, over all and over distinct pairs."""
        whole, largest = self.lengths.square(), self.x.index_select(1, top).double()
        rest = whole - largest.square().sum(1)
        alive = self.counted & (rest > 1e-12 * whole)
        weights = torch.where(alive, rest, 1.0).rsqrt() * alive
        total, n = _weighted_sums(self.x, weights.unsqueeze(0))[0][0], int(alive.sum())
        square = total.square().sum() - total[top].square().sum()
        if n < self.count:
            left = alive[same].all(0)
            same, cosines = same[:, left], cosines[left]
        i, j = same
        longer, largest = self.lengths * weights, largest * weights.unsqueeze(1)
        products = cosines * longer[i] * longer[j] - (largest[i] * largest[j]).sum(1)
        mean = ((square - n) / (n * (n - 1))).clamp(-1, 1) if n > 1 else total.new_tensor(torch.nan)
        return {
            "mean_cosine_without_top_dimensions": mean,
            "without_distinct": _distinct(square, n, products),
        }

    def _with_sink(self, everyone: Tensor, others: Tensor, cosines: Tensor) -> dict[str, Tensor]:
        """What keeps position 0, specials and sinks, from the sum of all unit rows.

        others (2, P): the pairs of one token that are not among the rows that count; cosines: of those that are.
        """
        square, n = everyone.square().sum(), int(self.directed.sum())
        mean = (square - n) / (n * (n - 1)) if n > 1 else square.new_tensor(torch.nan)
        i, j = others[:, self.directed[others].all(0)]
        more = (self.x[i].double() * self.x[j].double()).sum(1) * self.inverse[i] * self.inverse[j]
        return {
            "mean_cosine_with_sink": mean.clamp(-1, 1),
            "sink_distinct": _distinct(square, n, torch.cat([cosines, more])),
            "paper": (square / len(self.x) ** 2).clamp(max=1.0),
        }

    def _length_values(self, raw: Tensor) -> dict[str, Tensor]:
        """The metrics of raw rows, `raw` their sum. In float64 the difference loses nothing that float32 had."""
        lengths = self.lengths[self.keep]
        n, energy, middle = len(lengths), lengths.square().sum(), quantile(lengths, 0.5)
        spread = (energy - raw.square().sum() / n).clamp_min(0.0)
        return {
            "relative_variance": (spread / energy).clamp(max=1.0),
            "total_variance": spread / (n - 1) / len(raw),
            "median_norm": middle,
            "sink_ratio": self.lengths.max() / middle,
        }


def _weighted_sums(x: Tensor, weights: Tensor, of_squares: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums of the rows x (m, d) by weights (k, m), and of their squares by weights (m,): (k, d), (d,), 0 without.

    In float64, without rounding and without overflow; some rows at a time, for to make large arrays anew for
    every site takes four times as long as the arithmetic.
    """
    rows = max(1, _BLOCK // x.shape[1])
    sums = weights.new_zeros(len(weights), x.shape[1])
    squares = weights.new_zeros(x.shape[1])
    for start in range(0, len(x) if len(weights) else 0, rows):
        wide = x[start : start + rows].double()
        sums.addmm_(weights[:, start : start + rows], wide)
        if of_squares is not None:
            squares.addmv_(wide.square().T, of_squares[start : start + rows])
    return sums, squares


def _distinct(square: Tensor, n: int, same: Tensor) -> Tensor:
    """Mean cosine over pairs of different tokens: square = ‖Σu‖² of n unit rows, `same` the cosines of the others.

    NaN where all pairs i<j are of one token.
    """
    pairs = n * (n - 1) - 2 * len(same)
    if pairs == 0:
        return square.new_full((), torch.nan)
    return ((square - n - 2 * same.sum()) / pairs).clamp(-1, 1)


def _finite_lengths(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)  # squares of float32 overflow
    if not bool(torch.isfinite(lengths).all()):
        raise ValueError(f"{int((~torch.isfinite(x)).any(-1).sum())} of {len(x)} states are not finite")
    return lengths
