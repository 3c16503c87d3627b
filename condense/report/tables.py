"""One table for every surface: cells ready to be printed, built from estimates; Markdown and CSV; downstream tasks.

Which metrics a table has, under which heads and with how many digits, is read from `condense.metrics`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condense.metrics import METRICS, QUALITY, Metric
from condense.records.base import Estimate
from condense.report.escape import for_csv, for_markdown
from condense.report.text import DASH, number, percent, signed

if TYPE_CHECKING:
    from condense.records.tasks import TaskEffect, TaskScore
    from condense.records.treatment import Power


@dataclass(frozen=True)
class Column:
    """A column: its short head, the group it stands in, its full name for whoever does not know it."""

    head: str
    group: str = ""
    full: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: text, the ends of its interval, quieter notes below, the value to sort by unless it is the text.

    `bar` is a bar in percent; `strong` sets the text in bold; `mark` is a sign behind it that a note explains.
    """

    text: str
    low: str = ""
    high: str = ""
    notes: tuple[str, ...] = ()
    sort: str = ""
    bar: float | None = None
    strong: bool = False
    mark: str = ""

    @property
    def interval(self) -> str:
        """The interval in words; nothing where there is none."""
        return f"{self.low} to {self.high}" if self.low else ""

    @property
    def below(self) -> tuple[str, ...]:
        """What stands under the text: the interval, then the notes."""
        return tuple(line for line in (self.interval, *self.notes) if line)


@dataclass(frozen=True)
class Table:
    """Rows of cells with a name each; `title` and `note` stand above, `first` is the head of the names."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    title: str = ""
    note: str = ""
    first: str = "site"

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group, with their number."""
        spans: dict[str, int] = {}
        for column in self.columns:
            spans[column.group] = spans.get(column.group, 0) + 1
        return list(spans.items())


EMPTY = Cell(DASH)


def shown(level: int, metrics: Mapping[str, Metric] = METRICS) -> list[Metric]:
    """The metrics that a table of this level has, those of one group together, in the order of the groups."""
    chosen = [metric for metric in metrics.values() if 0 < metric.level <= level]
    groups = list(dict.fromkeys(metric.group for metric in chosen))
    return sorted(chosen, key=lambda metric: groups.index(metric.group))


def title_of(key: str) -> str:
    """What a metric over the deepest half, or a number of quality, is called in a table."""
    if key in METRICS:
        metric = METRICS[key]
        return f"deep {metric.title}" if metric.unit == "cosine" else metric.title
    return "loss, nats per token" if key == "loss" else QUALITY[key].title


def digits_of(key: str) -> int:
    """With how many digits a metric or a number of quality is written."""
    return (METRICS.get(key) or QUALITY[key]).digits


def fine_digits(key: str) -> int:
    """The same where small differences count: one more for what lies between 0 and 1."""
    digits = digits_of(key)
    return digits + 1 if digits == 3 else digits


def value_cell(estimate: Estimate, digits: int, *, bounds: bool = False, share: bool = True, bar: bool = False) -> Cell:
    """A number; with its interval, its share of the Gaussian null, a bar, as far as asked for and known."""
    if estimate.value is None:
        return Cell(DASH, notes=(estimate.reason,) if estimate.reason else ())
    low, high = (
        ("", "")
        if not bounds or estimate.low is None
        else (number(estimate.low, digits), number(estimate.high, digits))
    )
    notes = (f"{percent(estimate.null_ratio)} of random",) if share and estimate.null_ratio is not None else ()
    width = round(100 * min(1.0, max(0.0, estimate.value)), 1) if bar else None
    sort = sort_key(estimate.value) if low or notes or bar or estimate.value < 0 else ""
    return Cell(number(estimate.value, digits), low, high, notes, sort, width)


def change_cell(change: Estimate, digits: int, notes: tuple[str, ...] = ()) -> Cell:
    """A difference with its interval, strong where that leaves 0 out."""
    if change.value is None:
        return Cell(DASH, notes=(change.reason,) if change.reason else ())
    low, high = ("", "") if change.low is None else (signed(change.low, digits), signed(change.high, digits))
    return Cell(signed(change.value, digits), low, high, notes, sort_key(change.value), strong=change.excludes_zero)


def plain_cell(value: float | None, digits: int, *, signs: bool = False) -> Cell:
    """A bare number, which sorts by its own text unless that has a sign."""
    if value is None:
        return EMPTY
    return Cell((signed if signs else number)(value, digits), sort=sort_key(value) if signs or value < 0 else "")


def power_table(powers: Iterable[tuple[str, Power]]) -> Table:
    """What so many training seeds could have shown of each number, and how many show what counts."""
    heads = ("seeds", "SD over seeds", "could show", "counts from", "seeds needed")
    rows = []
    for name, power in powers:
        digits = fine_digits(power.key)
        needed = Cell(DASH if power.seeds_needed is None else str(power.seeds_needed), notes=(power.reason or "",))
        numbers = [plain_cell(value, digits) for value in (power.seed_sd, power.shown, power.wanted)]
        rows.append((f"{name}{title_of(power.key)}", (Cell(str(power.seeds)), *numbers, needed)))
    note = "the smallest difference that is found in 80 % of such runs, beside the smallest that counts"
    return Table(tuple(map(Column, heads)), tuple(rows), "What these seeds could have shown", note, "")


