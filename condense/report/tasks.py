"""Downstream tasks of several arms beside each other, for every page: records in, text of the cells out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condense.records.tasks import TaskEffect, TaskScore
from condense.report.text import DASH, number

DIGITS = 3
CAUTION = (
    "One standard error of a small run is large: about 0.02, that is 2 points, for an accuracy over 500 samples. A "
    "difference whose interval includes 0 says nothing, and of twenty rows one stands out by chance. Intervals cover "
    "samples, not training seeds. No checkpoint was chosen by these scores."
)


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task; a cell per arm is (score, its standard error or "").

    `clear` if the interval of the difference excludes 0; `better` is ↑ or ↓, the direction that is good; `remark` says
    why the difference is not paired or has no interval.
    """

    task: str
    metric: str
    better: str
    samples: int
    cells: tuple[tuple[str, str], ...]
    change: str
    interval: str
    clear: bool
    remark: str


def task_rows(arms: Mapping[str, Sequence[TaskScore]], effects: Sequence[TaskEffect]) -> list[TaskRow]:
    """The rows of the table: every task and metric of the last arm, with the differences that were taken."""
    by_arm = [{(score.task, score.metric): score for score in scores} for scores in arms.values()]
    changes = {(effect.task, effect.metric): effect for effect in effects}
    return [_row(key, [scores.get(key) for scores in by_arm], changes.get(key)) for key in (by_arm or [{}])[-1]]


def _row(key: tuple[str, str], scores: Sequence[TaskScore | None], effect: TaskEffect | None) -> TaskRow:
    last = next(score for score in reversed(scores) if score is not None)
    cells = tuple(_cell(score) for score in scores)
    better = "↑" if last.higher_is_better else "↓"
    if effect is None:
        return TaskRow(*key, better, last.samples, cells, DASH, "", False, "not compared")
    of, remark = effect.difference, "" if effect.paired else "not paired"
    if of.low is None or of.high is None:
        return TaskRow(*key, better, last.samples, cells, plus(of.value), "", False, of.reason or remark)
    if of.low == of.high == 0 and effect.paired:
        return TaskRow(*key, better, last.samples, cells, plus(of.value), "", False, "no sample changed")
    interval, clear = f"{plus(of.low)} to {plus(of.high)}", not of.low <= 0 <= of.high
    return TaskRow(*key, better, last.samples, cells, plus(of.value), interval, clear, remark)


def _cell(score: TaskScore | None) -> tuple[str, str]:
    if score is None or score.value is None:
        return DASH, ""
    return number(score.value, DIGITS), "" if score.stderr is None else f"±{number(score.stderr, DIGITS)}"


def plus(value: float | None) -> str:
    """A difference with its sign; a dash where it is undefined."""
    if value is None:
        return DASH
    return f"{'+' if value >= 0 else ''}{number(value, DIGITS)}"


def taken_from(arms: Mapping[str, Sequence[TaskScore]], limit: int | None) -> str:
    """What was scored, in one line: the harness, and which samples."""
    sources = sorted({score.harness for scores in arms.values() for score in scores if score.harness})
    samples = "all samples of each task" if limit is None else f"the first {limit} samples of each task"
    return f"{' and '.join(sources) or 'lm_eval'}, {samples}"
