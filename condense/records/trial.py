"""The values of a trial: the arms, what each did under each seed, effects, ties, a recommendation.

Frozen, standard library only. The diagnoses of every run lie beside `trial.json` in `arms/`; here stands what
the report draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from condense.records.diagnosis import CorpusInfo, Estimate, Finding, ModelInfo, PlotlyJs, Quality, Saved, saved
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.treatment import Curve, LossName, Plan, Schedule, SiteEffect, VerdictId

TRIAL_SCHEMA = "condense.trial/1"
MIN_SEEDS = 3
RemedyName = Literal[
    "control", "dispersion", "embedding-dropout", "noisy-embedding", "active-forgetting", "larger-vocab", "cosreg"
]  # fmt: skip


@dataclass(frozen=True)
class ArmSpec:
    """One arm as it was asked for; `loss` and `layers` belong to dispersion, `coefficient` to it and to cosreg."""

    name: str
    remedy: RemedyName
    loss: LossName | None = None
    layers: str | None = None
    coefficient: float | None = None


@dataclass(frozen=True)
class TrialPlan:
    """Everything that decides a trial: the arms (control is always one), the seeds, how every arm is trained.

    `training.seed` decides the split of the text and is the first training seed; the others follow it.
    """

    arms: tuple[ArmSpec, ...]
    seeds: int = 3
    training: Plan = field(default_factory=Plan)
    keep_models: bool = False


@dataclass(frozen=True)
class StepCost:
    """What a training step takes: measured for all arms in turn (time) and in a process of its own (memory).

    `time_ratio` and `memory_ratio` are to the control; the interval of the time ratio is its range over rounds.
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


@dataclass(frozen=True)
class SeedEffect:
    """Arm − control under one seed, paired by text: each metric with its interval over texts."""

    seed: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class ArmEffect:
    """Arm − control, mean over seeds; 95 % bootstrap over texts. Keys: deep metrics, loss, bits_per_byte.

    `spread` is the standard deviation over seeds of each difference (None below 2 seeds). `unpaired` says why some
    differences are not paired by text, empty if all are.
    """

    metrics: Mapping[str, Estimate]
    by_seed: tuple[SeedEffect, ...]
    spread: Mapping[str, float | None]
    sites: tuple[SiteEffect, ...] = ()
    unpaired: str = ""


@dataclass(frozen=True)
class Rank:
    """Where an arm stands on one measure: 1 + the number of arms that are clearly better; and whom it ties with."""

    place: int
    tied_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmResult:
    """All that a trial says of one arm; `effect` is None for the control, `verdict` where nothing was measured."""

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
    quality_held: bool | None = None
    opened: Literal["cone opened", "three dimensions rescaled", "both", "neither"] | None = None
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    task_effects: tuple[TaskEffect, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two arms against each other: first − second on each measure, paired by seed and text; `clear` if separated.

    Clear: the interval excludes 0 and the difference has one sign under every seed.
    """

    first: str
    second: str
    differences: Mapping[str, Estimate]
    clear: Mapping[str, bool]


@dataclass(frozen=True)
class DosePoint:
    """One coefficient of a dose–response curve: the effect it had and what it cost."""

    arm: str
    coefficient: float
    effect: Estimate
    quality: Estimate
    verdict: VerdictId | None


@dataclass(frozen=True)
class DoseResponse:
    """The arms that differ in their coefficient alone, weakest first, and the coefficient to take, if any."""

    title: str
    remedy: RemedyName
    points: tuple[DosePoint, ...]
    recommended: float | None
    reason: str


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

    @property
    def control(self) -> ArmResult:
        """The control arm, which is always there."""
        return next(arm for arm in self.arms if arm.spec.remedy == "control")

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm and seed: deep metrics, quality, their differences to the control, and the costs."""
        return [row for arm in self.arms for row in _rows(arm)]

    def to_html(self, path: str | Path | None = None, *, plotlyjs: PlotlyJs = "inline") -> str:
        """Return the report as one HTML page and write it to `path` when one is given."""
        from condense.report.trial.page import trial_page

        return saved(trial_page(self, plotlyjs=plotlyjs), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown and write it to `path` when one is given."""
        from condense.report.trial.markdown import trial_markdown

        return saved(trial_markdown(self), path)


def _rows(arm: ArmResult) -> list[dict[str, Any]]:
    effects = {effect.seed: effect.metrics for effect in arm.effect.by_seed} if arm.effect else {}
    rows = []
    for run in arm.runs:
        row: dict[str, Any] = {
            "arm": arm.spec.name, "seed": run.seed, "status": arm.status, "verdict": arm.verdict,
            "parameters_added": arm.parameters_added, "time_ratio": arm.cost.time_ratio.value,
            "memory_ratio": arm.cost.memory_ratio, "seconds": run.seconds, "trained_tokens": run.trained_tokens,
            "weights_sha256": run.weights_sha256,
        }  # fmt: skip
        row |= {key: of.value for key, of in run.deep.items()}
        row |= {key: getattr(run.quality, key).value for key in ("loss", "bits_per_byte")}
        for key, of in effects.get(run.seed, {}).items():
            row |= {f"{key}_effect": of.value, f"{key}_effect_low": of.low, f"{key}_effect_high": of.high}
        rows.append(row)
    if not rows:
        rows.append({"arm": arm.spec.name, "status": arm.status, "reason": arm.reason})
    return rows
