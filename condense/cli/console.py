"""What every command does around its work: results on stdout, one line for a failure on stderr, exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from condense.errors import as_condense_error, is_panic
from condense.report.escape import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED, TERMINATED = 130, 143
INTERNAL = 4


@dataclass
class Manner:
    """How this run talks: `quiet` shows no progress, `debug` shows tracebacks; only `rank` 0 tells of its work."""

    quiet: bool = False
    debug: bool = False
    rank: int = 0


MANNER = Manner()


def say(line: str) -> None:
    """A line on stderr, with whatever came from outside made harmless; it names the rank if that is not the first."""
    prefix = f"rank {MANNER.rank}: " if MANNER.rank else ""
    sys.stderr.write(for_terminal(prefix + line) + "\n")


def command_line() -> str:
    """The command of this run, to be written down beside its results: without the hub token."""
    words = ["condense", *sys.argv[1:]]
    for place, word in enumerate(words):
        if word == "--token" and place + 1 < len(words):
            words[place + 1] = "…"
        elif word.startswith("--token="):
            words[place] = "--token=…"
    return shlex.join(words)


def say_first(line: str) -> None:
    """A line that only the first of several processes says."""
    if MANNER.rank == 0:
        say(line)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what is being written is taken back, as for Ctrl-C."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C; SIGINT does too where a script's background job would have ignored it."""
    try:
        old = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, _terminate),
            signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        }
    except ValueError:  # not in the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn every failure into one or two lines on stderr and the exit code of the contract."""
    try:
        with _signals():
            yield
    except (typer.Exit, typer.Abort):
        raise
    except Terminated:
        say("terminated")
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if MANNER.debug:
            traceback.print_exc()
        raise typer.Exit(_explain(error)) from None


def _explain(error: BaseException) -> int:
    told = as_condense_error(error)
    if MANNER.rank and told.shared:
        return told.exit_code
    say(f"condense: {str(told).replace(chr(10), ' ')}")
    if told.hint:
        say(f"  {told.hint}")
    return told.exit_code


def console() -> Console:
    """Where results go: stdout, 80 columns when it is not a terminal."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            """`| head` has read enough: no more is shown, but the files are still written, and that is no failure."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return Patient(highlight=False, emoji=False, markup=False, soft_wrap=False)


class _Lines(logging.Handler):
    """What condense's modules log, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say_first(record.getMessage())


def show_log() -> None:
    """Show what condense logs: downloads with their progress, and warnings; with --quiet the warnings alone."""
    logger = logging.getLogger("condense")
    logger.setLevel(logging.WARNING if MANNER.quiet else logging.INFO)
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())


def quieten_libraries() -> None:
    """Progress and chatter of the model libraries would fight ours; failures still arrive as exceptions."""
    show_log()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import warnings

    if not MANNER.debug:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when the client is imported
        warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
