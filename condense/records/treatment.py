"""The values of a treatment: the plan, the arms, the effect, and the verdict. Frozen, standard library only.

`Plan` is the one home of every default of `condense treat`; the command line reads them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from condense.errors import UsageError
from condense.records.diagnosis import Diagnosis, Estimate, Finding, PlotlyJs, Saved, saved
from condense.records.tasks import TaskEffect, TaskScore

TREATMENT_SCHEMA = "condense.treatment/1"
LossName = Literal["angular", "orthogonal", "decorrelation", "l2_repel", "mean_cosine"]
VerdictId = Literal[
    "dispersed", "dispersed-at-a-cost", "no-measurable-effect", "inconclusive", "condensed-further"
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that decides a treatment. Optimizer settings are the published recipe's; its budget is not.

    Budget: one pass over the training text, at most 2 M tokens, unless `max_steps` or `train_tokens`;
    tokens per step min(131,072, budget/50) unless batch sizes are given. Liu et al. 2026, arXiv:2602.00217.
    """

    coefficient: float = 0.1
    loss: LossName = "angular"
    layers: str = "all"
    paper_sites: bool = False
    max_tokens: int = 256
    tau: float = 1.0
    train_tokens: int | None = None
    max_steps: int | None = None
    max_length: int | None = None
    learning_rate: float = 5e-5
    lr_scheduler: str = "cosine"
    warmup: float = 0.2
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    activation_checkpointing: bool = False
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: str = "all-linear"
    merge_adapter: bool = True
    seed: int = 0
    control: bool = True
    num_texts: int = 32
    min_effect: float = 0.01
    quality_tolerance: float = 0.005
    save_steps: int | None = None
    report_to: str = "none"
    eval_tasks: tuple[str, ...] = ()
    eval_limit: int | None = None
    include_path: str | None = None

    def __post_init__(self) -> None:
        """UsageError for values that mean nothing."""
        positive = {
            "--tau": self.tau, "--learning-rate": self.learning_rate, "--lora-r": self.lora_r,
            "--train-tokens": self.train_tokens, "--max-steps": self.max_steps, "--save-steps": self.save_steps,
            "--per-device-train-batch-size": self.per_device_train_batch_size, "--max-grad-norm": self.max_grad_norm,
            "--gradient-accumulation-steps": self.gradient_accumulation_steps, "--min-effect": self.min_effect,
            "--eval-limit": self.eval_limit,
        }  # fmt: skip
        for flag, value in positive.items():
            if value is not None and not value > 0:
                raise UsageError(f"{flag} is {value}", "use a number above 0")
        if self.max_tokens < 0 or self.max_tokens == 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}", "use 0 for all, or at least 2")
        if self.coefficient != self.coefficient or abs(self.coefficient) == float("inf"):
            raise UsageError(f"--coefficient is {self.coefficient}", "use a finite number")
        if not self.eval_tasks and (self.eval_limit is not None or self.include_path is not None):
            raise UsageError("--eval-limit and --include-path belong to tasks", "name some with --eval-tasks")


@dataclass(frozen=True)
class Schedule:
    """What a plan comes to on a given text: rows, steps and tokens, and an estimate of time and disk."""

    rows: int
    row_length: int
    steps: int
    tokens_per_step: int
    train_tokens: int
    batch_size: int
    accumulation: int
    packed: bool
    train_documents: int
    validation_documents: int
    train_sha256: str
    validation_sha256: str
    disk_bytes: int
    seconds: float | None = None
    memory_bytes: int | None = None


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
class Treatment(Saved):
    """What `treat` did and what came of it: before, control and treated on the same windows."""

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

    def rows(self) -> list[dict[str, Any]]:
        """The layer tables of all arms as plain rows, with the columns `arm` and `corpus` in front."""
        return [
            {"arm": name, "corpus": corpus, **row}
            for name, arm in self.arms.items()
            for corpus, diagnosis in (("validation", arm.validation), ("probe", arm.probe))
            for row in diagnosis.rows()
        ]

    def to_html(self, path: str | Path | None = None, *, plotlyjs: PlotlyJs = "inline") -> str:
        """Return the report as one HTML page and write it to `path` when one is given."""
        from condense.report.treatment.page import treatment_page

        return saved(treatment_page(self, plotlyjs=plotlyjs), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown and write it to `path` when one is given."""
        from condense.report.treatment.markdown import treatment_markdown

        return saved(treatment_markdown(self), path)
