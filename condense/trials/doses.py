"""Dose and response: which coefficient to take, and what to try next. Pure Python.

Advice follows the penalty beside cross-entropy, how far training alone moved the control, and the doses that were
tried: a coefficient is raised to where the penalty is a tenth of cross-entropy and no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from condense.comparison.verdict import signed
from condense.diagnosis.verdict import LIU
from condense.records.base import Again, Estimate, Finding
from condense.records.diagnosis import Quality
from condense.records.learning import timing_sentence
from condense.records.plans import COEFFICIENT, MIN_SEEDS, Plan
from condense.records.treatment import QualityWord, VerdictId
from condense.records.trial import ArmResult, DosePoint, DoseResponse, what_fell
from condense.training.remedies import can_be_chosen, dose_in_words, remedy_of, schedule_of

RATIO_LOW, RATIO_HIGH, RATIO_AIM = 1e-3, 0.5, 0.1
"""|penalty| over cross-entropy: below, the loss hardly steers training; above, it competes; what advice aims at."""


def dose_responses(arms: Sequence[ArmResult], schedule: str = Plan.coefficient_schedule) -> tuple[DoseResponse, ...]:
    """A curve for every group of arms that differ in the coefficient alone, with the coefficient to take.

    schedule: the trial's, which arms without one of their own follow.
    """
    groups: dict[tuple[str | None, ...], list[ArmResult]] = {}
    for arm in arms:
        if arm.spec.coefficient is not None and arm.effect is not None:
            own = schedule_of(arm.spec, schedule)
            groups.setdefault((arm.spec.remedy, arm.spec.loss, arm.spec.layers, own), []).append(arm)
    return tuple(_response(group, str(key[-1])) for key, group in groups.items())


def _response(group: Sequence[ArmResult], schedule: str) -> DoseResponse:
    points = sorted((_point(arm) for arm in group), key=lambda point: point.coefficient)
    first = group[0].spec
    loss = f"{first.loss} loss" if first.loss else ""
    parts = [first.remedy, loss, f"on {first.layers} layers" if first.layers else "", dose_in_words(None, schedule)]
    none = next((arm.verdict_reason for arm in group if arm.verdict_reason), "")
    none = "a placebo is there to compare with" if remedy_of(first).is_placebo else none
    recommended, reason = (None, none) if none else _recommended([point for point in points if point.coefficient > 0])
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
    """The largest measurable fall whose quality improved or is held, or None with the reason; of positive doses."""
    if not points:
        return None, "no coefficient above 0 was tried"
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

    moved: whether training alone changed the control by more than what counts; steps: those that were taken. A search
    of rates is left out of the higher rate's command, which it would override.
    """
    if moved is False:
        return again.without("tune")(output="higher-rate/", learning_rate=f"{rounded(3 * plan.peak_rate):g}", **more)
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
    named, fell = {arm.spec.name: arm for arm in arms}, what_fell(dose, arms)
    opened = [named[p.arm].opened for p in dose.points if p.arm in named and p.coefficient == dose.recommended]
    seen = f"{dose.reason}{fell} (counts from {plan.min_effect:g}; quality tolerance {plan.quality_tolerance:.1%})"
    if dose.recommended is None:
        change = deciding_change(dose, [named[p.arm] for p in dose.points if p.arm in named], plan, steps, moved, again)
        title = f"Recommended coefficient of {dose.title}: none; {change.what} would decide"
        return Finding("dose", "info", title, seen, f"{_capital(change.because)}.", change.command, LIU)
    return Finding(
        "dose",
        "info" if "three dimensions rescaled" in opened else "good",
        f"Recommended coefficient of {dose.title}: {dose.recommended:g}",
        seen,
        "The rule: the largest measurable effect whose quality improved or is held. It is a choice on this run's "
        "validation text, so confirm it on other text.",
        _next_doses(dose, again) or again(output="other-text/", text="other.txt"),
        LIU,
    )


@dataclass(frozen=True)
class Change:
    """The one change that would decide where no dose is recommended: what, why by what was measured, the command."""

    what: str
    because: str
    command: str


def deciding_change(
    dose: DoseResponse, arms: Sequence[ArmResult], plan: Plan, steps: int, moved: bool | None, again: Again
) -> Change:
    """What to change, one thing alone, for a recommendation or a clear none; steps, moved: as in `longer_training`.

    In this order: seeds below three; a coefficient that falls to 0, where an early gain is lost; another coefficient;
    where all effects are too small a higher rate or more steps; validation text or seeds, by the power of the trial.
    """
    few = next((arm.verdict_reason for arm in arms if arm.verdict_reason), "")
    if few:
        return Change("more seeds", f"one of them may differ by chance ({few})", _with_seeds(MIN_SEEDS, plan, again))
    arms = [arm for arm in arms if can_be_chosen(arm.spec)]
    lost = next((arm for arm in arms if _is_lost(arm, plan)), None)
    if lost is not None and lost.learning is not None:
        name = lost.spec.name.rpartition("=")[0].removesuffix("+constant")
        return Change(
            "a coefficient that falls to 0",
            f"the gain is early and is not there at the end: {timing_sentence(lost.spec.name, lost.learning)}",
            again.without("coefficients")(output="falling/", arms=f"{name}+linear:0.25={lost.spec.coefficient:g}"),
        )
    if doses := _next_doses(dose, again):
        return Change(*_dose_words(dose), doses)
    if all(arm.verdict == "too-small-to-count" for arm in arms):
        return _longer(arms, plan, steps, moved, again)
    return _sharper(arms, plan, again)


