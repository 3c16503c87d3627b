"""`condense report RUN.json`: draw a saved run again, without a model and without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from condense.cli.console import console, say
from condense.cli.groups import Only, command
from condense.cli.outputs import from_saved_run, plan_outputs
from condense.errors import UnavailableError
from condense.records.base import Saved
from condense.records.comparison import COMPARISON_SCHEMA
from condense.records.diagnosis import DIAGNOSIS_SCHEMA
from condense.records.options import OutputOptions
from condense.records.serial import read_json
from condense.records.treatment import TREATMENT_SCHEMA
from condense.records.trial import TRIAL_SCHEMA

Shown = tuple[type[Saved], Callable[[Any, Any], None]]


def _diagnosis() -> Shown:
    from condense.records.diagnosis import Diagnosis
    from condense.report.diagnosis.terminal import show_diagnosis

    return Diagnosis, show_diagnosis


def _treatment() -> Shown:
    from condense.records.treatment import Treatment
    from condense.report.treatment.terminal import show_treatment

    return Treatment, show_treatment


def _trial() -> Shown:
    from condense.records.trial import Trial
    from condense.report.trial.terminal import show_trial

    return Trial, show_trial


def _comparison() -> Shown:
    from condense.records.comparison import Comparison
    from condense.report.comparison.terminal import show_comparison

    return Comparison, show_comparison


# Per kind of saved run its record and what shows it; a report loads the modules of its own kind only.
_SHOWN: dict[str, Callable[[], Shown]] = {
    DIAGNOSIS_SCHEMA: _diagnosis,
    TREATMENT_SCHEMA: _treatment,
    TRIAL_SCHEMA: _trial,
    COMPARISON_SCHEMA: _comparison,
}


@command
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN.json", help="A run that condense saved.", show_default=False)],
    files: Annotated[OutputOptions, Only("html", "md", "csv", "plotlyjs", "force")],
) -> None:
    """Show a saved run again, or write its report; needs neither the model nor torch."""
    outputs = plan_outputs(files)
    data = read_json(run)
    kind = data["schema"]
    if kind not in _SHOWN:
        raise UnavailableError(f"{run} is of an unknown kind ({kind})", "was it written by a newer condense?")
    record, show = _SHOWN[kind]()
    saved = record.from_json(data)
    with from_saved_run(run):
        written = outputs.write(saved)
        if not written:
            show(saved, console())
    for path in written:
        say(f"wrote {path}")
