"""How much does one measurement differ from another? Paired by text where the windows are the same.

Composite numbers are formed within each bootstrap resample: the texts are drawn once for both
measurements, then the composite of each, then their difference. Several pairs (one per training seed) share the
draw of the texts and are averaged within it. Covers texts, not training seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from condense.intervals import CONFIDENCE, Floats, resampling_weights, weighted_means
from condense.metrics import METRICS, PER_TEXT
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, Quality
from condense.records.treatment import Effect, SiteEffect

TAIL = (1 - CONFIDENCE) / 2
QUALITY_KEYS = ("loss", "bits_per_byte")
Pairs = Sequence[tuple[Diagnosis, Diagnosis]]
Statistic = Callable[[Floats], Floats]


def difference(
    new: Diagnosis, old: Diagnosis, against: str, seed: int = 0, site_keys: Iterable[str] = tuple(METRICS)
) -> Effect:
    """New − old per metric: deep, per site and quality, with 95 % bootstrap intervals over texts.

    Paired where both were measured on the same windows (`windows_sha256`), else the texts of each are
    drawn for themselves and `paired` is False. site_keys: the metrics to compare site by site.
    """
    return effect_over_seeds({0: new}, {0: old}, against, seed, site_keys)


def effect_over_seeds(
    new: Mapping[int, Diagnosis],
    old: Mapping[int, Diagnosis],
    against: str,
    seed: int = 0,
    site_keys: Iterable[str] = tuple(METRICS),
) -> Effect:
    """The mean over the training seeds that both have of new − old; intervals over texts. ValueError without one."""
    pairs = [(new[number], old[number]) for number in sorted(new.keys() & old.keys())]
    if not pairs:
        raise ValueError("no training seed is in both")
    paired = all(same_windows(a, b) for a, b in pairs)
    return Effect(
        against=against,
        paired=paired,
        deep={key: deep_contrast(pairs, key, seed, paired=paired) for key in METRICS},
        quality={key: quality_contrast(pairs, key, seed, paired=paired) for key in QUALITY_KEYS},
        sites=site_contrasts(pairs, tuple(site_keys), seed, paired=paired),
    )


def same_windows(new: Diagnosis, old: Diagnosis) -> bool:
    """Whether two measurements read the same token ids."""
    return new.corpus.windows_sha256 == old.corpus.windows_sha256


def deep_contrast(pairs: Pairs, key: str, seed: int = 0, *, paired: bool, stack: str | None = None) -> Estimate:
    """Mean over pairs of new − old in a metric's median over the deepest half of a stack (default: the main one)."""
    value = _mean_difference([(new.deep_of(stack)[key].value, old.deep_of(stack)[key].value) for new, old in pairs])
    if value is None:
        return Estimate(None, reason="undefined in one of the two")
    if key not in PER_TEXT:
        return Estimate(value)
    tables = [(_deep_table(new, key, stack), _deep_table(old, key, stack)) for new, old in pairs]
    return Estimate(value, *_interval(tables, _median, seed, paired))


def quality_contrast(pairs: Pairs, key: str, seed: int = 0, *, paired: bool) -> Estimate:
    """Mean over pairs of new − old in loss, perplexity or bits_per_byte; per text too where one pair is paired."""
    both = [(getattr(new.quality, key), getattr(old.quality, key)) for new, old in pairs]
    value = _mean_difference([(a.value, b.value) for a, b in both])
    if value is None:
        reasons = [of.reason for pair in both for of in pair if of.value is None and of.reason]
        return Estimate(None, reason=reasons[0] if reasons else "undefined in one of the two")
    if key == "bits_per_byte":
        tables, statistic = [(_bits_table(new), _bits_table(old)) for new, old in pairs], _ratio
    else:
        statistic = _exponential if key == "perplexity" else _first  # of the mean loss, so of its texts
        losses = [(new.quality.loss.per_text, old.quality.loss.per_text) for new, old in pairs]
        tables = [(_column(a), _column(b)) for a, b in losses]
    low, high = _interval(tables, statistic, seed, paired)
    per_text = None
    first, second = both[0]
    if paired and len(pairs) == 1 and len(first.per_text or ()) == len(second.per_text or ()):
        texts = zip(first.per_text, second.per_text, strict=True)
        per_text = tuple(None if x is None or y is None else x - y for x, y in texts)
    return Estimate(value, low, high, per_text)


