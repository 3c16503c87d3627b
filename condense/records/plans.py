"""What was asked for: the plan of a treatment, the arms and seeds of a trial, the schedule. Standard library only.

`Plan` is the one home of every default of `condense treat`; the command line reads them from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from condense.errors import UsageError

MIN_SEEDS = 3
RemedyName = Literal[
    "control",
    "dispersion",
    "embedding-dropout",
    "noisy-embedding",
    "active-forgetting",
    "larger-vocab",
    "cosreg",
]
# The constants of the remedies; the reports and definitions print them.
COSREG_DEFAULT = 1.0
DROPOUT_P = 0.1
NOISE_ALPHA = 5.0
FORGET_EVERY = 1000
MIN_FREQUENCY = 10
MAX_GROWTH = 0.20

LossName = Literal["angular", "orthogonal", "decorrelation", "l2_repel", "mean_cosine"]


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
