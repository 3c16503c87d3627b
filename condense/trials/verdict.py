"""What a trial comes to in words: the verdict of each arm, the dose to take, and advice. Pure Python.

Nothing is ranked below three seeds, nothing is recommended that is not measured, and advice from the literature is
given with the numbers of this very run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.comparison.differences import held_within, size_of
from condense.diagnosis.verdict import BILLION, LIU
from condense.metrics import MIN_TEXTS
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import ModelInfo, Quality
from condense.records.plans import MIN_SEEDS, Plan, TrialPlan
from condense.records.treatment import VerdictId
from condense.records.trial import ArmEffect, ArmResult, DosePoint, DoseResponse, Rank
from condense.rerun import Again

Opened = Literal["cone opened", "three dimensions rescaled", "both", "neither"]
RATIO_LOW, RATIO_HIGH = 1e-3, 0.5


def unranked(seeds: int, texts: int, arms: int) -> str | None:
    """Why no arm is ranked; None if they are."""
    if arms < 2:
        return "only one arm was measured"
    if seeds < MIN_SEEDS:
        return f"{seeds} seed{'' if seeds == 1 else 's'}: below {MIN_SEEDS} the spread over seeds is not known"
    if texts < MIN_TEXTS:
        return f"{texts} texts: below {MIN_TEXTS} an interval says little"
    return None


def arm_verdict(effect: ArmEffect, reference: Quality, plan: Plan, texts: int) -> tuple[VerdictId, bool | None, Opened]:
    """The verdict's id, whether quality held, and what opened, of an arm's mean effect over seeds."""
    held = held_within(effect.metrics, reference, plan.quality_tolerance)
    opened = what_opened(plan.min_effect, effect.metrics)
    if texts < MIN_TEXTS:
        return "inconclusive", held, opened
    return verdict_from(effect.metrics["mean_cosine"], plan.min_effect, held), held, opened


# --- dose and response ---------------------------------------------------------------------------------


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
    recommended, reason = _recommended(points)
    return DoseResponse(", ".join(part for part in parts if part), first.remedy, tuple(points), recommended, reason)


def _point(arm: ArmResult) -> DosePoint:
    metrics = arm.effect.metrics if arm.effect else {}
    quality = metrics.get("bits_per_byte") or Estimate(None)
    if quality.value is None:
        quality = metrics.get("loss", Estimate(None))
    return DosePoint(arm.spec.name, arm.spec.coefficient or 0.0, metrics["mean_cosine"], quality, arm.verdict)


def _recommended(points: Sequence[DosePoint]) -> tuple[float | None, str]:
    """The largest measurable fall whose quality is held, or None with the reason."""
    good = [point for point in points if point.verdict == "dispersed"]
    if good:
        best = min(good, key=lambda point: point.effect.value or 0.0)
        return best.coefficient, (
            f"the largest measurable fall of the deep mean cosine "
            f"({signed(best.effect)}) whose quality is held ({signed(best.quality)})"
        )
    tried = ", ".join(f"{point.coefficient:g}" for point in points)
    if any(point.verdict == "dispersed-at-a-cost" for point in points):
        return None, f"of {tried} each one that spread the representation measurably cost quality"
    if any(point.verdict == "condensed-further" for point in points):
        return None, f"of {tried} none spread the representation, and some narrowed it"
    if all(point.verdict == "no-measurable-effect" for point in points):
        return None, f"{tried} had no measurable effect at this budget"
    return None, f"at {tried} the texts do not decide"


# --- findings ------------------------------------------------------------------------------------------


def trial_findings(
    plan: TrialPlan,
    model: ModelInfo,
    arms: Sequence[ArmResult],
    doses: Sequence[DoseResponse],
    reason: str | None,
    command: str,
) -> tuple[Finding, ...]:
    """What a reader should know, the main result first."""
    again = Again(command or f"condense trial {shlex.quote(model.id)} --text train.txt --output trial/")
    return (
        _main(plan, arms, again),
        *[_dose(dose, again) for dose in doses],
        *_ranking(plan, arms, reason, again),
        *[_missing(arm, again) for arm in arms if arm.status != "done"],
        *_ratios(arms, again),
        *_scope(plan, model, arms, again),
    )


def _main(plan: TrialPlan, arms: Sequence[ArmResult], again: Again) -> Finding:
    measured = [arm for arm in arms if arm.effect is not None]
    least = plan.training.min_effect
    falls = [arm for arm in measured if arm.effect and size_of(arm.effect.metrics["mean_cosine"], least) == "fall"]
    held = [arm for arm in falls if arm.quality_held]
    if held:
        title = f"{_names(held)} spread the representation and held quality"
        why = f"The differences are to the control arm, so not just more training's. {_opened(held)}"
    elif falls:
        title = f"{_names(falls)} spread the representation, at a cost in language modelling"
        why = f"The spread is the remedy's doing, and so is the price: weigh one against the other. {_opened(falls)}"
    elif measured:
        title = "No arm spread the representation measurably"
        why = "At this budget no remedy moved the deep mean cosine by more than the smallest effect that counts."
    else:
        title, why = "No arm could be compared with the control", "See below what went wrong."
    seen = "; ".join(f"{arm.spec.name} {signed(arm.effect.metrics['mean_cosine'])}" for arm in measured if arm.effect)
    return Finding(
        "trial", "good" if held else "warning" if falls else "info", title,
        f"arm − control in deep mean cosine: {seen}" if seen else "nothing was measured", why,
        again(output="again/", seeds=str(max(plan.seeds, MIN_SEEDS))) if plan.seeds < MIN_SEEDS
        else again(output="longer/", max_steps=str(4 * (plan.training.max_steps or 100))), LIU,
    )  # fmt: skip


def _opened(arms: Sequence[ArmResult]) -> str:
    """What became of the cone in each arm that spread the representation."""
    return f"What opened: {'; '.join(f'{arm.spec.name}: {arm.opened}' for arm in arms)}."


def _names(arms: Sequence[ArmResult]) -> str:
    names = [arm.spec.name for arm in arms]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _dose(dose: DoseResponse, again: Again) -> Finding:
    stronger = max(point.coefficient for point in dose.points) * 3
    return Finding(
        "dose", "good" if dose.recommended is not None else "info",
        f"Recommended coefficient of {dose.title}: {'none' if dose.recommended is None else f'{dose.recommended:g}'}",
        dose.reason,
        "The rule: the largest measurable effect whose quality is held. It is a choice on this run's validation text, "
        "so confirm it on other text.",
        again(output="dose/", coefficients=",".join(f"{stronger / k:.2g}" for k in (30, 10, 3, 1))), LIU,
    )  # fmt: skip


def _ranking(plan: TrialPlan, arms: Sequence[ArmResult], reason: str | None, again: Again) -> list[Finding]:
    if reason is not None:
        return [
            Finding("not-ranked", "info", "No arm is ranked", reason,
                    "Intervals cover texts, not training seeds; two seeds can agree by chance.",
                    again(output="ranked/", seeds=str(MIN_SEEDS)), "Bouthillier et al. 2021, arXiv:2103.03098")
        ]  # fmt: skip
    ranked = [arm for arm in arms if arm.ranks]
    seen = "; ".join(
        f"{title}: {_order({arm.spec.name: arm.ranks[key] for arm in ranked})}"
        for key, title in (("mean_cosine", "most spread first"), ("bits_per_byte", "fewest bits per byte first"))
    )
    return [
        Finding("ranking", "info", "Arms are ranked only where the intervals allow", seen,
                "An arm is placed before another if the paired interval excludes 0 and every seed agrees; else they "
                "tie. Many pairs are compared without correction, so a single narrow win says little.",
                again(output="more-seeds/", seeds=str(2 * plan.seeds)), "Bouthillier et al. 2021, arXiv:2103.03098")
    ]  # fmt: skip


def _order(ranks: Mapping[str, Rank]) -> str:
    """The arms by place; those of one place behind each other."""
    places: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        places.setdefault(rank.place, []).append(name)
    return ", then ".join(" = ".join(places[place]) for place in sorted(places))


def _missing(arm: ArmResult, again: Again) -> Finding:
    words = {"partial": "failed under some seeds", "failed": "failed", "unavailable": "is not available here"}
    severity: Literal["warning", "info"] = "info" if arm.status == "unavailable" else "warning"
    return Finding(
        f"arm-{arm.status}", severity, f"{arm.spec.name} {words[arm.status]}",
        arm.reason or "no reason is known", "The other arms are not touched by it.", f"{again()} --resume", "this run",
    )  # fmt: skip


def _ratios(arms: Sequence[ArmResult], again: Again) -> list[Finding]:
    found = []
    for arm in arms:
        known = [run.penalty_to_ce for run in arm.runs if run.penalty_to_ce]
        ratio = sum(known) / len(known) if known else None
        if ratio is None or RATIO_LOW <= ratio <= RATIO_HIGH:
            continue
        small = ratio < RATIO_LOW
        found.append(
            Finding(
                "penalty-ratio",
                "warning",
                f"{arm.spec.name}: the penalty was {'negligible' if small else 'large'} beside cross-entropy",
                f"|penalty| / cross-entropy was {ratio:.1e} on average",
                f"Below {RATIO_LOW:g} the loss hardly steers training; above {RATIO_HIGH:g} it competes with the task.",
                again(output="dose/", coefficients=f"{(10 if small else 0.1) * (arm.spec.coefficient or 1.0):g}"),
                LIU,
            )  # fmt: skip
        )
    return found


def _scope(plan: TrialPlan, model: ModelInfo, arms: Sequence[ArmResult], again: Again) -> list[Finding]:
    notes = []
    names = {arm.spec.remedy: arm for arm in arms if arm.effect is not None}
    if "larger-vocab" in names:
        arm = names["larger-vocab"]
        notes.append(
            Finding("larger-vocab", "info", "A larger vocabulary is a design for training from the start",
                    f"{'; '.join(arm.details) or 'see its details'}; bits per byte {_effect(arm, 'bits_per_byte')}",
                    "New rows start as means of old ones and need training; compare it by bits per byte, never by "
                    "perplexity. It sees more text per step than the other arms.",
                    again(output="longer/", max_steps=str(10 * (plan.training.max_steps or 100))),
                    "Tao et al. 2024, arXiv:2407.13623")
        )  # fmt: skip
    if "active-forgetting" in names:
        notes.append(
            Finding("active-forgetting", "info", "Active forgetting is a pre-training method",
                    f"bits per byte {_effect(names['active-forgetting'], 'bits_per_byte')}",
                    "It re-initialises the embeddings while the body is still learning; late in fine-tuning it "
                    "destroys what they knew.", again(output="longer/", max_steps="3000"),
                    "Chen et al. 2023, arXiv:2307.01163")
        )  # fmt: skip
    if model.parameters > BILLION:
        notes.append(
            Finding("large-model", "info", "Above one billion parameters the published benefit shrinks",
                    f"{model.parameters / BILLION:.1f} billion parameters; here: {_best(arms)}",
                    "The published gains are for small models; larger ones resist condensation by themselves.",
                    again(output="again/"), LIU)
        )  # fmt: skip
    if model.contrastive:
        notes.append(
            Finding("contrastive", "warning", "This checkpoint was trained with a contrastive objective",
                    f"sentence-transformers layout; here: {_best(arms)}",
                    "Such a checkpoint should not be treated: a remedy may undo what contrastive training arranged.",
                    again(output="again/"), "Wang & Isola 2020, arXiv:2005.10242")
        )  # fmt: skip
    return notes


def _effect(arm: ArmResult, key: str) -> str:
    return signed(arm.effect.metrics[key]) if arm.effect else "not measured"


def _best(arms: Sequence[ArmResult]) -> str:
    """The arm with the largest fall, whatever it is worth."""
    known = [(arm.effect.metrics["mean_cosine"], arm) for arm in arms if arm.effect]
    found = [(of, arm) for of, arm in known if of.value is not None]
    if not found:
        return "nothing was measured"
    of, arm = min(found, key=lambda pair: pair[0].value or 0.0)
    return f"{arm.spec.name} moved the deep mean cosine most, by {signed(of)}"


def verdict_from(cosine: Estimate, least: float, held: bool | None) -> VerdictId:
    """The verdict's id from the difference in deep mean cosine and whether quality held."""
    size = size_of(cosine, least)
    if size == "rise":
        return "condensed-further"
    if size == "fall":
        return "dispersed" if held else "dispersed-at-a-cost"
    return "no-measurable-effect" if size == "none" else "inconclusive"


def what_opened(least: float, deep: Mapping[str, Estimate]) -> Opened:
    """Did the cone open, or were three dimensions rescaled: the effect with and without the top three."""
    whole = size_of(deep["mean_cosine"], least) == "fall"
    rest = size_of(deep["mean_cosine_without_top_dimensions"], least) == "fall"
    if not whole:
        return "cone opened" if rest else "neither"
    if not rest:
        return "three dimensions rescaled"
    total, inner = (deep[key].value or 0.0 for key in ("mean_cosine", "mean_cosine_without_top_dimensions"))
    return "cone opened" if inner <= 0.5 * total else "both"


def signed(estimate: Estimate, digits: int = 4) -> str:
    """A difference with its sign and interval, in plain characters."""
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.{digits}f}"
    return f"{estimate.value:+.{digits}f} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
