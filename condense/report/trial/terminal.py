"""A trial on the terminal: the plan before it starts; when it is done the table of the arms. 80 columns are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from condense.records.plans import ArmSpec
from condense.report.console import COLOURS, new_table, panel, say, text
from condense.report.tables import Cell, title_of
from condense.report.text import DASH, LAYERS, gigabytes, in_words, plural, times
from condense.report.trial.tables import Row, budget, caveats, headline, keys, placed, rankings, recommendation, rows
from condense.training.remedies import remedy_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from condense.records.plans import Schedule, TrialPlan
    from condense.records.trial import StepCost, Trial

WIDE = 138
ROOMY = 96

# --- before it starts ----------------------------------------------------------------------------------


def in_a_line(spec: ArmSpec, plan: TrialPlan) -> str:
    """What an arm is, in a line; its full definition with its source stands in the report."""
    coefficient = "" if spec.coefficient is None else f", coefficient {spec.coefficient:g}"
    if "loss" in remedy_of(spec).takes:
        loss, layers = spec.loss or plan.training.loss, spec.layers or plan.training.layers
        return f"{loss} loss on {LAYERS.get(layers, f'layers {layers}')}{coefficient}"
    return f"{remedy_of(spec).in_a_line}{coefficient}"


def show_trial_plan(
    plan: TrialPlan,
    schedule: Schedule,
    costs: Mapping[str, StepCost],
    seconds: float | None,
    console: Console,
    power: Sequence[str] = (),
) -> None:
    """Print what is about to run: the arms in a line each, budget, runs, time, memory, disk.

    costs: what a step of each arm takes, by the arm's name, as far as it is known; seconds: of all runs together;
    power: what the planned seeds can show, in lines.
    """
    seeds, first = plan.seeds, plan.training.seed
    numbers = f"{first}" if seeds == 1 else f"{first} to {first + seeds - 1}"
    runs = plural(len(plan.arms) * seeds, "run")
    say(
        console,
        f"plan: {plural(len(plan.arms), 'arm')} × {plural(seeds, 'seed')} ({numbers}) = {runs}, each of "
        f"{plural(schedule.steps, 'step')} of {schedule.tokens_per_step:,} tokens ({schedule.train_tokens:,} tokens)",
        f"text: {schedule.train_documents} training and {schedule.validation_documents} validation documents; "
        f"{schedule.rows} rows of {schedule.row_length} tokens, {'packed' if schedule.packed else 'one document each'}",
        *schedule.notes,
    )
    console.print(_plan_table(plan, costs))
    if plan.training.eval_tasks:
        say(console, f"tasks: {', '.join(plan.training.eval_tasks)}, of before and of every run")
    memory = [cost.peak_memory_bytes for cost in costs.values() if cost.peak_memory_bytes is not None]
    most = max(memory, default=schedule.memory_bytes)
    kept = "the models of all runs are kept" if plan.keep_models else "models are deleted once they are measured"
    line = f"estimate: {in_words(seconds)} in all, {gigabytes(most)} memory, {gigabytes(schedule.disk_bytes)} disk"
    say(console, f"{line}; {kept}", *(f"power: {line}" for line in power))


def _plan_table(plan: TrialPlan, costs: Mapping[str, StepCost]) -> Table:
    """The arms in a line each; time and memory of a step against the control's as far as they are known."""
    from rich.table import Table

    table = Table(box=None, show_header=bool(costs), pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column("what it is", overflow="fold", ratio=1)
    if costs:
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
    for spec in plan.arms:
        cost = costs.get(spec.name)
        known = (DASH, DASH) if cost is None else (times(cost.time_ratio.value), times(cost.memory_ratio))
        table.add_row(text(spec.name, "bold"), text(in_a_line(spec, plan)), *(known if costs else ()))
    return table


# --- when it is done -----------------------------------------------------------------------------------


def show_trial(trial: Trial, console: Console) -> None:
    """Print the table of the arms, ranks or why there are none, doses, and the findings with the next command."""
    say(console, f"{trial.model.id} → {trial.output}", style="bold")
    say(console, budget(trial), "")
    table = rows(trial)
    if console.width >= WIDE:
        console.print(_table(trial, table, console, 34, effects=True, costs=True))
    else:
        names = 34 if console.width >= ROOMY else 24
        console.print(_table(trial, table, console, names, effects=True, costs=False))
        console.print(_table(trial, table, console, names, effects=False, costs=True))
    say(console, *_beneath(trial, table), "")
    if not trial.findings:
        say(console, headline(trial))
        return
    console.print(panel("TRIAL", COLOURS[trial.findings[0].severity], trial.findings))


def _table(trial: Trial, table: Sequence[Row], console: Console, names: int, *, effects: bool, costs: bool) -> Table:
    heads = ["arm"]
    heads += ["parameters\nadded", "time ÷\ncontrol", "memory ÷\ncontrol"] if costs else []
    heads += [f"Δ {title_of(key)}\n95 % interval" for key in keys(trial)] if effects else []
    made = new_table(console, heads, names=names)
    if costs:
        made.add_column("verdict", overflow="fold", min_width=14)
    for row in table:
        made.add_row(*_cells(row, effects, costs), end_section=row.kind == "control")
    return made


def _cells(row: Row, effects: bool, costs: bool) -> list[RenderableType]:
    cells: list[RenderableType] = [text(row.name, "bold" if row.kind == "arm" else "")]
    if costs:
        cells += [text(words or DASH) for words in (row.added, row.time.replace(" per step", ""), row.memory)]
    if effects:
        cells += [_measure(of) for of in row.measures] or [text(row.status), "", ""]
    if costs:
        words = row.verdict or ("" if row.measures else row.status)
        cells.append(text("\n".join([words, *row.notes[:1]]) if words else DASH))
    return cells


def _measure(of: Cell) -> RenderableType:
    """A difference with its spread over seeds behind it and its interval below; ranks are listed under the table."""
    made = text(of.text + (f" {of.mark}" if of.mark else ""), "bold" if of.strong else "")
    spread = [note for note in of.notes if not note.startswith("place ")]
    made.append(f" {spread[0]}" if spread else "", style="not bold dim")
    return made.append(f"\n{of.interval}" if of.interval else "", style="not bold dim")


def _beneath(trial: Trial, table: Sequence[Row]) -> list[str]:
    """What has to be said under the table: arms without numbers, caveats, ranks, doses."""
    lines = [f"{row.name} {row.status}: {row.reason}" for row in table if row.reason and not row.measures]
    lines += [f"{row.name}: {row.reason}" for row in table if row.reason and row.measures]
    lines += [f"† {name}: {why}" for name, why in caveats(trial)]
    lines.append("before and control: absolute values; SD is over training seeds")
    if trial.unranked:
        lines.append(f"nothing is ranked: {trial.unranked}")
    for ranking in rankings(trial):
        lines.append(f"ranked by {ranking.title} (arms of one place are a tie):")
        for place, arms in ranking.places:
            lines.append(f"  {place}. {', '.join(placed(name, ties) for name, ties in arms)}")
    return [*lines, *(f"{dose.title}: {recommendation(dose)}" for dose in trial.doses)]
