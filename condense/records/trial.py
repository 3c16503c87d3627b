"""The values of a trial: the arms, what each did under each seed, effects, ties, a recommendation.

Frozen, standard library only. The diagnoses of every run lie beside `trial.json` in `arms/`; here stands what
the report draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from condense.records.base import Estimate, Finding, Saved
from condense.records.diagnosis import CorpusInfo, ModelInfo, Quality
from condense.records.learning import Learning, LearningCurve, TextEffect, Tried
from condense.records.plans import ArmSpec, RemedyName, TrialPlan
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.treatment import (
    Curve,
    Opened,
    Power,
    QualityWord,
    Schedule,
    SiteEffect,
    VerdictId,
    Word,
    has_documents,
    renamed_verdict,
    without_bounds,
)

QUALITY_KEYS = ("loss", "perplexity", "bits_per_byte")


TRIAL_SCHEMA = "condense.trial/1"


@dataclass(frozen=True)
class StepCost:
    """What a training step takes: measured for all arms in turn (time) and in a process of its own (memory).

    `time_ratio` and `memory_ratio` are to the control; the interval of the time ratio is its range over rounds. Of an
    arm whose coefficient falls to 0 before the end: of a step with the loss on.
    """

    seconds: float | None = None
    time_ratio: Estimate = field(default_factory=lambda: Estimate(None, reason="not measured"))
    peak_memory_bytes: int | None = None
    memory_ratio: float | None = None
    rounds: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class SitePoint:
    """The mean cosine and its companions at one site, for the curves over depth."""

    site: str
    stack: str
    index: int
    mean_cosine: float | None
    mean_cosine_without_top_dimensions: float | None
    effective_rank: float | None


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed: measured on validation and probe from the saved and reloaded model."""

    seed: int
    deep: Mapping[str, Estimate]
    quality: Quality
    probe_deep: Mapping[str, Estimate]
    probe_quality: Quality
    sites: tuple[SitePoint, ...]
    weights_sha256: str | None = None
    curve: Curve = field(default_factory=Curve)
    seconds: float = 0.0
    trained_tokens: int = 0
    penalty_to_ce: float | None = None
    folder: str = ""
    tasks: tuple[TaskScore, ...] = ()
    learning: LearningCurve = field(default_factory=LearningCurve)


@dataclass(frozen=True)
class SeedEffect:
    """Arm − control under one seed, paired by window: each metric with its interval over documents."""

    seed: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class ArmEffect:
    """Arm − control, mean over seeds, with 95 % intervals over seeds and documents.

    Keys of `metrics`: the deep metrics, loss, bits_per_byte.
    `spread` is the standard deviation over seeds of each difference (None below 2 seeds). `unpaired` says why some
    differences are not paired by window, empty if all are. `words`, `covers` and `power` are as in an `Effect`.
    """

    metrics: Mapping[str, Estimate]
    by_seed: tuple[SeedEffect, ...]
    spread: Mapping[str, float | None]
    sites: tuple[SiteEffect, ...] = ()
    unpaired: str = ""
    words: Mapping[str, Word] = field(default_factory=dict)
    covers: str = ""
    power: Mapping[str, Power] = field(default_factory=dict)


@dataclass(frozen=True)
class Rank:
    """Where an arm stands on one measure: 1 + the number of arms that are clearly better; and whom it ties with."""

    place: int
    tied_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmResult:
    """The results of one arm; `effect` is None for the control, `verdict` where nothing was measured.

    `verdict_reason` says why a verdict is inconclusive, where something else than the interval decides that.
    """

    spec: ArmSpec
    status: Literal["done", "partial", "failed", "unavailable"]
    title: str
    definition: str
    source: str
    reason: str | None = None
    details: tuple[str, ...] = ()
    parameters: int | None = None
    parameters_added: int | None = None
    cost: StepCost = field(default_factory=StepCost)
    runs: tuple[ArmRun, ...] = ()
    effect: ArmEffect | None = None
    probe_effect: ArmEffect | None = None
    verdict: VerdictId | None = None
    verdict_reason: str = ""
    quality: QualityWord | None = None
    opened: Opened | None = None
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    task_effects: tuple[TaskEffect, ...] = ()
    learning: Learning | None = None
    tuning: tuple[Tried, ...] = ()
    other: TextEffect | None = None
    then: Learning | None = None

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """An arm that was saved with earlier words."""
        return renamed_verdict(data, "verdict")


