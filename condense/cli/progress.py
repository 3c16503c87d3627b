"""Progress on stderr: spinners, and bars with the time left; nothing with --quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from condense.cli.console import MANNER, guarded, say
from condense.report.escape import for_terminal
from condense.report.text import in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

OnText = Callable[[int, int], None]


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """A spinner on stderr while something of unknown length happens."""
    if MANNER.quiet:
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(file=guarded(sys.stderr), markup=False, emoji=False).status(Text(for_terminal(title))):
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
    screen = Console(file=guarded(sys.stderr))
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

        quiet = Console(file=guarded(sys.stderr), highlight=False)
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
