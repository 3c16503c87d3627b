r"""How condensed is a cloud of vectors? Pure functions on states (..., n, d).

Legend: n token states of one text at one site, d dimensions, x_i a row, u_i = x_i/‖x_i‖,
s = Σ u_i, c_ij = u_i·u_j. One function per key of `condense.metrics.METRICS`; all work in float64
and reduce the last two axes. `measure` gives them all for one text from one Gram matrix, in float32
with float64 sums, as the streaming analysis needs it.

Rows whose norm is at most 1e-6 times the root mean square of the row norms have no direction and are
left out, never softened by an epsilon. A quantity that is undefined (fewer than two rows with a
direction) is NaN; states that are not finite raise ValueError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

BINS = 200
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
TOP = 3
SPECTRAL_TOKENS = 256
SHARE_FLOOR = 0.05
RANKS = ("effective_rank", "entropy_rank", "effective_rank_with_sink")
_ROWS = 128  # rows of the Gram matrix that are computed at once
_FINE = 64  # sub-bins per histogram bin: quantiles are looked up there, then sorted exactly


# --- the named quantities ------------------------------------------------------------------------


def mean_cosine(states: Tensor) -> Tensor:
    """Mean cosine similarity of two different tokens: 0 when directions are spread, 1 in a point cone.

    states (..., n, d) -> (...), range [−1/(n−1), 1]. (‖s‖² − n)/(n(n−1)), O(nd), no n×n matrix.
    Ethayarajh 2019, arXiv:1909.00512.
    """
    return _each(states, lambda x: _mean_cosine(_directions(x)))


def cosine_std(states: Tensor) -> Tensor:
    """Standard deviation of the cosine over all pairs i<j of one text: the width of the cone's spread.

    states (..., n, d) -> (...), range [0, 1]. Population form (divided by the number of pairs).
    """
    return _each(states, lambda x: _pairs(_directions(x)).std(correction=0))


def cosine_quantile(states: Tensor, q: float) -> Tensor:
    """Cosine that a share q of the pairs i<j stays below; exact, with linear interpolation.

    states (..., n, d), q in [0, 1] -> (...), range [−1, 1]. ValueError for q outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], got {q}")
    return _each(states, lambda x: _quantile(_pairs(_directions(x)), q))


cosine_q05 = functools.partial(cosine_quantile, q=0.05)
cosine_q25 = functools.partial(cosine_quantile, q=0.25)
cosine_q50 = functools.partial(cosine_quantile, q=0.50)
cosine_q75 = functools.partial(cosine_quantile, q=0.75)
cosine_q95 = functools.partial(cosine_quantile, q=0.95)


def histogram(states: Tensor) -> Tensor:
    """Counts of the cosines of all pairs i<j in 200 equal bins on [−1, 1], int64.

    states (..., n, d) -> (..., 200). Cosines that rounding puts above 1 count in the last bin.
    """
    return _each(states, lambda x: _coarse(_fine_counts(_pairs(_directions(x)))[1]))


def effective_rank(states: Tensor) -> Tensor:
    """Directions that the tokens use once their common direction is taken away.

    states (..., n, d) -> (...), range [1, min(n−1, d)]. exp H(σ/Σσ), σ the singular values of the
    centred unit rows u_i − ū. Roy & Vetterli 2007. Depends on n: compare at equal n only.
    """
    return _each(states, lambda x: _spectral(_centred(_gram(_directions(x)))))


def entropy_rank(states: Tensor) -> Tensor:
    """Exponential of the von Neumann entropy of the cosine matrix: 1 when all tokens point one way.

    states (..., n, d) -> (...), range [1, min(n, d)]. exp H(λ/Σλ), λ the eigenvalues of C/n, uncentred.
    Skean et al. 2025, arXiv:2502.02013.
    """
    return _each(states, lambda x: _entropy(_eigenvalues(_gram(_directions(x)))))


def participation_ratio(states: Tensor) -> Tensor:
    """Number of directions that share the energy of the unit rows evenly, free from the bias of small n.

    states (..., n, d) -> (...), at least 1. 1 / mean of c_ij² over pairs i<j.
    Chun et al. 2026, arXiv:2509.26560.
    """
    return _each(states, lambda x: 1 / _pairs(_directions(x)).square().mean())


def relative_variance(states: Tensor) -> Tensor:
    """Share of the states' energy that is not in their mean: 0 when all rows are equal.

    states (..., n, d) -> (...), range [0, 1]. 1 − n‖x̄‖²/‖X‖²_F on the raw rows.
    """
    return _each(states, lambda x: (x - x.mean(0)).square().sum() / x.square().sum())


