"""`condense treat MODEL -o DIR`: before, control, treated, and one report that says what the loss did."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from condense.cli import options
from condense.cli.running import MANNER, command_line, console, quieten_libraries, reported, say, stage_progress
from condense.errors import UsageError
from condense.outcomes import LossName, Plan

if TYPE_CHECKING:
    from condense.outcomes import Overhead, Schedule

LOSS, TRAINING, LORA = "Loss", "Training", "LoRA"


def _option(panel: str, *names: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Output = Annotated[
    Path, _option(options.OUTPUT, "--output", "-o", text="Becomes the treated checkpoint.", metavar="DIR")
]
Coefficient = Annotated[float, _option(LOSS, "--coefficient", text="Weight of the loss; published range 0.01 to 0.1.")]
Loss = Annotated[LossName, _option(LOSS, "--loss", text="Which dispersion loss.")]
Layers = Annotated[str, _option(LOSS, "--layers", text="all, late, early, last, or blocks such as 3,7,-1.")]
PaperSites = Annotated[
    bool, _option(LOSS, "--paper-sites", text="Disperse the normed output in place of block L.", show_default=False)
]
MaxTokens = Annotated[int, _option(LOSS, "--max-tokens", text="Tokens per sequence in the loss; 0 for all.")]
Tau = Annotated[float, _option(LOSS, "--tau", text="Temperature of angular and l2_repel.")]
MinEffect = Annotated[float, _option(LOSS, "--min-effect", text="Smallest change of deep mean cosine that counts.")]
Tolerance = Annotated[
    float, _option(LOSS, "--quality-tolerance", text="Loss of quality that is tolerated, as a share.")
]
Control = Annotated[bool, _option(LOSS, "--control/--no-control", text="Train the control arm too.")]
TrainTokens = Annotated[int | None, _option(TRAINING, "--train-tokens", text="Budget in tokens.", show_default=False)]
MaxSteps = Annotated[
    int | None, _option(TRAINING, "--max-steps", text="Budget in optimizer steps.", show_default=False)
]
RowLength = Annotated[
    int | None,
    _option(TRAINING, "--max-length", text="Tokens per row. Default: min(1024, positions).", min=8, show_default=False),
]
LearningRate = Annotated[float, _option(TRAINING, "--learning-rate", text="Peak learning rate.")]
Scheduler = Annotated[str, _option(TRAINING, "--lr-scheduler", text="Any schedule Trainer knows by name.")]
Warmup = Annotated[float, _option(TRAINING, "--warmup", text="Share of the steps (below 1) or number of steps.")]
WeightDecay = Annotated[float, _option(TRAINING, "--weight-decay", text="Weight decay.")]
Clip = Annotated[float, _option(TRAINING, "--max-grad-norm", text="Gradient clipping.")]
Optim = Annotated[str, _option(TRAINING, "--optim", text="Any optimizer Trainer knows by name.")]
Batch = Annotated[
    int | None,
    _option(
        TRAINING, "--per-device-train-batch-size", "--batch-size", text="Rows per micro-batch.", show_default=False
    ),
]
Accumulation = Annotated[
    int | None, _option(TRAINING, "--gradient-accumulation-steps", text="Micro-batches per step.", show_default=False)
]
Precision = Annotated[
    bool | None,
    _option(TRAINING, "--bf16/--fp32", text="Autocast; default bf16 on a GPU, fp32 on a CPU.", show_default=False),
]
Checkpointing = Annotated[
    bool, _option(TRAINING, "--activation-checkpointing", text="Trade time for memory.", show_default=False)
]
ReportTo = Annotated[str, _option(TRAINING, "--report-to", text="tensorboard, wandb, … as in Trainer.")]
SaveSteps = Annotated[
    int | None, _option(TRAINING, "--save-steps", text="Save a checkpoint every N steps.", show_default=False)
]
Resume = Annotated[bool, _option(TRAINING, "--resume", text="Go on with an interrupted run.", show_default=False)]
UsePeft = Annotated[bool, _option(LORA, "--use-peft", text="Train LoRA adapters only.", show_default=False)]
LoraR = Annotated[int, _option(LORA, "--lora-r", text="Rank.")]
LoraAlpha = Annotated[int, _option(LORA, "--lora-alpha", text="Scale.")]
LoraDropout = Annotated[float, _option(LORA, "--lora-dropout", text="Dropout.")]
LoraTargets = Annotated[str, _option(LORA, "--lora-target-modules", text="Modules, by comma, or all-linear.")]
Merge = Annotated[
    bool, _option(LORA, "--merge/--no-merge", text="Keep the adapter beside the merged model with --no-merge.")
]
Push = Annotated[
    str | None,
    _option(options.OUTPUT, "--push-to-hub", text="Upload the result to this repository.", show_default=False),
]
DryRun = Annotated[bool, _option(options.OUTPUT, "--dry-run", text="Print the plan and stop.", show_default=False)]


def treat(
    model: options.Model,
    output: Output,
    coefficient: Coefficient = Plan.coefficient,
    loss: Loss = Plan.loss,
    layers: Layers = Plan.layers,
    paper_sites: PaperSites = Plan.paper_sites,
    max_tokens: MaxTokens = Plan.max_tokens,
    tau: Tau = Plan.tau,
    control: Control = Plan.control,
    min_effect: MinEffect = Plan.min_effect,
    quality_tolerance: Tolerance = Plan.quality_tolerance,
    text: options.Text = None,
    dataset: options.Dataset = None,
    dataset_config: options.DatasetConfig = None,
    split: options.Split = "train",
    text_column: options.TextColumn = "text",
    num_texts: options.NumTexts = Plan.num_texts,
    train_tokens: TrainTokens = None,
    max_steps: MaxSteps = None,
    max_length: RowLength = None,
    learning_rate: LearningRate = Plan.learning_rate,
    lr_scheduler: Scheduler = Plan.lr_scheduler,
    warmup: Warmup = Plan.warmup,
    weight_decay: WeightDecay = Plan.weight_decay,
    max_grad_norm: Clip = Plan.max_grad_norm,
    optim: Optim = Plan.optim,
    per_device_train_batch_size: Batch = None,
    gradient_accumulation_steps: Accumulation = None,
    bf16: Precision = None,
    activation_checkpointing: Checkpointing = Plan.activation_checkpointing,
    seed: options.Seed = Plan.seed,
    save_steps: SaveSteps = None,
    report_to: ReportTo = Plan.report_to,
    resume: Resume = False,
    use_peft: UsePeft = Plan.use_peft,
    lora_r: LoraR = Plan.lora_r,
    lora_alpha: LoraAlpha = Plan.lora_alpha,
    lora_dropout: LoraDropout = Plan.lora_dropout,
    lora_target_modules: LoraTargets = Plan.lora_target_modules,
    merge: Merge = Plan.merge_adapter,
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
    dry_run: DryRun = False,
) -> None:
    """Fine-tune with dispersion loss, beside a control arm, and report before / control / treated."""
    with reported():
        plan = Plan(
            coefficient=coefficient, loss=loss, layers=layers, paper_sites=paper_sites, max_tokens=max_tokens, tau=tau,
            train_tokens=train_tokens, max_steps=max_steps, max_length=max_length, learning_rate=learning_rate,
            lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
            optim=optim, per_device_train_batch_size=per_device_train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps, precision=_precision(bf16),
            activation_checkpointing=activation_checkpointing, use_peft=use_peft, lora_r=lora_r, lora_alpha=lora_alpha,
            lora_dropout=lora_dropout, lora_target_modules=lora_target_modules, merge_adapter=merge, seed=seed,
            control=control, num_texts=num_texts, min_effect=min_effect, quality_tolerance=quality_tolerance,
            save_steps=save_steps, report_to=report_to,
        )  # fmt: skip
        corpus = _corpus(text, dataset, dataset_config, split, text_column)
        _run(
            model, corpus, output, plan, text_column=text_column, resume=resume, force=force, dry_run=dry_run,
            revision=revision, device=device, tokenizer=tokenizer, token=token, offline=offline,
            random_init=random_init, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
        )  # fmt: skip
        if push_to_hub and not dry_run:
            from condense.hub import push

            push(output, push_to_hub, token)
            say(f"uploaded to {push_to_hub}")


def _precision(bf16: bool | None) -> Literal["auto", "bf16", "fp32"]:
    return "auto" if bf16 is None else "bf16" if bf16 else "fp32"


def _corpus(text: str | None, dataset: str | None, config: str | None, split: str | None, column: str) -> Any:
    from condense import documents

    if (text is None) == (dataset is None):
        raise UsageError("name the training text: --text or --dataset, one of them")
    return documents.dataset(dataset, config, split, column) if dataset else text


def _run(model: str, corpus: Any, output: Path, plan: Plan, *, offline: bool, **chosen: Any) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "condense treat trains in one process", "for several, use condense.trainer.DispersionTrainer under torchrun"
        )
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    quieten_libraries()
    from condense.page.treatment_terminal import show_plan, show_treatment
    from condense.training import InterruptedRunError
    from condense.treatment import Watch, treat

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
