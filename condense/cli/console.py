"""What every command does around its work: results on stdout, one line for a failure on stderr, exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from condense.errors import as_condense_error, is_panic
from condense.report.escape import for_runner, for_terminal
from condense.texts.fields import shown

if TYPE_CHECKING:
    from rich.console import Console


INTERRUPTED, TERMINATED = 130, 143
INTERNAL = 4
_SPEAKING = 0.5  # seconds for the first process to say what failed: torchrun ends it once another has exited


@dataclass
class Manner:
    """How this run talks: `quiet` shows no progress, `debug` shows tracebacks; only `rank` 0 shows its work.

    secrets: what is never shown; stdout_error: why results could not be shown, if they could not.
    """

    quiet: bool = False
    debug: bool = False
    rank: int = 0
    secrets: tuple[str, ...] = ()
    stdout_error: str = ""


MANNER = Manner()


def redacted(text: str) -> str:
    """Text without the secrets that this run was given."""
    known = (*MANNER.secrets, *(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")))
    for secret in known:
        if len(secret) > 5:  # no token is shorter, and what is would take letters out of words
            text = text.replace(secret, "…")
    return text


def say(line: str) -> None:
    """A line on stderr, with whatever came from outside made harmless; it names the rank if that is not the first."""
    prefix = f"rank {MANNER.rank}: " if MANNER.rank else ""
    with contextlib.suppress(OSError, ValueError):  # where stderr is closed there is nowhere to report it
        guarded(sys.stderr).write(for_terminal(redacted(prefix + line)) + "\n")


_HIDDEN = ("--token",)
_HIDDEN_TEXT = ("--text", "--dataset", "--dataset-config")


def command_line(*, no_text: bool = False) -> str:
    """The command of this run, to be written down beside its results: without the hub token.

    no_text: without the names of texts too.
    """
    hidden = (*_HIDDEN, *(_HIDDEN_TEXT if no_text else ()))
    words = ["condense", *map(shown, sys.argv[1:])]
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if not word.startswith("--") or flag.replace("_", "-") not in hidden:
            continue
        if equals:
            words[index] = f"{flag}=…"
        elif index + 1 < len(words):
            words[index + 1] = "…"
    return redacted(shlex.join(words))


def say_first(line: str) -> None:
    """A line that only the first of several processes prints."""
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
        say_first("terminated")
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        say_first("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if MANNER.debug:
            say(traceback.format_exc().rstrip())
        raise typer.Exit(explain(error)) from None
    if MANNER.stdout_error:
        reason, MANNER.stdout_error = MANNER.stdout_error, ""
        say(f"condense: cannot show the results on stdout: {reason}")
        raise typer.Exit(INTERNAL)


def explain(error: BaseException) -> int:
    """Say a failure in one line, or two with what to do about it; returns its exit code."""
    told = as_condense_error(error)
    if MANNER.rank and told.shared:
        time.sleep(_SPEAKING)
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

    return Patient(file=guarded(sys.stdout), highlight=False, emoji=False, markup=False, soft_wrap=False)


def show_line(line: str, *, command: bool = False) -> None:
    """Write a line on stdout; command: it is one to the runner of a CI job, made by condense itself."""
    Guarded(sys.stdout, commands=command).write(f"{line}\n")


class Guarded:
    """A stream on which nothing from outside becomes a command of a CI job; a stdout that fails is noted, not raised.

    So the files of a run are still written where the disk of its log is full. A closed pipe is raised as ever.
    """

    def __init__(self, stream: TextIO, *, commands: bool = False) -> None:
        """Write to `stream`; commands: leave lines that are commands as they are."""
        self._stream, self._commands = stream, commands

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        self._tried(lambda: self._stream.write(text if self._commands else for_runner(text)))
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        self._tried(self._stream.flush)

    def _tried(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._stream is not sys.stdout:
                raise
            give_up_stdout(error)

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream can do."""
        return getattr(self._stream, name)


def guarded(stream: TextIO) -> TextIO:
    """A stream with `Guarded` before it."""
    return cast("TextIO", Guarded(stream))


def give_up_stdout(error: OSError) -> None:
    """Note why nothing more can be shown, and let what is still written to stdout go nowhere."""
    MANNER.stdout_error = MANNER.stdout_error or error.strerror or str(error)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Lines(logging.Handler):
    """What condense's modules log, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO or not record.name.startswith("condense.dispersion"):  # the plan says it once
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