def total_variance(states: Tensor) -> Tensor:
    """Unbiased variance of the raw states, averaged over dimensions, in activation².

    states (..., n, d) -> (...), ≥ 0. tr Cov(X)/d. Grows with the residual norm: not comparable across depth.
    """
    return _each(states, lambda x: (x - x.mean(0)).square().sum() / (len(x) - 1) / x.shape[1])


def median_norm(states: Tensor) -> Tensor:
    """Median length of the token states; an even count averages the middle two.

    states (..., n, d) -> (...), ≥ 0, in units of activation.
    """
    return _each(states, lambda x: _quantile(x.norm(dim=-1), 0.5))


def sink_ratio(states: Tensor, everything: Tensor | None = None) -> Tensor:
    """Longest state over the median one: above 100, a token carries massive activations.

    states (..., n, d) the kept tokens; everything (..., m, d) all positions (default: states) -> (...), ≥ 0.
    max ‖x‖ / median ‖x‖. Sun et al. 2024, arXiv:2402.17762.
    """
    longest = _each(states if everything is None else everything, lambda x: x.norm(dim=-1).max())
    return longest / median_norm(states)


def dimension_contributions(states: Tensor) -> Tensor:
    """What each coordinate adds to the mean cosine; the contributions sum to it exactly.

    states (..., n, d) -> (..., d). (s_k² − Σ_i u_ik²)/(n(n−1)). Timkey & van Schijndel 2021, arXiv:2109.04404.
    """
    return _each(states, lambda x: _contributions(_directions(x)))


def top_dimensions(states: Tensor) -> Tensor:
    """Indices of the three coordinates that add most to the mean cosine, strongest first.

    states (..., n, d) -> (..., min(3, d)), int64.
    """
    return dimension_contributions(states).topk(min(TOP, states.shape[-1])).indices


def top_dimension_share(states: Tensor) -> Tensor:
    """Share of the mean cosine that the three strongest coordinates make; NaN where it is below 0.05.

    states (..., n, d) -> (...). May exceed 1, for other coordinates can be negative.
    """

    def share(x: Tensor) -> Tensor:
        parts = _contributions(_directions(x))
        return _share(parts.topk(min(TOP, len(parts))).values.sum(), parts.sum())

    return _each(states, share)


def mean_cosine_without_top_dimensions(states: Tensor) -> Tensor:
    """Mean cosine after the text's own three strongest coordinates are set to zero in x (one pass).

    states (..., n, d) -> (...), range [−1, 1]. NaN for d ≤ 3. Timkey & van Schijndel 2021, arXiv:2109.04404.
    """

    def without(x: Tensor) -> Tensor:
        top = _contributions(_directions(x)).topk(min(TOP, x.shape[-1])).indices
        return _mean_cosine(_directions(x.index_fill(1, top, 0.0)))

    return _each(states, without)


def cross_text_cosine(texts: Sequence[Tensor]) -> Tensor:
    """Mean cosine of tokens of different texts: the anisotropy baseline of a corpus.

    texts: clouds (n_t, d) -> scalar, range [−1, 1]. (‖Σs_t‖² − Σ‖s_t‖²)/Σ_{t≠t'} n_t n_t'.
    Ethayarajh 2019, arXiv:1909.00512.
    """
    units = [_directions(_checked(text)) for text in texts]
    sums = torch.stack([unit.sum(0) for unit in units])
    counts = torch.tensor([float(len(unit)) for unit in units], dtype=torch.float64)
    return pooled_cosine(sums.sum(0), sums.square().sum(), counts.sum(), counts.square().sum())


def pooled_cosine(total: Tensor, squares: Tensor, count: Tensor, count_squares: Tensor) -> Tensor:
    """Cross-text cosine from running sums: Σs_t (d,), Σ‖s_t‖², Σn_t, Σn_t². NaN for a single text."""
    pairs = count**2 - count_squares
    return torch.where(pairs > 0, (total.square().sum() - squares) / pairs, torch.nan)


def paper_mean_cosine(states: Tensor) -> Tensor:
    """Mean over all n² pairs, the diagonal of ones kept: the quantity Liu et al. 2026 plot per layer.

    states (..., n, d) with every position -> (...), range [0, 1]. ‖s‖²/n².
    """
    return _each(states, lambda x: _directions(x).sum(0).square().sum() / x.shape[0] ** 2)


# --- all of them for one text, as the streaming analysis needs them --------------------------------


