"""What a trial comes to in words: the verdict of each arm, the dose to take, and advice. Pure Python.

A word on an arm needs three seeds, a rank five; nothing is recommended that is not measured. Advice follows the
penalty beside cross-entropy, how far training alone moved the control, and the doses that were tried.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.comparison.verdict import quality_in, signed, what_opened
from condense.diagnosis.verdict import LIU
from condense.records.base import Again, Estimate, Finding
from condense.records.diagnosis import ModelInfo, Quality
from condense.records.plans import MIN_SEEDS, RANK_SEEDS, TrialPlan
from condense.records.treatment import Opened, Power, QualityWord, VerdictId, Word
from condense.records.trial import ArmEffect, ArmResult, ArmRun, DoseResponse, Rank, mean
from condense.training.remedies import REMEDIES, can_be_chosen
from condense.trials.doses import control_moved, dose_finding, ratio_findings
from condense.trials.scope import scope_findings

BOUTHILLIER = "Bouthillier et al. 2021, arXiv:2103.03098"
PUBLIC_SD = {"bits_per_byte": 0.00023, "task mean": 0.0066}
"""Standard deviation over 20 seeds of a public recipe: of its bits per byte, and of its mean over 22 tasks."""
PUBLIC_SEEDS = (
    "A public recipe measured over 20 seeds: standard deviation .00023 bits per byte and .0066 of a 22-task mean, by "
    "which one point of such a mean takes 9 seeds per arm and half a point 30"
)


# --- one arm -------------------------------------------------------------------------------------------


def verdict_from(words: Mapping[str, Word]) -> VerdictId:
    """The verdict's id from what the difference in deep mean cosine and the one in quality come to."""
    cone, quality = words["mean_cosine"].word, words["quality"].word
    if cone == "more condensed":
        return "condensed-further"
    if cone == "more spread":
        return "dispersed-at-a-cost" if quality == "worse" else "dispersed"
    return "too-small-to-count" if cone == "smaller than what counts" else "inconclusive"


def arm_verdict(effect: ArmEffect) -> tuple[VerdictId, str, QualityWord | None, Opened | None]:
    """The verdict's id, why it is open where the number of seeds decides that, the quality word, and what opened.

    Below three seeds nothing is said of quality and of what opened either (None).
    """
    few = too_few(len(effect.by_seed), MIN_SEEDS, "a word on an arm")
    if few:
        return "inconclusive", few, None, None
    return verdict_from(effect.words), "", quality_in(effect.words), what_opened(effect.words, effect.metrics)


def too_few(seeds: int, needed: int, what: str) -> str:
    """Why something is not said below a number of seeds; empty from there on."""
    return "" if seeds >= needed else f"{seeds} seed{'' if seeds == 1 else 's'}: {what} needs {needed}"


def unranked(seeds: int, arms: int) -> str | None:
    """Why no arm is ranked; None if they are."""
    if arms < 2:
        return "only one arm was measured"
    return too_few(seeds, RANK_SEEDS, "a rank") or None


# --- findings ------------------------------------------------------------------------------------------


def trial_findings(
    plan: TrialPlan,
    model: ModelInfo,
    before: ArmRun,
    arms: Sequence[ArmResult],
    doses: Sequence[DoseResponse],
    reason: str | None,
    command: str,
) -> tuple[Finding, ...]:
    """What a reader should know, the main result first."""
    again = Again(command or f"condense trial {shlex.quote(model.id)} --text train.txt --output trial/")
    control = next((arm for arm in arms if arm.spec.remedy == "control"), None)
    moved = _control_moved(before, control, plan.training.quality_tolerance)
    return (
        _main(plan, arms, again),
        *[
            dose_finding(dose, arms, plan.training, _steps(arms), moved, again)
            for dose in doses
            if not REMEDIES[dose.remedy].is_placebo
        ],
        *_ranking(plan, arms, reason, again),
        *_power(plan, arms, again),
        *[_missing(arm, again) for arm in arms if arm.status != "done"],
        *ratio_findings(arms, again),
        *scope_findings(plan, model, arms, _steps(arms), again),
    )


