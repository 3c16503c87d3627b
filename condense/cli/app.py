"""The command line: `condense` and what holds for all its commands. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from condense.cli import settings
from condense.cli.analyze import analyze
from condense.cli.atlas import atlas
from condense.cli.check import check
from condense.cli.compare import compare
from condense.cli.console import INTERNAL, MANNER, explain, give_up_stdout, reported, say
from condense.cli.demo import demo
from condense.cli.doctor import doctor
from condense.cli.groups import Command, flags_of
from condense.cli.report import report
from condense.cli.treat import treat
from condense.cli.trial import trial
from condense.version import __version__

app = typer.Typer(
    name="condense",
    help="Measure how condensed a language model's token states are, and treat it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
COMMANDS = (analyze, treat, trial, compare, check, report, atlas, demo, settings.init, doctor)
for run in COMMANDS:
    app.command(run.__name__, cls=Command)(run)


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
    flags = {run.__name__: flags_of(run) for run in COMMANDS}
    if context.invoked_subcommand == "doctor":  # which reports itself what is wrong with the settings
        context.obj = flags
        return
    with reported():
        file = settings.find_file(config)
        context.obj = file.sections()
        context.default_map = settings.defaults(flags, file)


def _complete_named_shell() -> None:
    """Let `--show-completion zsh` be of zsh: Typer takes the shell that it finds itself in, or, so asked, a name."""
    flag, shell = (*sys.argv[-2:], "", "")[:2]
    if flag in ("--install-completion", "--show-completion") and not shell.startswith("-"):
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"


def main() -> None:
    """Run the command line; the console script and `python -m condense` call this."""
    _complete_named_shell()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w")  # one that was closed: `>&-`
        stream.reconfigure(errors="replace")
        setattr(sys, name, stream)
    code: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except OSError as error:  # of --help and --version, which write without a command around them
        give_up_stdout(error)
    except Exception as error:  # of the parser itself, which loads libraries too: memory may run out there
        code = explain(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        give_up_stdout(error)
    if MANNER.stdout_error:
        say(f"condense: cannot write to stdout: {MANNER.stdout_error}")
        code = code or INTERNAL
    sys.exit(code)
