"""How much does one measurement differ from another? Paired by text where the windows are the same.

Composite numbers are formed within each bootstrap resample: the texts are drawn once for both
measurements, then the composite of each, then their difference. Covers texts, not training seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from condense.intervals import Floats, bootstrap_interval, resampling_weights, weighted_means
from condense.metrics import METRICS, PER_TEXT
from condense.outcomes import Effect, SiteEffect
from condense.records import Diagnosis, Estimate, SiteReading

TAIL = 0.025


def difference(new: Diagnosis, old: Diagnosis, against: str, seed: int = 0) -> Effect:
    """New − old per metric: deep, per site and quality, with 95 % bootstrap intervals over texts.

    Paired where both were measured on the same windows (`windows_sha256`), else the texts of each are
    drawn for themselves and `paired` is False.
    """
    paired = new.corpus.windows_sha256 == old.corpus.windows_sha256
    return Effect(
        against=against,
        paired=paired,
        deep={key: _deep(new, old, key, paired, seed) for key in METRICS},
        quality={key: _quality(new, old, key, paired, seed) for key in ("loss", "bits_per_byte")},
        sites=_sites(new, old, paired, seed),
    )


def _sites(new: Diagnosis, old: Diagnosis, paired: bool, seed: int) -> tuple[SiteEffect, ...]:
    others = {(site.stack, site.site, site.index): site for site in old.sites}
    pairs = [(site, others.get((site.stack, site.site, site.index))) for site in new.sites]
    return tuple(
        SiteEffect(
            site.site, site.stack, site.index,
            {key: _at_site(site, other, key, paired, seed) for key in METRICS if key in site.metrics},
        )
        for site, other in pairs
        if other is not None
    )  # fmt: skip


def _at_site(new: SiteReading, old: SiteReading, key: str, paired: bool, seed: int) -> Estimate:
    a, b = new.metrics[key], old.metrics[key]
    if a.value is None or b.value is None:
        return Estimate(None, reason="undefined in one of the two")
    value = a.value - b.value
    if a.per_text is None or b.per_text is None:
        return Estimate(value)
    mine, theirs = _column(a.per_text), _column(b.per_text)
    if paired:
        low, high = bootstrap_interval(mine - theirs, lambda means: means[:, 0], seed)
        return Estimate(value, low, high)
    low, high = _unpaired(mine, theirs, lambda means: means[:, 0], seed)
    return Estimate(value, low, high)


def _deep(new: Diagnosis, old: Diagnosis, key: str, paired: bool, seed: int) -> Estimate:
    a, b = new.deep[key], old.deep[key]
    if a.value is None or b.value is None:
        return Estimate(None, reason="undefined in one of the two")
    value = a.value - b.value
    if key not in PER_TEXT:
        return Estimate(value)
    mine, theirs = _deep_table(new, key), _deep_table(old, key)
    if paired:
        low, high = _paired(mine, theirs, _median, seed)
    else:
        low, high = _unpaired(mine, theirs, _median, seed)
    return Estimate(value, low, high)


def _quality(new: Diagnosis, old: Diagnosis, key: str, paired: bool, seed: int) -> Estimate:
    a, b = getattr(new.quality, key), getattr(old.quality, key)
    if a.value is None or b.value is None:
        return Estimate(None, reason=a.reason or b.reason)
    value = a.value - b.value
    if key == "bits_per_byte":
        mine, theirs, statistic = _bits_table(new), _bits_table(old), _ratio
    else:
        mine, theirs, statistic = _column(a.per_text), _column(b.per_text), _first
    compare = _paired if paired else _unpaired
    low, high = compare(mine, theirs, statistic, seed)
    per_text = None
    if paired and len(a.per_text or ()) == len(b.per_text or ()):
        per_text = tuple(x - y for x, y in zip(a.per_text, b.per_text, strict=True))
    return Estimate(value, low, high, per_text)


def _first(means: Floats) -> Floats:
    return means[:, 0]


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]


def _median(means: Floats) -> Floats:
    return np.nanmedian(means, axis=1) if np.isfinite(means).any() else np.full(len(means), np.nan)


def _column(values: Sequence[float | None] | None) -> Floats:
    return np.array([np.nan if v is None else v for v in values or ()], dtype=np.float64)[:, None]


def _deep_table(diagnosis: Diagnosis, key: str) -> Floats:
    """Per-text values at the deepest half of the main stack's blocks: (texts, blocks)."""
    stack = diagnosis.sites[-1].stack
    blocks = [site for site in diagnosis.sites if site.stack == stack and site.site == "block"]
    half = [site for site in blocks if site.index > len(blocks) // 2]
    return np.hstack([_column(site.metrics[key].per_text) for site in half])


def _bits_table(diagnosis: Diagnosis) -> Floats:
    """Bits and bytes of each text: (texts, 2)."""
    sizes = np.array(diagnosis.quality.predicted_bytes, dtype=np.float64)
    ratios = _column(diagnosis.quality.bits_per_byte.per_text)[:, 0]
    return np.stack([ratios * sizes, sizes], axis=1)


def _paired(
    a: Floats, b: Floats, statistic: Callable[[Floats], Floats], seed: int
) -> tuple[float | None, float | None]:
    if len(a) < 2 or len(a) != len(b):
        return None, None
    weights = resampling_weights(len(a), seed)
    return _bounds(statistic(weighted_means(a, weights)) - statistic(weighted_means(b, weights)))


def _unpaired(
    a: Floats, b: Floats, statistic: Callable[[Floats], Floats], seed: int
) -> tuple[float | None, float | None]:
    if len(a) < 2 or len(b) < 2:
        return None, None
    mine = statistic(weighted_means(a, resampling_weights(len(a), seed)))
    theirs = statistic(weighted_means(b, resampling_weights(len(b), seed + 1)))
    return _bounds(mine - theirs)


def _bounds(draws: Floats) -> tuple[float | None, float | None]:
    known = draws[np.isfinite(draws)]
    if len(known) == 0:
        return None, None
    low, high = np.quantile(known, [TAIL, 1 - TAIL])
    return float(low), float(high)
