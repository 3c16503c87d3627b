"""What a command is doing, what that takes, and what is left of it: estimates alone, nothing is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from condense.report.text import in_words

STARTING, TRAINING = "starting", "training"
MEASURING = ("validation text", "probe text", "downstream tasks")
OF_A_RUN = (STARTING, TRAINING, *MEASURING, "text of another domain", "the next text")
"""The phases of one arm under one seed, in order; any other phase is none of a run."""
SEARCHED = "search: "
"""How the runs of a search for the coefficient are called, which are shorter than those that follow."""
_LONG = 1.0  # seconds: a shorter phase leaves no line


@dataclass
class Work:
    """A phase: when it began, how much of it is done (total 0 where that has no length), when that was told last."""

    title: str
    began: float
    done: int = 0
    total: int = 0
    first: tuple[float, int] | None = None
    last: float = 0.0
    note: str = ""

    def count(self, done: int, total: int, now: float) -> None:
        """So many of a total are done now."""
        self.done, self.total, self.last = done, total, now
        self.first = self.first or (now, done)

    def own_left(self, now: float) -> float | None:
        """Seconds until the last one is done at the pace so far; None before two of them were told."""
        if self.first is None or self.done <= self.first[1]:
            return None
        each = (self.last - self.first[0]) / (self.done - self.first[1])
        return max(0.0, each * (self.total - self.done) - (now - self.last))


@dataclass
class Track:
    """One arm under one seed, or the model as it came: its phases in order, the last of them running."""

    name: str
    began: float
    counted: bool = True  # among the runs; the model as it came is not
    typical: bool = True  # trained for as long as the others; a run of a search for the coefficient is not
    phases: list[Work] = field(default_factory=list)


class Timeline:
    """What is running, what has ended and how long that took; from it, what is left.

    Measuring takes what it took of the model as it came, training what its first steps take, until a run has ended;
    from then on every phase takes what it took in the runs before. Until anything of this is known the plan's estimate
    counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing runs yet; clock: seconds."""
        self.clock, self.began = clock, clock()
        self.phase: Work | None = None
        self.tracks: dict[tuple[str, int], Track] = {}
        self.done, self.total = 0, 0
        self._took: dict[str, list[float]] = {}
        self._after: dict[str, list[float]] = {}  # between a phase's last count and its end: saving, loading
        self._planned: tuple[float, float] | None = None

    def plan(self, seconds: float | None, runs: int) -> None:
        """So many runs together are estimated to take so long, from now on."""
        self.total, self._planned = runs, None if seconds is None else (self.clock(), seconds)

    def begin(self, arm: str, seed: int, done: int, total: int) -> list[str]:
        """A run begins, `done` of `total` have ended before it; total 0: the model as it came. What has ended."""
        ended = self.end_runs()
        self._forget(done, total)
        self.done, self.total = done, total or self.total
        name = f"{arm}, seed {seed}" if total else arm
        self.tracks[arm, seed] = Track(name, self.clock(), total > 0, not arm.startswith(SEARCHED))
        return ended

    def enter(self, title: str) -> list[str]:
        """A phase begins: of the run in hand, or of none. Lines for what has ended by it."""
        ended = [] if title in OF_A_RUN and self.tracks else self.end_runs()
        if title in OF_A_RUN and self.tracks:
            self._enter(next(reversed(self.tracks.values())), title)
            return ended
        ended += self._end_phase()
        self.phase = Work(title, self.clock())
        return ended

    def count(self, done: int, total: int, note: str = "") -> None:
        """So much of the phase in hand is done."""
        work = self._work()
        if work is not None:
            work.count(done, total, self.clock())
            work.note = note

    def workers(self, running: Sequence[tuple[str, int, str, int, int]], done: int, total: int) -> list[str]:
        """Runs in workers as they are now: arm, seed, phase, how much of it is done, of how much. What has ended."""
        ended = self._end_phase()
        self._forget(done, total)
        self.done, self.total, now = done, total, self.clock()
        here = {(arm, seed) for arm, seed, *_ in running}
        for key in [key for key in self.tracks if key not in here]:
            ended += self._end_track(key)
        for arm, seed, phase, some, most in running:
            track = self.tracks.setdefault((arm, seed), Track(f"{arm}, seed {seed}", now))
            if not track.phases or track.phases[-1].title != phase:
                self._enter(track, phase)
            if most and track.phases[-1].done != some:
                track.phases[-1].count(some, most, now)
        return ended

    def end_runs(self) -> list[str]:
        """All that run have ended; a line for each, and for a phase outside of runs."""
        ended = self._end_phase()
        for key, track in list(self.tracks.items()):
            self.done = min(self.total, self.done + track.counted)
            ended += self._end_track(key)
        return ended

    def running(self) -> list[Track]:
        """The runs that are in a phase; a list made at once, for another thread draws it while runs begin and end."""
        return [track for track in list(self.tracks.values()) if track.phases]

    def left(self) -> float | None:
        """Seconds until all runs have ended; None where nothing tells."""
        if not self.total:
            return None
        now = self.clock()
        running = self.running()
        usual = {title: _mean(took) for title, took in list(self._took.items())}
        if TRAINING not in usual:
            paces = [(track.phases[-1].own_left(now), now - track.phases[-1].began) for track in _training(running)]
            known = [left + spent for left, spent in paces if left is not None]
            usual |= {TRAINING: _mean(known)} if known else {}
        lefts = [self._left_of_track(track, usual, now) for track in running]
        known = [left for left in lefts if left is not None]
        waiting = max(0, self.total - self.done - sum(track.counted for track in running))
        if len(known) < len(lefts) or (waiting and TRAINING not in usual):
            return None if self._planned is None else max(0.0, self._planned[1] - (now - self._planned[0]))
        together = sum(known) + waiting * sum(usual.values())
        return max([together / max(1, len(running)), *known])

    def left_of(self, work: Work) -> float | None:
        """Seconds until a phase has ended, at its own pace; None before that is known."""
        own = work.own_left(self.clock())
        return None if own is None else own + _mean(self._after.get(work.title, [0.0]))

    def _work(self) -> Work | None:
        if self.phase is not None or not self.tracks:
            return self.phase
        phases = next(reversed(self.tracks.values())).phases
        return phases[-1] if phases else None

    def _left_of_track(self, track: Track, usual: dict[str, float], now: float) -> float | None:
        """Seconds until a run has ended: the phase in hand, and what such a run still has before it."""
        work = track.phases[-1]
        own, whole = self.left_of(work), usual.get(work.title)
        if own is None and whole is None and work.title != STARTING:
            return None
        left = own if own is not None else max(0.0, (whole or 0.0) - (now - work.began))
        later = OF_A_RUN[OF_A_RUN.index(work.title) + 1 :] if work.title in OF_A_RUN else ()
        if track.counted and TRAINING in later and TRAINING not in usual:
            return None
        return left + sum(usual.get(title, 0.0) for title in later)

    def _enter(self, track: Track, title: str) -> None:
        if track.phases:
            self._note(track, ended=True)
        track.phases.append(Work(title, self.clock()))

    def _forget(self, done: int, total: int) -> None:
        """Where other runs begin (after a search, say) they train for another time."""
        if done < self.done or (total and total != self.total):
            self._took.pop(TRAINING, None)

    def _note(self, track: Track, *, ended: bool = False) -> None:
        """Remember what a run's phase took that was done whole: neither failed nor went on from a checkpoint."""
        work = track.phases[-1]
        now, part = self.clock(), work.total / 10
        if work.title == TRAINING and not track.typical:
            return
        if work.first and work.first[1] <= max(1.0, part) and (ended or work.done >= work.total - part):
            self._took.setdefault(work.title, []).append(now - work.began)
            self._after.setdefault(work.title, []).append(now - work.last)

    def _end_phase(self) -> list[str]:
        work, self.phase = self.phase, None
        if work is None or (spent := self.clock() - work.began) < _LONG:
            return []
        return [f"{work.title}: {in_words(spent)}"]

    def _end_track(self, key: tuple[str, int]) -> list[str]:
        track = self.tracks.pop(key)
        if not track.phases:
            return []
        self._note(track)
        ends = [*(phase.began for phase in track.phases[1:]), self.clock()]
        parts = [f"{work.title} {in_words(end - work.began)}" for work, end in zip(track.phases, ends, strict=True)]
        return [f"{track.name}: {', '.join(parts)}"]


def _training(tracks: Sequence[Track]) -> list[Track]:
    return [track for track in tracks if track.phases[-1].title == TRAINING and track.typical]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
