"""Similarity of the tokens' directions: all metrics that are means over pairs of rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from condense.geometry import symmetric
from condense.geometry.rows import checked_states, directions, each_cloud, has_direction, quantile, undefined

BINS = 200
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
TOP = 3
SHARE_FLOOR = 0.05
_ROWS = 512  # rows of the Gram matrix that are computed at once
_FINE = 64  # sub-bins per histogram bin: quantiles are looked up there, then sorted exactly


def mean_cosine(states: Tensor) -> Tensor:
    """Mean cosine similarity of two different tokens: 0 when directions are spread, 1 in a point cone.

    states (..., n, d) -> (...), range [−1/(n−1), 1]. (‖s‖² − n)/(n(n−1)), O(nd), no n×n matrix.
    Ethayarajh 2019, arXiv:1909.00512.
    """
    return each_cloud(states, lambda x: _mean_cosine(directions(x)))


def mean_cosine_distinct(states: Tensor, ids: Tensor) -> Tensor:
    """Mean cosine similarity of two tokens that are different words: a text's repetition taken out.

    states (n, d), ids (n,) token ids -> scalar, range [−1, 1]; NaN where all tokens are one.
    (‖Σu‖² − Σ_id‖Σ_{i in id} u_i‖²)/(n² − Σ_id n_id²), O(nd).
    """
    x = checked_states(states)
    if x.ndim != 2 or ids.shape != x.shape[:1]:
        raise ValueError(f"states (n, d) and ids (n,) do not fit: {tuple(states.shape)}, {tuple(ids.shape)}")
    _, group, sizes = torch.unique(ids.cpu()[has_direction(x)], return_inverse=True, return_counts=True)
    pairs = sizes.sum() ** 2 - sizes.square().sum()
    if pairs == 0:
        return undefined()
    units = directions(x)
    same = units.new_zeros(len(sizes), x.shape[1]).index_add_(0, group, units)
    mean: Tensor = (units.sum(0).square().sum() - same.square().sum()) / pairs
    return mean.clamp(-1, 1)


def cosine_std(states: Tensor) -> Tensor:
    """Standard deviation of the cosine over all pairs i<j of one text: the width of the cone's spread.

    states (..., n, d) -> (...), range [0, 1]. Population form (divided by the number of pairs).
    """
    return each_cloud(states, lambda x: pair_cosines(directions(x))[0].std(correction=0))


def cosine_quantile(states: Tensor, q: float) -> Tensor:
    """Cosine that a share q of the pairs i<j stays below; exact, with linear interpolation.

    states (..., n, d), q in [0, 1] -> (...), range [−1, 1]. ValueError for q outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], got {q}")
    return each_cloud(states, lambda x: quantile(pair_cosines(directions(x))[0], q).clamp(-1, 1))


cosine_q05 = functools.partial(cosine_quantile, q=0.05)
cosine_q25 = functools.partial(cosine_quantile, q=0.25)
cosine_q50 = functools.partial(cosine_quantile, q=0.50)
cosine_q75 = functools.partial(cosine_quantile, q=0.75)
cosine_q95 = functools.partial(cosine_quantile, q=0.95)


def histogram(states: Tensor) -> Tensor:
    """Counts of the cosines of all pairs i<j in 200 equal bins on [−1, 1], int64.

    states (..., n, d) -> (..., 200). Cosines that rounding puts above 1 count in the last bin.
    """
    return each_cloud(states, lambda x: _coarse(_fine_counts(pair_cosines(directions(x))[0])[1]))


def participation_ratio(states: Tensor) -> Tensor:
    """Number of directions that share the energy of the unit rows evenly, free from the bias of small n.

    states (..., n, d) -> (...), at least 1. 1 / mean of c_ij² over pairs i<j. Uncentred: near 1 in a cone.
    Chun et al. 2026, arXiv:2509.26560.
    """
    return each_cloud(states, lambda x: (1 / pair_cosines(directions(x))[0].square().mean()).clamp_min(1.0))


def dimension_contributions(states: Tensor) -> Tensor:
    """What each coordinate adds to the mean cosine; the contributions sum to it exactly.

    states (..., n, d) -> (..., d). (s_k² − Σ_i u_ik²)/(n(n−1)). Timkey & van Schijndel 2021, arXiv:2109.04404.
    """
    return each_cloud(states, lambda x: _contributions(directions(x)))


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
        parts = _contributions(directions(x))
        return share_of_mean(parts.topk(min(TOP, len(parts))).values.sum(), parts.sum())

    return each_cloud(states, share)


def mean_cosine_without_top_dimensions(states: Tensor) -> Tensor:
    """Mean cosine after the text's own three strongest coordinates are set to zero in x (one pass).

    states (..., n, d) -> (...), range [−1, 1]. NaN for d ≤ 3. Timkey & van Schijndel 2021, arXiv:2109.04404.
    """

    def without(x: Tensor) -> Tensor:
        top = _contributions(directions(x)).topk(min(TOP, x.shape[-1])).indices
        return _mean_cosine(directions(x.index_fill(1, top, 0.0)))

    return each_cloud(states, without)


def cross_text_cosine(texts: Sequence[Tensor]) -> Tensor:
    """Mean cosine of tokens of different documents: the anisotropy baseline of a corpus.

    texts: one cloud (n_g, d) per document -> scalar, range [−1, 1]. (‖Σs_g‖² − Σ‖s_g‖²)/Σ_{g≠g'} n_g n_g'.
    NaN for a single document. Ethayarajh 2019, arXiv:1909.00512.
    """
    units = [directions(checked_states(text)) for text in texts]
    sums = torch.stack([unit.sum(0) for unit in units])
    counts = torch.tensor([float(len(unit)) for unit in units], dtype=torch.float64)
    return cross_cosines(sums @ sums.T, counts.outer(counts), torch.ones(1, len(units), dtype=torch.float64))[0]


