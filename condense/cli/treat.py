"""`condense treat MODEL -o DIR`: before, control, treated, and one report that says what the loss did."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli import options
from condense.cli import training_options as train
from condense.cli.running import MANNER, command_line, console, quieten_libraries, reported, say, stage_progress
from condense.cli.training_options import LOSS, option
from condense.records.plans import LossName, Plan

if TYPE_CHECKING:
    from condense.records.plans import Schedule
    from condense.records.treatment import Overhead

Output = Annotated[
    Path, option(options.OUTPUT, "--output", "-o", text="Becomes the treated checkpoint.", metavar="DIR")
]
Coefficient = Annotated[float, option(LOSS, "--coefficient", text="Weight of the loss; published range 0.01 to 0.1.")]
Loss = Annotated[LossName, option(LOSS, "--loss", text="Which dispersion loss.")]
Layers = Annotated[str, option(LOSS, "--layers", text="all, late, early, last, or blocks such as 3,7,-1.")]
Control = Annotated[bool, option(LOSS, "--control/--no-control", text="Train the control arm too.")]
Push = Annotated[
    str | None,
    option(options.OUTPUT, "--push-to-hub", text="Upload the result to this repository.", show_default=False),
]


def treat(
    model: options.Model,
    output: Output,
    coefficient: Coefficient = Plan.coefficient,
    loss: Loss = Plan.loss,
    layers: Layers = Plan.layers,
    paper_sites: train.PaperSites = Plan.paper_sites,
    max_tokens: train.MaxTokens = Plan.max_tokens,
    tau: train.Tau = Plan.tau,
    control: Control = Plan.control,
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
    merge: train.Merge = Plan.merge_adapter,
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
    push_to_hub: Push = None,
    force: options.Force = False,
    dry_run: train.DryRun = False,
) -> None:
    """Fine-tune with dispersion loss, beside a control arm, and report before / control / treated."""
    with reported():
        plan = Plan(
            coefficient=coefficient, loss=loss, layers=layers, paper_sites=paper_sites, max_tokens=max_tokens, tau=tau,
            train_tokens=train_tokens, max_steps=max_steps, max_length=max_length, learning_rate=learning_rate,
            lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
            optim=optim, per_device_train_batch_size=per_device_train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps, precision=train.precision(bf16),
            activation_checkpointing=activation_checkpointing, use_peft=use_peft, lora_r=lora_r, lora_alpha=lora_alpha,
            lora_dropout=lora_dropout, lora_target_modules=lora_target_modules, merge_adapter=merge, seed=seed,
            control=control, num_texts=num_texts, min_effect=min_effect, quality_tolerance=quality_tolerance,
            save_steps=save_steps, report_to=report_to, eval_tasks=options.task_names(eval_tasks),
            eval_limit=eval_limit, include_path=include_path,
        )  # fmt: skip
        corpus = train.training_text(text, dataset, dataset_config, split, text_column)
        _run(
            model, corpus, output, plan, text_column=text_column, resume=resume, force=force, dry_run=dry_run,
            revision=revision, device=device, tokenizer=tokenizer, token=token, offline=offline,
            random_init=random_init, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
        )  # fmt: skip
        if push_to_hub and not dry_run:
            from condense.models.hub import push

            push(output, push_to_hub, token)
            say(f"uploaded to {push_to_hub}")


def _run(model: str, corpus: Any, output: Path, plan: Plan, *, offline: bool, **chosen: Any) -> None:
    train.refuse_processes("treat")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    quieten_libraries()
    from condense.report.treatment.terminal import show_plan, show_treatment
    from condense.training.loop import InterruptedRunError
    from condense.treatment.run import Watch, treat

    command = command_line()
    try:
        with stage_progress() as (screen, on_phase, on_text, on_step):

            def on_plan(plan: Plan, schedule: Schedule, overhead: Overhead) -> None:
                if not MANNER.quiet or chosen["dry_run"]:
                    show_plan(plan, schedule, overhead, screen)

            watch = Watch(on_plan, on_phase, on_text, on_step)
            treatment = treat(model, corpus, output, plan, command=command, watch=watch, offline=offline, **chosen)
    except InterruptedRunError as stopped:
        say(f"interrupted; what was done is in {output}.work: run again with --resume to go on")
        raise typer.Exit(stopped.code) from None
    if treatment is not None:
        show_treatment(treatment, console())
        say(f"wrote {output} (the treated checkpoint, with README.md, condense.json, report.html, report.md)")
