"""Dose and response: which coefficient to take, and what to try next. Pure Python.

Advice follows the penalty beside cross-entropy, how far training alone moved the control, and the doses that were
tried: a coefficient is raised to where the penalty is a tenth of cross-entropy and no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from condense.comparison.verdict import signed
from condense.diagnosis.verdict import LIU
from condense.records.base import Again, Estimate, Finding
from condense.records.diagnosis import Quality
from condense.records.plans import COEFFICIENT, MIN_SEEDS, SEARCH_DOSES, Plan
from condense.records.treatment import QualityWord, TriedDose, VerdictId
from condense.records.trial import ArmResult, DosePoint, DoseResponse

RATIO_LOW, RATIO_HIGH, RATIO_AIM = 1e-3, 0.5, 0.1
"""|penalty| over cross-entropy: below, the loss hardly steers training; above, it competes; what advice aims at."""


def dose_responses(arms: Sequence[ArmResult]) -> tuple[DoseResponse, ...]:
    """A curve for every group of arms that differ in the coefficient alone, with the coefficient to take."""
    groups: dict[tuple[str, str | None, str | None], list[ArmResult]] = {}
    for arm in arms:
        if arm.spec.coefficient is not None and arm.effect is not None:
            groups.setdefault((arm.spec.remedy, arm.spec.loss, arm.spec.layers), []).append(arm)
    return tuple(_response(group) for group in groups.values())


def _response(group: Sequence[ArmResult]) -> DoseResponse:
    points = sorted((_point(arm) for arm in group), key=lambda point: point.coefficient)
    first = group[0].spec
    loss = f"{first.loss} loss" if first.loss else ""
    parts = [first.remedy, loss, f"on {first.layers} layers" if first.layers else ""]
    few = next((arm.verdict_reason for arm in group if arm.verdict_reason), "")
    recommended, reason = (None, few) if few else _recommended(points)
    return DoseResponse(", ".join(part for part in parts if part), first.remedy, tuple(points), recommended, reason)


def _point(arm: ArmResult) -> DosePoint:
    metrics = arm.effect.metrics if arm.effect else {}
    quality = metrics.get("bits_per_byte") or Estimate(None)
    if quality.value is None:
        quality = metrics.get("loss", Estimate(None))
    return DosePoint(
        arm.spec.name,
        arm.spec.coefficient or 0.0,
        metrics["mean_cosine"],
        quality,
        arm.verdict,
        arm.quality,
        ratio_of(arm),
    )


def ratio_of(arm: ArmResult) -> float | None:
    """|penalty| / cross-entropy of an arm, mean over its seeds."""
    known = [run.penalty_to_ce for run in arm.runs if run.penalty_to_ce]
    return sum(known) / len(known) if known else None


def _recommended(points: Sequence[DosePoint]) -> tuple[float | None, str]:
    """The largest measurable fall whose quality improved or is held, or None with the reason."""
    fell = [point for point in points if point.verdict == "dispersed"]
    good = [point for point in fell if point.quality_word in ("improved", "held")]
    if good:
        best = min(good, key=lambda point: point.effect.value or 0.0)
        return best.coefficient, (
            f"the largest measurable fall of the deep mean cosine "
            f"({signed(best.effect)}) whose quality {'improved' if best.quality_word == 'improved' else 'is held'} "
            f"({signed(best.quality)})"
        )
    tried = ", ".join(f"{point.coefficient:g}" for point in points)
    if fell:
        return None, f"of {tried} some spread the representation, but quality is not shown to be held"
    if any(point.verdict == "dispersed-at-a-cost" for point in points):
        return None, f"of {tried} each one that spread the representation measurably cost quality"
    if any(point.verdict == "condensed-further" for point in points):
        return None, f"of {tried} none spread the representation, and some narrowed it"
    if all(point.verdict == "too-small-to-count" for point in points):
        return None, f"at {tried} the effect is smaller than what counts, at this budget"
    return None, f"at {tried} the intervals decide nothing"


# --- a search ------------------------------------------------------------------------------------------


def within_tolerance(dose: TriedDose) -> bool:
    """Whether quality is shown to be held at a dose, or improved, and the cone is not narrowed."""
    return dose.quality_word in ("improved", "held") and dose.word != "more condensed"


def next_tried(points: Sequence[TriedDose]) -> float | None:
    """The coefficient that a search tries next, from those it tried; None where it is at its end.

    It begins at `COEFFICIENT`, rises by three (further where the penalty is far below a tenth of cross-entropy) until
    quality is not shown to be held or the penalty competes with cross-entropy, falls by three until it is, and halves
    a factor above 2 between the two once, on a logarithmic scale; at most `SEARCH_DOSES` in all.
    """
    if not points:
        return COEFFICIENT
    if len(points) >= SEARCH_DOSES:
        return None
    kept = [point for point in points if within_tolerance(point)]
    failed = [point.coefficient for point in points if not within_tolerance(point)]
    if not kept:
        return rounded(min(failed) / 3)
    top = max(kept, key=lambda point: point.coefficient)
    if not failed:
        ratio = top.penalty_to_ce
        if ratio is not None and ratio >= RATIO_HIGH:
            return None
        small = None if top.word == "more spread" else next_dose(top.coefficient, ratio)
        return small or rounded(3 * top.coefficient)
    low, high = top.coefficient, min(c for c in failed if c > top.coefficient) if max(failed) > top.coefficient else 0.0
    between = rounded((low * high) ** 0.5)
    tried = {point.coefficient for point in points}
    return between if high > 2 * low and low < between < high and between not in tried else None


def chosen_dose(points: Sequence[TriedDose]) -> tuple[float | None, str]:
    """The coefficient with the largest measurable fall within the quality tolerance, or None; with the reason."""
    kept = [point for point in points if within_tolerance(point)]
    fell = [point for point in kept if point.word == "more spread"]
    if fell:
        best = min(fell, key=lambda point: point.effect.value or 0.0)
        quality = "improved" if best.quality_word == "improved" else "is held"
        return best.coefficient, (
            f"the largest measurable fall of the deep mean cosine ({signed(best.effect)}) whose quality {quality} "
            f"({signed(best.quality)})"
        )
    tried = ", ".join(f"{point.coefficient:g}" for point in sorted(points, key=lambda point: point.coefficient))
    if any(point.word == "more spread" for point in points):
        return None, f"of {tried} each that spread the representation is not shown to hold quality"
    if not kept:
        return None, f"at {tried} quality is not shown to be held"
    if all(point.word == "smaller than what counts" for point in kept):
        return None, f"at {tried} the effect is smaller than what counts, or quality is not shown to be held"
    return None, f"at {tried} no measurable fall is within the quality tolerance"


# --- what to try next ---------------------------------------------------------------------------------


def next_dose(coefficient: float, ratio: float | None) -> float | None:
    """The coefficient to try where one had too small an effect; None where the penalty is not what was too small.

    ratio: |penalty| / cross-entropy at `coefficient`. The penalty grows with the coefficient, so one step takes it to
    RATIO_AIM of cross-entropy, at most a hundredfold; from half of that on a larger coefficient is no advice.
    """
    if coefficient == 0:
        return COEFFICIENT
    if ratio is None or ratio <= 0 or ratio >= RATIO_AIM / 2:
        return None
    return rounded(coefficient * min(100.0, RATIO_AIM / ratio))


def longer_training(plan: Plan, steps: int, moved: bool | None, again: Again, **more: str) -> str:
    """More training where the penalty is large enough: a higher learning rate if the control hardly moved, or steps.

    moved: whether training alone changed the control by more than what counts; steps: those that were taken.
    """
    if moved is False:
        return again(output="higher-rate/", learning_rate=f"{rounded(3 * plan.peak_rate):g}", **more)
    return again(output="longer/", max_steps=str(4 * max(1, steps)), **more)


def control_moved(before: Quality, control: Quality, tolerance: float) -> bool | None:
    """Whether training alone changed the control's quality by more than the tolerance; None if it is not known."""
    for key in ("bits_per_byte", "loss"):
        old, new = getattr(before, key).value, getattr(control, key).value
        if old and new is not None:
            return bool(abs(new - old) > tolerance * old)
    return None


