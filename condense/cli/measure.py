"""From options to a checkpoint, its windows and its diagnosis: what `analyze` and `compare` have in common.

And `--dry-run` of `analyze`: what would run, what it would download, how long and how large; nothing of it is done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli.console import MANNER, console, quieten_libraries, say, say_first, show_line
from condense.cli.progress import counting, working
from condense.errors import CondenseError, UnavailableError, UsageError
from condense.files import expanded, size_in_words
from condense.records.options import RUN, Flag
from condense.report.escape import for_terminal
from condense.report.text import in_words

if TYPE_CHECKING:
    from condense.cli.outputs import Outputs
    from condense.comparison.comparability import Conditions
    from condense.diagnosis.cache import Wanted
    from condense.diagnosis.distributed import Ranks
    from condense.diagnosis.estimate import Load, Shape, Source
    from condense.models.locate import Located
    from condense.records.diagnosis import Diagnosis
    from condense.records.options import MeasureOptions, ModelOptions, TextOptions
    from condense.texts.documents import Document
    from condense.texts.windows import Windows

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id, checkpoint folder, adapter folder or .gguf file.", show_default=False
    ),
]

ExpectWorld = Flag("Fail unless torchrun started N processes.", RUN, metavar="N", at_least=1)


def ranks_of_run(expected: int | None, verb: str) -> Ranks | None:
    """This process's rank under torchrun, with one line that says how many they are; None where it is alone.

    A single process needs no torch to find out. UsageError for another number than the expected one.
    """
    if expected is None and os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of every process, read when torch is imported
    from condense.diagnosis.distributed import expect, ranks_of

    ranks = ranks_of()
    if not ranks.is_first:
        MANNER.quiet, MANNER.rank = True, ranks.rank
    expect(ranks, expected)
    say_first(f"{ranks.size} processes {verb} together" if ranks.size > 1 else "1 process")
    return ranks


@contextlib.contextmanager
def together_if(ranks: Ranks | None) -> Iterator[None]:
    """Join the other processes, where there are any; where all fail alike the first speaks."""
    if ranks is None:
        yield
        return
    from condense.diagnosis.distributed import failing_together, together

    with together(ranks), failing_together("together"):
        yield


@contextlib.contextmanager
def alike_in_all() -> Iterator[None]:
    """What every process does alike before they join: of a failure the first speaks."""
    try:
        yield
    except CondenseError as error:
        error.shared = True
        raise


def device_of_rank(asked: str) -> str:
    """The device that was asked for; under torchrun `auto` and `cuda` mean the GPU of this process."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return asked
    from condense.diagnosis.distributed import device_of

    return device_of(asked)


