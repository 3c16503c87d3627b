"""A treatment on the terminal: the plan before it starts, the arms beside each other when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.report.console import cell_text, new_table, panel, say, text
from condense.report.tables import CAUTION
from condense.report.text import gigabytes, in_words, times
from condense.report.treatment.markdown import arms_table, scored, tasks_of

if TYPE_CHECKING:
    from rich.console import Console

    from condense.records.plans import Plan, Schedule
    from condense.records.treatment import Overhead, Treatment
    from condense.report.tables import Table

_COLOURS = {"dispersed": "green", "dispersed-at-a-cost": "magenta", "condensed-further": "red"}


def show_plan(plan: Plan, schedule: Schedule, overhead: Overhead, console: Console) -> None:
    """Print what is about to run: tokens, steps, time, memory, disk."""
    arms = "control and treated" if plan.control else "treated only (no control arm)"
    say(
        console,
        f"plan: {schedule.steps} steps of {schedule.tokens_per_step:,} tokens ({schedule.train_tokens:,} tokens) "
        f"for each arm: {arms}",
        f"loss: {plan.loss} at coefficient {plan.coefficient:g} on layers {plan.layers}; learning rate "
        f"{plan.learning_rate:g}, {plan.lr_scheduler}, {_seeds(plan)}",
        f"text: {schedule.train_documents} training and {schedule.validation_documents} validation documents; "
        f"{schedule.rows} rows of {schedule.row_length} tokens, {'packed' if schedule.packed else 'one document each'}",
        *schedule.notes,
        cost_line(overhead),
        f"estimate: {in_words(schedule.seconds)} in all, {gigabytes(schedule.memory_bytes)} memory, "
        f"{gigabytes(schedule.disk_bytes)} disk",
    )
    if plan.eval_tasks:
        limit = "" if plan.eval_limit is None else f", the first {plan.eval_limit} samples of each"
        say(console, f"tasks, on before and every arm: {', '.join(plan.eval_tasks)}{limit}; not in the estimate")


def _seeds(plan: Plan) -> str:
    last = plan.seed + plan.seeds - 1
    return f"seed {plan.seed}" if plan.seeds == 1 else f"seeds {plan.seed} to {last}; the model of the first is kept"


def cost_line(overhead: Overhead) -> str:
    """What the loss costs, in one line."""
    time = f"{times(overhead.time_ratio)}{overhead.time_noise}"
    return f"cost of the loss: time {time}, peak memory {times(overhead.memory_ratio)}"


def show_treatment(treatment: Treatment, console: Console) -> None:
    """Print the arms beside each other, the paired difference, and the verdict."""
    verdict = treatment.verdict
    say(console, f"{treatment.model} → {treatment.output}", style="bold")
    for probe in (False, True):
        _show_table(arms_table(treatment, probe=probe, level=1 if probe else 2), console)
    _show_tasks(treatment, console)
    say(console, cost_line(treatment.overhead))
    facts = f"quality {verdict.quality} · what opened: {verdict.opened}"
    facts += f" · {verdict.covers}" if verdict.covers else ""
    colour = _COLOURS.get(verdict.id, "")
    console.print(panel(verdict.id.upper(), colour, verdict.findings, facts=facts))


def _show_table(of: Table, console: Console) -> None:
    table = new_table(console, (of.first, *(column.head for column in of.columns)), title=of.title)
    for name, cells in of.rows:
        table.add_row(text(name), *(cell_text(cell, one_line=True) for cell in cells))
    console.print(table)


def _show_tasks(treatment: Treatment, console: Console) -> None:
    """Scores on downstream tasks with their standard errors below them, and the paired difference."""
    of = tasks_of(treatment)
    if not of.rows:
        return
    heads = [column.head for column in of.columns[2:]]
    table = new_table(console, ("", *heads), title=f"downstream tasks: {scored(treatment)}; ± one standard error")
    for task, (metric, samples, *cells) in of.rows:
        table.add_row(text(f"{task} ({samples.text})\n  {metric.text}"), *map(cell_text, cells))
    console.print(table)
    say(console, CAUTION, style="dim")