def rounded(value: float) -> float:
    """A number to one significant digit, as coefficients and rates are written."""
    return float(f"{value:.1g}")


def dose_finding(
    dose: DoseResponse, arms: Sequence[ArmResult], plan: Plan, steps: int, moved: bool | None, again: Again
) -> Finding:
    """Which coefficient to take, and the doses to try next. steps, moved: as in `longer_training`."""
    named = {arm.spec.name: arm for arm in arms}
    effects = [named[point.arm].effect for point in dose.points if point.arm in named]
    rescaled = any(
        named[point.arm].opened == "three dimensions rescaled"
        for point in dose.points
        if point.arm in named and point.coefficient == dose.recommended
    )
    but = "; it fell by three dimensions being rescaled, not by the cone opening" if rescaled else ""
    needs_text = any(power.reason for effect in effects if effect for power in effect.power.values())
    return Finding(
        "dose",
        "good" if dose.recommended is not None and not rescaled else "info",
        f"Recommended coefficient of {dose.title}: {'none' if dose.recommended is None else f'{dose.recommended:g}'}",
        f"{dose.reason}{but} (counts from {plan.min_effect:g}; quality tolerance {plan.quality_tolerance:.1%})",
        "The rule: the largest measurable effect whose quality improved or is held. It is a choice on this run's "
        "validation text, so confirm it on other text.",
        _next_doses(dose, again) or _next_run(dose, plan, steps, moved, needs_text, again),
        LIU,
    )


