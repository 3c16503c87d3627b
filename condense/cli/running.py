"""What every command does around its work: one line for a failure, progress on stderr, exit codes."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from condense.errors import as_condense_error, is_panic
from condense.report.escape import for_terminal
from condense.report.text import in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

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


def quieten_libraries() -> None:
    """Progress and chatter of the model libraries would fight ours; failures still arrive as exceptions."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import logging
    import warnings

    if not MANNER.debug:
        warnings.simplefilter("ignore")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


OnText = Callable[[int, int], None]


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """A spinner on stderr while something of unknown length happens."""
    if MANNER.quiet:
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True, markup=False, emoji=False).status(Text(for_terminal(title))):
        yield


def _bars() -> Progress:
    """Bars with the time left, 80 columns wide at most; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=10), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    screen = Console(stderr=True)
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


@contextlib.contextmanager
def counting(title: str) -> Iterator[OnText]:
    """A progress bar on stderr with the time left; yields the callback on_text(done, total)."""
    if MANNER.quiet:
        yield lambda done, total: None
        return
    with _bars() as progress:
        task = progress.add_task(for_terminal(title), total=None, note="")

        def on_text(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield on_text


OnPhase = Callable[[str], None]
OnStep = Callable[[int, int, dict[str, float]], None]


@contextlib.contextmanager
def stage_progress() -> Iterator[tuple[Console, OnPhase, OnText, OnStep]]:
    """Progress of a run of several phases on stderr: a new bar for each, with the time left.

    What is printed meanwhile goes to the console that is yielded first, or it would tear the bars.
    """
    if MANNER.quiet:
        from rich.console import Console

        quiet = Console(stderr=True, highlight=False)
        yield quiet, lambda phase: None, lambda done, total: None, lambda step, steps, logs: None
        return
    with _bars() as progress:

        def on_phase(phase: str) -> None:
            if progress.tasks:
                progress.stop_task(progress.tasks[-1].id)
            progress.add_task(for_terminal(phase), total=None, note="")

        def on_text(done: int, total: int) -> None:
            progress.update(progress.tasks[-1].id, completed=done, total=total)

        def on_step(step: int, steps: int, logs: dict[str, float]) -> None:
            ce, cosine = logs.get("ce_loss", logs.get("loss", 0.0)), logs.get("mean_cosine", float("nan"))
            note = f"CE {ce:.3f}  cosine {cosine:.3f}"
            progress.update(progress.tasks[-1].id, completed=step, total=steps, note=note)

        yield progress.console, on_phase, on_text, on_step


OnRun = Callable[[str, int, int, int], None]


@contextlib.contextmanager
def run_progress() -> Iterator[tuple[Console, OnPhase, OnRun, OnText, OnStep]]:
    """Progress of many runs on stderr: a bar over all with the time left, under it one for the run in hand.

    Where stderr is no terminal each run is a line of its own, so that a log tells how far a trial is.
    """
    with stage_progress() as (screen, on_phase, on_text, on_step):
        started: list[float] = []
        prefix = [""]

        def on_run(arm: str, seed: int, done: int, total: int) -> None:
            if total == 0:
                prefix[0] = f"{arm}: "
                return
            started[:] = started or [time.monotonic()]
            spent = time.monotonic() - started[0]
            left = f", about {in_words(spent / done * (total - done))} left" if done else ""
            prefix[0] = f"[{done + 1}/{total}{left}] {arm}, seed {seed}: "
            if not MANNER.quiet and not screen.is_terminal:
                say(prefix[0].removesuffix(": "))

        yield screen, lambda phase: on_phase(prefix[0] + phase), on_run, on_text, on_step
