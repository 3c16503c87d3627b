"""How sure is a number? The only module of inference: every printed interval, word and rank goes through it.

The unit is the document: windows of one document resemble each other, so a variance is cluster-robust over
documents (Liang & Zeger 1986, with the leverage correction of Bell & McCaffrey 2002) and the interval is Student's
t with the degrees of freedom that the sizes of the documents leave. Training seeds are replicates of their own.
numpy; scipy inside the functions that need it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ALPHA = 0.05
RESAMPLES = 1000
POWER = 0.80
STABLE = 0.95
"""A label that fewer than this share of the resamples give is borderline."""

NO_DOCUMENTS = "not run: this run does not say which windows come from one document"
ONE_DOCUMENT = "other windows of this document; other documents not covered"
ONE_WINDOW = "one window: nothing to take an interval from"
_NOWHERE = "undefined in every window"
_ONE_DEFINES = "defined in one document only: nothing to take an interval from"
_NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval
_GRID = 24  # points per variance that the power is averaged over
_MOST_SEEDS = 100_000

Floats = NDArray[np.float64]
Values = Sequence[float | None] | Floats
Documents = Sequence[int] | None


@dataclass(frozen=True)
class Spread:
    """An estimate and the independent parts of its variance, each with its degrees of freedom.

    No parts: nothing is known about the spread, and `reason` says why. `value` is None where the number itself is
    undefined.
    """

    value: float | None
    parts: tuple[tuple[float, float], ...] = ()
    reason: str | None = None

    def half_width(self, alpha: float = ALPHA) -> float | None:
        """Half of the interval's width: h² = Σ t²(α, ν)·V over the parts; None without parts."""
        if self.value is None or not self.parts:
            return None
        return float(sum(_quantile(alpha, freedom) ** 2 * variance for variance, freedom in self.parts) ** 0.5)

    def bounds(self, alpha: float = ALPHA) -> tuple[float | None, float | None]:
        """The 1 − α interval, value ± half width; [x, x] without variance; None, None without parts."""
        half = self.half_width(alpha)
        return (None, None) if self.value is None or half is None else (self.value - half, self.value + half)

    def clipped(
        self, lowest: float | None = None, highest: float | None = None, alpha: float = ALPHA
    ) -> tuple[float | None, float | None]:
        """The interval, ended where the number's own range ends."""
        low, high = self.bounds(alpha)
        if self.value is None or low is None or high is None:
            return None, None
        low = low if lowest is None else min(max(low, float(lowest)), self.value)
        return low, high if highest is None else max(min(high, float(highest)), self.value)

    def p_value(self) -> float | None:
        """The smallest α at which the interval excludes 0, in [0, 1]; None without parts."""
        import scipy.optimize
        import scipy.special

        if self.value is None or not self.parts:
            return None
        moving = [part for part in self.parts if part[0] > 0]
        if self.value == 0 or not moving:
            return float(self.value == 0)
        if len(moving) == 1:
            variance, freedom = moving[0]
            return float(2 * scipy.special.stdtr(freedom, -abs(self.value) / variance**0.5))

        def excess(log_alpha: float) -> float:
            return (self.half_width(float(np.exp(log_alpha))) or 0.0) - abs(self.value or 0.0)

        lowest = float(np.log(1e-300))
        return 0.0 if excess(lowest) < 0 else float(np.exp(scipy.optimize.brentq(excess, lowest, -1e-12)))


@functools.lru_cache(maxsize=4096)
def _quantile(alpha: float, freedom: float) -> float:
    """Student's t quantile of a two-sided interval at level 1 − α, for any freedom above 0.

    As scipy.special.stdtrit, whose import takes longer than a gate: by Newton's method on log P(T > t) over log t.
    """
    if not (0 < alpha < 1 and freedom > 0):
        return 0.0 if alpha == 1 else math.nan
    normal = -NormalDist().inv_cdf(alpha / 2)
    if freedom > 1e7:
        return normal + (normal**3 + normal) / (4 * freedom)
    place, wanted = math.log(normal), math.log(alpha / 2)
    for _ in range(100):
        tail, density = _log_tail(place, freedom)
        place += (step := (tail - wanted) * math.exp(tail - density - place))
        if abs(step) < 1e-15:
            break
    return math.exp(place) if place < 350 else math.inf  # whose square is no float


