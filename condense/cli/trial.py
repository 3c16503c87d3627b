"""`condense trial MODEL -o DIR --arms …`: remedies side by side, each under several seeds, each against the control."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli import options
from condense.cli import training_options as train
from condense.cli.running import (
    INTERNAL,
    MANNER,
    command_line,
    console,
    quieten_libraries,
    reported,
    run_progress,
    say,
)
from condense.cli.training_options import option
from condense.errors import UsageError
from condense.records.plans import Plan, Schedule, TrialPlan
from condense.records.trial import StepCost

if TYPE_CHECKING:
    from condense.records.trial import Trial

ARMS = "Arms"
Output = Annotated[Path, option(options.OUTPUT, "--output", "-o", text="Folder of report and runs.", metavar="DIR")]
Arms = Annotated[
    str,
    option(
        ARMS, "--arms", metavar="ARM,…",
        text="control, dispersion[:loss][@layers][=coefficient], embedding-dropout, noisy-embedding, "
        "active-forgetting, larger-vocab, cosreg[=coefficient].",
    ),
]  # fmt: skip
Coefficients = Annotated[
    str | None,
    option(
        ARMS, "--coefficients", metavar="C,…", text="For every dispersion and cosreg arm without one.",
        show_default=False,
    ),
]  # fmt: skip
Seeds = Annotated[int, option(ARMS, "--seeds", text="Training seeds per arm; below 3 nothing is ranked.", min=1)]
KeepModels = Annotated[
    bool, option(options.OUTPUT, "--keep-models", text="Keep the trained checkpoints of all runs.", show_default=False)
]
DEFAULT_ARMS = "control,dispersion,embedding-dropout,larger-vocab"


def trial(
    model: options.Model,
    output: Output,
    arms: Arms = DEFAULT_ARMS,
    coefficients: Coefficients = None,
    seeds: Seeds = TrialPlan.seeds,
    max_tokens: train.MaxTokens = Plan.max_tokens,
    tau: train.Tau = Plan.tau,
    min_effect: train.MinEffect = Plan.min_effect,
    quality_tolerance: train.Tolerance = Plan.quality_tolerance,
    text: options.Text = None,
    dataset: options.Dataset = None,
    dataset_config: options.DatasetConfig = None,
    split: options.Split = "train",
    text_column: options.TextColumn = "text",
    num_texts: options.NumTexts = Plan.num_texts,
    train_tokens: train.TrainTokens = None,
    max_steps: train.MaxSteps = None,
    max_length: train.RowLength = None,
    learning_rate: train.LearningRate = Plan.learning_rate,
    lr_scheduler: train.Scheduler = Plan.lr_scheduler,
    warmup: train.Warmup = Plan.warmup,
    weight_decay: train.WeightDecay = Plan.weight_decay,
    max_grad_norm: train.Clip = Plan.max_grad_norm,
    optim: train.Optim = Plan.optim,
    per_device_train_batch_size: train.Batch = None,
    gradient_accumulation_steps: train.Accumulation = None,
    bf16: train.Precision = None,
    activation_checkpointing: train.Checkpointing = Plan.activation_checkpointing,
    seed: options.Seed = Plan.seed,
    save_steps: train.SaveSteps = None,
    report_to: train.ReportTo = Plan.report_to,
    resume: train.Resume = False,
    use_peft: train.UsePeft = Plan.use_peft,
    lora_r: train.LoraR = Plan.lora_r,
    lora_alpha: train.LoraAlpha = Plan.lora_alpha,
    lora_dropout: train.LoraDropout = Plan.lora_dropout,
    lora_target_modules: train.LoraTargets = Plan.lora_target_modules,
    keep_models: KeepModels = False,
    eval_tasks: options.EvalTasks = None,
    eval_limit: options.EvalLimit = None,
    include_path: options.IncludePath = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    tokenizer: options.TokenizerName = None,
    token: options.Token = None,
    offline: options.Offline = False,
    random_init: options.RandomInit = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    force: options.Force = False,
    dry_run: train.DryRun = False,
) -> None:
    """Train remedies against condensation side by side, each against the same control, and report what each did."""
    with reported():
        training = Plan(
            max_tokens=max_tokens, tau=tau, train_tokens=train_tokens, max_steps=max_steps, max_length=max_length,
            learning_rate=learning_rate, lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay,
            max_grad_norm=max_grad_norm, optim=optim, per_device_train_batch_size=per_device_train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps, precision=train.precision(bf16),
            activation_checkpointing=activation_checkpointing, use_peft=use_peft, lora_r=lora_r, lora_alpha=lora_alpha,
            lora_dropout=lora_dropout, lora_target_modules=lora_target_modules, seed=seed, num_texts=num_texts,
            min_effect=min_effect, quality_tolerance=quality_tolerance, save_steps=save_steps, report_to=report_to,
            eval_tasks=options.task_names(eval_tasks), eval_limit=eval_limit, include_path=include_path,
        )  # fmt: skip
        plan = TrialPlan(_arms(arms, coefficients), seeds, training, keep_models)
        corpus = train.training_text(text, dataset, dataset_config, split, text_column)
        made = _run(
            model, corpus, output, plan, text_column=text_column, resume=resume, force=force, dry_run=dry_run,
            revision=revision, device=device, tokenizer=tokenizer, token=token, offline=offline,
            random_init=random_init, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
        )  # fmt: skip
        if made is not None:
            _finish(made, output)


def _arms(arms: str, coefficients: str | None) -> Any:
    from condense.trials.arm_names import parse_arms

    try:
        numbers = tuple(float(part) for part in coefficients.split(",")) if coefficients else ()
    except ValueError:
        raise UsageError(f"--coefficients is {coefficients!r}", "use numbers such as 0.01,0.03,0.1") from None
    return parse_arms(arms, numbers)


def _run(model: str, corpus: Any, output: Path, plan: TrialPlan, *, offline: bool, **chosen: Any) -> Trial | None:
    train.refuse_processes("trial")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    quieten_libraries()
    from condense.report.trial.terminal import show_trial_plan
    from condense.training.loop import InterruptedRunError
    from condense.trials.run import trial
    from condense.trials.runs import TrialWatch

    try:
        with run_progress() as (screen, on_phase, on_run, on_text, on_step):

            def on_plan(plan: TrialPlan, schedule: Schedule, costs: Mapping[str, StepCost], seconds: float) -> None:
                if not MANNER.quiet or chosen["dry_run"]:
                    show_trial_plan(plan, schedule, costs, seconds, screen)

            watch = TrialWatch(on_plan, on_phase, on_run, on_text, on_step, say)
            return trial(model, corpus, output, plan, command=command_line(), watch=watch, offline=offline, **chosen)
    except InterruptedRunError as stopped:
        say(f"interrupted; what was done is in {output}: run again with --resume to go on")
        raise typer.Exit(stopped.code) from None


def _finish(made: Trial, output: Path) -> None:
    """Show the table; exit 4, with everything written, if an arm failed."""
    from condense.report.trial.terminal import show_trial

    show_trial(made, console())
    say(f"wrote {output} (trial.json, report.html, report.md, trial.csv, arms/)")
    failed = [arm.spec.name for arm in made.arms if arm.status in ("failed", "partial")]
    if failed:
        say(f"condense: {', '.join(failed)} failed; run again with --resume to try only what is missing")
        raise typer.Exit(INTERNAL)
