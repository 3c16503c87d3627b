"""`condense compare A B …`: models, checkpoints or saved runs side by side, each against the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli import options
from condense.cli.measure import Cache, batch_of, cache_of, cut_windows, diagnosed, locate_model
from condense.cli.outputs import plan_outputs
from condense.cli.running import command_line, console, reported, say
from condense.errors import CondenseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from condense.comparison.members import Candidate
    from condense.comparison.run import Settings
    from condense.records.diagnosis import Diagnosis

NAMES = {"json": "comparison.json", "html": "report.html", "md": "report.md", "csv": "comparison.csv"}
MEMBERS = "members"

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="A B [C …]", show_default=False,
        help="Models, checkpoints or saved runs; the first is what the others are compared to. Or one folder of "
        "checkpoint-*.",
    ),
]  # fmt: skip
Revisions = Annotated[
    str | None,
    typer.Option(
        "--revisions", metavar="R1,R2,…", help="Revisions of one hub id, such as step1000,step2000.",
        show_default=False, rich_help_panel=options.MODEL,
    ),
]  # fmt: skip
NumTexts = Annotated[
    int | None,
    typer.Option(
        "--num-texts", "--limit", min=1, help="Windows to measure. Default: what the saved runs had, or 32.",
        show_default=False, rich_help_panel=options.CORPUS,
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Seed of everything drawn. Default: that of the saved runs, or 0.", show_default=False,
        rich_help_panel=options.CORPUS,
    ),
]  # fmt: skip
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", show_default=False, rich_help_panel=options.OUTPUT,
        help="Write comparison.json, report.html, report.md, comparison.csv here, and what was measured to members/.",
    ),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option(
        "--force", show_default=False, rich_help_panel=options.OUTPUT,
        help="Compare runs that do not match, with that caveat; write into a folder that is not empty.",
    ),
]  # fmt: skip


def compare(
    runs: Runs,
    revisions: Revisions = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    tokenizer: options.TokenizerName = None,
    token: options.Token = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    text: options.Text = None,
    dataset: options.Dataset = None,
    dataset_config: options.DatasetConfig = None,
    split: options.Split = None,
    text_column: options.TextColumn = "text",
    num_texts: NumTexts = None,
    max_length: options.MaxLength = None,
    seed: Seed = None,
    batch_size: options.BatchSize = "auto",
    output: OutputDir = None,
    json: options.JsonFile = None,
    html: options.HtmlFile = None,
    md: options.MdFile = None,
    csv: options.CsvFile = None,
    plotlyjs: options.PlotlyJs = "inline",
    no_text: options.NoText = False,
    force: Force = False,
    no_cache: options.NoCache = False,
    refresh: options.Refresh = False,
) -> None:
    """Put models side by side on the same texts: curves, differences with intervals, trends, a run over its steps."""
    with reported():
        from condense.comparison.run import Settings
        from condense.comparison.run import compare as compared
        from condense.report.comparison.terminal import show_comparison

        files = {"json": json, "html": html, "md": md, "csv": csv}
        outputs = plan_outputs(output, files, force=force, plotlyjs=plotlyjs, names=NAMES)
        model = {
            "dtype": dtype, "device": device, "device_map": device_map, "token": token, "offline": offline,
            "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle,
        }  # fmt: skip
        corpus = {
            "text": text, "dataset": dataset, "dataset_config": dataset_config, "split": split, "column": text_column,
            "no_text": no_text,
        }  # fmt: skip
        measuring = Measuring(
            model,
            tokenizer,
            corpus,
            batch_of(batch_size),
            cache_of(no_cache, refresh),
            output / MEMBERS if output else None,
        )
        comparison = compared(
            *runs, revisions=revisions.split(",") if revisions else (), force=force, command=command_line(),
            settings=Settings(num_texts, max_length, seed), measure=measuring, on_note=say,
        )  # fmt: skip
        show_comparison(comparison, console())
        for path in outputs.write(comparison):
            say(f"wrote {path}")
        if comparison.failures:
            names = ", ".join(failure.name for failure in comparison.failures)
            error = CondenseError(f"could not be measured: {names}", "the others were compared; see the caveats above")
            error.exit_code = max(failure.exit_code for failure in comparison.failures)
            raise error


class Measuring:
    """From a candidate to its diagnosis, the same way for all; keeps each in a folder as soon as it is there."""

    def __init__(
        self, model: Mapping[str, Any], tokenizer: str | None, corpus: Mapping[str, Any], batch: int | None,
        cache: Cache, folder: Path | None,
    ) -> None:  # fmt: skip
        """Keep the options that hold for every candidate; `folder` is where what is measured goes, if anywhere."""
        self._model, self._tokenizer, self._corpus = model, tokenizer, corpus
        self._batch, self._cache, self._folder = batch, cache, folder
        self._written: list[str] = []

    def __call__(self, candidate: Candidate, settings: Settings, place: tuple[int, int]) -> Diagnosis:
        """Open, cut, measure; `place` is which of how many."""
        from condense.texts.windows import NUM_TEXTS

        seed = settings.seed or 0
        located = locate_model(
            candidate.place, revision=candidate.revision, tokenizer=self._tokenizer or candidate.tokenizer, seed=seed,
            **self._model,
        )  # fmt: skip
        windows = cut_windows(
            located, **self._corpus, num_texts=settings.num_texts or NUM_TEXTS, max_length=settings.max_length,
            seed=seed,
        )  # fmt: skip
        title = f"{place[0]} of {place[1]}: {candidate.name}"[:40]
        diagnosis = diagnosed(located, windows, self._batch, seed, twin=False, cache=self._cache, title=title)
        if self._folder is not None:
            name = _file_name(candidate.name)
            self._written.append(name)
            again = self._written.count(name)
            diagnosis.to_json(self._folder / (f"{name}.json" if again == 1 else f"{name}-{again}.json"))
        return diagnosis


def _file_name(name: str) -> str:
    """A name as a file name: what is not a letter, a digit, a dot or a dash becomes a dash."""
    kept = "".join(c if c.isalnum() or c in ".-_" else "-" for c in name).strip(".-")
    return kept[:100] or "member"
