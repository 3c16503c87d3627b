"""Plans of treatments and trials: what is asked for, and what it comes to. Frozen, standard library only.

`Plan` and `TrialPlan` are option groups: the command line, settings and Python read their fields.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from condense.errors import UsageError
from condense.records.options import ARMS, CORPUS, LORA, LOSS, MAX_SEED, OUTPUT, TASKS, TRAINING, Flag, Options
from condense.records.schedules import schedule_factor, shortest_schedule

MIN_SEEDS, RANK_SEEDS = 3, 5
"""Training seeds below which a trial gives no word on an arm, and below which it ranks none."""
RemedyName = Literal[
    "control",
    "dispersion",
    "embedding-dropout",
    "noisy-embedding",
    "active-forgetting",
    "larger-vocab",
    "cosreg",
    "simreg",
    "coupled-adam",
    "layernorm-scaling",
    "placebo-shuffled",
    "placebo-projection",
    "placebo-norm",
]
# The constants of the remedies; the reports and definitions print them.
COSREG_DEFAULT = 1.0
SIMREG_DEFAULT = 0.1
DROPOUT_P = 0.1
NOISE_ALPHA = 5.0
FORGET_EVERY = 1000
MIN_FREQUENCY = 10
MAX_GROWTH = 0.20

LossName = Literal["angular", "orthogonal", "decorrelation", "l2_repel", "mean_cosine", "robust"]


def names_of(listed: str | None) -> tuple[str, ...]:
    """The names in `a,b`, each once."""
    return tuple(dict.fromkeys(name for part in (listed or "").split(",") if (name := part.strip())))


def precision_of(bf16: bool | None) -> Literal["auto", "bf16", "fp32"]:
    """The plan's word for `--bf16`, `--fp32` or neither."""
    return "auto" if bf16 is None else "bf16" if bf16 else "fp32"


def coefficient_of(text: str) -> float | None:
    """The plan's value for `--coefficient NUMBER` or `auto`; UsageError for anything else."""
    if text.strip() == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--coefficient is {text!r}", "use a number, or auto to search it") from None


COEFFICIENT = 0.1
"""Weight of the loss: the upper end of the published range (Liu et al. 2026, arXiv:2602.00217)."""
SEARCH_DOSES, SEARCH_SHARE, SEARCH_LEAST = 5, 5, 10
"""A search of the coefficient: how many it tries at most, each for a fifth of the steps and for no fewer than 10."""
FULL_RATE = 5e-5
"""Learning rate of full training: the published recipe's (Liu et al. 2026, arXiv:2602.00217)."""
LORA_RATE = 2e-4
"""Learning rate of LoRA adapters: that of the LoRA paper on GPT-2 (Hu et al. 2021, arXiv:2106.09685, table 11)."""