def _is_lost(arm: ArmResult, plan: Plan) -> bool:
    """Whether an arm with a constant coefficient that could fall was better early and is not at the end."""
    looks = arm.learning.looks if arm.learning else ()
    early = any(look.word == "improved" for look in looks[:-1])
    could = "schedule" in remedy_of(arm.spec).takes and schedule_of(arm.spec, plan.coefficient_schedule) == "constant"
    return could and bool(looks) and early and looks[-1].word != "improved"


def _dose_words(dose: DoseResponse) -> tuple[str, str]:
    """Which other coefficient `_next_doses` asks for, and why."""
    points = [point for point in dose.points if point.coefficient > 0]
    if not points:
        return "a coefficient above 0", "none was tried"
    costly = [p.coefficient for p in points if p.verdict in ("dispersed-at-a-cost", "condensed-further")]
    gentle = [p.coefficient for p in points if not costly or p.coefficient < min(costly)]
    if costly and gentle:
        return "a coefficient between", f"{max(gentle):g} is not enough and {min(costly):g} costs quality or narrows"
    if costly:
        return "a lower coefficient", f"the lowest that was tried, {min(costly):g}, costs quality or narrows"
    ratio = points[-1].penalty_to_ce or 0.0
    return "a higher coefficient", f"the penalty was {ratio:.1e} of cross-entropy, and advice aims at {RATIO_AIM:g}"


def _longer(arms: Sequence[ArmResult], plan: Plan, steps: int, moved: bool | None, again: Again) -> Change:
    """More training: a higher rate where the control hardly moved, else as many steps as the pace so far asks for."""
    if moved is False:
        because = f"training alone changed the control by less than the {plan.quality_tolerance:.1%} that counts"
        return Change("a higher learning rate", because, longer_training(plan, steps, moved, again))
    strongest = min(arm.effect.metrics["mean_cosine"].value or 0.0 for arm in arms if arm.effect)
    if strongest >= 0:
        because = f"in {steps} steps no dose spread the representation"
        return Change("more steps", because, longer_training(plan, steps, moved, again))
    wanted = steps * plan.min_effect / -strongest
    asked = int(min(max(wanted, 2 * steps), 20 * steps))
    because = f"the best fell by {-strongest:.4f} in {steps} steps: at that pace {plan.min_effect:g} takes {wanted:.0f}"
    return Change("more steps", because, again(output="longer/", max_steps=str(asked)))


def _sharper(arms: Sequence[ArmResult], plan: Plan, again: Again) -> Change:
    """More validation text where documents hide what counts, else as many seeds as the power asks for."""
    effects = [arm.effect for arm in arms if arm.effect]
    powers = [power for effect in effects for key, power in effect.power.items() if effect.words[key].word in _OPEN]
    hidden = next((power for power in powers if power.reason), None)
    if hidden is not None and hidden.wanted is not None:
        because = f"documents alone leave an error of {hidden.document_error:.2g}, which hides {hidden.wanted:.2g}"
        return Change("more validation text", because, again(output="more-text/", num_texts=str(4 * plan.num_texts)))
    seeds = max((len(effect.by_seed) for effect in effects), default=0)
    needed = max((power.seeds_needed or 0 for power in powers), default=0)
    if needed > seeds:
        because = f"for what counts it takes {needed} seeds, and there were {seeds}"
        return Change(f"{needed} seeds", because, _with_seeds(needed, plan, again))
    because = f"intervals over {seeds} seeds leave it open"
    return Change("more seeds", because, _with_seeds(2 * max(seeds, 1), plan, again))


_OPEN = ("inconclusive", "not shown to be held")


def _with_seeds(seeds: int, plan: Plan, again: Again) -> str:
    """The command with so many seeds, and more than were asked for: some may have failed."""
    return again(output="more-seeds/", seeds=str(max(seeds, plan.seeds + 1)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_coefficients(again: Again, arm: str, *coefficients: float) -> str:
    """The command with an arm at other coefficients alone, beside the control; arm: as `--arms` writes it."""
    family = arm.rpartition("=")[0] or arm
    arms = ",".join(f"{family}={coefficient:.2g}" for coefficient in coefficients)
    return again.without("coefficients")(output="dose/", arms=arms)


def _next_doses(dose: DoseResponse, again: Again) -> str:
    """The command with the doses that would tell more; "" where another dose is not what is missing."""

    def try_doses(*coefficients: float) -> str:
        return with_coefficients(again, dose.points[0].arm, *coefficients)

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
    if any(point.verdict == "dispersed" for point in points):
        return ""  # strong enough; what is open is its quality
    if costly:
        gentle = [p.coefficient for p in points if p.coefficient < min(costly)]
        if not gentle:
            return try_doses(min(costly) / 3)
        return try_doses((max(gentle) * min(costly)) ** 0.5) if min(costly) > 2 * max(gentle) else ""
    if any(point.verdict != "too-small-to-count" for point in points):
        return ""
    stronger = next_dose(strongest.coefficient, strongest.penalty_to_ce)
    return "" if stronger is None else try_doses(stronger)


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
                f"|penalty| / cross-entropy was {ratio:.1e} on average while it was on",
                why,
                with_coefficients(again, arm.spec.name, dose)
                if aims
                else again(output="other-text/", text="other.txt"),
                LIU,
            )
        )
    return found