def site_contrasts(pairs: Pairs, keys: Sequence[str], seed: int = 0, *, paired: bool) -> tuple[SiteEffect, ...]:
    """Mean over pairs of new − old at every site that all measurements have, for the given metrics."""
    sides = [[{(s.stack, s.site, s.index): s.metrics for s in run.sites} for run in pair] for pair in pairs]
    made = []
    for site in pairs[0][0].sites:
        place = (site.stack, site.site, site.index)
        if all(place in side for pair in sides for side in pair):
            both = [(new[place], old[place]) for new, old in sides]
            found = {
                key: metric_contrast([(new[key], old[key]) for new, old in both], seed, paired=paired)
                for key in keys
                if key in site.metrics
            }
            made.append(SiteEffect(site.site, site.stack, site.index, found))
    return tuple(made)


def metric_contrast(both: Sequence[tuple[Estimate, Estimate]], seed: int = 0, *, paired: bool) -> Estimate:
    """Mean over pairs of new − old in one metric at one site, with its interval where it is measured per text."""
    value = _mean_difference([(a.value, b.value) for a, b in both])
    if value is None:
        return Estimate(None, reason="undefined in one of the two")
    if any(a.per_text is None or b.per_text is None for a, b in both):
        return Estimate(value)
    tables = [(_column(a.per_text), _column(b.per_text)) for a, b in both]
    return Estimate(value, *_interval(tables, _first, seed, paired))


def _mean_difference(values: Sequence[tuple[float | None, float | None]]) -> float | None:
    differences = [a - b for a, b in values if a is not None and b is not None]
    return sum(differences) / len(differences) if len(differences) == len(values) > 0 else None


# --- statistics of tables of texts ---------------------------------------------------------------------


def _first(means: Floats) -> Floats:
    return means[:, 0]


def _exponential(means: Floats) -> Floats:
    return np.exp(means[:, 0])


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]


def _median(means: Floats) -> Floats:
    return np.nanmedian(means, axis=1) if np.isfinite(means).any() else np.full(len(means), np.nan)


def _column(values: Sequence[float | None] | None) -> Floats:
    return np.array([np.nan if v is None else v for v in values or ()], dtype=np.float64)[:, None]


def _deep_table(diagnosis: Diagnosis, key: str, stack: str | None) -> Floats:
    """Per-text values at the deepest half of a stack's blocks, the main one's by default: (texts, blocks)."""
    stack = stack or diagnosis.main_stack
    blocks = [site for site in diagnosis.sites if site.stack == stack and site.site == "block"]
    half = [site for site in blocks if site.index > len(blocks) // 2]
    return np.hstack([_column(site.metrics[key].per_text) for site in half])


def _bits_table(diagnosis: Diagnosis) -> Floats:
    """Bits and bytes of each text: (texts, 2)."""
    sizes = np.array(diagnosis.quality.predicted_bytes, dtype=np.float64)
    ratios = _column(diagnosis.quality.bits_per_byte.per_text)[:, 0]
    return np.stack([ratios * sizes, sizes], axis=1)


def _interval(
    tables: Sequence[tuple[Floats, Floats]], statistic: Statistic, seed: int, paired: bool
) -> tuple[float | None, float | None]:
    """Bounds of the mean over pairs of statistic(new) − statistic(old); None below two texts."""
    draws = []
    for new, old in tables:
        if min(len(new), len(old)) < 2 or (paired and new.shape != old.shape):
            return None, None
        mine = resampling_weights(len(new), seed)
        theirs = mine if paired else resampling_weights(len(old), seed + 1)
        if paired:  # a text that is undefined on one side says nothing of the difference
            known = np.isfinite(new) & np.isfinite(old)
            new, old = np.where(known, new, np.nan), np.where(known, old, np.nan)
        draws.append(statistic(weighted_means(new, mine)) - statistic(weighted_means(old, theirs)))
    return _bounds(np.mean(draws, axis=0))


def _bounds(draws: Floats) -> tuple[float | None, float | None]:
    known = draws[np.isfinite(draws)]
    if len(known) == 0:
        return None, None
    low, high = np.quantile(known, [TAIL, 1 - TAIL])
    return float(low), float(high)


def size_of(estimate: Estimate, least: float) -> Literal["fall", "rise", "none", "unclear"]:
    """Whether a difference is a measurable fall or rise, lies within ±least, or is unclear."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "unclear"
    if abs(estimate.value) >= least and (estimate.high < 0 or estimate.low > 0):
        return "fall" if estimate.value < 0 else "rise"
    return "none" if -least <= estimate.low and estimate.high <= least else "unclear"


def held_within(changes: Mapping[str, Estimate], reference: Quality, tolerance: float) -> bool | None:
    """True if the upper bound of the change is within a share of the reference's value; None if unknown.

    Bits per byte where there are any, else the loss (masked models).
    """
    for key in ("bits_per_byte", "loss"):
        change, base = changes.get(key), getattr(reference, key).value
        if change is not None and change.high is not None and base is not None:
            return bool(change.high <= tolerance * base)
    return None
