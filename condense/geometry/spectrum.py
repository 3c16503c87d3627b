"""How many directions are in use? Ranks and dimension, all from the Gram matrix of the unit rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from condense.geometry import symmetric
from condense.geometry.rows import directions, each_cloud, undefined
from condense.geometry.symmetric import Floats, Tridiagonal

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

    Gram matrix, float64 on the CPU, at least its upper triangle: cosines of the `chosen` spectral rows, then of the
    positions that only the metrics with sink keep; with the norms of all these rows. `reduce` leaves of it the
    tridiagonal forms that have the same eigenvalues, a hundredth of the memory.
    """

    def __init__(self, rows: Tensor, lengths: Tensor, chosen: int) -> None:
        """From rows (k, d) float64 of any length, their norms (k,), and how many of them are spectral rows."""
        rows = rows.div_(torch.where(lengths > 0, lengths, 1.0).unsqueeze(-1))
        gram = symmetric.upper_gram(rows.numpy()) if rows.device.type == "cpu" else (rows @ rows.T).cpu().numpy()
        self._rows: tuple[Floats, Floats] | None = (gram, lengths.cpu().numpy())
        self._chosen = chosen
        self.forms: dict[str, Tridiagonal] = {}
        self.moments = (math.nan, math.nan)

    def reduce(self) -> None:
        """Let go of the Gram matrix: the form of each rank by its key, and the moments of the dimension."""
        if self._rows is None:
            return
        (gram, lengths), self._rows, n = self._rows, None, self._chosen
        if n > 1:
            cosines = gram[:n, :n]
            self.forms["entropy_rank"], self.forms["effective_rank"], squares = symmetric.with_and_without_mean(cosines)
            means = symmetric.row_sums(cosines) / n
            self.moments = _moments(cosines.diagonal() - 2 * means + means.mean(), squares)
        if len(gram) > 1:
            self.forms["effective_rank_with_sink"] = symmetric.tridiagonal(gram, lengths)


def ranks_of(spectra: Sequence[Spectra]) -> list[dict[str, float]]:
    """Every rank by its key, of many texts and sites together; NaN below two spectral rows."""
    made = [dict.fromkeys(RANKS, math.nan) for _ in spectra]
    for one in spectra:
        one.reduce()
    for roots in (True, False):
        wanted = [
            (number, key, form)
            for number, one in enumerate(spectra)
            for key, form in one.forms.items()
            if (key != "entropy_rank") == roots
        ]
        values = perplexities([form for *_, form in wanted], roots=roots)
        for (number, key, _), value in zip(wanted, values, strict=True):
            made[number][key] = value
    return made


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


_STEP = 0.75  # the trapezoidal rule's error is exp(−2π²/step), 4e-12
_NODES = np.arange(-33.0, 12.0 + _STEP, _STEP)  # logarithms of t over the trace
_BEYOND = np.stack([_NODES[0] - _STEP * np.arange(1, 200), _NODES[-1] + _STEP * np.arange(1, 200)])
_TAILS = {  # sums over the nodes that are left out, where R is known without them
    "low": float(np.exp(_BEYOND[0] / 2).sum()),
    "high": float(np.exp(-_BEYOND[1] / 2).sum()),
    "low log": float((_BEYOND[0] * np.exp(_BEYOND[0] / 2)).sum()),
    "high log": float((_BEYOND[1] * np.exp(-_BEYOND[1] / 2)).sum()),
    "low t": float(np.exp(_BEYOND[0]).sum()),
    "high 1/t": float(np.exp(-_BEYOND[1]).sum()),
}
_APART = 0.05  # Σ t/(λ + t): below it, at the smallest λ that is told from rounding, no eigenvalue is near to that


def perplexities(matrices: Sequence[Tridiagonal], *, roots: bool) -> list[float]:
    """Exponential of the Shannon entropy of the eigenvalues' shares in their sum, or of their square roots' shares.

    For all matrices of a size at once, a twentieth of the time of their eigenvalues, from R(t) = Σ λ/(λ + t), which
    costs O(n): √λ = 1/π ∫ λ/(λ+t) t^(−½) dt, √λ log λ = 1/π ∫ λ/(λ+t) t^(−½) log t dt and
    λ log λ = ∫ λ/(1+t) − λ/(λ+t) dt, by the trapezoidal rule in log t (Trefethen & Weideman 2014, SIAM Review 56).
    Eigenvalues are taken one by one where some are not told from rounding. NaN where the sum is 0.
    """
    made = [math.nan] * len(matrices)
    sizes: dict[int, list[int]] = {}
    for number, matrix in enumerate(matrices):
        sizes.setdefault(len(matrix.diagonal), []).append(number)
    for numbers in sizes.values():
        entropies = _entropies_of([matrices[number] for number in numbers], roots)
        for number, entropy in zip(numbers, entropies, strict=True):
            if entropy is None:
                values = matrices[number].eigenvalues()
                made[number] = perplexity(np.sqrt(values) if roots else values)
            else:
                made[number] = max(1.0, math.exp(entropy))
    return made


def _entropies_of(matrices: Sequence[Tridiagonal], roots: bool) -> list[float | None]:
    """The entropies for matrices of one size, None where an eigenvalue is as small as rounding."""
    size = len(matrices[0].diagonal)
    traces = np.array([float(matrix.diagonal.sum()) for matrix in matrices])
    scale = np.where(traces > 0, traces, 1.0)
    diagonals = np.stack([matrix.diagonal for matrix in matrices], axis=1) / scale
    besides = np.stack([matrix.beside for matrix in matrices], axis=1) / scale
    t = np.exp(_NODES)
    with np.errstate(all="ignore"):  # what is not positive definite by rounding is found below
        beneath = symmetric.resolvent_traces(diagonals, besides, t)
    floors = np.array([matrix.floor for matrix in matrices]) / scale
    made: list[float | None] = []
    for number, trace in enumerate(traces):
        known = beneath[:, number]
        near = int(np.searchsorted(t, floors[number]))
        if not (trace > 0 and near < len(t) and np.isfinite(known).all() and 0 <= known[near] < _APART):
            made.append(None)
            continue
        above = size - known
        squares = float(diagonals[:, number] @ diagonals[:, number] + 2 * besides[:, number] @ besides[:, number])
        made.append(_root_entropy(above, size) if roots else _plain_entropy(above, size, squares))
    return made


def _root_entropy(above: Floats, size: int) -> float:
    """From R at the nodes, of eigenvalues whose sum is 1; below the nodes R is their number, above them 1/t."""
    weighted = np.exp(_NODES / 2) * above
    total = math.fsum(weighted.tolist()) + size * _TAILS["low"] + _TAILS["high"]
    logs = math.fsum((weighted * _NODES).tolist()) + size * _TAILS["low log"] + _TAILS["high log"]
    return math.log(total * _STEP / math.pi) - logs / total / 2


def _plain_entropy(above: Floats, size: int, squares: float) -> float:
    """The same of the eigenvalues themselves; squares: the sum of theirs."""
    t = np.exp(_NODES)
    terms = math.fsum((t * (1 / (1 + t) - above)).tolist())
    return -_STEP * (terms + (1 - size) * _TAILS["low t"] + (squares - 1) * _TAILS["high 1/t"])


def perplexity(weights: Floats) -> float:
    """The same of an array."""
    total = float(weights.sum())
    if not total > 0:
        return math.nan
    p = weights[weights > 0] / total
    return max(1.0, math.exp(-float(p @ np.log(p))))
