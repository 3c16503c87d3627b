"""How sure is a mean over texts? t intervals, and a seeded bootstrap for composite numbers.

Texts are the sampling unit: tokens within a text depend on each other, so they never widen or narrow
an interval. An interval covers texts, not training seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 1000

Floats = NDArray[np.float64]


def mean_interval(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean of the defined values and its 95 % Student t interval; bounds are None below two values."""
    import scipy.special

    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if len(known) == 0:
        return None, None, None
    mean = float(known.mean())
    if len(known) < 2:
        return mean, None, None
    quantile = float(scipy.special.stdtrit(len(known) - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * float(known.std(ddof=1)) / len(known) ** 0.5
    return mean, mean - half, mean + half


@functools.lru_cache(maxsize=8)
def resampling_weights(texts: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each text is drawn in each resample: (resamples, texts), rows sum to the number of texts.

    The array is kept for the next metric that is resampled alike, so it cannot be written to.
    """
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=resamples)
    weights = draws.astype(np.float64)
    weights.setflags(write=False)
    return weights


def bootstrap_interval(
    values: Floats, statistic: Callable[[Floats], Floats], seed: int, resamples: int = RESAMPLES
) -> tuple[float | None, float | None]:
    """95 % percentile interval of a composite of means over texts.

    values (T, K), NaN where undefined; `statistic` maps weighted means (R, K) to (R,). None, None below two
    texts or where the composite is undefined.
    """
    texts = len(values)
    if texts < 2:
        return None, None
    means = weighted_means(values, resampling_weights(texts, seed, resamples))
    composite = statistic(means)
    composite = composite[np.isfinite(composite)]
    if len(composite) == 0:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(composite, [tail, 1 - tail])
    return float(low), float(high)


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Means over texts of the defined values: (T, K) and weights (R, T) to (R, K), NaN where none is defined."""
    known = np.isfinite(values)
    total = weights @ np.where(known, values, 0.0)
    count = weights @ known.astype(np.float64)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