def go_offline(options: ModelOptions) -> None:
    """Keep the hub client off the network with --offline; it reads the variable when it is imported."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def locate_model(model: str, options: ModelOptions) -> Located:
    """Find MODEL with a spinner. No weights are read yet."""
    if not model.strip():  # an empty variable of a script, which would mean the working directory
        raise UnavailableError("MODEL is empty", "give a hub id, a folder or a file; . is the working directory")
    go_offline(options)
    with working(f"looking at {model}"):
        quieten_libraries()
        from condense.models.locate import locate

        return locate(model, options)


def named_text(corpus: TextOptions, split: str | None = None) -> Any:
    """The text as `windows` and `treat` take it: a path, the documents of a dataset, or None.

    split: the one to read of a dataset where none is named.
    """
    from condense.texts import documents

    if corpus.dataset is None:
        chosen = corpus.split or split
        if not corpus.text or chosen is None or not documents.is_saved_dataset(Path(corpus.text)):
            return corpus.text
        return documents.read(corpus.text, corpus.text_column, split=chosen)
    rows = documents.dataset(corpus.dataset, corpus.dataset_config, corpus.split or split, corpus.text_column)
    return _with_the_hub(rows)


def _with_the_hub(documents: Iterator[Document]) -> Iterator[Document]:
    """The documents of a data set that the user named: its files may be fetched as they are read."""
    from condense.models import hub

    while True:
        with hub.opened():
            document = next(documents, None)
        if document is None:
            return
        yield document


def named_source(text: str | None) -> str | None:
    """How a text is named in the record, whatever it is read by; None for the probe text."""
    from condense.texts.documents import label

    return None if text is None else label(text)


def training_text(corpus: TextOptions) -> Any:
    """The text to train on; UsageError where none is named."""
    if corpus.text is None and corpus.dataset is None:
        raise UsageError("name the training text: --text or --dataset, one of them")
    return named_text(corpus, "train")


def cut_windows(located: Located, corpus: TextOptions, measure: MeasureOptions, *, no_text: bool = False) -> Windows:
    """The windows that the options ask for; says so where there are fewer."""
    from condense.texts.windows import windows, without_names

    with _unnamed_text(corpus) if no_text else contextlib.nullcontext():
        cut = windows(
            located.tokenizer,
            named_text(corpus),
            num_texts=measure.num_texts,
            max_length=measure.max_length,
            positions=located.positions,
            seed=measure.seed,
            text_column=corpus.text_column,
            source=f"dataset {corpus.dataset}" if corpus.dataset is not None else named_source(corpus.text),
        )
    if len(cut) < measure.num_texts and not MANNER.quiet:
        say(f"{len(cut)} windows of {cut.info.length} tokens were found, {measure.num_texts} asked for; going on")
    return without_names(cut) if no_text else cut


@contextlib.contextmanager
def _unnamed_text(corpus: TextOptions) -> Iterator[None]:
    """A failure is reported without the names of texts: with --no-text it may stand in a comparison."""
    try:
        yield
    except CondenseError as error:
        path = Path(corpus.text or "")
        files = path.rglob("*") if path.is_dir() else ()
        names = {str(path), path.name, corpus.text, corpus.dataset, *(file.name for file in files)} - {"", ".", None}
        for name in sorted(map(str, names), key=len, reverse=True):
            error.args = tuple(str(part).replace(name, "the text") for part in error.args)
            error.hint = error.hint.replace(name, "the text")
        raise


def conditions_of(located: Located, windows: Windows, measure: MeasureOptions) -> Conditions:
    """How the windows are going to be measured, for a baseline that must have been measured alike."""
    from condense.comparison.comparability import Conditions
    from condense.diagnosis.run import protocol
    from condense.geometry import SPECTRAL_TOKENS

    return Conditions(protocol(windows, located.dtype, SPECTRAL_TOKENS, measure.seed), windows.info)


def diagnosed(
    located: Located,
    windows: Windows,
    measure: MeasureOptions,
    command: str,
    *,
    ranks: Ranks | None = None,
    title: str = "",
) -> Diagnosis:
    """The diagnosis that was kept of this very run, else a measured one, which is kept; `command` is recorded in it."""
    from condense.diagnosis.cache import Wanted, keep, recall
    from condense.diagnosis.distributed import ALONE, together

    wanted = Wanted(
        located, windows, measure.batch_size, measure.seed, measure.random_twin, measure.halves, measure.lens
    )
    ranks, cached = ranks or ALONE, not measure.no_cache
    with together(ranks):
        kept = recall(wanted, command=command, ranks=ranks) if cached and not measure.refresh else None
        if kept is not None:
            day, clock = kept.created[:10], kept.created[11:16]
            say_first(f"used the diagnosis measured on {day} {clock} UTC; --refresh measures again")
            return kept
        diagnosis = _read_and_measure(wanted, command, resumable=cached, ranks=ranks, title=title)
        if cached:
            keep(wanted, diagnosis, ranks=ranks)
    return diagnosis


def _read_and_measure(wanted: Wanted, command: str, *, resumable: bool, ranks: Ranks, title: str) -> Diagnosis:
    from condense.diagnosis.run import analyze
    from condense.models.checkpoint import read

    with working(f"loading {wanted.located.name}"):
        checkpoint = read(wanted.located)
    title = title or ("measuring, then its random twin" if wanted.twin else "measuring")
    with counting(title) as on_text:
        return analyze(
            checkpoint,
            wanted.windows,
            batch_size=wanted.batch_size,
            seed=wanted.seed,
            twin=wanted.twin,
            halves=wanted.halves,
            lens=wanted.lens,
            command=command,
            on_text=on_text,
            on_note=say_first,
            journal=resumable,
            ranks=ranks,
        )


def weighed(located: Located, command: str) -> Diagnosis:
    """The diagnosis of the weights alone."""
    from condense.diagnosis.run import analyze_weights
    from condense.models.checkpoint import read

    with working(f"loading {located.name}"):
        checkpoint = read(located)
    with working("looking at its matrices"):
        return analyze_weights(checkpoint, command)


def show_and_write(diagnosis: Diagnosis, outputs: Outputs) -> None:
    """A diagnosis on the terminal, then in its files."""
    from condense.report.diagnosis.text import show_diagnosis

    show_diagnosis(diagnosis, console())
    for path in outputs.write(diagnosis):
        say(f"wrote {path}")


# --- --dry-run -------------------------------------------------------------------------------------------


def show_dry_run(
    model: str,
    options: ModelOptions,
    corpus: TextOptions,
    measure: MeasureOptions,
    *,
    outputs: list[Path],
    ranks: Ranks | None,
    no_text: bool,
) -> None:
    """Print what `analyze` would do, on stdout."""
    go_offline(options)
    with working(f"looking at {model}"):
        quieten_libraries()
        from condense.diagnosis import estimate
        from condense.models.locate import device_of

        source = estimate.find(model, options)
        _check_text(corpus.text)
        device = device_of(options)
        load = _load(options, measure, source.shape, device, ranks.size if ranks else 1)
        base = estimate.resident_bytes() if device == "cpu" else 0.0
        memory = estimate.peak_bytes(source, load, libraries=base)
        seconds = estimate.seconds(source, load, estimate.matmul_rate(source.shape, load, device))
    if ranks is not None and not ranks.is_first:
        return
    text = (
        "the text"
        if no_text
        else corpus.text
        or (f"dataset {corpus.dataset}" if corpus.dataset else "the probe text that ships with condense")
    )
    lines = [
        *_model_lines(model, source, load, text),
        *_cost_lines(source, load, device, memory, seconds),
        ("writes", ", ".join(map(str, outputs)) or "nothing"),
    ]
    for name, value in lines:
        show_line(f"{name:<12} {for_terminal(value)}")


def _check_text(text: str | None) -> None:
    if text not in (None, "-") and not expanded(str(text)).exists():
        raise UnavailableError(f"no such text: {text}", "give a file, a folder or - for standard input")


def _load(options: ModelOptions, measure: MeasureOptions, shape: Shape, device: str, processes: int) -> Load:
    from condense.diagnosis.estimate import Load
    from condense.texts.windows import MAX_LENGTH

    asked = measure.max_length
    if asked and shape.positions and asked > shape.positions:
        raise UsageError(f"--max-length {asked} is beyond the model's {shape.positions} positions", "use a shorter one")
    length = asked or min(MAX_LENGTH, shape.positions or MAX_LENGTH)
    batch = measure.batch_size or (1 if device == "cpu" else 8)
    twin = measure.random_twin
    load = Load(measure.num_texts, length, batch, options.dtype, twin=twin, processes=processes)
    return replace(load, halves=measure.halves, lens=measure.lens, on_cpu=device == "cpu")


def _model_lines(model: str, source: Source, load: Load, text: str) -> list[tuple[str, str]]:
    shape, twin = source.shape, " and its random twin" if load.twin else ""
    sizes = f"{shape.parameters / 1e6:,.1f} M parameters, {shape.blocks} blocks, width {shape.width}"
    first = []
    if source.copy is not None:
        first = [("first", f"the .gguf is converted once: {size_in_words(4 * shape.parameters)} in {source.copy}")]
    return [
        ("model", f"{model}{twin}: {sizes}, {load.dtype}"),
        *first,
        ("texts", f"{load.texts} × {load.length} tokens at most, of {text}"),
    ]


def _cost_lines(source: Source, load: Load, device: str, memory: float, seconds: float) -> list[tuple[str, str]]:
    several = load.processes > 1
    total = sum(size for _, size in source.downloads)
    names = ", ".join(f"{name} {size_in_words(size)}" for name, size in source.downloads)
    kind = "resident memory" if device == "cpu" else f"memory of {device}"
    return [
        ("where", f"{device}, {load.batch} at a time" + (f", {load.processes} processes" if several else "")),
        ("downloads", f"{size_in_words(total)}: {names}" if source.downloads else "nothing"),
        ("time", f"about {in_words(seconds)}"),
        ("memory", f"about {size_in_words(memory)} of {kind} at the peak" + (" in each process" if several else "")),
    ]
