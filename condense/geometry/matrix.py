"""The rows of an embedding matrix (V, d): all their metrics in one blocked pass, from the d × d second moment.

float64; on the matrix' own device where that has it. No pair of rows is ever formed: V may be a vocabulary.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from condense.geometry.rows import quantile

_ROWS = 2048  # rows that are held in float64 at once
_POINTS = 48  # of a spectrum that are kept
_SEED = 20261127
_DEVIATIONS = 4.0  # how far a row may be from the initialisation's statistics and still be called untrained
NORMS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class MatrixNumbers:
    """What the rows of a matrix give; NaN where undefined.

    `values` by key; `spectrum` the variances of the centred unit rows along their principal directions, largest first,
    1 if all were equal, at `_POINTS` ranks at most; `zero`, `duplicate`, `initial`: how many rows were never trained.
    """

    values: dict[str, float]
    spectrum: tuple[float, ...]
    zero: int
    duplicate: int
    initial: int | None


def measure_matrix(weight: Tensor, initial_std: float | None = None) -> MatrixNumbers:
    """All metrics of the rows of weight (V, d).

    mean_cosine (‖Σu‖² − n)/(n(n−1)); mean_shift ‖mean row‖/rms row length; effective_rank exp H(σ/Σσ) of the centred
    unit rows; dimension by U-statistics as for states; quantiles of the row lengths; untrained_share: rows that are
    zero, equal to another row, or drawn as at the initialisation (Gaussian of deviation initial_std: see `_initial`).
    ValueError for a matrix that is not finite.
    """
    rows, width = weight.shape
    where = torch.device("cpu") if weight.device.type == "mps" else weight.device
    total, units = (torch.zeros(width, dtype=torch.float64, device=where) for _ in range(2))
    moment = torch.zeros(width, width, dtype=torch.float64, device=where)
    parts = []
    for block in torch.split(weight.detach(), _ROWS):
        x = block.to(where).double()
        length = x.norm(dim=1)
        u = x / torch.where(length > 0, length, 1.0).unsqueeze(1)
        parts.append(length)
        total += x.sum(0)
        units += u.sum(0)
        moment += u.T @ u
    lengths, total, units, moment = torch.cat(parts).cpu(), total.cpu(), units.cpu(), moment.cpu()
    if not bool(torch.isfinite(lengths).all()):
        raise ValueError(f"{int((~torch.isfinite(lengths)).sum())} rows are not finite")
    rms = lengths.square().mean().sqrt()
    zero = lengths <= 1e-6 * rms
    n = int((lengths > 0).sum())
    values, variances, basis = _spectral_metrics(units, moment, n)
    values["mean_shift"] = float(total.norm() / rows / rms) if rms > 0 else float("nan")
    values |= {f"norm_q{round(100 * q):02d}": float(quantile(lengths, q)) for q in NORMS}
    twins = _duplicates(weight, zero)
    fresh = _initial(weight, lengths, initial_std, basis) & ~zero if initial_std else None
    untrained = zero | twins if fresh is None else zero | twins | fresh
    values["untrained_share"] = float(untrained.double().mean())
    initial = None if fresh is None else int((fresh & ~twins).sum())
    return MatrixNumbers(values, _spectrum_points(variances), int(zero.sum()), int(twins.sum()), initial)


def _spectral_metrics(units: Tensor, moment: Tensor, n: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics of the n unit rows from their sum and second moment; the variances, largest first, with directions."""
    mean = units / max(1, n)
    scatter = moment - n * mean.outer(mean)
    eigenvalues, basis = torch.linalg.eigh((scatter + scatter.T) / 2)
    eigenvalues = torch.where(eigenvalues > len(moment) * 2.3e-16 * eigenvalues.abs().max(), eigenvalues, 0.0).flip(0)
    values = {"mean_cosine": float((units.square().sum() - n) / (n * (n - 1))) if n > 1 else float("nan")}
    values["effective_rank"] = _entropy_of(eigenvalues.sqrt())
    values["dimension"] = float("nan")
    if n > 3:
        t, q = scatter.trace() / (n - 1), scatter.square().sum() / (n - 1) ** 2
        shift = mean.square().sum()  # G_ii = 1 + ‖ū‖² − 2 u_i·ū
        squares = n * (1 + shift) ** 2 - 4 * (1 + shift) * n * shift + 4 * (mean @ moment @ mean)
        spread = n * squares / (n - 1)
        numerator = 2 * q + (n**2 - 3 * n + 1) * t**2 - spread
        denominator = (n - 1) * (n - 2) * q + t**2 - spread
        values["dimension"] = float(numerator / denominator) if denominator > 0 else float("nan")
    return values, eigenvalues, basis.flip(1)