def _log_tail(log_t: float, freedom: float) -> tuple[float, float]:
    """Log P(T > t) of Student's t and the logarithm of its density there (Abramowitz & Stegun 26.5, 26.7)."""
    a, square = freedom / 2, 2 * log_t - math.log(freedom)
    far = max(square, 0.0) + math.log1p(math.exp(-abs(square)))  # log(1 + t²/ν), where t² is no float either
    if a > 50:  # a difference of two large logarithms would lose digits
        beta = -0.5 * math.log(a / math.pi) + 1 / (8 * a) - 1 / (192 * a**3) + 1 / (640 * a**5)
    else:
        beta = math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    x, y = math.exp(-far), -math.expm1(-far)
    density = -(a + 0.5) * far - beta - 0.5 * math.log(freedom)
    front = -a * far + 0.5 * math.log(y) - beta
    if x < (a + 1) / (a + 2.5):
        return front + math.log(_beta_fraction(a, 0.5, x) / (2 * a)), density
    return math.log(0.5 - math.exp(front) * _beta_fraction(0.5, a, y)), density


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (Abramowitz & Stegun 26.5.8), by Lentz's method."""
    value, other = (ratio := 1 / (1 - (a + b) * x / (a + 1))), 1.0
    for m in range(1, 10_000):
        change = 1.0
        even, at = m * (b - m) / (a + 2 * m - 1), a + 2 * m
        for part in (even * x / at, -(a + m) * (a + b + m) * x / (at * (at + 1))):
            ratio, other = 1 / (1 + part * ratio), 1 + part / other
            change *= ratio * other
        value *= change
        if abs(change - 1) < 1e-16:
            break
    return value


# --- over documents ---------------------------------------------------------------------------------


def over_documents(values: Values, documents: Documents) -> Spread:
    """The mean over windows, with its cluster-robust variance over documents.

    values (N,), None or NaN where undefined: such windows are left out. V = Σ_g (e_g/√(1−s_g))²/N², e_g the sum of a
    document's residuals, s_g its share of the windows; ν = 1/Σs_g² − 1, at least 1. With one document the variance is
    over its windows (`ONE_DOCUMENT` says what that covers). No parts without documents, for one window, and where one
    of several documents defines the number.
    """
    table = _floats(values)
    known = table[np.isfinite(table)]
    if len(known) and known.min() == known.max():  # no rounding in what is one number
        parts, reason = _document_parts(np.zeros(len(known)), np.isfinite(table), documents, len(known))
        return Spread(float(known[0]), parts, reason)
    return ratio_over_documents(table, np.ones_like(table), documents)


def ratio_over_documents(numerators: Values, denominators: Values, documents: Documents) -> Spread:
    """The ratio R = Σy/Σx over windows, with the linearised cluster-robust variance over documents.

    e_g = the document's sum of y − R·x, s_g its share of the windows, V = Σ(e_g/√(1−s_g))²/(Σx)², ν as above.
    """
    y, x = _floats(numerators), _floats(denominators)
    known = np.isfinite(y) & np.isfinite(x)
    total = float(x[known].sum())
    if not known.any() or total == 0:
        return Spread(None, (), _NOWHERE)
    ratio = float(y[known].sum()) / total
    return Spread(ratio, *_document_parts((y - ratio * x)[known], known, documents, total))