def sort_key(value: float) -> str:
    """What a number is sorted by."""
    return f"{value:.5g}"


# --- Markdown and CSV ----------------------------------------------------------------------------------


def markdown_rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table; the cells are escaped already."""
    heads = list(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], f"|{'---|' * len(heads)}", *lines[1:]]


def markdown_table(table: Table) -> list[str]:
    """The table as Markdown: under the full names of its columns, intervals in brackets, notes in parentheses."""
    heads = [table.first, *(column.full or column.head for column in table.columns)]
    rows = ((for_markdown(name), *map(markdown_cell, cells)) for name, cells in table.rows)
    return markdown_rows(map(for_markdown, heads), rows)


def markdown_cell(cell: Cell) -> str:
    """A cell as Markdown."""
    text = for_markdown(cell.text) + (f" [{cell.low}, {cell.high}]" if cell.low else "")
    return text + (f" ({for_markdown(', '.join(cell.notes))})" if cell.notes else "")


def rows_csv(rows: list[dict[str, Any]]) -> str:
    """Plain rows as CSV text; the columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, columns))  # keys of a saved run are from outside too
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        writer.writerow(for_csv(cell) if isinstance(cell, str) else cell for cell in cells)
    return text.getvalue()


# --- downstream tasks ----------------------------------------------------------------------------------

TASK_DIGITS = 3
CAUTION = (
    "One standard error of a small run is large: about 0.02, that is 2 points, for an accuracy over 500 samples. A "
    "difference whose interval includes 0 says nothing, and of twenty rows one stands out by chance. Intervals cover "
    "samples, not training seeds. No checkpoint was chosen by these scores."
)


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task: a cell per arm with its standard error, and the difference.

    `better` is ↑ or ↓, the direction that is good; the notes of `change` say why it is not paired or has no interval.
    """

    task: str
    metric: str
    better: str
    samples: int
    cells: tuple[Cell, ...]
    change: Cell


def task_rows(arms: Mapping[str, Sequence[TaskScore]], effects: Sequence[TaskEffect]) -> list[TaskRow]:
    """The rows of the table: every task and metric of the last arm, with the differences that were taken."""
    by_arm = [{(score.task, score.metric): score for score in scores} for scores in arms.values()]
    changes = {(effect.task, effect.metric): effect for effect in effects}
    return [_task_row(key, [scores.get(key) for scores in by_arm], changes.get(key)) for key in (by_arm or [{}])[-1]]


def _task_row(key: tuple[str, str], scores: Sequence[TaskScore | None], effect: TaskEffect | None) -> TaskRow:
    last = next(score for score in reversed(scores) if score is not None)
    better = "↑" if last.higher_is_better else "↓"
    return TaskRow(*key, better, last.samples, tuple(map(score_cell, scores)), task_change(effect))


def score_cell(score: TaskScore | None) -> Cell:
    """A score with its standard error."""
    if score is None or score.value is None:
        return EMPTY
    error = () if score.stderr is None else (f"±{number(score.stderr, TASK_DIGITS)}",)
    return Cell(number(score.value, TASK_DIGITS), notes=error)


def task_change(effect: TaskEffect | None) -> Cell:
    """The difference on a task; without an interval the reason, where samples do not pair that."""
    if effect is None:
        return Cell(DASH, notes=("not compared",))
    change, notes = effect.difference, [] if effect.paired else ["not paired"]
    if effect.shown is not None:
        notes.append(f"{effect.seeds} seeds could show {number(effect.shown, TASK_DIGITS)}")
    text = signed(change.value, TASK_DIGITS)
    if change.low is None or change.high is None:
        return Cell(text, notes=(change.reason,) if change.reason else tuple(notes))
    if change.low == change.high == 0 and effect.paired:
        return Cell(text, notes=("no sample changed",))
    return change_cell(change, TASK_DIGITS, tuple(notes))


def task_table(arms: Mapping[str, Sequence[TaskScore]], effects: Sequence[TaskEffect], change: str) -> Table:
    """All tasks, an arm per column, the difference last; no rows if no task was asked for."""
    columns = (*map(Column, ("metric", "samples", *arms)), Column(change, full=f"{change} [95 %]"))
    rows = tuple(
        (row.task, (Cell(f"{row.metric} {row.better}"), Cell(str(row.samples)), *row.cells, row.change))
        for row in task_rows(arms, effects)
    )
    return Table(columns, rows, "Scores", "± one standard error; ↑ higher is better, ↓ lower is better", "task")


def scored_by(arms: Mapping[str, Sequence[TaskScore]], limit: int | None) -> str:
    """What was scored, in one line: the harness, and which samples."""
    sources = sorted({score.harness for scores in arms.values() for score in scores if score.harness})
    samples = "all samples of each task" if limit is None else f"the first {limit} samples of each task"
    return f"{' and '.join(sources) or 'lm_eval'}, {samples}"
