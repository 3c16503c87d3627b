"""The options that commands share: each has one home, one name and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL, CORPUS, OUTPUT, SAFETY = "Model", "Corpus", "Output", "Dangerous, off unless asked for"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id, checkpoint folder, adapter folder or .gguf file.", show_default=False
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"],
    typer.Option("--dtype", help="Arithmetic of the forward pass; auto takes the checkpoint's.", rich_help_panel=MODEL),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", metavar="DEVICE", rich_help_panel=MODEL)
]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="Spread a large model over devices (auto).", rich_help_panel=MODEL),
]
TokenizerName = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Hub id or folder, if not the model's own.", rich_help_panel=MODEL),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="HF_TOKEN", help="Hub token for gated models.", show_default=False, rich_help_panel=MODEL
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use only what is on this disk.", show_default=False, rich_help_panel=MODEL)
]
RandomInit = Annotated[
    bool,
    typer.Option("--random-init", help="Random weights from the config.", show_default=False, rich_help_panel=MODEL),
]
RandomTwin = Annotated[
    bool,
    typer.Option(
        "--random-twin",
        help="Measure the same config with random weights too.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the checkpoint ships.",
        show_default=False,
        rich_help_panel=SAFETY,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights.", show_default=False, rich_help_panel=SAFETY),
]

Text = Annotated[
    str | None,
    typer.Option(
        "--text", metavar="FILE|DIR|-", help="txt, md, jsonl, json, csv, parquet. Default: condense's probe text.",
        show_default=False, rich_help_panel=CORPUS,
    ),
]  # fmt: skip
Dataset = Annotated[str | None, typer.Option("--dataset", help="Dataset id on the hub.", rich_help_panel=CORPUS)]
DatasetConfig = Annotated[
    str | None, typer.Option("--dataset-config", help="Its configuration.", rich_help_panel=CORPUS)
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Its split; else test, validation, train.", rich_help_panel=CORPUS),
]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column that holds the text.", rich_help_panel=CORPUS)]
NumTexts = Annotated[
    int, typer.Option("--num-texts", "--limit", min=1, help="Windows to measure.", rich_help_panel=CORPUS)
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", min=8, help="Tokens per window. Default: 512, or the model's positions if fewer.",
        show_default=False, rich_help_panel=CORPUS,
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything drawn.", rich_help_panel=CORPUS)]
BatchSize = Annotated[
    str, typer.Option("--batch-size", help="Texts per forward pass, or auto.", metavar="N", rich_help_panel=CORPUS)
]

OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Write diagnosis.json, report.html, report.md and layers.csv here.",
        show_default=False, rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the run as JSON.", show_default=False, rich_help_panel=OUTPUT),
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report.", show_default=False, rich_help_panel=OUTPUT),
]
MdFile = Annotated[
    Path | None,
    typer.Option("--md", metavar="FILE", help="Write a Markdown summary.", show_default=False, rich_help_panel=OUTPUT),
]
CsvFile = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", help="Write the layer table.", show_default=False, rich_help_panel=OUTPUT),
]
PlotlyJs = Annotated[
    Literal["inline", "cdn", "none"],
    typer.Option("--plotlyjs", help="Charts inside the file, from a CDN, or none.", rich_help_panel=OUTPUT),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Write into a folder that is not empty.", show_default=False, rich_help_panel=OUTPUT),
]
NoText = Annotated[
    bool,
    typer.Option(
        "--no-text", help="Keep names of documents and paths of texts out of every output.", show_default=False,
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip

GATE = "Gate"
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Hold the run against the gate, as condense check does; 1 if it fails.", show_default=False,
        rich_help_panel=GATE,
    ),
]  # fmt: skip
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="BASE.json", help="A saved run to compare with.", show_default=False,
        rich_help_panel=GATE,
    ),
]  # fmt: skip
Asserted = Annotated[
    list[str] | None,
    typer.Option(
        "--assert", metavar="TEXT", show_default=False, rich_help_panel=GATE,
        help='Such as "deep.mean_cosine <= 0.8" or "bits_per_byte <= baseline + 1 %"; may be repeated.',
    ),
]  # fmt: skip
JunitFile = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE", help="Write JUnit XML.", show_default=False, rich_help_panel=OUTPUT),
]

RUN = "Run"
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Neither use nor keep a diagnosis, nor the journal from which a run that falls goes on.",
        show_default=False, rich_help_panel=RUN,
    ),
]  # fmt: skip
Refresh = Annotated[
    bool,
    typer.Option(
        "--refresh", help="Measure again, and replace the diagnosis that was kept of the same run.",
        show_default=False, rich_help_panel=RUN,
    ),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would run, be downloaded, take time and memory; do nothing.", show_default=False,
        rich_help_panel=RUN,
    ),
]  # fmt: skip
ExpectWorld = Annotated[
    int | None,
    typer.Option(
        "--expect-world", min=1, metavar="N", help="Fail unless torchrun started N processes.", show_default=False,
        rich_help_panel=RUN,
    ),
]  # fmt: skip

TASKS = "Downstream tasks (extra: eval)"
EvalTasks = Annotated[
    str | None,
    typer.Option(
        "--eval-tasks", metavar="A,B", help="Score every arm on these tasks of lm-evaluation-harness.",
        show_default=False, rich_help_panel=TASKS,
    ),
]  # fmt: skip
EvalLimit = Annotated[
    int | None,
    typer.Option(
        "--eval-limit", min=1, metavar="N", help="Only the first N samples of each task.", show_default=False,
        rich_help_panel=TASKS,
    ),
]  # fmt: skip
IncludePath = Annotated[
    str | None,
    typer.Option(
        "--include-path", metavar="DIR", help="Task files of your own; they may run code.", show_default=False,
        rich_help_panel=TASKS,
    ),
]  # fmt: skip


def task_names(named: str | None) -> tuple[str, ...]:
    """The names in `--eval-tasks a,b`, each once."""
    return tuple(dict.fromkeys(name for part in (named or "").split(",") if (name := part.strip())))
