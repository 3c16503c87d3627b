"""A treatment on the terminal: the plan before it starts, the arms beside each other when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.report.escape import for_terminal
from condense.report.tasks import CAUTION, taken_from, task_rows
from condense.report.text import DASH, SEVERITIES, in_words, number, signed
from condense.report.treatment.markdown import QUALITY_ROWS, ROWS, quality

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from condense.records.plans import Plan, Schedule
    from condense.records.treatment import Overhead, Treatment

_COLOURS = {"dispersed": "green", "dispersed-at-a-cost": "magenta", "condensed-further": "red"}


def show_plan(plan: Plan, schedule: Schedule, overhead: Overhead, console: Console) -> None:
    """Print what is about to run: tokens, steps, time, memory, disk."""
    from rich.text import Text

    arms = "control and treated" if plan.control else "treated only (no control arm)"
    lines = [
        f"plan: {schedule.steps} steps of {schedule.tokens_per_step:,} tokens ({schedule.train_tokens:,} tokens) "
        f"for each arm: {arms}",
        f"loss: {plan.loss} at coefficient {plan.coefficient:g} on layers {plan.layers}; learning rate "
        f"{plan.learning_rate:g}, {plan.lr_scheduler}, {_seeds(plan)}",
        f"text: {schedule.train_documents} training and {schedule.validation_documents} validation documents; "
        f"{schedule.rows} rows of {schedule.row_length} tokens, {'packed' if schedule.packed else 'one document each'}",
        *schedule.notes,
        f"cost of the loss: time × {number(overhead.time_ratio, 2)}, peak memory × {number(overhead.memory_ratio, 2)}",
        f"estimate: {in_words(schedule.seconds)} in all, {gigabytes(schedule.memory_bytes)} memory, "
        f"{gigabytes(schedule.disk_bytes)} disk",
    ]
    if plan.eval_tasks:
        limit = "" if plan.eval_limit is None else f", the first {plan.eval_limit} samples of each"
        lines.append(f"tasks, on before and every arm: {', '.join(plan.eval_tasks)}{limit}; not in the estimate")
    for line in lines:
        console.print(Text(for_terminal(line)))


def _seeds(plan: Plan) -> str:
    last = plan.seed + plan.seeds - 1
    return f"seed {plan.seed}" if plan.seeds == 1 else f"seeds {plan.seed} to {last}; the model of the first is kept"


def gigabytes(size: int | None) -> str:
    """Bytes in GB or MB."""
    if size is None:
        return "unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def show_treatment(treatment: Treatment, console: Console) -> None:
    """Print the arms beside each other, the paired difference, and the verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console.print(Text(for_terminal(f"{treatment.model} → {treatment.output}"), style="bold"))
    names = list(treatment.arms)
    for title, probe in (("validation text", False), ("probe text", True)):
        effect = treatment.probe_effect if probe else treatment.effect
        runs = [arm.probe if probe else arm.validation for arm in treatment.arms.values()]
        table = Table(
            box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=title, title_justify="left", title_style=""
        )
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(f"treated − {effect.against}", justify="right", no_wrap=True)
        for key, label, digits in ROWS[:5] if not probe else ROWS[:2]:
            table.add_row(
                label, *(number(run.deep[key].value, digits) for run in runs), signed(effect.deep[key], digits)
            )
        for key, label, digits in QUALITY_ROWS[:2]:
            change = signed(effect.quality[key], digits) if key in effect.quality else DASH
            table.add_row(label, *(number(quality(run, key).value, digits) for run in runs), change)
        console.print(table)
    _show_tasks(treatment, console)
    cost = treatment.overhead
    line = f"cost of the loss: time × {number(cost.time_ratio, 2)}, peak memory × {number(cost.memory_ratio, 2)}"
    console.print(Text(line))
    console.print(_panel(treatment))


def _show_tasks(treatment: Treatment, console: Console) -> None:
    """Scores on downstream tasks with their standard errors below them, and the paired difference."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    arms = {name: arm.tasks for name, arm in treatment.arms.items()}
    rows = task_rows(arms, treatment.task_effects)
    if not rows:
        return
    title = Text(for_terminal(f"downstream tasks: {taken_from(arms, treatment.plan.eval_limit)}; ± one standard error"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=title, title_justify="left", title_style="")
    table.add_column("")
    for name in (*arms, f"treated − {treatment.effect.against}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        lines = [line for line in (row.change, row.interval, row.remark) if line]
        change = Text(for_terminal("\n".join(lines)), style="bold" if row.clear else "")
        what = f"{row.task} ({row.samples})\n  {row.metric} {row.better}"
        table.add_row(Text(for_terminal(what)), *("\n".join(cell) for cell in row.cells), change)
    console.print(table)
    console.print(Text(CAUTION, style="dim"))


def _panel(treatment: Treatment) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    verdict = treatment.verdict
    first, *others = verdict.findings
    colour = _COLOURS.get(verdict.id, "")
    lines: list[RenderableType] = [
        Text(for_terminal(first.title), style="bold"),
        Text(for_terminal(f"{first.seen}. {first.why}")),
    ]
    for finding in others:
        text = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
        lines.append(text.append(for_terminal(f"{finding.seen}.")))
    lines += [Text(), Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan")]
    title = Text(verdict.id.upper(), style=f"bold {colour}")
    return Panel(Group(*lines), title=title, border_style=colour or "none", title_align="left", padding=(0, 1))
