"""`condense report RUN.json`: draw a saved run again, without a model and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condense.cli import options
from condense.cli.outputs import plan_outputs
from condense.cli.running import console, reported, say
from condense.records import Diagnosis


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN.json", help="A run that condense saved.", show_default=False)],
    html: options.HtmlFile = None,
    md: options.MdFile = None,
    csv: options.CsvFile = None,
    plotlyjs: options.PlotlyJs = "inline",
    force: options.Force = False,
) -> None:
    """Show a saved run again, or write its report; needs neither the model nor torch."""
    with reported():
        outputs = plan_outputs(None, {"html": html, "md": md, "csv": csv}, force=force, plotlyjs=plotlyjs)
        diagnosis = Diagnosis.from_json(run)
        if not outputs.paths():
            from condense.page.terminal import show_diagnosis

            show_diagnosis(diagnosis, console())
        for path in outputs.write(diagnosis):
            say(f"wrote {path}")