def _control_moved(before: ArmRun, control: ArmResult | None, tolerance: float) -> bool | None:
    if control is None or not control.runs:
        return None
    bits, loss = (Estimate(mean(control, key)) for key in ("bits_per_byte", "loss"))
    return control_moved(before.quality, Quality(loss, Estimate(None), bits), tolerance)


def _steps(arms: Sequence[ArmResult]) -> int:
    return max((run.curve.step[-1] for arm in arms for run in arm.runs if run.curve.step), default=100)


def _main(plan: TrialPlan, arms: Sequence[ArmResult], again: Again) -> Finding:
    measured = [arm for arm in arms if arm.effect is not None]
    seeds = min((len(arm.effect.by_seed) for arm in measured if arm.effect), default=0)
    severity, title, why = _headline(measured, seeds)
    parts = [f"{arm.spec.name} {signed(arm.effect.metrics['mean_cosine'])}" for arm in measured if arm.effect]
    limits = f"counts from {plan.training.min_effect:g}; quality tolerance {plan.training.quality_tolerance:.1%}"
    more = plan.seeds < MIN_SEEDS
    return Finding(
        "trial",
        severity,
        title,
        f"arm − control in deep mean cosine: {'; '.join(parts)} ({limits})" if parts else "nothing was measured",
        why,
        again(output="again/", seeds=str(MIN_SEEDS)) if more else again(output="other-text/", text="other.txt"),
        LIU,
    )


def _headline(arms: Sequence[ArmResult], seeds: int) -> tuple[Literal["good", "warning", "info"], str, str]:
    """Severity, title and why of the main result."""
    if not arms:
        return "info", "No arm could be compared with the control", "See below what went wrong."
    if seeds < MIN_SEEDS and all(arm.verdict_reason for arm in arms):
        covers = f" ({arms[0].effect.covers})" if arms[0].effect and seeds == 1 else ""
        why = "What other seeds would give is not known yet; the numbers of each seed stand in the tables."
        return "info", f"No word on any arm: {arms[0].verdict_reason}{covers}", why
    spread = [arm for arm in arms if arm.verdict in ("dispersed", "dispersed-at-a-cost")]
    groups = [
        (_spread_words(quality, rescaled), [a for a in spread if a.quality == quality and _is_rescaled(a) is rescaled])
        for quality, rescaled in itertools.product(_QUALITIES, (False, True))
    ]
    others = [arm for arm in arms if arm not in spread]
    groups += [
        ("condensed it further", [arm for arm in arms if arm.verdict == "condensed-further"]),
        ("predicts the texts worse", [arm for arm in others if arm.quality == "worse"]),
        ("predicts the texts better", [arm for arm in others if arm.quality == "improved"]),
    ]
    parts = [f"{_names(group)} {_agreeing(words, group)}" for words, group in groups if group]
    if spread:
        chosen = [arm for arm in spread if can_be_chosen(arm.spec)]
        good = any(arm.quality in ("improved", "held") and arm.opened in ("cone opened", "both") for arm in chosen)
        costly = any(arm.quality == "worse" for arm in spread)
        why = f"Every difference is to the control under the same seed, over {_seeds_of(spread)}. {_opened(spread)}"
        why += "".join(
            f" {arm.spec.name}: {arm.effect.unpaired}." for arm in spread if arm.effect and arm.effect.unpaired
        )
        return "good" if good else "warning" if costly else "info", "; ".join(parts), why
    small = all(arm.verdict == "too-small-to-count" for arm in arms)
    narrowed = any(arm.verdict == "condensed-further" for arm in arms)
    if small:
        nothing = "No arm changed the deep mean cosine by what counts"
        why = "Each interval lies within ± the smallest effect that counts."
    else:
        nothing = "No arm is shown to spread the representation"
        few = [f"{arm.spec.name}: {arm.verdict_reason}" for arm in arms if arm.verdict_reason]
        wide = any(not arm.verdict_reason and arm.verdict != "too-small-to-count" for arm in arms)
        why = (
            "The intervals of some arms reach beyond what counts: see what these seeds could have shown."
            if wide
            else ""
        )
        why = " ".join(part for part in (why, f"{'; '.join(few)}." if few else "") if part)
    if not narrowed:
        parts.insert(0, nothing)
    bad = narrowed or any(arm.quality == "worse" for arm in arms)
    return "warning" if bad else "info", "; ".join(parts), nothing + "." if narrowed else why