def _document_parts(
    residuals: Floats, known: NDArray[np.bool_], documents: Documents, total: float
) -> tuple[tuple[tuple[float, float], ...], str | None]:
    """The variance of Σ residuals / total over documents with its degrees of freedom, or why there is none."""
    if not documents:
        return (), NO_DOCUMENTS
    if len(documents) != len(known):
        raise ValueError(f"{len(known)} windows, but documents of {len(documents)}")
    if len(residuals) < 2:
        return (), ONE_WINDOW if len(known) < 2 else "defined in one window only: nothing to take an interval from"
    groups = np.asarray(documents)[known]
    if len(set(documents)) == 1:
        groups = np.arange(len(groups))
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return (), _ONE_DEFINES
    shares = counts / len(groups)
    sums = np.bincount(index, weights=residuals)
    variance = float((sums**2 / (1 - shares)).sum()) / total**2
    return ((variance, _freedom(shares)),), None


def _freedom(shares: Floats) -> float:
    return max(1.0, float(1 / (shares**2).sum() - 1))


def _floats(values: Values) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def jackknife(value: float | None, deleted: Sequence[float | None], documents: Documents) -> Spread:
    """A statistic of all documents, with the variance that leaving out one document at a time shows.

    deleted: the statistic without each document, in the order of their numbers. V = (G−1)/G·Σ(θ_(g) − θ̄)²; ν from
    the documents' shares of the windows.
    """
    if value is None:
        return Spread(None, (), _NOWHERE)
    if not documents:
        return Spread(value, (), NO_DOCUMENTS)
    known = _floats(deleted)
    if len(known) < 3 or not np.isfinite(known).all():
        return Spread(value, (), "needs at least three documents")
    _, counts = np.unique(np.asarray(documents), return_counts=True)
    variance = float((len(known) - 1) / len(known) * ((known - known.mean()) ** 2).sum())
    return Spread(value, ((variance, _freedom(counts / counts.sum())),))


def coverage_note(documents: Documents) -> str:
    """What stands beside an interval over these windows; empty where nothing has to be said."""
    if not documents:
        return NO_DOCUMENTS
    if len(documents) == 1:
        return ONE_WINDOW
    count = len(set(documents))
    return ONE_DOCUMENT if count == 1 else "2 documents only" if count == 2 else ""


# --- differences and seeds --------------------------------------------------------------------------


def difference(first: Spread, second: Spread) -> Spread:
    """The first − the second of two independent estimates: variances added, ν by Welch–Satterthwaite."""
    if first.value is None or second.value is None:
        return Spread(None, (), first.reason or second.reason or _NOWHERE)
    value = first.value - second.value
    if not first.parts or not second.parts:
        return Spread(value, (), first.reason or second.reason)
    parts = [*first.parts, *second.parts]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Spread(value, ((0.0, 1.0),))
    freedom = variance**2 / sum(v**2 / freedom for v, freedom in parts)
    return Spread(value, ((variance, freedom),))


def over_seeds(numerators: Floats, documents: Documents, denominators: Floats | None = None) -> Spread:
    """The mean over training seeds and windows, its parts (V_seeds, S − 1) and (V_doc, ν_doc).

    numerators (S, N), one row per seed; denominators (N,) make every row a ratio Σy/Σx. V_seeds = variance of the
    seeds' values / S; V_doc is cluster-robust over documents, of the windows' means over seeds. A window that is
    undefined under one seed is left out under all. One seed gives V_doc alone: other seeds are not covered.
    """
    table = np.asarray(numerators, dtype=np.float64)
    weights = np.ones(table.shape[1]) if denominators is None else np.asarray(denominators, dtype=np.float64)
    known = np.isfinite(table).all(axis=0) & np.isfinite(weights)
    averaged = np.where(known, table.mean(axis=0), np.nan)
    result = (
        over_documents(averaged, documents)
        if denominators is None
        else (ratio_over_documents(averaged, weights, documents))
    )
    if result.value is None or not result.parts or len(table) < 2:
        return result
    by_seed = table[:, known].sum(axis=1) / weights[known].sum()
    return Spread(result.value, ((float(by_seed.var(ddof=1)) / len(table), len(table) - 1.0), *result.parts))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values in the order given; None stays None and counts among the tests made. Holm 1979."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[index] = largest
    return adjusted


# --- power ------------------------------------------------------------------------------------------


