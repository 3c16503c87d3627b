"""Where the result of a trial or a treatment holds, and where it need not: findings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from condense.comparison.verdict import signed
from condense.diagnosis.verdict import BILLION, LIU
from condense.records.base import Again, Estimate, Finding
from condense.records.diagnosis import ModelInfo
from condense.records.plans import RANK_SEEDS, TUNED, Plan, TrialPlan
from condense.records.schedules import warmup_steps
from condense.records.treatment import QualityWord
from condense.records.trial import ArmResult, Pair
from condense.trials.doses import longer_training

STUDY = "condense's own study: docs/study/results.md"
_TUNED_WORDS = dict(zip(TUNED, ("learning rate", "warm-up"), strict=True))


def early_gain(
    plan: Plan, model: ModelInfo, gains: Mapping[str, QualityWord | None], steps: int, again: Again
) -> list[Finding]:
    """A finding where a dispersion loss improved quality from random weights; empty for weights that were trained.

    gains: of every arm with a dispersion loss the word for its quality against a control; steps: those that were taken.
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
            "In the study the angular loss was ahead after 400 steps and no longer after 1,600, and a longer warm-up "
            "gave most of the early gain without it. Only the length that you will train for decides, against a "
            "control with a rate and a warm-up of its own.",
            longer_training(plan, steps, None, again),
            STUDY,
        )
    ]


def untuned_control(
    plan: TrialPlan, model: ModelInfo, arms: Sequence[ArmResult], steps: int, again: Again
) -> list[Finding]:
    """A finding where an arm improved quality from random weights and the control's rate or warm-up was not searched.

    Empty for weights that were trained, and where `--tune` had both.
    """
    ahead = [arm.spec.name for arm in arms if arm.effect is not None and arm.quality == "improved"]
    grid = plan.grid()
    values = {name: sorted({setting[name] for setting in grid}) for name in (grid[0] if grid else ())}
    missing = [name for name in TUNED if len(values.get(name, ())) < 2]
    if model.source_format != "random" or not ahead or not missing:
        return []
    if "learning_rate" in missing:
        (rate,) = values.get("learning_rate", [plan.training.peak_rate])
        values["learning_rate"] = [rate / 2, rate, 2 * rate]
    if "warmup_steps" in missing:
        (warmup,) = values.get("warmup_steps", [max(1, warmup_steps(plan.training.warmup, steps))])
        values["warmup_steps"] = [min(times * warmup, steps - 1) for times in (1, 2, 4)]
    tune = "".join(
        f" --tune {name}={','.join(f'{value:g}' for value in dict.fromkeys(values[name]))}" for name in TUNED
    )
    return [
        Finding(
            "untuned-control",
            "warning",
            f"The control's {' and '.join(_TUNED_WORDS[name] for name in missing)} "
            f"{'were' if len(missing) > 1 else 'was'} not searched: the gain may be theirs",
            f"{', '.join(ahead)}: quality improved",
            "From random weights a penalty can do what a longer warm-up or another rate does. In the study the control "
            "went from 2.38 to 2.12 bits per byte by these two alone, most of what the loss had seemed to give.",
            again.without("tune")(output="tuned/") + tune,
            STUDY,
        )
    ]


def placebo_findings(arms: Sequence[ArmResult], pairs: Sequence[Pair], again: Again) -> list[Finding]:
    """What a placebo says of each dispersion arm, where one of the two improved quality and both have a word.

    Better than a placebo: clearly apart, as for a rank, with fewer bits per byte.
    """
    known = [arm for arm in arms if arm.quality is not None]
    placebos = [arm for arm in known if arm.spec.remedy.startswith("placebo-")]
    losses = [arm for arm in known if arm.spec.remedy == "dispersion" and (arm.spec.coefficient or 0) > 0]
    made = []
    for arm, placebo in itertools.product(losses, placebos):
        pair, change = _difference(arm.spec.name, placebo.spec.name, pairs)
        if pair is None or change.value is None or "improved" not in (arm.quality, placebo.quality):
            continue
        better = pair.clear.get("bits_per_byte", False) and change.value < 0
        p = pair.p.get("bits_per_byte")
        least = "" if len(arm.runs) >= RANK_SEEDS else f"; to stand before another an arm needs {RANK_SEEDS} seeds"
        what = "so that is not all that helped" if better else "and what it does as well is no evidence for that"
        made.append(
            Finding(
                "placebo",
                "info" if better else "warning",
                _beside_a_placebo(arm, placebo, better),
                f"{arm.spec.name} − {placebo.spec.name} in bits per byte: {signed(change)}"
                + ("" if p is None else f", p = {p:.2g} over all pairs of arms")
                + ("" if better else least),
                f"The placebo is a penalty on the same states without what the loss is said to do, {what}.",
                again(output="more-seeds/", seeds=str(max(RANK_SEEDS, 2 * len(arm.runs)))),
                "placebos: docs/remedies.md",
            )
        )
    return made


def _beside_a_placebo(arm: ArmResult, placebo: ArmResult, better: bool) -> str:
    """An arm and a placebo, one of which improved quality, in a sentence."""
    name, other = arm.spec.name, f"{placebo.spec.name}, a placebo"
    if better:
        return f"{name} is better than {other}"
    if arm.quality != "improved":
        return f"{other}, improved quality, and {name} did not"
    if placebo.quality == "improved":
        return f"{other}, helps too, and {name} is not shown to be better"
    return f"{name} improved quality, and is not shown to be better than {other}"


def _difference(first: str, second: str, pairs: Sequence[Pair]) -> tuple[Pair | None, Estimate]:
    """Their pair, and first − second in bits per byte; None where they were not compared."""
    for pair in pairs:
        change = pair.differences["bits_per_byte"]
        if (pair.first, pair.second) == (first, second):
            return pair, change
        if (pair.second, pair.first) == (first, second):
            low, high = (None if bound is None else -bound for bound in (change.high, change.low))
            return pair, Estimate(None if change.value is None else -change.value, low, high)
    return None, Estimate(None)


def scope_findings(
    plan: TrialPlan, model: ModelInfo, arms: Sequence[ArmResult], steps: int, again: Again
) -> list[Finding]:
    """What to know of these arms on this model, after so many steps."""
    names = {arm.spec.remedy: arm for arm in arms if arm.effect is not None}
    words = {arm.spec.name: arm.quality for arm in arms if arm.spec.remedy == "dispersion"}
    notes = early_gain(plan.training, model, words, steps, again)
    notes += untuned_control(plan, model, arms, steps, again)
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
                again(output="longer/", max_steps=str(10 * steps)),
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
                again(output="longer/", max_steps=str(max(3000, 4 * steps))),
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
