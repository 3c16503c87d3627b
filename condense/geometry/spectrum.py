"""How many directions are in use? Ranks and dimension, all from the Gram matrix of the unit rows."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from condense.geometry import symmetric
from condense.geometry.rows import directions, each_cloud, undefined
from condense.geometry.symmetric import Floats

SPECTRAL_TOKENS = 256
RANKS = ("effective_rank", "entropy_rank", "effective_rank_with_sink")
NULL_DRAWS = 4
_NULL_SEED = 20260217


def effective_rank(states: Tensor) -> Tensor:
    """Directions that the tokens use once their common direction is taken away.

    states (..., n, d) -> (...), range [1, min(n−1, d)]. exp H(σ/Σσ), σ the singular values of the
    centred unit rows u_i − ū. Roy & Vetterli 2007. Depends on n: compare at equal n and d only.
    """
    return each_cloud(states, lambda x: _spectral(centred(_gram(directions(x)))))


def entropy_rank(states: Tensor) -> Tensor:
    """Exponential of the von Neumann entropy of the cosine matrix: 1 when all tokens point one way.

    states (..., n, d) -> (...), range [1, min(n, d)]. exp H(λ/Σλ), λ the eigenvalues of C/n, uncentred.
    Skean et al. 2025, arXiv:2502.02013.
    """
    return each_cloud(states, lambda x: _entropy(_eigenvalues(_gram(directions(x)))))


def dimension(states: Tensor) -> Tensor:
    """Number of directions that share the variance of the unit rows evenly; its expectation does not depend on n.

    states (..., n, d) -> (...), above 0; NaN below 4 rows and where tr(Σ²) is not positive. The bias-corrected
    centred participation ratio (tr Σ)²/tr(Σ²) by U-statistics; see `dimension_moments`. Of many texts take the ratio
    of the mean moments: a mean of ratios is biased. Chun et al. 2026, arXiv:2509.26560.
    """

    def ratio(x: Tensor) -> Tensor:
        numerator, denominator = dimension_moments(centred(_gram(directions(x))))
        return torch.where(denominator > 0, numerator / denominator, torch.nan)

    return each_cloud(states, ratio)


def dimension_share(states: Tensor) -> Tensor:
    """`dimension` as a share of the width d, for models of different widths.

    states (..., n, d) -> (...), above 0.
    """
    return dimension(states) / states.shape[-1]


def dimension_moments(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of (tr Σ)² and tr(Σ²), Σ the covariance of the unit rows; NaN below 4 rows.

    gram (n, n): Gram matrix of the *centred* unit rows, float64. With t = tr G/(n−1), q = ‖G‖²_F/(n−1)²,
    Q = Σ G_ii²/(n−1) and k = (n−1)/(n(n−2)(n−3)): tr(Σ²) = k[(n−1)(n−2)q + t² − nQ] and
    (tr Σ)² = k[2q + (n²−3n+1)t² − nQ].
    """
    numerator, denominator = _moments(gram.diagonal().numpy(), float(gram.square().sum()))
    return gram.new_tensor(numerator), gram.new_tensor(denominator)


def _moments(diagonal: Floats, squares: float) -> tuple[float, float]:
    """The same from the diagonal of the matrix and the sum of the squares of all its entries."""
    n = len(diagonal)
    if n < 4:
        return math.nan, math.nan
    t, q = float(diagonal.sum()) / (n - 1), squares / (n - 1) ** 2
    of_rows = n * float(diagonal @ diagonal) / (n - 1)
    k = (n - 1) / (n * (n - 2) * (n - 3))
    return k * (2 * q + (n**2 - 3 * n + 1) * t**2 - of_rows), k * ((n - 1) * (n - 2) * q + t**2 - of_rows)


