"""A training run over its steps: does the deep mean cosine peak on the way, and on which scale is it seen?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.comparison.differences import difference
from condense.records.base import Estimate
from condense.records.comparison import Peak
from condense.records.diagnosis import Diagnosis
from condense.records.plans import Plan

LEAST = Plan.min_effect
"""Smallest difference in deep mean cosine that counts, as in a treatment."""


def peak_of(runs: Mapping[str, Diagnosis], steps: Sequence[int], least: float = LEAST) -> Peak | None:
    """The highest deep mean cosine of a run, if it stands out from the first and the last checkpoint.

    It stands out if it lies at least `least` above both, and both paired 95 % intervals exclude 0. The highest of
    several is chosen by its height, which makes it look a little higher than it is.
    """
    names = list(runs)
    values = [runs[name].deep["mean_cosine"].value for name in names]
    known = [(value, -place) for place, value in enumerate(values) if value is not None]
    if len(known) < 3:
        return None
    top, place = max(known)
    place = -place
    if place in (0, len(names) - 1):
        return None
    own = runs[names[place]]
    rise, fall = _deep(own, runs[names[0]]), _deep(runs[names[-1]], own)
    if not _clear(rise, least, 1) or not _clear(fall, least, -1):
        return None
    middle = (steps[0] + steps[-1]) / 2
    return Peak(names[place], steps[place], top, rise, fall, steps[place] < middle)


def _deep(new: Diagnosis, old: Diagnosis) -> Estimate:
    return difference(new, old, "", new.corpus.seed, ()).deep["mean_cosine"]


def _clear(of: Estimate, least: float, sign: int) -> bool:
    if of.value is None or of.low is None or of.high is None:
        return False
    return sign * of.value >= least and (of.low > 0 if sign > 0 else of.high < 0)


def scale_of(steps: Sequence[int]) -> Literal["linear", "log"]:
    """The scale on which the two closest checkpoints are furthest apart, as a share of the whole."""
    positive = sorted({step for step in steps if step > 0})
    if len(positive) < 3:
        return "linear"
    logs = [math.log(step) for step in positive]
    return "log" if _closest(logs) > _closest([float(step) for step in positive]) else "linear"


def _closest(places: Sequence[float]) -> float:
    gaps = [b - a for a, b in zip(places[:-1], places[1:], strict=True)]
    return min(gaps) / (places[-1] - places[0])
