"""How far a command is: what is running and how long it still takes, on stderr.

On a terminal a few rows are drawn in place, and a phase that has ended is one line above them. Elsewhere, and on a
terminal that cannot move its cursor, every phase is one line as it begins, so that a log shows how far a run is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from condense.cli.console import MANNER, guarded, say
from condense.cli.timeline import Timeline, Track, Work
from condense.report.console import bar, speaks_unicode
from condense.report.escape import for_terminal
from condense.report.text import in_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from condense.records.plans import TrialPlan
    from condense.records.treatment import Overhead, Schedule
    from condense.trials.arm_run import RunState, Watch

OnText = Callable[[int, int], None]

WIDEST = 76  # cells of a row: a terminal of 80 columns also holds the ^C that it echoes behind the last one
_BAR = 12
_OFTEN = 4  # times a second that the rows are drawn


def rows(timeline: Timeline, width: int, height: int, *, plain: bool = False) -> list[str]:
    """What is drawn: how far all runs are, then each that runs; as many rows as fit, none longer than the screen.

    plain: the terminal has no more than ASCII.
    """
    width, most = max(10, min(width - 4, WIDEST)), max(1, height - 2)
    now, made = timeline.clock(), list[list[str]]()
    if timeline.total:
        made.append(_overall(timeline, now, width, plain))
    phase, tracks = timeline.phase, timeline.running()
    if phase is not None:
        made.append(_row(timeline, phase, None, now))
    room = max(1, most - len(made))
    shown = tracks if len(tracks) <= room else tracks[: max(1, room - 1)]
    made += [_row(timeline, track.phases[-1], track, now) for track in shown]
    if len(tracks) > len(shown):
        made.append([f"and {len(tracks) - len(shown)} more"])
    return [fitted(parts, width, plain=plain) for parts in made[:most]]


def _overall(timeline: Timeline, now: float, width: int, plain: bool) -> list[str]:
    left, spent = timeline.left(), now - timeline.began
    share = spent / (spent + left) if left is not None and spent + left > 0 else 0.0
    drawn = bar(share, plain, _BAR)
    beside = f"{drawn}{('-' if plain else '░') * (_BAR - len(drawn))} " if width > 50 else ""
    return [
        f"{beside}{timeline.done} of {timeline.total} runs",
        *([f"about {in_words(left)} left"] if left is not None else []),
        f"{clock_time(spent)} so far",
    ]


def _row(timeline: Timeline, work: Work, track: Track | None, now: float) -> list[str]:
    """The parts of a row, the first of them indispensable, the last least needed."""
    title = f"{track.name}: {work.title}" if track else work.title
    counted = f" {work.done} of {work.total}" if work.total else ""
    left = timeline.left_of(work) if work.total else None
    parts = [f"{title}{counted}", clock_time(now - work.began)]
    parts += [f"about {in_words(left)} left"] if left is not None and not timeline.total else []
    return [*parts, *([work.note] if work.note else [])]


def fitted(parts: Sequence[str], width: int, *, plain: bool = False) -> str:
    """As many of the parts as a row holds, in order; the first is cut in its middle where it alone is too long."""
    from rich.cells import cell_len, chop_cells

    between, cut = (" - ", "...") if plain else (" · ", "…")
    row = for_terminal(parts[0])
    if cell_len(row) > width:
        room = width - len(cut)
        head, tail = chop_cells(row, max(1, room // 2))[0], row
        while cell_len(tail) > room - cell_len(head):
            tail = tail[1:]
        return head + cut + tail
    for part in parts[1:]:
        longer = row + between + for_terminal(part)
        if cell_len(longer) <= width:
            row = longer
    return row


def clock_time(seconds: float) -> str:
    """A time as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Rows:
    """What rich draws again and again."""

    def __init__(self, timeline: Timeline, screen: Console) -> None:
        self._timeline, self._screen = timeline, screen

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        size, plain = self._screen.size, not speaks_unicode(self._screen)
        lines = rows(self._timeline, size.width, size.height, plain=plain)
        return Group(*(Text(line, no_wrap=True, overflow="crop") for line in lines))


