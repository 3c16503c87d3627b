"""Where the result of a trial or a treatment holds, and where it need not: findings. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condense.comparison.verdict import signed
from condense.diagnosis.verdict import BILLION, LIU
from condense.records.base import Again, Finding
from condense.records.diagnosis import ModelInfo
from condense.records.plans import TrialPlan
from condense.records.treatment import QualityWord
from condense.records.trial import ArmResult

STUDY = "condense's own study: docs/study/results.md"


def early_gain(model: ModelInfo, gains: Mapping[str, QualityWord | None], steps: int, again: Again) -> list[Finding]:
    """A finding where a dispersion loss improved quality from random weights; empty for weights that were trained.

    gains: of every arm with a dispersion loss the word for its quality; steps: those that were taken.
    """
    ahead = [name for name, word in gains.items() if word == "improved"]
    if model.source_format != "random" or not ahead:
        return []
    return [
        Finding(
            "early-gain",
            "warning",
            f"A gain after {steps:,} steps from random weights may not last",
            f"{', '.join(ahead)}: quality improved at the end of this run",
            "From random weights cross-entropy first gathers all tokens in a narrow cone, and the loss shortens that. "
            "In the study the angular loss was ahead in the first 600 of 1,600 steps and behind at their end. Only the "
            "length that you will train for decides.",
            again(output="longer/", max_steps=str(4 * max(1, steps))),
            STUDY,
        )
    ]


def scope_findings(
    plan: TrialPlan, model: ModelInfo, arms: Sequence[ArmResult], steps: int, again: Again
) -> list[Finding]:
    """What to know of these arms on this model, after so many steps."""
    names = {arm.spec.remedy: arm for arm in arms if arm.effect is not None}
    words = {arm.spec.name: arm.quality for arm in arms if arm.spec.remedy == "dispersion"}
    notes = early_gain(model, words, steps, again)
    if "larger-vocab" in names:
        arm = names["larger-vocab"]
        notes.append(
            Finding(
                "larger-vocab",
                "info",
                "A larger vocabulary is a design for training from the start",
                f"{'; '.join(arm.details) or 'see its details'}; bits per byte {_arm_change(arm, 'bits_per_byte')}",
                "New rows start as means of old ones and need training; compare it by bits per byte, never by "
                "perplexity. It sees more text per step than the other arms.",
                again(output="longer/", max_steps=str(10 * (plan.training.max_steps or 100))),
                "Tao et al. 2024, arXiv:2407.13623",
            )
        )
    if "active-forgetting" in names:
        notes.append(
            Finding(
                "active-forgetting",
                "info",
                "Active forgetting is a pre-training method",
                f"bits per byte {_arm_change(names['active-forgetting'], 'bits_per_byte')}",
                "It re-initialises the embeddings while the body is still learning; late in fine-tuning it "
                "destroys what they knew.",
                again(output="longer/", max_steps="3000"),
                "Chen et al. 2023, arXiv:2307.01163",
            )
        )
    if model.parameters > BILLION:
        notes.append(
            Finding(
                "large-model",
                "info",
                "Above one billion parameters the published benefit shrinks",
                f"{model.parameters / BILLION:.1f} billion parameters; here: {_furthest(arms)}",
                "The published gains are for small models; larger ones resist condensation by themselves.",
                again(output="again/"),
                LIU,
            )
        )
    if model.contrastive:
        notes.append(
            Finding(
                "contrastive",
                "warning",
                "This checkpoint was trained with a contrastive objective",
                f"sentence-transformers layout; here: {_furthest(arms)}",
                "Such a checkpoint should not be treated: a remedy may undo what contrastive training arranged.",
                again(output="again/"),
                "Wang & Isola 2020, arXiv:2005.10242",
            )
        )
    return notes


def _arm_change(arm: ArmResult, key: str) -> str:
    return signed(arm.effect.metrics[key]) if arm.effect else "not measured"


def _furthest(arms: Sequence[ArmResult]) -> str:
    """The arm with the largest fall, whatever it is worth."""
    known = [(arm.effect.metrics["mean_cosine"], arm) for arm in arms if arm.effect]
    fallen = [(change, arm) for change, arm in known if change.value is not None]
    if not fallen:
        return "nothing was measured"
    change, arm = min(fallen, key=lambda pair: pair[0].value or 0.0)
    return f"{arm.spec.name} moved the deep mean cosine most, by {signed(change)}"