@dataclass(frozen=True)
class Plan(Options):
    """Everything that decides a treatment. Optimizer settings are the published recipe's; its budget is not.

    Budget: one pass over the training text, at most 2 M tokens, unless `max_steps` or `train_tokens`;
    tokens per step min(131,072, budget/50) unless batch sizes are given. Liu et al. 2026, arXiv:2602.00217.

    `seeds` is how many training seeds every arm takes, from `seed` on. `coefficient` None is searched: see
    `trials.search`.
    """

    coefficient: Annotated[
        float | None,
        Flag(
            "Weight of the loss, published range 0.01 to 0.1; auto searches it on part of the training text.",
            LOSS,
            metavar="NUMBER|auto",
            kind=str,
            unread=f"{COEFFICIENT:g}",
            read=coefficient_of,
            settings="found",
        ),
    ] = COEFFICIENT
    loss: Annotated[LossName, Flag("Which dispersion loss.", LOSS, settings="found")] = "angular"
    layers: Annotated[str, Flag("all, late, early, last, or blocks such as 3,7,-1.", LOSS, settings="found")] = "all"
    coefficient_schedule: Annotated[
        str,
        Flag(
            "constant, linear[:SHARE] or cosine[:SHARE]: falls to 0 at SHARE of the steps.",
            LOSS,
            metavar="SCHEDULE",
            settings="found",
        ),
    ] = "constant"
    paper_sites: Annotated[bool, Flag("Disperse the normed output in place of block L.", LOSS, settings="found")] = (
        False
    )
    max_tokens: Annotated[int, Flag("Tokens per sequence in the loss; 0 for all.", LOSS, settings="found")] = 256
    tau: Annotated[
        float, Flag("Temperature of angular, l2_repel, robust and placebos.", LOSS, above=0, settings="found")
    ] = 1.0
    train_tokens: Annotated[int | None, Flag("Budget in tokens.", TRAINING, above=0, settings="found")] = None
    max_steps: Annotated[int | None, Flag("Budget in optimizer steps.", TRAINING, above=0, settings="found")] = None
    max_length: Annotated[
        int | None, Flag("Tokens per row. Default: min(1024, positions).", TRAINING, at_least=8, settings="found")
    ] = None
    eval_length: Annotated[
        int | None,
        Flag(
            "Tokens per measured window, at most those per row. Default: min(512, row), shorter for 8 windows.",
            TRAINING,
            at_least=8,
            settings="found",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Flag("Peak learning rate. Default: 5e-5, of LoRA adapters 2e-4.", TRAINING, above=0, settings="found"),
    ] = None
    lr_scheduler: Annotated[str, Flag("Any schedule Trainer knows by name.", TRAINING)] = "cosine"
    warmup: Annotated[
        float, Flag("Share of the steps (below 1) or number of steps.", TRAINING, at_least=0, settings="found")
    ] = 0.2
    weight_decay: Annotated[float, Flag("Weight decay.", TRAINING, settings="found")] = 0.1
    max_grad_norm: Annotated[float, Flag("Gradient clipping.", TRAINING, above=0, settings="found")] = 1.0
    optim: Annotated[str, Flag("Any optimizer Trainer knows by name.", TRAINING)] = "adamw_torch"
    per_device_train_batch_size: Annotated[
        int | None,
        Flag(
            "Rows per micro-batch of each process.",
            TRAINING,
            ("--per-device-train-batch-size", "--batch-size"),
            above=0,
            settings="found",
        ),
    ] = None
    gradient_accumulation_steps: Annotated[
        int | None, Flag("Micro-batches per step and process.", TRAINING, above=0, settings="found")
    ] = None
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Flag(
            "Autocast; default bf16 on a GPU, fp32 on a CPU.",
            TRAINING,
            ("--bf16/--fp32",),
            kind=bool | None,
            read=precision_of,
            settings="found",
        ),
    ] = "auto"
    activation_checkpointing: Annotated[bool, Flag("Trade time for memory.", TRAINING)] = False
    fsdp: Annotated[
        bool, Flag("Under torchrun: shard weights, gradients and moments over the processes (FSDP2).", TRAINING)
    ] = False
    use_peft: Annotated[bool, Flag("Train LoRA adapters only.", LORA)] = False
    lora_r: Annotated[int, Flag("Rank.", LORA, above=0, settings="found")] = 16
    lora_alpha: Annotated[int, Flag("Scale.", LORA, settings="found")] = 32
    lora_dropout: Annotated[float, Flag("Dropout.", LORA, settings="found")] = 0.05
    lora_target_modules: Annotated[str, Flag("Modules, by comma, or all-linear.", LORA)] = "all-linear"
    merge_adapter: Annotated[
        bool, Flag("Keep the adapter beside the merged model with --no-merge.", LORA, ("--merge/--no-merge",))
    ] = True
    seed: Annotated[int, Flag("Seed of everything drawn.", CORPUS, at_least=0, at_most=MAX_SEED, settings="found")] = 0
    control: Annotated[bool, Flag("Train the control arm too.", LOSS, ("--control/--no-control",))] = True
    num_texts: Annotated[
        int, Flag("Windows to measure.", CORPUS, ("--num-texts", "--limit"), at_least=1, settings="found")
    ] = 32
    min_effect: Annotated[
        float, Flag("Smallest change of deep mean cosine that counts.", LOSS, above=0, settings="found")
    ] = 0.01
    quality_tolerance: Annotated[
        float, Flag("Loss of quality that is tolerated, as a share.", LOSS, settings="found")
    ] = 0.005
    save_steps: Annotated[int | None, Flag("Save a checkpoint every N steps.", TRAINING, above=0, settings="found")] = (
        None
    )
    report_to: Annotated[str, Flag("tensorboard, wandb, … as in Trainer.", TRAINING)] = "none"
    eval_tasks: Annotated[
        tuple[str, ...],
        Flag(
            "Score every arm on these tasks of lm-evaluation-harness.",
            TASKS,
            metavar="A,B",
            kind=str | None,
            read=names_of,
        ),
    ] = ()
    eval_limit: Annotated[
        int | None,
        Flag("Only the first N samples of each task.", TASKS, metavar="N", at_least=1, settings="found"),
    ] = None
    include_path: Annotated[str | None, Flag("Task files of your own; they may run code.", TASKS, metavar="DIR")] = None
    seeds: Annotated[
        int, Flag("Training seeds per arm; OUT is the model of the first.", TRAINING, at_least=1, settings="found")
    ] = 1

    def __post_init__(self) -> None:
        """UsageError for values that mean nothing."""
        super().__post_init__()
        try:
            schedule_factor(self.coefficient_schedule, 0.0)
        except ValueError as error:
            raise UsageError(f"--coefficient-schedule: {error}", "for example linear:0.25") from None
        if self.max_tokens < 0 or self.max_tokens == 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}", "use 0 for all, or at least 2")
        if not self.eval_tasks and (self.eval_limit is not None or self.include_path is not None):
            raise UsageError("--eval-limit and --include-path belong to tasks", "name some with --eval-tasks")

    @property
    def first_coefficient(self) -> float:
        """The coefficient; where it is searched (None) the first that is tried."""
        return COEFFICIENT if self.coefficient is None else self.coefficient

    def search_steps(self, steps: int) -> int:
        """The steps of one run of the search, of a training run of `steps`; 0 where nothing is searched."""
        return 0 if self.coefficient is not None else min(steps, max(SEARCH_LEAST, -(-steps // SEARCH_SHARE)))

    @property
    def peak_rate(self) -> float:
        """The learning rate, or the default of what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LORA_RATE if self.use_peft else FULL_RATE

    def resolved(self) -> Self:
        """The plan with its learning rate as a number, as a run records it."""
        return replace(self, learning_rate=self.peak_rate)

    @property
    def tuned(self) -> str:
        """What of the model is trained, in words; empty for all of it."""
        if not self.use_peft:
            return ""
        targets = "all linear modules" if self.lora_target_modules == "all-linear" else self.lora_target_modules
        return f"LoRA of rank {self.lora_r}, alpha {self.lora_alpha}, dropout {self.lora_dropout:g} on {targets}"


@dataclass(frozen=True)
class ArmSpec:
    """One arm as it was asked for; what an arm may have is in `Remedy.takes`, the rest is None.

    schedule: None where the arm names none and the plan's holds; `constant` is a name too.
    """

    name: str
    remedy: RemedyName
    loss: LossName | None = None
    layers: str | None = None
    coefficient: float | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        """ValueError for a schedule that is none."""
        schedule_factor(self.schedule or "constant", 0.0)


CONTROL = ArmSpec("control", "control")
TUNED = ("learning_rate", "warmup_steps")
"""What `--tune` may search."""
TUNING_SEED = 1000
"""How far the seed of the search lies behind the first seed of the trial."""


def with_setting(plan: Plan, setting: Mapping[str, float]) -> Plan:
    """A plan with one setting of the search in place of its own."""
    return replace(
        plan,
        learning_rate=setting.get("learning_rate", plan.learning_rate),
        warmup=setting.get("warmup_steps", plan.warmup),
    )


@dataclass(frozen=True)
class TrialPlan(Options):
    """Everything that decides a trial: the arms (control is always one), the seeds, how every arm is trained.

    `training.seed` decides the split of the text and is the first training seed; the others follow it.
    """

    arms: tuple[ArmSpec, ...] = (CONTROL,)
    seeds: Annotated[
        int, Flag("Training seeds per arm; a word on an arm needs 3, a rank 5.", ARMS, at_least=1, settings="found")
    ] = 3
    training: Plan = field(default_factory=Plan)
    keep_models: Annotated[bool, Flag("Keep the trained checkpoints of all runs.", OUTPUT)] = False
    tune: Annotated[
        tuple[str, ...],
        Flag(
            "learning_rate=A,B or warmup_steps=A,B: tried for every arm on a text and a seed of its own; may be "
            "repeated.",
            ARMS,
            metavar="NAME=A,B",
            kind=list[str] | None,
            read=lambda texts: tuple(texts or ()),
            settings="found",
        ),
    ] = ()
    tune_text: Annotated[
        str | None,
        Flag("Text to choose on. Default: half of the validation documents.", ARMS, metavar="FILE", settings="inside"),
    ] = None
    other_text: Annotated[
        str | None,
        Flag("Text of another domain, scored beside the validation text.", ARMS, metavar="FILE", settings="inside"),
    ] = None
    then_text: Annotated[
        str | None,
        Flag(
            "Text that every final model is then trained on, as the control is: how fast does it learn that?",
            ARMS,
            metavar="FILE",
            settings="inside",
        ),
    ] = None
    then_steps: Annotated[
        int | None,
        Flag("Steps on that text. Default: a quarter of the steps.", ARMS, at_least=4, settings="found"),
    ] = None
    curve_points: Annotated[
        int | None,
        Flag(
            "Evaluations of the validation text per run. Default: 16, fewer or none where they would take over a fifth "
            "of the training time.",
            ARMS,
            at_least=0,
            settings="found",
        ),
    ] = None

    def __post_init__(self) -> None:
        """The plan of every arm has the trial's number of seeds. UsageError for values that mean nothing."""
        super().__post_init__()
        object.__setattr__(self, "training", replace(self.training, seeds=self.seeds))
        self.grid()
        self._refuse_twins()
        if self.tune_text is not None and not self.tune:
            raise UsageError("--tune-text is given, but nothing is chosen on it", "add --tune learning_rate=A,B")
        if self.then_steps is not None and self.then_text is None:
            raise UsageError("--then-steps is given, but no text to train on", "add --then-text FILE")
        if self.tune and self.seeds > TUNING_SEED:
            raise UsageError(f"--tune leaves room for {TUNING_SEED} seeds", "give fewer --seeds")
        if self.tune and self.tuning_seed > MAX_SEED:
            hint = f"the largest with --tune is {MAX_SEED - TUNING_SEED}"
            raise UsageError(f"--seed {self.training.seed} leaves no seed for the search of --tune", hint)

    def _refuse_twins(self) -> None:
        """UsageError for two arms that would be trained alike: one names the schedule that the other has anyway."""
        seen: dict[ArmSpec, str] = {}
        of_all = shortest_schedule(self.training.coefficient_schedule)
        for spec in self.arms:
            own = None if spec.coefficient is None else spec.schedule or of_all
            first = seen.setdefault(replace(spec, name="", schedule=own), spec.name)
            if first != spec.name:
                said = f"the arms {first} and {spec.name} are the same under --coefficient-schedule {of_all}"
                raise UsageError(said, "name one of them")

    @property
    def tuning_seed(self) -> int:
        """The seed of the search, which is none of the trial's."""
        return self.training.seed + TUNING_SEED

    def grid(self) -> tuple[dict[str, float], ...]:
        """Every setting that `tune` asks for, as {name: value}; several options multiply. UsageError for others."""
        choices: dict[str, list[float]] = {}
        for text in self.tune:
            name, _, values = text.partition("=")
            key = name.strip().lower().replace("-", "_")
            if key not in TUNED or not values.strip():
                raise UsageError(f"--tune is {text!r}", "write learning_rate=3e-4,1e-3 or warmup_steps=20,40")
            try:
                numbers = sorted({float(part) for part in values.split(",")})
            except ValueError:
                raise UsageError(f"--tune {text} holds what is no number", "write learning_rate=3e-4,1e-3") from None
            if not all(math.isfinite(number) and number > 0 for number in numbers):
                raise UsageError(f"--tune {text}: a number is not above 0", "write learning_rate=3e-4,1e-3")
            if key == "warmup_steps" and not all(number.is_integer() for number in numbers):
                raise UsageError(f"--tune {text}: steps are whole numbers", "write warmup_steps=20,40")
            if key in choices:
                raise UsageError(f"--tune {key} is given twice", "name all of its values in one")
            choices[key] = numbers
        if not choices:
            return ()
        return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