def power(effect: float, parts: Sequence[tuple[float, float]], alpha: float = ALPHA) -> float:
    """How often the interval of an estimate with these parts excludes 0 where the true value is `effect`.

    The estimate is normal with variance ΣV, each part's own estimate chi-squared with its degrees of freedom, averaged
    over a grid of quantiles.
    """
    import scipy.special

    moving = [part for part in parts if part[0] > 0]
    if not moving:
        return float(effect != 0)
    levels = (np.arange(_GRID) + 0.5) / _GRID
    squares = np.zeros(1)
    for variance, freedom in moving:
        drawn = variance * 2 * scipy.special.gammaincinv(freedom / 2, levels) / freedom
        squares = (squares[:, None] + _quantile(alpha, freedom) ** 2 * drawn).ravel()
    deviation = sum(variance for variance, _ in moving) ** 0.5
    half = np.sqrt(squares)
    above = scipy.special.ndtr((abs(effect) - half) / deviation)
    return float((above + scipy.special.ndtr((-abs(effect) - half) / deviation)).mean())


def smallest_detectable(parts: Sequence[tuple[float, float]], alpha: float = ALPHA, wanted: float = POWER) -> float:
    """The smallest true difference that an estimate with these parts shows with the wanted power."""
    import scipy.optimize

    deviation = sum(variance for variance, _ in parts) ** 0.5
    if deviation == 0:
        return 0.0
    high = deviation
    while power(high, parts, alpha) < wanted:
        high *= 2
    return float(scipy.optimize.brentq(lambda effect: power(effect, parts, alpha) - wanted, 0.0, high, rtol=1e-4))


def seeds_needed(
    effect: float,
    seed_variance: float,
    document_part: tuple[float, float] | None = None,
    alpha: float = ALPHA,
    wanted: float = POWER,
) -> int | None:
    """The fewest seeds (2 or more) that show a true difference of `effect` with the wanted power.

    seed_variance: of one seed's value; document_part: (V_doc, ν_doc), which more seeds do not lower. None where no
    number of seeds suffices: more validation text is needed, not more seeds.
    """

    def enough(seeds: int) -> bool:
        parts = [(seed_variance / seeds, seeds - 1.0), *([document_part] if document_part else [])]
        return power(effect, parts, alpha) >= wanted

    if effect == 0 or not enough(_MOST_SEEDS):
        return None
    high = 2
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle >= 2 and enough(middle) else (middle, high)
    return high


# --- resampling, for labels -------------------------------------------------------------------------


def document_weights(documents: Sequence[int], seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each window stands in each resample of the documents: (resamples, N).

    All windows of a document are drawn together; with one document the windows are drawn.
    """
    _, index = np.unique(np.asarray(documents), return_inverse=True)
    if index.max() == 0:
        index = np.arange(len(index))
    weights: Floats = resampling_weights(int(index.max()) + 1, seed, resamples)[:, index]
    return weights


def stretch(documents: Sequence[int]) -> float:
    """By how much the deviation of a resample from the estimate is too small: √(G/(G−1))·t(.975, ν)/1.96.

    Without it few documents look too certain. 1 document: G and ν are those of its windows; 1 window: 0.
    """
    _, counts = np.unique(np.asarray(documents), return_counts=True)
    sizes = counts / counts.sum() if len(counts) > 1 else np.full(int(counts[0]), 1 / int(counts[0]))
    groups = len(sizes)
    if groups == 1:
        return 0.0
    return float((groups / (groups - 1)) ** 0.5 * _quantile(ALPHA, _freedom(sizes)) / _NORMAL_QUANTILE)


@functools.lru_cache(maxsize=8)
def resampling_weights(units: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each unit is drawn in each resample: (resamples, units), rows sum to the number of units.

    The array is kept for the next metric that is resampled alike, so it cannot be written to.
    """
    draws = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    weights = draws.astype(np.float64)
    weights.setflags(write=False)
    return weights


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Means over windows of the defined values: (N, K) and weights (R, N) to (R, K), NaN where none is defined."""
    known = np.isfinite(values)
    total = weights @ np.where(known, values, 0.0)
    count = weights @ known.astype(np.float64)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
