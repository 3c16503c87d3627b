"""A training run over its steps: whether the deep mean cosine peaks in between, the scale of the axis, the findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.comparison.differences import Pairing, estimate_of
from condense.comparison.verdict import (
    LEAST,
    LI,
    UNITS,
    Severity,
    analyze_again,
    change_of,
    cone_word,
    number,
    signed,
    word_of,
)
from condense.diagnosis.verdict import LIU
from condense.intervals import ALPHA
from condense.records.base import Estimate, Finding
from condense.records.comparison import Member, Peak, Trajectory
from condense.records.diagnosis import Diagnosis


def peak_of(runs: Mapping[str, Diagnosis], steps: Sequence[int], least: float = LEAST) -> Peak | None:
    """The highest deep mean cosine of a run, if it stands out from the first and the last checkpoint.

    It stands out if it lies at least `least` above both and both paired intervals exclude 0, at .05 over the number of
    checkpoints but the first, since it is the highest of several. Chosen as the highest, it is biased
    slightly upwards.
    """
    names = list(runs)
    values = [runs[name].deep["mean_cosine"].value for name in names]
    known = [(value, -index) for index, value in enumerate(values) if value is not None]
    if len(known) < 3:
        return None
    top, negative = max(known)
    index = -negative
    if index in (0, len(names) - 1):
        return None
    own, alpha = runs[names[index]], ALPHA / (len(names) - 1)
    rise, rises = _cone_change(own, runs[names[0]], least, alpha)
    fall, falls = _cone_change(runs[names[-1]], own, least, alpha)
    if (rises, falls) != ("more condensed", "more spread"):
        return None
    middle = (steps[0] + steps[-1]) / 2
    return Peak(names[index], steps[index], top, rise, fall, steps[index] < middle)


def _cone_change(new: Diagnosis, old: Diagnosis, least: float, alpha: float) -> tuple[Estimate, str]:
    spread = Pairing.of({0: new}, {0: old}).deep("mean_cosine")
    change = estimate_of(spread)
    return change, cone_word(change, spread.bounds(alpha), least)


def scale_of(steps: Sequence[int]) -> Literal["linear", "log"]:
    """The scale on which the two closest checkpoints are furthest apart, as a share of the whole."""
    positive = sorted({step for step in steps if step > 0})
    if len(positive) < 3:
        return "linear"
    logs = [math.log(step) for step in positive]
    return "log" if _scale_of_closest(logs) > _scale_of_closest([float(step) for step in positive]) else "linear"


def _scale_of_closest(positions: Sequence[float]) -> float:
    gaps = [b - a for a, b in zip(positions[:-1], positions[1:], strict=True)]
    return min(gaps) / (positions[-1] - positions[0])


def findings(members: Sequence[Member], trajectory: Trajectory) -> tuple[Finding, ...]:
    """What a run over its steps shows, the main finding first."""
    return (_course(members, trajectory), *_quality_course(members), *_trend_course(members))


_ENDS: dict[str, tuple[str, Severity, str]] = {
    "more condensed": ("condenses", "warning", "ends more condensed than it began"),
    "more spread": ("opens", "good", "ends less condensed than it began"),
    "smaller than what counts": ("steady", "info", "ends within what counts of where it began"),
    "inconclusive": ("undecided", "info", "ends undecided against its beginning"),
}


def _course(members: Sequence[Member], trajectory: Trajectory) -> Finding:
    first, last, peak = members[0], members[-1], trajectory.peak
    ends = (
        f"deep mean cosine {number(first.deep['mean_cosine'], 3)} at step {first.step}, "
        f"{number(last.deep['mean_cosine'], 3)} at step {last.step}"
    )
    key, severity, end = _ENDS[word_of(last, "mean_cosine").word]
    quality = word_of(last, "quality").word
    if quality == "worse":
        severity, end = "warning", f"{end}, and predicts the texts worse"
    elif severity == "good" and quality not in ("improved", "held"):
        severity = "info"
    if peak is None:
        seen = f"{ends}, difference {signed(change_of(last, 'mean_cosine'), 3)} (counts from {LEAST:g})"
        why = "No checkpoint on the way stands out from both ends."
        return Finding(key, severity, f"The run {end}", seen, why, analyze_again(last), f"{LI}; {LIU}")
    early = "an early peak" if peak.early else "a peak"
    return Finding(
        "early-peak" if peak.early else "peak",
        "info",
        f"The run condenses first and opens again: {early} at step {peak.step}",
        f"{ends}; in between {peak.value:.3f} at step {peak.step}, {signed(peak.rise, 3)} above the first and "
        f"then {signed(peak.fall, 3)} to the last; it {end}",
        "So did the tiny models that were pretrained while condense was built, and published runs collapse in "
        "their warm-up too. A checkpoint from that stretch says nothing of the finished model.",
        analyze_again(last),
        f"{LI}; {LIU}",
    )


def _quality_course(members: Sequence[Member]) -> list[Finding]:
    for key, unit in UNITS.items():
        values = [(m, getattr(m.quality, key).value) for m in members]
        known = [(member, value) for member, value in values if value is not None]
        if len(known) < 2:
            continue
        best = min(known, key=lambda pair: pair[1])
        (first, begin), (last, end) = known[0], known[-1]
        return [
            Finding(
                "quality-course",
                "info",
                f"Over the same steps {unit} go from {begin:.2f} to {end:.2f}",
                f"{begin:.3f} at step {first.step}, best {best[1]:.3f} at step {best[0].step}, {end:.3f} at step "
                f"{last.step}",
                "Read the two curves together: a cone that opens while prediction improves is training at work; one "
                "that narrows late while prediction improves is not thereby a defect.",
                analyze_again(best[0]),
                LI,
            )
        ]
    return []


def _trend_course(members: Sequence[Member]) -> list[Finding]:
    known = [member for member in members if member.trend.spearman.rho is not None]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    a, b = first.trend.spearman.rho or 0.0, last.trend.spearman.rho or 0.0
    relieved = a >= 0.5 and b < a - 0.1
    return [
        Finding(
            "trend-course",
            "info",
            f"The trend over depth is {'relieved' if relieved else 'not relieved'} by training",
            f"Spearman rho of mean cosine with depth {a:+.2f} at step {first.step}, {b:+.2f} at step {last.step}",
            "Published for one 7 B run: +1.0 at initialisation, below 0 at the end. "
            + ("Here it moves the same way. " if relieved else "Here it does not move that way. ")
            + "With few blocks the coefficient is coarse.",
            analyze_again(last),
            LIU,
        )
    ]