@dataclass(frozen=True)
class Spectra:
    """What the spectral metrics of one text at one site are computed from, later and together.

    `gram` float64 on the CPU: cosines of the `chosen` spectral rows, then of position 0 and the specials;
    `lengths` are the norms of all these rows.
    """

    gram: Tensor
    lengths: Tensor
    chosen: int

    def matrix(self, key: str) -> Tensor:
        """The Gram matrix whose eigenvalues give the spectral metric `key`."""
        if key == "effective_rank_with_sink":
            return self.gram * self.lengths.unsqueeze(0) * self.lengths.unsqueeze(1)
        cosines = self.gram[: self.chosen, : self.chosen]
        return cosines if key == "entropy_rank" else _centred(cosines)


@dataclass(frozen=True)
class Measurement:
    """The metrics of one text at one site, and what is pooled over texts; every tensor on the CPU.

    `values` has one entry per scalar key; the spectral ones are missing until `settled`, because
    eigenvalues of many sites are cheaper together. `paper` is `paper_mean_cosine`.
    """

    values: dict[str, float]
    paper: float
    count: int
    unit_sum: Tensor
    contributions: Tensor
    histogram: Tensor
    spectra: Spectra | None = None

    @property
    def grams(self) -> dict[str, Tensor]:
        """The Gram matrices that still wait for `ranks`, by key."""
        return {key: self.spectra.matrix(key) for key in RANKS} if self.spectra else {}

    def settled(self, found: Mapping[str, float]) -> Measurement:
        """The same with its spectral metrics, no longer holding the Gram matrix."""
        return replace(self, values={**self.values, **found}, spectra=None)


def measure(states: Tensor, keep: Tensor | None = None, spectral: Tensor | None = None) -> Measurement:
    """Every metric of one text at one site, all pairs from one Gram matrix.

    states (m, d), all positions; keep (m,) bool, the tokens that count (default: all); spectral (k,)
    indices into the positions, used by the spectral metrics (default: the first 256 kept ones).
    ValueError if the states are not finite or no two kept rows have a direction.
    """
    x = states.detach()
    x = (x.cpu() if x.device.type == "mps" else x).to(torch.promote_types(x.dtype, torch.float32))
    keep = torch.ones(len(x), dtype=torch.bool, device=x.device) if keep is None else keep.to(x.device)
    wide = x.double()  # the sums: without rounding, and squares of float32 overflow from 1e19 on
    lengths = _finite_lengths(wide)
    directed = lengths > 1e-6 * lengths.square().mean().sqrt()
    kept = torch.nonzero(keep & directed).flatten()
    n = len(kept)
    if n < 2:
        raise ValueError("fewer than two tokens with a direction")
    inverse = torch.where(directed, 1 / lengths, 0.0)
    inner = inverse * keep
    s, everyone, raw = torch.stack([inner, inverse, keep.double()]) @ wide
    parts = (s.square() - inner.square() @ wide.square()) / (n * (n - 1))
    top = parts.topk(min(TOP, len(parts)))
    rows = x.index_select(0, kept) * inverse[kept].to(x.dtype).unsqueeze(-1)
    mean, everything = parts.sum(), int(directed.sum())
    cosines, counts = _pair_values(rows, mean)
    values = {
        "mean_cosine": mean,
        "top_dimension_share": _share(top.values.sum(), mean),
        "mean_cosine_without_top_dimensions": _without(wide, lengths, keep & directed, top.indices),
        "mean_cosine_with_sink": (everyone.square().sum() - everything) / (everything * (everything - 1)),
        "paper": everyone.square().sum() / len(x) ** 2,
        **_length_values(lengths, keep, raw),
        **cosines,
    }
    numbers = dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist(), strict=True))
    spectral = torch.nonzero(keep).flatten()[:SPECTRAL_TOKENS] if spectral is None else spectral.to(x.device)
    return Measurement(
        paper=numbers.pop("paper"),
        values=numbers,
        count=n,
        unit_sum=s.cpu(),
        contributions=parts.cpu(),
        histogram=counts.cpu(),
        spectra=_spectra(wide, lengths, spectral[directed[spectral]], torch.nonzero(~keep).flatten()),
    )


def _finite_lengths(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1)
    if not bool(torch.isfinite(lengths).all()):
        raise ValueError(f"{int((~torch.isfinite(x)).any(-1).sum())} of {len(x)} states are not finite")
    return lengths


def _length_values(lengths: Tensor, keep: Tensor, raw: Tensor) -> dict[str, Tensor]:
    """The metrics of raw rows, of which `raw` is the sum. In float64 the difference loses nothing float32 had."""
    counted = lengths[keep]
    n, energy, middle = len(counted), counted.square().sum(), _quantile(counted, 0.5)
    spread = (energy - raw.square().sum() / n).clamp_min(0.0)
    return {
        "relative_variance": spread / energy,
        "total_variance": spread / (n - 1) / len(raw),
        "median_norm": middle,
        "sink_ratio": lengths.max() / middle,
    }


