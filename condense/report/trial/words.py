"""How the arms of a trial are spoken of: in a line before it runs, by their settings, by their doses."""

from __future__ import annotations

import re

from condense.records.plans import ArmSpec, TrialPlan
from condense.records.trial import ArmResult, DoseResponse, Trial, quality_key
from condense.report.text import signed
from condense.report.trial.rows import DIGITS
from condense.training.remedies import remedy_of

_LAYERS = {
    "all": "all layers", "late": "the deepest half of the layers", "early": "the first half of the layers",
    "last": "the last layer",
}  # fmt: skip


def in_a_line(spec: ArmSpec, plan: TrialPlan) -> str:
    """What an arm is, in a line; its full definition with its source stands in the report."""
    if "loss" in remedy_of(spec).takes:
        loss, layers = spec.loss or plan.training.loss, spec.layers or plan.training.layers
        return f"{loss} loss on {_LAYERS.get(layers, f'layers {layers}')}{_coefficient(spec)}"
    return f"{remedy_of(spec).in_a_line}{_coefficient(spec)}"


def _coefficient(spec: ArmSpec) -> str:
    return "" if spec.coefficient is None else f", coefficient {spec.coefficient:g}"


def budget(trial: Trial) -> str:
    """What every arm was given."""
    schedule, seeds, many = trial.schedule, trial.plan.seeds, len(trial.arms)
    return (
        f"{many} arm{'' if many == 1 else 's'} × {seeds} training seed{'' if seeds == 1 else 's'}, each of "
        f"{schedule.steps} step{'' if schedule.steps == 1 else 's'} of {schedule.tokens_per_step:,} tokens, the same "
        "rows in the same order"
    )


def headline(trial: Trial) -> str:
    """What came of the trial, in a sentence."""
    return trial.findings[0].title if trial.findings else "Every arm against the same control"


def recommendation(dose: DoseResponse) -> str:
    """Which coefficient to take, or none, and why."""
    chosen = "none" if dose.recommended is None else f"{dose.recommended:g}"
    return f"Recommended coefficient: {chosen} ({dose.reason})"


def dose_lines(trial: Trial, dose: DoseResponse) -> list[tuple[str, str, str, str]]:
    """The points of a dose–response curve: arm, coefficient, effect, quality, as text."""
    quality = DIGITS[quality_key(trial)]
    return [(p.arm, f"{p.coefficient:g}", signed(p.effect), signed(p.quality, quality)) for p in dose.points]


def caveats(trial: Trial) -> list[tuple[str, str]]:
    """Arms whose differences are not all paired by text, and why."""
    return [(arm.spec.name, arm.effect.unpaired) for arm in trial.arms if arm.effect and arm.effect.unpaired]


def breakable(name: str) -> list[str]:
    """The parts of an arm's name between which a line may end: after a colon or an @."""
    return [part for part in re.split(r"(?<=[:@])", name) if part]


def settings(arm: ArmResult) -> list[tuple[str, str]]:
    """What was chosen for an arm, as (name, value)."""
    spec = arm.spec
    layers = None if spec.layers is None else _LAYERS.get(spec.layers, f"layers {spec.layers}")
    coefficient = None if spec.coefficient is None else f"{spec.coefficient:g}"
    remedy = spec.remedy if spec.name != spec.remedy else None
    named = (("remedy", remedy), ("loss", spec.loss), ("sites", layers), ("coefficient", coefficient))
    return [(name, value) for name, value in named if value is not None]