class Display:
    """A timeline on stderr: drawn in place where that is possible, else a line for each phase."""

    def __init__(self, screen: Console, timeline: Timeline, *, animated: bool) -> None:
        """screen: stderr; animated: its cursor can be moved."""
        self.screen, self.timeline, self._animated = screen, timeline, animated

    def ended(self, lines: Sequence[str]) -> None:
        """A line for each thing that has ended, above the rows."""
        if self._animated:
            for line in lines:
                say(line)

    def begun(self, title: str) -> None:
        """A line for what begins, where nothing is drawn in place."""
        if not self._animated and not MANNER.quiet:
            say(title)

    def enter(self, title: str) -> None:
        """A phase begins."""
        self.ended(self.timeline.enter(title))
        timeline = self.timeline
        track = next(reversed(timeline.tracks.values()), None) if timeline.phase is None else None
        self.begun(f"{_position(timeline)}{track.name}: {title}" if track else title)

    def run(self, arm: str, seed: int, done: int, total: int) -> None:
        """A run begins."""
        self.ended(self.timeline.begin(arm, seed, done, total))

    def workers(self, running: Sequence[tuple[str, int, str, int, int]], done: int, total: int) -> None:
        """Runs in workers are so far."""
        timeline = self.timeline
        before = {key: len(track.phases) for key, track in timeline.tracks.items()}
        self.ended(timeline.workers(running, done, total))
        for key, track in timeline.tracks.items():
            if len(track.phases) > before.get(key, 0):
                self.begun(f"{_position(timeline)}{track.name}: {track.phases[-1].title}")


@contextlib.contextmanager
def display(timeline: Timeline | None = None) -> Iterator[Display]:
    """A display on stderr while the body runs; its rows are gone afterwards, however the body ends.

    What is printed meanwhile goes to its `screen`, to stderr or to stdout: it appears above the rows.
    """
    from rich.console import Console
    from rich.live import Live

    screen = Console(file=guarded(sys.stderr), highlight=False, markup=False, emoji=False)
    timeline = timeline or Timeline()
    animated = screen.is_terminal and not screen.is_dumb_terminal and not MANNER.quiet
    made = Display(screen, timeline, animated=animated)
    if not animated:
        yield made
        return
    with Live(_Rows(timeline, screen), console=screen, transient=True, refresh_per_second=_OFTEN):
        yield made
        made.ended(timeline.end_runs())


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """Show the time that something of unknown length takes."""
    with display() as shown:
        shown.timeline.enter(title)
        yield


@contextlib.contextmanager
def counting(title: str) -> Iterator[OnText]:
    """Show how far something is and how long it still takes; yields the callback on_text(done, total)."""
    with display() as shown:
        shown.enter(title)
        yield shown.timeline.count


@contextlib.contextmanager
def run_progress(show_plan: Callable[[TrialPlan, Schedule, Overhead, Console], None]) -> Iterator[Watch]:
    """Show how far `treat` or `trial` is; yields what they call. show_plan: prints the plan on the given console."""
    from condense.trials.arm_run import Watch

    with display() as shown:
        timeline = shown.timeline

        def on_plan(plan: TrialPlan, schedule: Schedule, overhead: Overhead) -> None:
            timeline.plan(schedule.seconds, len(plan.arms) * plan.seeds)
            show_plan(plan, schedule, overhead, shown.screen)

        def on_step(step: int, steps: int, logs: dict[str, float]) -> None:
            ce, cosine = logs.get("ce_loss", logs.get("loss", 0.0)), logs.get("mean_cosine")
            spread = "" if cosine is None or cosine != cosine else f", cosine {cosine:.3f}"
            timeline.count(step, steps, f"CE {ce:.3f}{spread}")

        def on_workers(running: Sequence[RunState], done: int, total: int) -> None:
            states = [(state.arm, state.seed, state.phase, state.done, state.total) for state in running]
            shown.workers(states, done, total)

        yield Watch(on_plan, shown.enter, shown.run, timeline.count, on_step, say, on_workers)


def _position(timeline: Timeline) -> str:
    """`[3/12, about 4 min left] ` of the run that is running now."""
    if not timeline.total:
        return ""
    left = timeline.left()
    number = min(timeline.done + 1, timeline.total)
    return f"[{number}/{timeline.total}{'' if left is None else f', about {in_words(left)} left'}] "