def _next_doses(dose: DoseResponse, again: Again) -> str:
    """The command with the doses that would tell more; "" where another dose is not what is missing."""

    def try_doses(*coefficients: float) -> str:
        return again(output="dose/", coefficients=",".join(f"{c:.2g}" for c in coefficients))

    points = [point for point in dose.points if point.coefficient > 0]
    if not points:
        return try_doses(COEFFICIENT)
    costly = [p.coefficient for p in points if p.verdict in ("dispersed-at-a-cost", "condensed-further")]
    strongest = points[-1]
    if dose.recommended is not None:
        above = [p.coefficient for p in points if p.coefficient > dose.recommended]
        if above:
            return try_doses((dose.recommended * min(above)) ** 0.5) if min(above) > 2 * dose.recommended else ""
        heavy = (strongest.penalty_to_ce or 0.0) >= RATIO_HIGH
        return "" if heavy else try_doses(3 * strongest.coefficient)
    if costly:
        gentle = [p.coefficient for p in points if p.coefficient < min(costly)]
        if not gentle:
            return try_doses(min(costly) / 3)
        return try_doses((max(gentle) * min(costly)) ** 0.5) if min(costly) > 2 * max(gentle) else ""
    if any(point.verdict != "too-small-to-count" for point in points):
        return ""
    stronger = next_dose(strongest.coefficient, strongest.penalty_to_ce)
    return "" if stronger is None else try_doses(stronger)


def _next_run(dose: DoseResponse, plan: Plan, steps: int, moved: bool | None, needs_text: bool, again: Again) -> str:
    """What would tell more where another dose would not: other text, more text, more seeds, longer training."""
    if dose.recommended is not None:
        return again(output="other-text/", text="other.txt")
    if all(point.verdict == "too-small-to-count" for point in dose.points):
        return longer_training(plan, steps, moved, again)
    if needs_text:
        return again(output="more-text/", num_texts=str(4 * plan.num_texts))
    given = again.value("seeds")
    seeds = int(given) if given.isdigit() else MIN_SEEDS
    return again(output="more-seeds/", seeds=str(2 * seeds if seeds >= MIN_SEEDS else MIN_SEEDS))


def ratio_words(
    ratio: float, verdict: VerdictId | None, quality: QualityWord | None
) -> tuple[str, Literal["warning", "info"], str, bool]:
    """What a penalty outside the range comes to, by what came of it: word, severity, why, and whether to change it.

    A large one that left quality alone is no reason for a lower coefficient, nor is a negligible one with an effect
    that counts a reason for a higher one.
    """
    effect = verdict in ("dispersed", "dispersed-at-a-cost", "condensed-further")
    if ratio < RATIO_LOW and effect:
        why = "yet the difference counts: other seeds tell whether it is the loss’s"
        return "negligible", "info", f"Below {RATIO_LOW:g} the loss hardly steers training, {why}.", False
    if ratio < RATIO_LOW:
        return "negligible", "warning", f"Below {RATIO_LOW:g} the loss hardly steers training.", True
    if quality in ("improved", "held"):
        seen = "improved" if quality == "improved" else "is held"
        return "large", "info", f"Above {RATIO_HIGH:g} it competes with the task, yet quality {seen} here.", False
    aims = quality == "worse" or effect
    return "large", "warning", f"Above {RATIO_HIGH:g} it competes with the task.", aims


def ratio_findings(arms: Sequence[ArmResult], again: Again) -> list[Finding]:
    """The arms whose penalty was negligible or large beside cross-entropy."""
    found = []
    for arm in arms:
        ratio = ratio_of(arm)
        if ratio is None or RATIO_LOW <= ratio <= RATIO_HIGH:
            continue
        word, severity, why, aims = ratio_words(ratio, arm.verdict, arm.quality)
        own = arm.spec.coefficient or 1.0
        dose = next_dose(own, ratio) or rounded(own * RATIO_AIM / ratio)
        found.append(
            Finding(
                "penalty-ratio",
                severity,
                f"{arm.spec.name}: the penalty was {word} beside cross-entropy",
                f"|penalty| / cross-entropy was {ratio:.1e} on average",
                why,
                again(output="dose/", coefficients=f"{dose:g}")
                if aims
                else again(output="other-text/", text="other.txt"),
                LIU,
            )
        )
    return found
