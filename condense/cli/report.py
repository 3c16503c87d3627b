"""`condense report RUN.json`: draw a saved run again, or a training run while it goes on; without model and torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli.console import console, say
from condense.cli.groups import Only, command
from condense.cli.outputs import Outputs, from_saved_run, plan_outputs
from condense.errors import UnavailableError, UsageError
from condense.files import is_special
from condense.records.options import Flag, OutputOptions
from condense.records.serial import other_schema, read_json

if TYPE_CHECKING:
    from condense.records.base import Saved

    Shown = tuple[type[Saved], Callable[[Any, Any], None]]


def _diagnosis() -> Shown:
    from condense.records.diagnosis import Diagnosis
    from condense.report.diagnosis.text import show_diagnosis

    return Diagnosis, show_diagnosis


def _treatment() -> Shown:
    from condense.records.treatment import Treatment
    from condense.report.treatment.text import show_treatment

    return Treatment, show_treatment


def _trial() -> Shown:
    from condense.records.trial import Trial
    from condense.report.trial.text import show_trial

    return Trial, show_trial


def _comparison() -> Shown:
    from condense.records.comparison import Comparison
    from condense.report.comparison.text import show_comparison

    return Comparison, show_comparison


def _shown_by_schema() -> dict[str, Callable[[], Shown]]:
    """What each kind of saved run is read and shown by; no other command waits for all records."""
    from condense.records.comparison import COMPARISON_SCHEMA
    from condense.records.diagnosis import DIAGNOSIS_SCHEMA
    from condense.records.treatment import TREATMENT_SCHEMA
    from condense.records.trial import TRIAL_SCHEMA

    return {
        DIAGNOSIS_SCHEMA: _diagnosis,
        TREATMENT_SCHEMA: _treatment,
        TRIAL_SCHEMA: _trial,
        COMPARISON_SCHEMA: _comparison,
    }


SECONDS = 5.0
"""Between two looks at a run that is watched."""


@command
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.json", help="A run that condense saved, or the JSONL file of a monitor.", show_default=False
        ),
    ],
    files: Annotated[OutputOptions, Only("html", "md", "csv", "plotlyjs", "force")],
    watch: Annotated[bool, Flag("Draw a monitor's run again whenever it grows, until Ctrl-C.")] = False,
) -> None:
    """Show a saved run again, or write its report; needs neither the model nor torch."""
    outputs, size = plan_outputs(files), -1
    while True:
        if watch and size >= 0 and run.exists() and run.stat().st_size == size:
            time.sleep(SECONDS)
            continue
        size = run.stat().st_size if watch and run.exists() else 0
        _draw(run, outputs, watch=watch)
        if not watch:
            return


def _draw(run: Path, outputs: Outputs, *, watch: bool) -> None:
    """Write the reports that were asked for, or show the run on the terminal, which is cleared while it is watched."""
    from condense.records.monitor import MonitorRun

    saved, show = _read_record(run)
    if watch and not isinstance(saved, MonitorRun):
        raise UsageError("--watch is for the file of a monitor", "leave it out; a saved run does not change")
    with from_saved_run(run):
        written = outputs.write(saved)
        if not written:
            if watch:
                console().clear()
            show(saved, console())
    for path in written:
        say(f"wrote {path}")


def _read_record(run: Path) -> tuple[Saved, Callable[[Any, Any], None]]:
    """A saved run and what shows it."""
    if _is_monitor(run):
        from condense.records.monitor import MonitorRun
        from condense.report.monitor import show_monitor

        return MonitorRun.from_lines(run), show_monitor
    data = read_json(run)
    kind, shown = data["schema"], _shown_by_schema()
    if kind not in shown:
        error = other_schema(kind, *shown)
        unknown = f"{run} is of an unknown kind ({kind})"
        raise UnavailableError(f"{run}: {error}" if error.hint else unknown, error.hint or "is it a run of condense?")
    record, show = shown[kind]()
    return record.from_json(data), show


def _is_monitor(run: Path) -> bool:
    """Whether the first line of a file is the head of a monitor's."""
    from condense.records.monitor import MONITOR_SCHEMA

    try:
        if is_special(run) or not run.is_file():
            return False
        with run.open("rb") as file:
            return MONITOR_SCHEMA.encode() in file.readline(10_000)
    except OSError:
        return False