def _pair_values(rows: Tensor, mean: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The metrics of all pairs i<j, and their histogram; the spread is summed about the mean, free of cancellation."""
    pairs = _pairs(rows)
    counts, quantiles = _counts_and_quantiles(pairs)
    variance = pairs.sub_(mean.to(pairs.dtype)).square_().mean(dtype=torch.float64)
    values = {f"cosine_q{round(100 * q):02d}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
    return values | {"cosine_std": variance.sqrt(), "participation_ratio": 1 / (variance + mean.square())}, counts


def _without(wide: Tensor, lengths: Tensor, counted: Tensor, top: Tensor) -> Tensor:
    """Mean cosine of the counted rows with the coordinates `top` zeroed."""
    whole = lengths.square()
    rest = whole - wide.index_select(1, top).square().sum(1)
    alive = counted & (rest > 1e-12 * whole)
    n = int(alive.sum())
    total = (torch.where(alive, rest, 1.0).rsqrt() * alive) @ wide
    others = total.square().sum() - total[top].square().sum()
    return (others - n) / (n * (n - 1)) if n > 1 else total.new_tensor(torch.nan)


def _spectra(wide: Tensor, lengths: Tensor, chosen: Tensor, sinks: Tensor) -> Spectra:
    """The float64 Gram matrix behind the three spectral metrics, on the CPU; its upper right is a copy."""
    positions = torch.cat([chosen, sinks])
    norms = lengths[positions]
    rows = wide.index_select(0, positions).div_(torch.where(norms > 0, norms, 1.0).unsqueeze(-1))
    half = len(rows) // 2
    gram = rows.new_empty(len(rows), len(rows))
    torch.mm(rows[half:], rows.T, out=gram[half:])
    gram[:half, :half] = rows[:half] @ rows[:half].T
    gram[:half, half:] = gram[half:, :half].T
    return Spectra(gram.cpu(), norms.cpu(), len(chosen))


def ranks(key: str, gram: Tensor) -> float:
    """The spectral metric `key` from the Gram matrix that `measure` kept for it."""
    values = _eigenvalues(gram)
    if key == "entropy_rank":
        return float(_entropy(values))
    return float(_spectral_values(values, centred=key == "effective_rank"))


@functools.lru_cache(maxsize=32)
def gaussian_null(key: Literal["effective_rank", "entropy_rank"], n: int, d: int, draws: int = 4) -> float:
    """What isotropic Gaussian rows of the same (n, d) would score: the ceiling that the shape allows.

    Mean over `draws` seeded clouds; range as the metric's.
    """
    generator = torch.Generator().manual_seed(20260217)
    metric: Callable[[Tensor], Tensor] = {"effective_rank": effective_rank, "entropy_rank": entropy_rank}[key]
    clouds = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(draws))
    return float(torch.stack([metric(cloud) for cloud in clouds]).mean())


# --- shared arithmetic ------------------------------------------------------------------------------


def _checked(states: Tensor) -> Tensor:
    if states.ndim < 2 or 0 in states.shape[-2:]:
        raise ValueError(f"states must be (..., n, d) with n, d ≥ 1, got {tuple(states.shape)}")
    if not states.is_floating_point():
        raise ValueError(f"states must be floating point, got {states.dtype}")
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"{int((~torch.isfinite(states)).sum())} values of the states are not finite")
    return states.detach().cpu().double()


def _each(states: Tensor, quantity: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of one float64 cloud (n, d) to every cloud of (..., n, d)."""
    clouds = _checked(states)
    flat = clouds.reshape(-1, *clouds.shape[-2:])
    results = torch.stack([quantity(cloud) for cloud in flat])
    return results.reshape((*clouds.shape[:-2], *results.shape[1:]))


def _directions(x: Tensor) -> Tensor:
    """Unit rows; rows without a direction are left out. Scaled first, so that no square overflows."""
    scale = x.abs().max()
    norms = (x / torch.where(scale > 0, scale, 1.0)).norm(dim=-1)
    kept = norms > 1e-6 * norms.square().mean().sqrt()
    scaled = x[kept] / torch.where(scale > 0, scale, 1.0)
    units: Tensor = scaled / norms[kept].unsqueeze(-1)
    return units


def _mean_cosine(units: Tensor) -> Tensor:
    n = len(units)
    total = units.sum(0).square().sum()
    return (total - n) / (n * (n - 1)) if n > 1 else total.new_tensor(torch.nan)


def _contributions(units: Tensor) -> Tensor:
    n = len(units)
    parts = units.sum(0).square() - units.square().sum(0)
    return parts / (n * (n - 1)) if n > 1 else torch.full_like(parts, torch.nan)


def _share(top: Tensor, mean: Tensor) -> Tensor:
    return torch.where(mean >= SHARE_FLOOR, top / mean, torch.nan)


@functools.lru_cache(maxsize=8)
def _upper(n: int, device: torch.device) -> Tensor:
    rows, columns = torch.triu_indices(n, n, 1, device=device)
    flat: Tensor = rows * n + columns
    return flat


def _pairs(units: Tensor) -> Tensor:
    """Cosines of all pairs i<j as one vector (n(n−1)/2,), in no particular order; only the upper part is computed."""
    n, filled = len(units), 0
    if n < 2:
        return units.new_full((1,), torch.nan)
    pairs = units.new_empty(n * (n - 1) // 2)
    for start in range(0, n, _ROWS):
        rows, later = units[start : start + _ROWS], units[start + _ROWS :]
        size = len(rows) * len(later)
        torch.mm(rows, later.T, out=pairs[filled : filled + size].view(len(rows), len(later)))
        corner = torch.take(rows @ rows.T, _upper(len(rows), units.device))
        pairs[filled + size : filled + size + len(corner)] = corner
        filled += size + len(corner)
    return pairs


def _quantile(values: Tensor, q: float) -> Tensor:
    """Exact quantile with linear interpolation; torch.quantile refuses more than 2^24 values."""
    ordered = values.sort().values
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low].lerp(ordered[high], place - low)


def _fine_counts(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Bin of every pair and the counts, in 200·64 bins on [−1, 1]; monotone in the cosine."""
    size = BINS * _FINE
    codes = torch.add(pairs, 1).mul_(size / 2).nan_to_num_().clamp_(0, size - 1).to(torch.int32)
    return codes, torch.bincount(codes, minlength=size)


def _coarse(counts: Tensor) -> Tensor:
    return counts.view(BINS, _FINE).sum(1)


def _counts_and_quantiles(pairs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Histogram and exact quantiles without sorting all pairs: only the bins that hold them are sorted."""
    codes, counts = _fine_counts(pairs)
    places = [q * (len(pairs) - 1) for q in QUANTILES]
    orders = torch.tensor([k for p in places for k in (int(p), min(int(p) + 1, len(pairs) - 1))])
    orders = orders.to(pairs.device)
    cumulative = counts.cumsum(0)
    bins = torch.searchsorted(cumulative, orders, right=True)
    wanted = torch.zeros(len(counts), dtype=torch.bool, device=pairs.device)
    wanted[bins] = True
    candidates = pairs[torch.nonzero(wanted.index_select(0, codes)).flatten()].sort().values
    before = cumulative - torch.where(wanted, counts, 0).cumsum(0)  # pairs below, outside the wanted bins
    found = candidates[orders - before[bins]].double()
    quantiles = [found[2 * i].lerp(found[2 * i + 1], p - int(p)) for i, p in enumerate(places)]
    return _coarse(counts), quantiles


def _gram(units: Tensor) -> Tensor:
    return units @ units.T


def _centred(gram: Tensor) -> Tensor:
    """Gram matrix of the rows minus their mean."""
    rows = gram.mean(0, keepdim=True)
    return gram - rows - rows.T + gram.mean()


def _eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues, ascending; what is only rounding is 0, for the square roots of n − d such would add up."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    floor = len(gram) * torch.finfo(gram.dtype).eps * values.abs().max() if len(gram) else 0.0
    return torch.where(values > floor, values, 0.0)


def _spectral(gram: Tensor) -> Tensor:
    return _spectral_values(_eigenvalues(gram), centred=True)


def _spectral_values(eigenvalues: Tensor, *, centred: bool) -> Tensor:
    """Exp H(σ/Σσ), σ = sqrt(λ). Centring has a null direction whose rounding noise would count as a σ."""
    values = eigenvalues[1:] if centred else eigenvalues
    return _entropy(values.sqrt())


def _entropy(weights: Tensor) -> Tensor:
    """Exponential of the Shannon entropy of non-negative weights; NaN if they are all 0."""
    total = weights.sum()
    if len(weights) == 0 or not bool(total > 0):
        return torch.full((), torch.nan, dtype=torch.float64)
    p = weights / total
    return torch.exp(-torch.special.xlogy(p, p).sum())
