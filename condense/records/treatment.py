"""The values of a treatment: the arms, the seeds, the effect, and the verdict. Frozen, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from condense.records.base import Estimate, Finding, Saved
from condense.records.diagnosis import Diagnosis, Quality
from condense.records.plans import Plan, Schedule
from condense.records.tasks import TaskEffect, TaskScore

TREATMENT_SCHEMA = "condense.treatment/1"
VerdictId = Literal[
    "dispersed", "dispersed-at-a-cost", "no-measurable-effect", "inconclusive", "condensed-further"
]  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """What was logged while an arm trained, one entry per logged step."""

    step: tuple[int, ...] = ()
    ce_loss: tuple[float, ...] = ()
    penalty: tuple[float, ...] = ()
    mean_cosine: tuple[float | None, ...] = ()
    gradient_norm: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One arm: the saved and reloaded model on validation and probe, and how it trained."""

    validation: Diagnosis
    probe: Diagnosis
    curve: Curve = field(default_factory=Curve)
    seconds: float = 0.0
    trained_tokens: int = 0
    penalty_to_ce: float | None = None
    cloud: tuple[tuple[float, ...], ...] = ()
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True)
class SiteEffect:
    """Differences at one site, per metric."""

    site: str
    stack: str
    index: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Effect:
    """Treated minus control, paired by text, with 95 % bootstrap intervals over texts (not over seeds)."""

    against: str
    paired: bool
    deep: Mapping[str, Estimate]
    quality: Mapping[str, Estimate]
    sites: tuple[SiteEffect, ...]


@dataclass(frozen=True)
class Overhead:
    """Cost of the loss: treated ÷ control in a short interleaved pass of forward and backward."""

    time_ratio: float | None
    memory_ratio: float | None
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The verdict of a treatment: what can be said of the loss, and the findings behind it."""

    id: VerdictId
    quality_held: bool | None
    opened: Literal["cone opened", "three dimensions rescaled", "both", "neither"]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class SeedModel:
    """What one model trained under one seed came to on the validation windows; `weights_sha256` as it was saved."""

    deep: Mapping[str, Estimate]
    quality: Quality
    weights_sha256: str | None


@dataclass(frozen=True)
class TreatmentSeed:
    """One training seed of a treatment: the treated model, its control under the same seed, treated − control.

    `control` is None where none was trained; `effect` is then treated − before.
    """

    seed: int
    deep: Mapping[str, Estimate]
    quality: Quality
    weights_sha256: str | None
    effect: Effect
    control: SeedModel | None = None


@dataclass(frozen=True)
class Treatment(Saved):
    """What `treat` did and what came of it: before, control and treated on the same windows.

    `arms` and the saved checkpoint are those of the first training seed, never of the best one. `effect` and `verdict`
    are over all seeds, `seeds` has each of them.
    """

    SCHEMA: ClassVar[str] = TREATMENT_SCHEMA

    schema: str
    condense: str
    created: str
    command: str
    model: str
    output: str
    plan: Plan
    schedule: Schedule
    arms: Mapping[str, Arm]
    effect: Effect
    probe_effect: Effect
    overhead: Overhead
    verdict: Outcome
    timing: Mapping[str, float]
    cloud_site: str = ""
    cloud_variance: tuple[float, ...] = ()
    task_effects: tuple[TaskEffect, ...] = ()
    seeds: tuple[TreatmentSeed, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The layer tables of all arms as plain rows, with the columns `arm` and `corpus` in front."""
        return [
            {"arm": name, "corpus": corpus, **row}
            for name, arm in self.arms.items()
            for corpus, diagnosis in (("validation", arm.validation), ("probe", arm.probe))
            for row in diagnosis.rows()
        ]
