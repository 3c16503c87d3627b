"""`condense doctor`: what is installed, where things are kept, and what would not work and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli import settings
from condense.cli.analyze import demo_file
from condense.cli.console import console, say
from condense.cli.groups import command
from condense.cli.outputs import check_file
from condense.errors import CondenseError, UnavailableError
from condense.files import write_text
from condense.records.options import Flag
from condense.records.serial import dumps

if TYPE_CHECKING:
    from condense.doctor import Problem

MISSING = 3
Record = Flag("Write what was found here instead of showing it.", metavar="FILE")


@command
def doctor(context: typer.Context, json: Annotated[Path | None, Record] = None) -> None:
    """Show what is installed, where things are kept, what would not work, and how to fix it."""
    from condense.doctor import examine
    from condense.report.doctor import show_installation

    if json is not None:
        check_file(json)
    file, wrong = _settings(context)
    demo = _demo()
    installation = examine(file, (*wrong, *demo), demo=not demo)
    if json is None:
        show_installation(installation, console())
    else:
        write_text(json, dumps(installation))
        say(f"wrote {json}")
    if not installation.works:
        raise typer.Exit(MISSING)


def _settings(context: typer.Context) -> tuple[str, tuple[Problem, ...]]:
    """The settings file in words, and what is wrong with it or with the variables of the environment."""
    from condense.doctor import Problem

    above: Any = context.parent
    named: Path | None = above.params["config"]
    told = "none here"
    try:
        file = settings.find_file(named)
        told = str(file.path or told)
        settings.defaults(context.obj, file)
    except CondenseError as error:
        return f"{told}, not valid", (Problem("every command", str(error), error.hint or "correct the file", True),)
    return told, ()


def _demo() -> tuple[Problem, ...]:
    from condense.doctor import Problem

    try:
        demo_file()
    except UnavailableError as error:
        return (Problem("condense demo", str(error), error.hint),)
    return ()