def _entropy_of(weights: Tensor) -> float:
    total = weights.sum()
    if not bool(total > 0):
        return float("nan")
    p = weights / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def _spectrum_points(variances: Tensor) -> tuple[float, ...]:
    """Variances over their mean at evenly spaced ranks, the first and the last among them."""
    mean = variances.mean()
    ranks = torch.linspace(0, len(variances) - 1, min(_POINTS, len(variances))).round().long()
    return tuple((variances[ranks] / mean).tolist()) if bool(mean > 0) else ()


def _duplicates(weight: Tensor, zero: Tensor) -> Tensor:
    """Which rows are equal to another one bit by bit, zero rows apart; (V,) bool."""
    rows = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    keys = [hash(row.tobytes()) for row in rows]
    often = Counter(keys)
    repeated = torch.tensor([often[key] > 1 for key in keys])
    return repeated & ~zero


def _initial(weight: Tensor, lengths: Tensor, std: float, basis: Tensor) -> Tensor:
    """Which rows look as at the initialisation: Gaussian of deviation std, with no preferred direction; (V,) bool.

    Within 4 deviations of it: the length, std·√d, and the share of the energy in the leading quarter of the matrix'
    principal directions, 1/4, where the rows that were trained have more.
    """
    width = weight.shape[1]
    leading = basis[:, : max(1, width // 4)].float()
    share = leading.shape[1] / width
    energy = torch.cat([(b.cpu().float() @ leading).square().sum(1) for b in torch.split(weight.detach(), _ROWS)])
    relative = energy.double() / torch.where(lengths > 0, lengths, 1.0).square()
    close = (lengths / (std * width**0.5) - 1).abs() < _DEVIATIONS / (2 * width) ** 0.5
    plain = relative < share + _DEVIATIONS * (2 * share * (1 - share) / width) ** 0.5
    untrained: Tensor = close & plain
    return untrained


@functools.lru_cache(maxsize=16)
def matrix_null(rows: int, width: int) -> tuple[float, tuple[float, ...]]:
    """Effective rank and spectrum of as many Gaussian rows: their scatter is drawn as a Wishart matrix (Bartlett 1933).

    Mean over 4 seeded draws, one above a width of 1,024, where draws hardly differ. Fewer rows than the width: the
    scatter of the columns instead, which has the same eigenvalues.
    """
    degrees, size = max(rows - 1, width), min(rows - 1, width)
    generator = torch.Generator().manual_seed(_SEED)
    ranks, spectra = [], []
    for _ in range(4 if width <= 1024 else 1):
        factor = torch.randn(size, size, generator=generator, dtype=torch.float64).tril(-1)
        free = degrees - torch.arange(size, dtype=torch.float64)
        bent = (
            1 - 2 / (9 * free) + torch.randn(size, generator=generator, dtype=torch.float64) * (2 / (9 * free)).sqrt()
        )
        factor += torch.diag((free * bent.clamp_min(0) ** 3).sqrt())  # chi by Wilson & Hilferty 1931
        eigenvalues = torch.linalg.eigvalsh(factor @ factor.T).clamp_min(0.0).flip(0)
        ranks.append(_entropy_of(eigenvalues.sqrt()))
        spectra.append(torch.tensor(_spectrum_points(eigenvalues)))
    return sum(ranks) / len(ranks), tuple(torch.stack(spectra).mean(0).tolist())
