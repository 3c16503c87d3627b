"""The forest of a trial: every arm's difference to the control over one scale, and the arms pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from condense.records.base import Estimate
from condense.records.trial import ArmResult, Trial, quality_key, tolerated
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.text import DASH, difference, number, typeset
from condense.report.trial.rows import DIGITS, TITLES, signed_bounds


@dataclass(frozen=True)
class Branch:
    """One arm on the forest: its difference as text, and where value, interval and seeds lie, in percent."""

    arm: str
    value: str
    interval: str
    at: float | None
    low: float | None
    high: float | None
    seeds: tuple[tuple[int, float, str], ...]
    reason: str = ""


@dataclass(frozen=True)
class Forest:
    """All arms by one measure over one scale: where 0 lies, what is tinted, the ends of the scale."""

    title: str
    unit: str
    ways: tuple[str, str]
    ends: tuple[str, str]
    zero: float
    zone: tuple[float, float]
    key: str
    rows: tuple[Branch, ...]


def forests(trial: Trial) -> list[Forest]:
    """Differences to the control in mean cosine and in quality, each with its interval and a dot per seed."""
    least, bound, key = trial.plan.training.min_effect, tolerated(trial), quality_key(trial)
    cosine = _forest(
        trial, "mean_cosine", ("spreads", "condenses"), (-least, least),
        f"tinted: within ±{least:g}, too small to count",
    )  # fmt: skip
    share = 100 * trial.plan.training.quality_tolerance
    held = f"tinted: quality held, up to +{number(bound, 4)} ({share:g} % of the control’s)" if bound else ""
    quality = _forest(trial, key, ("better", "worse"), (None, bound), held)
    return [forest for forest in (cosine, quality) if forest is not None]


def _forest(
    trial: Trial, key: str, ways: tuple[str, str], zone: tuple[float | None, float | None], note: str
) -> Forest | None:  # fmt: skip
    arms = [arm for arm in trial.arms if arm is not trial.control]
    values = [v for arm in arms for e in _all(arm, key) for v in (e.value, e.low, e.high) if v is not None]
    if not values:
        return None
    low, high = padded([0.0, *values, *(edge for edge in zone if edge is not None)])

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    digits = DIGITS[key]
    rows = tuple(_branch(arm, key, digits, place) for arm in arms)
    start, stop = (0.0 if zone[0] is None else place(zone[0])), (0.0 if zone[1] is None else place(zone[1]))
    ends = tuple(typeset(f"{end:+.{digits}f}") for end in (low, high))
    return Forest(TITLES[key], "arm − control", ways, (ends[0], ends[1]), place(0.0), (start, stop), note, rows)


def _all(arm: ArmResult, key: str) -> Sequence[Estimate]:
    if arm.effect is None:
        return ()
    seeds = [Estimate(seed.metrics.get(key, NOTHING).value) for seed in arm.effect.by_seed]
    return [arm.effect.metrics.get(key, NOTHING), *seeds]


def _branch(arm: ArmResult, key: str, digits: int, place: Callable[[float], float]) -> Branch:
    if arm.effect is None:
        return Branch(arm.spec.name, DASH, "", None, None, None, (), arm.status)
    of = arm.effect.metrics.get(key, NOTHING)
    by_seed = [(seed.seed, seed.metrics.get(key, NOTHING).value) for seed in arm.effect.by_seed]
    seeds = tuple((seed, place(v), typeset(f"{v:+.{digits}f}")) for seed, v in by_seed if v is not None)
    if of.value is None:
        return Branch(arm.spec.name, DASH, "", None, None, None, seeds, of.reason or "not defined")
    low, high = (None if v is None else place(v) for v in (of.low, of.high))
    value = typeset(f"{of.value:+.{digits}f}")
    return Branch(arm.spec.name, value, typeset(signed_bounds(of, digits)), place(of.value), low, high, seeds)


# --- pair by pair --------------------------------------------------------------------------------------


def pair_rows(trial: Trial) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """For each measure all pairs of arms: first, second, first − second, and whether one is clearly apart."""
    named = list(dict.fromkeys(key for pair in trial.pairs for key in pair.differences))
    return [
        (
            TITLES.get(key, key.replace("_", " ")),
            [
                (pair.first, pair.second, difference(pair.differences[key], DIGITS.get(key, 3)),
                 "clear" if pair.clear.get(key) else "tie")
                for pair in trial.pairs
                if key in pair.differences
            ],
        )
        for key in named
    ]  # fmt: skip
