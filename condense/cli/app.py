"""The command line: `condense` and what holds for all its commands. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from condense.cli import settings
from condense.cli.analyze import analyze, demo
from condense.cli.check import check
from condense.cli.compare import compare
from condense.cli.console import MANNER, reported
from condense.cli.doctor import doctor
from condense.cli.report import report
from condense.cli.treat import treat
from condense.cli.trial import trial
from condense.version import __version__

app = typer.Typer(
    name="condense",
    help="Measure how condensed a language model's token states are, and treat it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
for run in (analyze, treat, trial, compare, check, report, demo, settings.init, doctor):
    app.command(run.__name__)(run)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"condense {__version__}")
        raise typer.Exit


@app.callback()
def everything(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings; else condense.toml or pyproject.toml here."),
    ] = None,
) -> None:
    """Set what holds for all commands; options come from flags, then the environment, then the settings file."""
    MANNER.quiet, MANNER.debug = quiet, debug
    if context.invoked_subcommand == "doctor":  # which says itself what is wrong with the settings
        context.obj = _keys(context)
        return
    with reported():
        context.obj = settings.read_file(settings.find_file(config))
        context.default_map = settings.defaults(_keys(context), context.obj)


def _keys(context: typer.Context) -> dict[str, dict[str, str]]:
    """For each command, the keys that a settings file may hold and the parameters they set."""
    group: Any = context.command
    return {name: _options(command) for name, command in group.commands.items()}


def _options(command: Any) -> dict[str, str]:
    keys = {}
    for parameter in command.params:
        for flag in getattr(parameter, "opts", ()):
            if flag.startswith("--"):
                keys[flag[2:].replace("-", "_")] = parameter.name
    return keys


def main() -> None:
    """Run the command line; the console script and `python -m condense` call this."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    app()