def cross_cosines(products: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """Cross-text cosine where documents are taken several times or not at all.

    products (G, G): s_g·s_g' of the documents' sums of unit rows; pairs (G, G): n_g·n_g' of their rows; weights (R, G)
    -> (R,). Pairs of copies of one document are left out; NaN where no other pair is left.
    """

    def of_two_documents(table: Tensor) -> Tensor:
        return ((weights @ table) * weights).sum(1) - weights.square() @ table.diagonal()

    count = of_two_documents(pairs)
    return torch.where(count > 0.5, (of_two_documents(products) / count).clamp(-1, 1), torch.nan)


def paper_mean_cosine(states: Tensor) -> Tensor:
    """Mean over all n² pairs, the diagonal of ones kept: the quantity Liu et al. 2026 plot per layer.

    states (..., n, d) with every position -> (...), range [0, 1]. ‖s‖²/n².
    """
    return each_cloud(states, lambda x: (directions(x).sum(0).square().sum() / x.shape[0] ** 2).clamp(max=1.0))


# --- shared arithmetic ------------------------------------------------------------------------------


def _mean_cosine(units: Tensor) -> Tensor:
    n = len(units)
    total = units.sum(0).square().sum()
    return ((total - n) / (n * (n - 1))).clamp(-1, 1) if n > 1 else undefined()


def _contributions(units: Tensor) -> Tensor:
    n = len(units)
    parts = units.sum(0).square() - units.square().sum(0)
    return parts / (n * (n - 1)) if n > 1 else torch.full_like(parts, torch.nan)


def share_of_mean(top: Tensor, mean: Tensor) -> Tensor:
    """A part of the mean cosine as a share of it; NaN where the mean is below 0.05."""
    return torch.where(mean >= SHARE_FLOOR, top / mean, torch.nan)


@functools.lru_cache(maxsize=8)
def _upper(n: int, device: torch.device) -> Tensor:
    rows, columns = torch.triu_indices(n, n, 1, device=device)
    flat: Tensor = rows * n + columns
    return flat


def pair_cosines(units: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs i<j as one vector (n(n−1)/2,), in no particular order; and those of the `chosen` pairs.

    chosen (2, P): i<j of each, ordered by i (default: none). Only the upper part of the Gram matrix is computed.
    """
    n, filled, picked = len(units), 0, []
    chosen = torch.zeros(2, 0, dtype=torch.int64, device=units.device) if chosen is None else chosen
    if n < 2:
        return units.new_full((1,), torch.nan), units.new_zeros(0)
    pairs = units.new_empty(n * (n - 1) // 2)
    starts = range(0, n, _ROWS)
    counts = torch.bincount(chosen[0] // _ROWS, minlength=len(starts)).tolist()
    for start, some in zip(starts, torch.split(chosen, counts, dim=1), strict=True):
        rows, later = units[start : start + _ROWS], units[start + _ROWS :]
        size = len(rows) * len(later)
        beside = pairs[filled : filled + size].view(len(rows), len(later))
        torch.mm(rows, later.T, out=beside)
        corner = pairs[filled + size : filled + size + len(rows) * (len(rows) - 1) // 2]
        if rows.device.type == "cpu":
            gram = symmetric.upper_gram(rows.numpy())
            symmetric.above_diagonal(gram, corner.numpy())
            square = torch.from_numpy(gram)
        else:
            square = rows @ rows.T
            torch.take(square, _upper(len(rows), units.device), out=corner)
        filled += size + len(corner)
        i, j = some - start
        near = square[i, j.clamp(max=len(rows) - 1)]
        picked.append(torch.where(j < len(rows), near, beside[i, (j - len(rows)).clamp_min(0)]) if size else near)
    return pairs, torch.cat(picked)


def pair_metrics(units: Tensor, mean: Tensor, chosen: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The metrics of all pairs i<j, their histogram, and the cosines of the chosen pairs.

    The spread is summed about the mean, free of cancellation.
    """
    pairs, picked = pair_cosines(units, chosen)
    counts, quantiles = _counts_and_quantiles(pairs)
    variance = pairs.sub_(mean.to(pairs.dtype)).square_().mean(dtype=torch.float64)
    values = {f"cosine_q{round(100 * q):02d}": v.clamp(-1, 1) for q, v in zip(QUANTILES, quantiles, strict=True)}
    values["cosine_std"] = variance.sqrt()
    values["participation_ratio"] = (1 / (variance + mean.square())).clamp_min(1.0)
    return values, counts, picked


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
    ranks = [q * (len(pairs) - 1) for q in QUANTILES]
    orders = torch.tensor([k for p in ranks for k in (int(p), min(int(p) + 1, len(pairs) - 1))])
    orders = orders.to(pairs.device)
    cumulative = counts.cumsum(0)
    bins = torch.searchsorted(cumulative, orders, right=True)
    wanted = torch.zeros(len(counts), dtype=torch.bool, device=pairs.device)
    wanted[bins] = True
    candidates = pairs[torch.nonzero(wanted.index_select(0, codes)).flatten()].sort().values
    before = cumulative - torch.where(wanted, counts, 0).cumsum(0)  # pairs below, outside the wanted bins
    neighbours = candidates[orders - before[bins]].double()
    quantiles = [neighbours[2 * i].lerp(neighbours[2 * i + 1], p - int(p)) for i, p in enumerate(ranks)]
    return _coarse(counts), quantiles
