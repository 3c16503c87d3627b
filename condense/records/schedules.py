"""Schedules over the optimizer steps: of a coefficient (`constant`, `linear[:SHARE]`, `cosine[:SHARE]`), warm-up."""

from __future__ import annotations

import math


def schedule_factor(schedule: str, share: float) -> float:
    """What a schedule multiplies the coefficient by after a share (0 to 1) of the steps; in [0, 1].

    `constant`; `linear[:END]` and `cosine[:END]` fall from 1 to 0 at END of the steps (default 1). ValueError for
    another word or an END outside (0, 1].
    """
    kind, end = _parts(schedule)
    if kind == "constant":
        return 1.0
    done = min(1.0, share / end)
    return 1 - done if kind == "linear" else (1 + math.cos(math.pi * done)) / 2 * (done < 1)


def share_on(schedule: str) -> float:
    """At which share of the steps the coefficient is not 0 yet, in (0, 1]. ValueError for no schedule."""
    return _parts(schedule)[1]


def shortest_schedule(text: str) -> str:
    """The one way to write a schedule: `LINEAR:.250` is `linear:0.25`, `linear:1` is `linear`. ValueError for none."""
    kind, end = _parts(text.strip().lower())
    return kind if end == 1 else f"{kind}:{shortest_number(end)}"


def shortest_number(number: float) -> str:
    """A number in its shortest form that is still the same number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def warmup_steps(warmup: float, steps: int) -> int:
    """Over how many of the steps the learning rate rises to its peak; warmup: a number of steps, below 1 a share."""
    return round(warmup if warmup >= 1 else warmup * steps)


def _parts(schedule: str) -> tuple[str, float]:
    """The kind, and the share of the steps at which it ends (1 for a constant one)."""
    kind, colon, end = schedule.partition(":")
    try:
        at = float(end) if colon else 1.0
    except ValueError:
        at = -1.0
    if kind not in ("constant", "linear", "cosine") or not 0 < at <= 1 or (kind == "constant" and colon):
        raise ValueError(f"a schedule is constant, linear[:SHARE] or cosine[:SHARE], SHARE in (0, 1], not {schedule!r}")
    return kind, at
