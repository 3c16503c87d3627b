"""What a treatment achieved, in words: effect, cost, and whether the cone opened. Pure Python.

The words come from the effect (see `comparison.verdict`): what the differences to the control come to, over as many
training seeds as there are. With one seed they hold for this pair of runs, the headline says so, and no sentence
names a cause.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Literal

from condense.comparison.verdict import UNITS, WITHOUT_TOP, open_because, quality_in, signed, what_opened
from condense.diagnosis.verdict import BILLION, LIU
from condense.records.base import Again, Finding
from condense.records.plans import COEFFICIENT, MIN_SEEDS, Plan
from condense.records.treatment import Arm, Effect, Opened, Outcome, QualityWord, VerdictId
from condense.trials.doses import (
    RATIO_AIM,
    RATIO_HIGH,
    RATIO_LOW,
    control_moved,
    longer_training,
    next_dose,
    ratio_words,
    rounded,
)
from condense.trials.scope import early_gain
from condense.trials.verdict import BOUTHILLIER, next_after_power, power_words, verdict_from

PUBLISHED = (
    "Published for GPT-2 (mean of 10 tasks): untouched 34.35, cross-entropy only 34.95, noisy embeddings 35.15, active "
    "forgetting 35.36, dispersion 35.42; the margin over active forgetting is not significant, one standard error is "
    "about 0.6 points."
)
Severity = Literal["good", "warning", "info"]
CONE_WORDS = ("mean_cosine", WITHOUT_TOP)


def assess(plan: Plan, model: str, arms: Mapping[str, Arm], effect: Effect, command: str = "") -> Outcome:
    """Verdict and findings of a treatment from the effect on the validation windows.

    arms: those of the first seed; command: the run's own command line, which the advice changes only where it must.
    """
    again = Again(command or f"condense treat {shlex.quote(model)} --text train.txt")
    before, controlled = arms["before"].validation.model, effect.against == "control"
    verdict: VerdictId = verdict_from(effect.words) if controlled else "no-control"
    opened, quality = what_opened(effect.words, effect.deep), quality_in(effect.words)
    findings = (
        _headline(plan, again, arms, effect, verdict, opened),
        _opening(effect, opened),
        *_penalty_ratio(plan, again, arms, effect, verdict),
        *_seed_findings(plan, again, effect),
        *(early_gain(plan, before, {"treated": quality}, _steps_taken(plan, arms), again) if controlled else ()),
        *_limit_findings(arms),
    )
    return Outcome(verdict, quality, opened, findings, effect.covers)


# --- the headline --------------------------------------------------------------------------------------


def _headline(
    plan: Plan, again: Again, arms: Mapping[str, Arm], effect: Effect, verdict: VerdictId, opened: Opened
) -> Finding:
    severity, title = _title(verdict, quality_in(effect.words), opened, plan)
    covers = f" ({effect.covers})" if effect.seeds == 1 else f" (over {effect.covers})"
    return Finding(
        verdict,
        severity,
        title + covers,
        _seen(plan, effect),
        _why(plan, arms, effect, verdict),
        _next_command(plan, again, arms, effect, verdict),
        f"{LIU}. {PUBLISHED}",
    )


def _title(verdict: VerdictId, quality: QualityWord, opened: Opened, plan: Plan) -> tuple[Severity, str]:
    rescaled = opened == "three dimensions rescaled"
    if verdict == "dispersed":
        spread = "The representation spread, by three dimensions rescaled" if rescaled else "The representation spread"
        words = {
            "improved": "and quality improved",
            "held": "and quality is held",
            "not shown to be held": "but quality is not shown to be held",
        }.get(quality, "and quality was not measured")
        return "good" if quality in ("improved", "held") and not rescaled else "info", f"{spread}, {words}"
    small = f"The difference is smaller than what counts (±{plan.min_effect:g})"
    also = {"improved": "; quality improved", "worse": "; quality got worse"}.get(quality, "")
    named: dict[VerdictId, tuple[Severity, str]] = {
        "dispersed-at-a-cost": ("warning", "The representation spread, at a cost in language modelling"),
        "condensed-further": ("warning", "The treated model is more condensed than the control"),
        "too-small-to-count": ("warning" if quality == "worse" else "info", small + also),
        "inconclusive": ("info", f"Inconclusive: whether the representation spread is open{also}"),
        "no-control": ("warning", "No control arm: what changed may be the loss or more training"),
    }
    return named[verdict]


def _seen(plan: Plan, effect: Effect) -> str:
    """The differences with the smallest that count, and the word on quality."""
    cosine, quality = signed(effect.deep["mean_cosine"]), effect.words["quality"]
    seen = (
        f"treated − {effect.against} on the validation text: deep mean cosine {cosine} (counts from "
        f"{plan.min_effect:g})"
    )
    change = effect.quality[quality.key]
    if change.value is None:
        return f"{seen}; quality was not measured: {change.reason or 'there is no loss'}"
    limit = "" if quality.least is None else f", {quality.least:.4f}"
    return (
        f"{seen}, {UNITS[quality.key]} {signed(change)}; quality {quality.word} (tolerance "
        f"{plan.quality_tolerance:.1%}{limit})"
    )


def _why(plan: Plan, arms: Mapping[str, Arm], effect: Effect, verdict: VerdictId) -> str:
    one = effect.seeds == 1
    if verdict == "no-control":
        return "Without a control arm the loss cannot be separated from more training."
    if verdict == "inconclusive":
        return open_because(effect.deep["mean_cosine"], effect.words["mean_cosine"])
    if verdict == "too-small-to-count":
        return f"The whole interval lies within ±{plan.min_effect:g}. {_limit(plan, arms)}"
    if one:
        return (
            "The two runs differ in the loss alone, yet two runs that differ in their seed alone differ too: with one "
            "seed nothing says by how much."
        )
    if verdict == "condensed-further" and effect.seeds >= MIN_SEEDS:
        return "The loss, or its interplay with training, narrowed the cone: see the training curves."
    cause = f"The control was trained under the same {effect.seeds} seeds"
    if effect.seeds >= MIN_SEEDS:
        cause += ", so the difference is the loss's and not just more training's"
    return cause + (". Weigh the spread against its price." if verdict == "dispersed-at-a-cost" else ".")


def _limit(plan: Plan, arms: Mapping[str, Arm]) -> str:
    """What kept an effect small: the coefficient, the training itself, or neither that is known."""
    ratio, moved = arms["treated"].penalty_to_ce, _moved(plan, arms)
    if plan.first_coefficient == 0:
        return "Coefficient 0 makes the treated arm a second control."
    if ratio is None:
        return "How large the penalty was beside cross-entropy is not known."
    if next_dose(plan.first_coefficient, ratio) is not None:
        return f"The penalty was {ratio:.1e} of cross-entropy, so a larger coefficient has room."
    limit = "the learning rate or the number of steps" if moved is False else "the number of steps"
    hardly = " and the control itself hardly moved" if moved is False else ""
    return f"The penalty was {ratio:.2g} of cross-entropy{hardly}: the limit is {limit}, not the coefficient."


def _moved(plan: Plan, arms: Mapping[str, Arm]) -> bool | None:
    """Whether training alone moved the control; None without one."""
    if "control" not in arms or "before" not in arms:
        return None
    before, control = (arms[name].validation.quality for name in ("before", "control"))
    return control_moved(before, control, plan.quality_tolerance)


def _next_command(plan: Plan, again: Again, arms: Mapping[str, Arm], effect: Effect, verdict: VerdictId) -> str:
    """The command that would decide more or do better; a larger coefficient only where the penalty was too small."""
    if verdict == "no-control":
        return again(output="with-control/")
    if plan.first_coefficient == 0:
        return again(coefficient=f"{COEFFICIENT:g}", output="treated/")
    if verdict == "too-small-to-count":
        dose = next_dose(plan.first_coefficient, arms["treated"].penalty_to_ce)
        if dose is not None:
            return again(coefficient=f"{dose:g}", output="stronger/")
        return longer_training(plan, _steps_taken(plan, arms), _moved(plan, arms), again)
    if verdict in ("dispersed-at-a-cost", "condensed-further"):
        return again(coefficient=f"{plan.first_coefficient / 3:.2g}", output="gentler/")
    if verdict == "dispersed" and quality_in(effect.words) in ("improved", "held") and effect.seeds >= MIN_SEEDS:
        return again(text="other.txt", output="other-text/")
    if effect.seeds < MIN_SEEDS and verdict == "dispersed":
        return again(seeds=str(MIN_SEEDS), output="seeds/")
    power = effect.power.get("mean_cosine")
    if power is not None and power.reason is None and power.seeds_needed is not None:
        return again(seeds=str(max(power.seeds_needed, effect.seeds + 1)), output="more-seeds/")
    return again(num_texts=str(4 * plan.num_texts), output="more-text/")


def _steps_taken(plan: Plan, arms: Mapping[str, Arm]) -> int:
    logged = arms["treated"].curve.step
    return plan.max_steps or (logged[-1] if logged else 100)


# --- what opened, the penalty, seeds -------------------------------------------------------------------


def _rescaled(effect: Effect) -> float:
    """Share of the fall that goes when the three strongest dimensions of each text are set aside."""
    total, inner = (effect.deep[key].value for key in ("mean_cosine", "mean_cosine_without_top_dimensions"))
    return 1 - (inner or 0.0) / total if total else 0.0


def _opening(effect: Effect, opened: Opened) -> Finding:
    without = effect.deep["mean_cosine_without_top_dimensions"]
    narrowed = [effect.words[key].word == "more condensed" for key in CONE_WORDS if key in effect.words]
    titles: dict[Opened, str] = {
        "cone opened": "The cone itself opened: the fall stays when the three strongest dimensions are set aside",
        "three dimensions rescaled": "Three dimensions were rescaled; behind them no change that counts",
        "both": f"{_rescaled(effect):.0%} of the fall is three dimensions being rescaled; the rest is the cone opening",
        "neither": "Neither did the cone open nor were three dimensions rescaled",
        "not clear": "Whether the cone opened or three dimensions were rescaled is not clear",
    }
    return Finding(
        "what-opened",
        "info",
        "The cone narrowed, with and without the three strongest dimensions"
        if len(narrowed) == 2 and all(narrowed)
        else titles[opened],
        f"deep mean cosine {signed(effect.deep['mean_cosine'])}, without each text's three strongest dimensions "
        f"{signed(without)}; effective rank {signed(effect.deep['effective_rank'], 2)}",
        "A loss on cosines is satisfied most cheaply by rescaling the few dimensions that dominate them.",
        "condense report condense.json",
        "Timkey & van Schijndel 2021, arXiv:2109.04404",
    )


def _penalty_ratio(
    plan: Plan, again: Again, arms: Mapping[str, Arm], effect: Effect, verdict: VerdictId
) -> list[Finding]:
    """A penalty that was negligible or large beside cross-entropy, with advice that fits what came of it."""
    ratio, quality = arms["treated"].penalty_to_ce, quality_in(effect.words)
    if ratio is None or RATIO_LOW <= ratio <= RATIO_HIGH or plan.first_coefficient == 0:
        return []
    word, severity, why, aims = ratio_words(ratio, verdict, quality)
    dose = next_dose(plan.first_coefficient, ratio) or (
        rounded(plan.first_coefficient * RATIO_AIM / ratio) if ratio else None
    )
    return [
        Finding(
            "penalty-ratio",
            severity,
            f"The penalty was {word} beside cross-entropy",
            f"|penalty| / cross-entropy was {ratio:.1e} on average while it was on",
            why,
            again(coefficient=f"{dose:g}", output="again/")
            if aims and dose is not None  # no coefficient raises a penalty of 0
            else _next_command(plan, again, arms, effect, verdict),
            LIU,
        )
    ]


def _seed_findings(plan: Plan, again: Again, effect: Effect) -> list[Finding]:
    """One seed: that others are not covered; several: what so many could have shown."""
    if effect.seeds == 1:
        return [
            Finding(
                "one-seed",
                "info",
                "One training seed",
                effect.covers,
                f"Another seed can give another difference; a claim needs at least {MIN_SEEDS}.",
                again(seeds=str(MIN_SEEDS), output="seeds/"),
                BOUTHILLIER,
            )
        ]
    if not effect.power:
        return []
    needed = max((power.seeds_needed or 0 for power in effect.power.values()), default=0)
    text = any(power.reason for power in effect.power.values())
    return [
        Finding(
            "power",
            "info",
            f"What {effect.seeds} seeds could have shown",
            "; ".join(power_words(power) for power in effect.power.values()),
            "The smallest difference that 80 % of such treatments find. Where a smaller one has no word, it may be "
            "there all the same.",
            next_after_power(needed, effect.seeds, text, plan.num_texts, again),
            BOUTHILLIER,
        )
    ]


# --- what else a reader should know --------------------------------------------------------------------


def _limit_findings(arms: Mapping[str, Arm]) -> list[Finding]:
    before = arms["before"].validation
    notes = []
    if before.model.parameters > BILLION:
        notes.append(
            Finding(
                "large-model",
                "info",
                "Above one billion parameters the published benefit shrinks",
                f"{before.model.parameters / BILLION:.1f} billion parameters",
                "The published gains are for small models; larger ones resist condensation by themselves.",
                "condense report condense.json",
                LIU,
            )
        )
    if before.model.contrastive:
        notes.append(
            Finding(
                "contrastive",
                "warning",
                "This checkpoint was trained with a contrastive objective",
                "sentence-transformers layout",
                "Such a checkpoint should not be treated: the loss may undo what contrastive training arranged.",
                "condense report condense.json",
                "Wang & Isola 2020, arXiv:2005.10242",
            )
        )
    return notes