@dataclass(frozen=True)
class Pair:
    """Two arms against each other: first − second on each measure, paired by seed and window; `clear` if separated.

    Clear: at least five seeds, a difference of at least what counts, and `p` below .05. `p` is adjusted (Holm) over
    all pairs of the measure; None below two seeds.
    """

    first: str
    second: str
    differences: Mapping[str, Estimate]
    clear: Mapping[str, bool]
    p: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class DosePoint:
    """One coefficient of a dose–response curve: the effect it had and what it cost."""

    arm: str
    coefficient: float
    effect: Estimate
    quality: Estimate
    verdict: VerdictId | None
    quality_word: QualityWord | None = None
    penalty_to_ce: float | None = None

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A point that was saved with earlier words."""
        return renamed_verdict(data, "verdict")


@dataclass(frozen=True)
class DoseResponse:
    """The arms that differ in their coefficient alone, weakest first, and the coefficient to take, if any."""

    title: str
    remedy: RemedyName
    points: tuple[DosePoint, ...]
    recommended: float | None
    reason: str


_NOT_THE_CONE: Mapping[Opened | None, str] = {
    "three dimensions rescaled": "; it fell by three dimensions being rescaled, not by the cone opening",
    "both": "; it fell in part by three dimensions being rescaled",
    "not clear": "; whether the cone opened or three dimensions were rescaled is not clear",
}


def what_fell(dose: DoseResponse, arms: Iterable[ArmResult]) -> str:
    """What made the fall at the recommended coefficient, to follow its reason; empty where it is the cone, or none."""
    chosen = {point.arm for point in dose.points if point.coefficient == dose.recommended}
    return next((_NOT_THE_CONE.get(arm.opened, "") for arm in arms if arm.spec.name in chosen), "")


@dataclass(frozen=True)
class Trial(Saved):
    """What `trial` did and what came of it: remedies side by side, each against the same control."""

    SCHEMA: ClassVar[str] = TRIAL_SCHEMA

    schema: str
    condense: str
    created: str
    command: str
    model: ModelInfo
    output: str
    plan: TrialPlan
    schedule: Schedule
    environment: Mapping[str, Any]
    validation: CorpusInfo
    probe: CorpusInfo
    before: ArmRun
    arms: tuple[ArmResult, ...]
    pairs: tuple[Pair, ...]
    unranked: str | None
    doses: tuple[DoseResponse, ...]
    findings: tuple[Finding, ...]
    timing: Mapping[str, float]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    other: CorpusInfo | None = None
    then: CorpusInfo | None = None
    then_tokens: int = 0

    @property
    def control(self) -> ArmResult:
        """The control arm, which is always there."""
        return next(arm for arm in self.arms if arm.spec.remedy == "control")

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A trial that does not say which windows are of one document, without its intervals over them."""
        if has_documents(data.get("validation")):
            return data
        made = {**data, **{key: without_bounds(data[key]) for key in ("pairs", "doses", "before") if key in data}}
        if isinstance(arms := data.get("arms"), list):
            made["arms"] = [_without_bounds(arm) for arm in arms]
        return made

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm and seed: deep metrics, quality, their differences to the control, and the costs."""
        return [row for arm in self.arms for row in _arm_rows(arm)]


def _without_bounds(arm: Any) -> Any:
    """An arm without the intervals over documents; those of its costs are over rounds and stay."""
    if not isinstance(arm, dict):
        return arm
    return {key: value if key == "cost" else without_bounds(value) for key, value in arm.items()}


def _arm_rows(arm: ArmResult) -> list[dict[str, Any]]:
    effects = {effect.seed: effect.metrics for effect in arm.effect.by_seed} if arm.effect else {}
    rows = []
    for run in arm.runs:
        row: dict[str, Any] = {
            "arm": arm.spec.name,
            "seed": run.seed,
            "status": arm.status,
            "verdict": arm.verdict,
            "quality": arm.quality,
            "parameters_added": arm.parameters_added,
            "time_ratio": arm.cost.time_ratio.value,
            "memory_ratio": arm.cost.memory_ratio,
            "seconds": run.seconds,
            "trained_tokens": run.trained_tokens,
            "weights_sha256": run.weights_sha256,
        }
        row |= {key: deep.value for key, deep in run.deep.items()}
        row |= {key: getattr(run.quality, key).value for key in ("loss", "bits_per_byte")}
        for key, change in effects.get(run.seed, {}).items():
            row |= {f"{key}_effect": change.value, f"{key}_effect_low": change.low, f"{key}_effect_high": change.high}
        rows.append(row)
    if not rows:
        rows.append({"arm": arm.spec.name, "status": arm.status, "reason": arm.reason})
    return rows


def reading(run: ArmRun, key: str, *, probe: bool = False) -> Estimate:
    """A run's own number with its interval over texts: a deep metric, `loss`, `perplexity` or `bits_per_byte`."""
    if key in QUALITY_KEYS:
        quality: Estimate = getattr(run.probe_quality if probe else run.quality, key)
        return quality
    return (run.probe_deep if probe else run.deep).get(key, Estimate(None, reason="not measured"))


