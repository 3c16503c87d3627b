"""The options of the commands that train, `treat` and `trial`: each has one home, one name and one help text."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer

from condense.cli import options
from condense.errors import UsageError

LOSS, TRAINING, LORA = "Loss", "Training", "LoRA"


def option(panel: str, *names: str, text: str, **more: Any) -> Any:
    """A Typer option in a panel of the help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


PaperSites = Annotated[
    bool, option(LOSS, "--paper-sites", text="Disperse the normed output in place of block L.", show_default=False)
]
MaxTokens = Annotated[int, option(LOSS, "--max-tokens", text="Tokens per sequence in the loss; 0 for all.")]
Tau = Annotated[float, option(LOSS, "--tau", text="Temperature of angular and l2_repel.")]
MinEffect = Annotated[float, option(LOSS, "--min-effect", text="Smallest change of deep mean cosine that counts.")]
Tolerance = Annotated[float, option(LOSS, "--quality-tolerance", text="Loss of quality that is tolerated, as a share.")]
TrainTokens = Annotated[int | None, option(TRAINING, "--train-tokens", text="Budget in tokens.", show_default=False)]
MaxSteps = Annotated[int | None, option(TRAINING, "--max-steps", text="Budget in optimizer steps.", show_default=False)]
RowLength = Annotated[
    int | None,
    option(TRAINING, "--max-length", text="Tokens per row. Default: min(1024, positions).", min=8, show_default=False),
]
LearningRate = Annotated[float, option(TRAINING, "--learning-rate", text="Peak learning rate.")]
Scheduler = Annotated[str, option(TRAINING, "--lr-scheduler", text="Any schedule Trainer knows by name.")]
Warmup = Annotated[float, option(TRAINING, "--warmup", text="Share of the steps (below 1) or number of steps.")]
WeightDecay = Annotated[float, option(TRAINING, "--weight-decay", text="Weight decay.")]
Clip = Annotated[float, option(TRAINING, "--max-grad-norm", text="Gradient clipping.")]
Optim = Annotated[str, option(TRAINING, "--optim", text="Any optimizer Trainer knows by name.")]
Batch = Annotated[
    int | None,
    option(TRAINING, "--per-device-train-batch-size", "--batch-size", text="Rows per micro-batch.", show_default=False),
]
Accumulation = Annotated[
    int | None, option(TRAINING, "--gradient-accumulation-steps", text="Micro-batches per step.", show_default=False)
]
Precision = Annotated[
    bool | None,
    option(TRAINING, "--bf16/--fp32", text="Autocast; default bf16 on a GPU, fp32 on a CPU.", show_default=False),
]
Checkpointing = Annotated[
    bool, option(TRAINING, "--activation-checkpointing", text="Trade time for memory.", show_default=False)
]
ReportTo = Annotated[str, option(TRAINING, "--report-to", text="tensorboard, wandb, … as in Trainer.")]
SaveSteps = Annotated[
    int | None, option(TRAINING, "--save-steps", text="Save a checkpoint every N steps.", show_default=False)
]
Resume = Annotated[bool, option(TRAINING, "--resume", text="Go on with an interrupted run.", show_default=False)]
UsePeft = Annotated[bool, option(LORA, "--use-peft", text="Train LoRA adapters only.", show_default=False)]
LoraR = Annotated[int, option(LORA, "--lora-r", text="Rank.")]
LoraAlpha = Annotated[int, option(LORA, "--lora-alpha", text="Scale.")]
LoraDropout = Annotated[float, option(LORA, "--lora-dropout", text="Dropout.")]
LoraTargets = Annotated[str, option(LORA, "--lora-target-modules", text="Modules, by comma, or all-linear.")]
Merge = Annotated[
    bool, option(LORA, "--merge/--no-merge", text="Keep the adapter beside the merged model with --no-merge.")
]
DryRun = Annotated[bool, option(options.OUTPUT, "--dry-run", text="Print the plan and stop.", show_default=False)]


def precision(bf16: bool | None) -> Literal["auto", "bf16", "fp32"]:
    """The plan's word for `--bf16`, `--fp32` or neither."""
    return "auto" if bf16 is None else "bf16" if bf16 else "fp32"


def training_text(text: str | None, dataset: str | None, config: str | None, split: str | None, column: str) -> Any:
    """The training text that was named; UsageError unless it is exactly one."""
    from condense.texts import documents

    if (text is None) == (dataset is None):
        raise UsageError("name the training text: --text or --dataset, one of them")
    return documents.dataset(dataset, config, split, column) if dataset else text


def refuse_processes(command: str) -> None:
    """UsageError under torchrun: the commands that train do so in one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"condense {command} trains in one process",
            "for several, use condense.trainer.DispersionTrainer under torchrun",
        )
