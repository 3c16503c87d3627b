"""What a treatment achieved, in words: effect, cost, and whether the cone opened. Pure Python.

The rules are those of the effect, not of the wish: a difference counts as measurable when its interval
excludes 0 and it is at least `min_effect`; quality is held when even the upper bound of the change in
bits per byte stays within the tolerance.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Literal

from condense.comparison.differences import held_within
from condense.diagnosis.verdict import BILLION, LIU
from condense.metrics import MIN_TEXTS
from condense.records.base import Finding
from condense.records.plans import Plan
from condense.records.treatment import Arm, Effect, Outcome, VerdictId
from condense.rerun import Again
from condense.trials.verdict import RATIO_HIGH, RATIO_LOW, Opened, signed, verdict_from, what_opened

PUBLISHED = (
    "Published for GPT-2 (mean of 10 tasks): untouched 34.35, cross-entropy only 34.95, noisy embeddings 35.15, active "
    "forgetting 35.36, dispersion 35.42; the margin over active forgetting is not significant, one standard error is "
    "about 0.6 points."
)


def assess(plan: Plan, model: str, arms: Mapping[str, Arm], effect: Effect, command: str = "") -> Outcome:
    """Verdict and findings of a treatment from the effect on the validation windows.

    command: the run's own command line, which the advice changes only where it must.
    """
    again = Again(command or f"condense treat {shlex.quote(model)} --text train.txt")
    held = quality_held(plan, arms, effect)
    opened = what_opened(plan.min_effect, effect.deep)
    verdict = verdict_of(plan, arms, effect, held)
    findings = (
        _main(plan, again, effect, verdict, held),
        _opening(effect, opened),
        *_ratio(plan, again, arms),
        *_scope(plan, again, arms, effect),
    )
    return Outcome(verdict, held, opened, findings)


def verdict_of(plan: Plan, arms: Mapping[str, Arm], effect: Effect, held: bool | None) -> VerdictId:
    """The verdict's id; without a control arm, or below 8 texts, nothing is attributed to the loss."""
    if "control" not in arms or arms["treated"].validation.corpus.texts < MIN_TEXTS:
        return "inconclusive"
    return verdict_from(effect.deep["mean_cosine"], plan.min_effect, held)


def quality_held(plan: Plan, arms: Mapping[str, Arm], effect: Effect) -> bool | None:
    """True if the upper bound of the change is within the tolerance of the reference's value; None if unknown."""
    reference = arms.get(effect.against)
    if reference is None:
        return None
    return held_within(effect.quality, reference.validation.quality, plan.quality_tolerance)


_TITLES: dict[VerdictId, str] = {
    "dispersed": "The loss spread the representation, and quality held",
    "dispersed-at-a-cost": "The loss spread the representation, at a cost in language modelling",
    "no-measurable-effect": "No measurable effect: the loss did not change how condensed the model is",
    "inconclusive": "Inconclusive: the texts do not decide",
    "condensed-further": "The treated model is more condensed than the control",
}
_SEVERITY: dict[VerdictId, Literal["good", "warning", "info"]] = {
    "dispersed": "good", "dispersed-at-a-cost": "warning", "no-measurable-effect": "info", "inconclusive": "info",
    "condensed-further": "warning",
}  # fmt: skip


def _main(plan: Plan, again: Again, effect: Effect, verdict: VerdictId, held: bool | None) -> Finding:
    cosine = effect.deep["mean_cosine"]
    bits = effect.quality["bits_per_byte"]
    quality = (
        f"bits per byte {signed(bits, 4)}" if bits.value is not None else f"loss {signed(effect.quality['loss'], 4)}"
    )
    seen = f"treated − {effect.against} on the validation text: deep mean cosine {signed(cosine, 4)}, {quality}"
    if held is not None:
        seen += f"; quality {'held' if held else 'not shown to be held'} (tolerance {plan.quality_tolerance:.1%})"
    why = {
        "dispersed": "The difference is to the control arm, so it is the loss and not just more training.",
        "dispersed-at-a-cost": "The spread is the loss's doing, and so is the price: weigh one against the other.",
        "no-measurable-effect": "At this coefficient and budget the loss is too small beside cross-entropy to matter.",
        "inconclusive": "The interval reaches beyond the smallest effect that counts, or there is no control.",
        "condensed-further": "The loss, or its interplay with training, narrowed the cone: see the training curves.",
    }[verdict]
    return Finding(
        verdict,
        _SEVERITY[verdict],
        _TITLES[verdict],
        seen,
        why,
        _next(plan, again, verdict),
        f"{LIU}. {PUBLISHED}",
    )