def mean(arm: ArmResult, key: str, *, probe: bool = False) -> float | None:
    """Mean over the seeds of an arm; None without runs, or where it is undefined under one seed."""
    return _mean_of_known(reading(run, key, probe=probe).value for run in arm.runs)


def spread(arm: ArmResult, key: str) -> float | None:
    """Standard deviation (n − 1) over the seeds of an arm; None below 2 seeds, or where one is undefined."""
    values = [reading(run, key).value for run in arm.runs]
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def depth(runs: tuple[ArmRun, ...]) -> tuple[SitePoint, ...]:
    """The sites of several runs, each number the mean over them; only sites that every run has."""
    if not runs:
        return ()
    tables = [{(site.stack, site.site, site.index): site for site in run.sites} for run in runs]
    made = []
    for at in runs[0].sites:
        same = [table.get((at.stack, at.site, at.index)) for table in tables]
        found = [site for site in same if site is not None]
        if len(found) == len(runs):
            made.append(
                SitePoint(
                    at.site,
                    at.stack,
                    at.index,
                    _mean_of_known(site.mean_cosine for site in found),
                    _mean_of_known(site.mean_cosine_without_top_dimensions for site in found),
                    _mean_of_known(site.effective_rank for site in found),
                )
            )
    return tuple(made)


def curve(arm: ArmResult) -> Curve:
    """Training curves of an arm, each logged step the mean over its seeds; steps that one of them lacks are left out.

    `ce_loss` and `mean_cosine` only; the others stay empty.
    """
    logged = [run.curve for run in arm.runs if run.curve.step]
    if not logged:
        return Curve()
    indices = [{step: index for index, step in enumerate(one.step)} for one in logged]
    steps = [step for step in logged[0].step if all(step in index_of for index_of in indices)]
    at = [[(one, index_of[step]) for one, index_of in zip(logged, indices, strict=True)] for step in steps]
    ce = [statistics.fmean(one.ce_loss[index] for one, index in row) for row in at]
    cosine = [
        _mean_of_known(one.mean_cosine[index] for one, index in row) if _has_cosine(logged) else None for row in at
    ]
    return Curve(step=tuple(steps), ce_loss=tuple(ce), mean_cosine=tuple(cosine))


def quality_key(trial: Trial) -> str:
    """What quality is read from: `bits_per_byte`, or `loss` where the control has none."""
    return "bits_per_byte" if mean(trial.control, "bits_per_byte") is not None else "loss"


def tolerated(trial: Trial) -> float | None:
    """The rise in quality's number up to which quality counts as held; None if the control was not measured."""
    value = mean(trial.control, quality_key(trial))
    return None if value is None else trial.plan.training.quality_tolerance * value


def _has_cosine(curves: list[Curve]) -> bool:
    return all(len(one.mean_cosine) == len(one.step) for one in curves)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return statistics.fmean(known) if listed and len(known) == len(listed) else None