def _seeds_of(arms: Sequence[ArmResult]) -> str:
    """Over how many seeds these arms were compared with the control."""
    counts = [len(arm.effect.by_seed) for arm in arms if arm.effect]
    least, most = min(counts), max(counts)
    return f"{most} seeds" if least == most else f"{least} to {most} seeds"


_QUALITIES: tuple[QualityWord, ...] = ("improved", "held", "not shown to be held", "not measured", "worse")


def _is_rescaled(arm: ArmResult) -> bool:
    return arm.opened == "three dimensions rescaled"


def _spread_words(quality: QualityWord, rescaled: bool) -> str:
    known = {"improved": " and improved quality", "held": " and held quality"}
    known |= {"not measured": "; quality was not measured", "worse": ", at a cost in language modelling"}
    how = " by rescaling three dimensions" if rescaled else ""
    return f"spread the representation{how}{known.get(quality, '; quality is not shown to be held')}"


def _opened(arms: Sequence[ArmResult]) -> str:
    """What became of the cone in each arm that spread the representation."""
    return f"What opened: {'; '.join(f'{arm.spec.name}: {arm.opened}' for arm in arms)}."


def _agreeing(words: str, arms: Sequence[ArmResult]) -> str:
    """The words with their verb for one arm or several."""
    return words if len(arms) == 1 else words.replace("predicts", "predict", 1)


def _names(arms: Sequence[ArmResult]) -> str:
    names = [arm.spec.name for arm in arms]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ranking(plan: TrialPlan, arms: Sequence[ArmResult], reason: str | None, again: Again) -> list[Finding]:
    if reason is not None:
        why = "Few seeds can agree by chance; the values of each seed stand in the table."
        return [
            Finding(
                "not-ranked",
                "info",
                "No arm is ranked",
                reason,
                why,
                again(output="ranked/", seeds=str(RANK_SEEDS)),
                BOUTHILLIER,
            )
        ]
    titles = {"mean_cosine": "most spread first", "bits_per_byte": "fewest bits per byte first"}
    places = {key: {arm.spec.name: arm.ranks[key] for arm in arms if key in arm.ranks} for key in titles}
    seen = "; ".join(f"{titles[key]}: {_order(ranks) if ranks else 'not known'}" for key, ranks in places.items())
    return [
        Finding(
            "ranking",
            "info",
            "Arms are ranked only where they are clearly apart",
            seen,
            "An arm is placed before another if their difference counts and stays below p = .05 when all pairs of the "
            "measure are adjusted together (Holm); else they tie.",
            again(output="more-seeds/", seeds=str(2 * plan.seeds)),
            BOUTHILLIER,
        )
    ]


def _order(ranks: Mapping[str, Rank]) -> str:
    """The arms by place; those of one place behind each other."""
    places: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        places.setdefault(rank.place, []).append(name)
    return ", then ".join(" = ".join(places[place]) for place in sorted(places))


# --- power ---------------------------------------------------------------------------------------------

_OPEN = ("inconclusive", "not shown to be held")