def _next(plan: Plan, again: Again, verdict: VerdictId) -> str:
    if verdict == "no-measurable-effect":
        return again(coefficient=f"{10 * plan.coefficient:g}", output="stronger/")
    if verdict == "inconclusive":
        return again(num_texts=str(4 * plan.num_texts), output="again/")
    if verdict in ("dispersed-at-a-cost", "condensed-further"):
        return again(coefficient=f"{plan.coefficient / 3:.2g}", output="gentler/")
    return again(seed=str(plan.seed + 1), output="other-seed/")


def _rescaled(effect: Effect) -> float:
    """Share of the fall that goes when the three strongest dimensions of each text are set aside."""
    total, inner = (effect.deep[key].value for key in ("mean_cosine", "mean_cosine_without_top_dimensions"))
    return 1 - (inner or 0.0) / total if total else 0.0


def _opening(effect: Effect, opened: Opened) -> Finding:
    without = effect.deep["mean_cosine_without_top_dimensions"]
    words = {
        "cone opened": "The cone itself opened: the fall stays when the three strongest dimensions are set aside",
        "three dimensions rescaled": "Three dimensions were rescaled; behind them the cone is as it was",
        "both": f"{_rescaled(effect):.0%} of the fall is three dimensions being rescaled; the rest is the cone opening",
        "neither": "Neither did the cone open nor were three dimensions rescaled",
    }
    return Finding(
        "what-opened", "info", words[opened],
        f"deep mean cosine {signed(effect.deep['mean_cosine'], 4)}, without each text's three strongest dimensions "
        f"{signed(without, 4)}; effective rank {signed(effect.deep['effective_rank'], 2)}",
        "A loss on cosines is satisfied most cheaply by rescaling the few dimensions that dominate them.",
        "condense report condense.json", "Timkey & van Schijndel 2021, arXiv:2109.04404",
    )  # fmt: skip


def _ratio(plan: Plan, again: Again, arms: Mapping[str, Arm]) -> list[Finding]:
    ratio = arms["treated"].penalty_to_ce
    if ratio is None or RATIO_LOW <= ratio <= RATIO_HIGH:
        return []
    small = ratio < RATIO_LOW
    factor = 10 if small else 0.1
    return [
        Finding(
            "penalty-ratio",
            "warning",
            "The penalty was negligible beside cross-entropy"
            if small
            else "The penalty was large beside cross-entropy",
            f"|penalty| / cross-entropy was {ratio:.1e} on average",
            f"Below {RATIO_LOW:g} the loss hardly steers training; above {RATIO_HIGH:g} it competes with the task.",
            again(coefficient=f"{factor * plan.coefficient:g}", output="again/"),
            LIU,
        )  # fmt: skip
    ]


def _scope(plan: Plan, again: Again, arms: Mapping[str, Arm], effect: Effect) -> list[Finding]:
    before = arms["before"].validation
    notes = [
        Finding(
            "one-seed",
            "info",
            "One training seed",
            f"seed {plan.seed}; intervals cover texts, not training seeds",
            "Another seed can give another difference; a claim needs at least three.",
            again(seed=str(plan.seed + 1), output="other-seed/"),
            LIU,
        )  # fmt: skip
    ]
    if effect.against != "control":
        notes.append(
            Finding(
                "no-control",
                "warning",
                "No control arm was trained",
                "--no-control",
                "What changed may be the loss or just more training; nothing here tells them apart.",
                again(output="with-control/"),
                LIU,
            )  # fmt: skip
        )
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
            )  # fmt: skip
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
            )  # fmt: skip
        )
    return notes