class Spectra:
    """What the spectral metrics of one text at one site are computed from, later and together.

    `gram` float64 on the CPU: cosines of the `chosen` spectral rows, then of the positions that only the metrics
    with sink keep; `lengths` are the norms of all these rows.
    """

    def __init__(self, rows: Tensor, lengths: Tensor, chosen: int) -> None:
        """From rows (k, d) float64 of any length, their norms (k,), and how many of them are spectral rows."""
        rows = rows.div_(torch.where(lengths > 0, lengths, 1.0).unsqueeze(-1))
        gram = torch.from_numpy(rows.numpy() @ rows.numpy().T) if rows.device.type == "cpu" else rows @ rows.T
        self.gram, self.lengths, self.chosen = gram.cpu(), lengths.cpu(), chosen

    def ranks(self) -> tuple[dict[str, float], tuple[float, float]]:
        """Every rank by its key, and the moments of the dimension; NaN below two spectral rows."""
        gram, lengths, n = self.gram.numpy(), self.lengths.numpy(), self.chosen
        values = dict.fromkeys(RANKS, math.nan)
        moments = (math.nan, math.nan)
        if n > 1:
            cosines = gram[:n, :n]
            uncentred, centred_values, squares = symmetric.with_and_without_mean(cosines)
            values["effective_rank"] = perplexity(np.sqrt(centred_values))
            values["entropy_rank"] = perplexity(uncentred)
            means = cosines.mean(0)
            moments = _moments(cosines.diagonal() - 2 * means + means.mean(), squares)
        if len(gram) > 1:
            raw = gram * lengths
            raw *= lengths[:, None]
            values["effective_rank_with_sink"] = perplexity(np.sqrt(symmetric.eigenvalues(raw)))
        return values, moments


def rank(key: str, gram: Tensor) -> float:
    """The spectral metric `key` from its Gram matrix; NaN below two rows."""
    if len(gram) < 2:
        return float("nan")
    values = _eigenvalues(gram)
    if key == "entropy_rank":
        return float(_entropy(values))
    return float(_spectral_values(values, is_centred=key == "effective_rank"))


NullKey = Literal["effective_rank", "entropy_rank"]


def gaussian_null(key: NullKey, n: int, d: int, draws: int = NULL_DRAWS) -> float:
    """The metric of isotropic Gaussian rows of the same (n, d): its reference value for the shape.

    Mean over `draws` seeded clouds; range as the metric's; NaN for n < 2.
    """
    return repeated_null(key, ((1, n),), d, draws)


@functools.lru_cache(maxsize=512)
def repeated_null(key: NullKey, repeats: tuple[tuple[int, int], ...], d: int, draws: int = NULL_DRAWS) -> float:
    """The same for a text that repeats itself: Gaussian rows, one per distinct token, as often as the token occurs.

    repeats: pairs of (how often a token occurs, how many tokens do).
    """
    times = torch.tensor([size for size, tokens in repeats for _ in range(tokens)], dtype=torch.int64)
    if int(times.sum()) < 2:
        return float("nan")
    generator = torch.Generator().manual_seed(_NULL_SEED)
    results = []
    for _ in range(draws):
        rows = torch.randn(len(times), d, generator=generator, dtype=torch.float64)
        gram = _gram(directions(rows)).repeat_interleave(times, 0).repeat_interleave(times, 1)
        results.append(rank(key, centred(gram) if key == "effective_rank" else gram))
    return sum(results) / draws


# --- shared arithmetic ------------------------------------------------------------------------------


def _gram(units: Tensor) -> Tensor:
    return units @ units.T


def centred(gram: Tensor) -> Tensor:
    """Gram matrix of the rows minus their mean."""
    rows = gram.mean(0, keepdim=True)
    return gram - rows - rows.T + gram.mean()


def _eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues, ascending; what is only rounding is 0, for the square roots of n − d such would add up."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    floor = len(gram) * torch.finfo(gram.dtype).eps * values.abs().max() if len(gram) else 0.0
    return torch.where(values > floor, values, 0.0)


def _spectral(gram: Tensor) -> Tensor:
    return _spectral_values(_eigenvalues(gram), is_centred=True)


def _spectral_values(eigenvalues: Tensor, *, is_centred: bool) -> Tensor:
    """Exp H(σ/Σσ), σ = sqrt(λ). Centring has a null direction whose rounding noise would count as a σ."""
    values = eigenvalues[1:] if is_centred else eigenvalues
    return _entropy(values.sqrt())


def _entropy(weights: Tensor) -> Tensor:
    """Exponential of the Shannon entropy of non-negative weights, at least 1; NaN if they are all 0."""
    total = weights.sum()
    if len(weights) == 0 or not bool(total > 0):
        return undefined()
    p = weights / total
    return torch.exp(-torch.special.xlogy(p, p).sum()).clamp_min(1.0)


def perplexity(weights: Floats) -> float:
    """The same of an array."""
    total = float(weights.sum())
    if not total > 0:
        return math.nan
    p = weights[weights > 0] / total
    return max(1.0, math.exp(-float(p @ np.log(p))))