def _power(plan: TrialPlan, arms: Sequence[ArmResult], again: Again) -> list[Finding]:
    """What these seeds could have shown, by the arm that varies most; the quoted spread where none is known."""
    known = [(arm, arm.effect.power) for arm in arms if arm.effect and arm.effect.power]
    if not known:
        return []
    lines, most, text = [], 0, False
    least = min(power.seeds for _, powers in known for power in powers.values())
    few = f"; below {MIN_SEEDS} seeds no arm gets a word" if least < MIN_SEEDS else ""
    for key in ("mean_cosine", "quality"):
        own = [(arm.spec.name, power[key]) for arm, power in known if key in power]
        if not own:
            continue
        name, worst = max(own, key=lambda pair: pair[1].shown or 0.0)
        lines.append(power_words(worst, name))
        if any(arm.effect.words[key].word in _OPEN for arm, _ in known if arm.effect):
            most, text = max(most, worst.seeds_needed or 0), text or worst.reason is not None
    shown = [effect.shown for arm in arms for effect in arm.task_effects if effect.shown is not None]
    if shown:
        lines.append(f"task scores: a difference of {max(shown):.2g}")
    return [
        Finding(
            "power",
            "info",
            f"What {_seeds_of([arm for arm, _ in known])} could have shown",
            "; ".join(lines) + few,
            "The smallest difference that 80 % of such trials find. Where a smaller one has no word, it may be there "
            "all the same."
            + (" More validation text, not more seeds, would narrow it." if text else "")
            + ("" if shown else f" {PUBLIC_SEEDS}."),
            next_after_power(most, least, text, plan.training.num_texts, again),
            BOUTHILLIER,
        )
    ]


def next_after_power(needed: int, seeds: int, text: bool, windows: int, again: Again) -> str:
    """What would show more: text where documents decide, seeds where they are too few, and else another text."""
    if text:
        return again(output="more-text/", num_texts=str(4 * windows))
    if needed > seeds:
        return again(output="more-seeds/", seeds=str(needed))
    return again(output="other-text/", text="other.txt")


def power_before(seeds: int, arms: int, known: Sequence[tuple[str, Mapping[str, Power]]] = ()) -> list[str]:
    """What so many seeds can show of `arms` arms beside the control, in lines, before anything is trained.

    known: the spread of each arm in an earlier run, by its name; without any, a public one. Of one seed no spread is
    known.
    """
    from condense.trials.effects import expected_power

    if seeds < 2:
        return [f"one seed covers no other seed; a claim needs at least {MIN_SEEDS}"]
    few = f"; below {MIN_SEEDS} no arm gets a word" if seeds < MIN_SEEDS else ""
    lines = []
    for key in ("mean_cosine", "quality"):
        own = [(expected_power(power[key], seeds, arms), name) for name, power in known if key in power]
        if own:
            worst, name = max(own, key=lambda pair: pair[0].shown or 0.0)
            lines.append(f"by the earlier run, {seeds} seeds can show {power_words(worst, name)}{few}")
    if lines:
        return lines
    spread = Power("bits_per_byte", 1, 0.05, 2**0.5 * PUBLIC_SD["bits_per_byte"], 0.0, None, None, None, None)
    shown = expected_power(spread, seeds, arms).shown
    return [f"{PUBLIC_SEEDS}; by it {seeds} seeds can show {shown:.2g} bits per byte{few}; here it is not known yet"]


def power_words(power: Power, arm: str = "") -> str:
    """The smallest difference that could have been shown, and the seeds that what counts would take."""
    title = "deep mean cosine" if power.key == "mean_cosine" else power.key.replace("_", " ")
    where = f" ({arm}, which varies most)" if arm else ""
    shown = "nothing" if power.shown is None else f"a difference of {power.shown:.2g}"
    shown = "any difference" if power.shown is not None and power.shown < 1e-9 else shown
    if power.wanted is None:
        return f"{title}: {shown}{where}"
    needed = power.reason or f"{power.seeds_needed} seeds"
    return f"{title}: {shown}{where}; for {power.wanted:.2g} it takes {needed}"


# --- what else a reader should know --------------------------------------------------------------------


def _missing(arm: ArmResult, again: Again) -> Finding:
    words = {"partial": "failed under some seeds", "failed": "failed", "unavailable": "is not available here"}
    severity: Literal["warning", "info"] = "info" if arm.status == "unavailable" else "warning"
    return Finding(
        f"arm-{arm.status}",
        severity,
        f"{arm.spec.name} {words[arm.status]}",
        arm.reason or "no reason is known",
        "The other arms are not touched by it.",
        f"{again()} --resume",
        "this run",
    )
