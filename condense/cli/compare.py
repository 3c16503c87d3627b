"""`condense compare A B …`: models, checkpoints or saved runs side by side, each against the first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.cli.console import command_line, console, say, say_first
from condense.cli.groups import Without, command
from condense.cli.measure import (
    ExpectWorld,
    alike_in_all,
    cut_windows,
    device_of_rank,
    diagnosed,
    locate_model,
    ranks_of_run,
    together_if,
)
from condense.cli.outputs import Outputs, check_file, plan_outputs
from condense.cli.progress import counting, working
from condense.errors import CondenseError
from condense.records.options import (
    MODEL,
    OUTPUT,
    CompareOptions,
    Flag,
    MeasureOptions,
    ModelOptions,
    OutputOptions,
    TextOptions,
)
from condense.records.plans import names_of

if TYPE_CHECKING:
    from condense.comparison.members import Candidate
    from condense.models.checkpoint import Checkpoint
    from condense.models.locate import Located
    from condense.records.comparison import Comparison
    from condense.records.diagnosis import Diagnosis
    from condense.texts.windows import Windows

NAMES = {"json": "comparison.json", "html": "report.html", "md": "report.md", "csv": "comparison.csv"}
MEMBERS = "members"

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="A B [C …]",
        show_default=False,
        help="Models, checkpoints or saved runs; the first is what the others are compared to. "
        "Or folders of checkpoint-*: runs over their steps, each against the first at equal steps.",
    ),
]
Revisions = Flag(
    "Revisions of hub ids, such as step1000,step2000.",
    MODEL,
    metavar="R1,R2,…",
    kind=str | None,
    read=names_of,
)
AsModels = Flag("Take a folder that holds a model and checkpoints as the model, not as a run over its steps.", MODEL)
Output = Flag(
    "Write comparison.json, report.html, report.md, comparison.csv here, and what was measured to members/.",
    OUTPUT,
    ("--output", "-o"),
    metavar="DIR",
)
Force = Flag("Compare runs that do not match, with that caveat; write into a folder that is not empty.", OUTPUT)


@command
def compare(
    runs: Runs,
    *,
    revisions: Annotated[tuple[str, ...], Revisions] = (),
    as_models: Annotated[bool, AsModels] = False,
    options: Annotated[ModelOptions, Without("revision", "random_init", "seed")],
    corpus: TextOptions,
    settings: CompareOptions,
    output: Annotated[Path | None, Output] = None,
    files: OutputOptions,
    force: Annotated[bool, Force] = False,
    measure: Annotated[MeasureOptions, Without("num_texts", "max_length", "seed", "random_twin", "halves")],
    expect_world: Annotated[int | None, ExpectWorld] = None,
) -> None:
    """Put models side by side on the same texts: curves, differences with intervals, trends, runs over their steps."""
    from condense.comparison.run import compare as compare_runs

    ranks = ranks_of_run(expect_world, "measure")
    with alike_in_all():
        outputs = plan_outputs(files, NAMES)
    members = output / MEMBERS if output else None
    options = replace(options, device=device_of_rank(options.device))
    with together_if(ranks):
        comparison = compare_runs(
            *runs,
            revisions=revisions,
            as_models=as_models,
            force=force,
            command=command_line(no_text=files.no_text),
            settings=settings,
            measure=MeasureMembers(options, corpus, measure, members, no_text=files.no_text),
            on_note=say_first,
            no_text=files.no_text,
            ranks=ranks,
        )
    if ranks is not None and not ranks.is_first:
        return  # with 0: an exit code of its own would have the launcher end the first, which still writes
    _show_and_write(comparison, outputs)
    if comparison.failures:
        names = ", ".join(failure.name for failure in comparison.failures)
        error = CondenseError(f"could not be measured: {names}", "the others were compared; see the caveats above")
        error.exit_code = max(failure.exit_code for failure in comparison.failures)
        raise error


def _show_and_write(comparison: Comparison, outputs: Outputs) -> None:
    from condense.report.comparison.text import show_comparison

    show_comparison(comparison, console())
    for path in outputs.write(comparison):
        say(f"wrote {path}")


class MeasureMembers:
    """From a candidate to its diagnosis, the same way for all; keeps each in a folder as soon as it is measured."""

    def __init__(
        self, options: ModelOptions, corpus: TextOptions, measure: MeasureOptions, folder: Path | None, *, no_text: bool
    ) -> None:
        """Keep the options that hold for every candidate; `folder` is where what is measured goes, if anywhere."""
        self._options, self._corpus, self._measure = options, corpus, measure
        self._folder, self._no_text = folder, no_text
        self._written: list[str] = []

    def __call__(self, candidate: Candidate, settings: CompareOptions, position: tuple[int, int]) -> Diagnosis:
        """Open, cut, measure; `position` is which of how many."""
        path = self._folder / self._file_name(candidate) if self._folder else None
        if path is not None:
            check_file(path)
        located, measure = self._located(candidate, settings)
        windows = cut_windows(located, self._corpus, measure, no_text=self._no_text)
        title = f"{position[0]} of {position[1]}: {candidate.name}"[:40]
        command = command_line(no_text=self._no_text)
        diagnosis = diagnosed(located, windows, measure, command, title=title)
        if path is not None:
            diagnosis.to_json(path)
        return diagnosis

    def open(self, candidate: Candidate, settings: CompareOptions) -> tuple[Checkpoint, Callable[[], Windows]]:
        """The model, read once more, and how to cut its windows."""
        from condense.models.checkpoint import read

        located, measure = self._located(candidate, settings)
        with working(f"loading {located.name}"):
            checkpoint = read(located)
        return checkpoint, lambda: cut_windows(located, self._corpus, measure, no_text=self._no_text)

    def settled(self, candidate: Candidate, settings: CompareOptions) -> CompareOptions:
        """The settings, with unset ones taken from the windows that are cut for a candidate; no weights are read."""
        from condense.comparison.measuring import completed_by

        located, measure = self._located(candidate, settings)
        return completed_by(settings, cut_windows(located, self._corpus, measure, no_text=self._no_text).info)

    def skip(self, candidate: Candidate) -> None:
        """Take a name for the file of another process."""
        self._file_name(candidate)

    def counting(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A progress bar over windows."""
        return counting(title)

    def _located(self, candidate: Candidate, settings: CompareOptions) -> tuple[Located, MeasureOptions]:
        seed = settings.seed or 0
        options = replace(
            self._options,
            revision=candidate.revision,
            tokenizer=self._options.tokenizer or candidate.tokenizer,
            seed=seed,
        )
        measure = replace(
            self._measure,
            num_texts=settings.num_texts or MeasureOptions.num_texts,
            max_length=settings.max_length,
            seed=seed,
        )
        return locate_model(candidate.place, options), measure

    def _file_name(self, candidate: Candidate) -> str:
        """A name of its own for a member, of several runs in a folder for each of them."""
        name, run = candidate.name, candidate.run
        if run is not None and name.startswith(f"{run.name}/"):
            kept = f"{_file_safe(run.name)}/{_file_safe(name.removeprefix(f'{run.name}/'))}"
        else:
            kept = _file_safe(name)
        self._written.append(kept)
        again = self._written.count(kept)
        return f"{kept}.json" if again == 1 else f"{kept}-{again}.json"


def _file_safe(name: str) -> str:
    """A name in which what is not a letter, a digit, a dot, a dash or = is a dash."""
    return "".join(c if c.isalnum() or c in ".-_=" else "-" for c in name).strip(".-")[:100] or "member"
