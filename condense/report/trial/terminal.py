"""A trial on the terminal: the plan before it starts; when it is done the table of the arms. 80 columns are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from condense.report.escape import for_terminal
from condense.report.text import DASH, SEVERITIES, in_words
from condense.report.treatment.terminal import gigabytes
from condense.report.trial.rows import TITLES, Measure, Row, keys, placed, rankings, rows, times
from condense.report.trial.words import budget, caveats, headline, in_a_line, recommendation

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from condense.records.plans import Schedule, TrialPlan
    from condense.records.trial import StepCost, Trial

WIDE = 138
ROOMY = 96
_SEVERITY_COLOURS = {"severe": "red", "warning": "magenta", "good": "green"}


# --- before it starts ----------------------------------------------------------------------------------


def show_trial_plan(
    plan: TrialPlan, schedule: Schedule, costs: Mapping[str, StepCost], seconds: float | None, console: Console
) -> None:
    """Print what is about to run: the arms in a line each, budget, runs, time, memory, disk.

    costs: what a step of each arm takes, by the arm's name, as far as it is known; seconds: of all runs together.
    """
    from rich.table import Table
    from rich.text import Text

    many, seeds = len(plan.arms), plan.seeds
    runs = many * seeds
    first = plan.training.seed
    seed_names = f"{first}" if seeds == 1 else f"{first} to {first + seeds - 1}"
    lines = [
        f"plan: {many} arm{_s(many)} × {seeds} seed{_s(seeds)} ({seed_names}) = {runs} run{_s(runs)}, each of "
        f"{schedule.steps} step{_s(schedule.steps)} of {schedule.tokens_per_step:,} tokens "
        f"({schedule.train_tokens:,} tokens)",
        f"text: {schedule.train_documents} training and {schedule.validation_documents} validation documents; "
        f"{schedule.rows} rows of {schedule.row_length} tokens, {'packed' if schedule.packed else 'one document each'}",
        *schedule.notes,
    ]
    for line in lines:
        console.print(Text(for_terminal(line)))
    table = Table(box=None, show_header=bool(costs), pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column("what it is", overflow="fold", ratio=1)
    if costs:
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
    for spec in plan.arms:
        cells = [Text(for_terminal(spec.name), style="bold"), Text(for_terminal(in_a_line(spec, plan)))]
        table.add_row(*cells, *map(Text, _cost(costs.get(spec.name)) if costs else ()))
    console.print(table)
    tasks = ", ".join(plan.training.eval_tasks)
    if tasks:
        console.print(Text(for_terminal(f"tasks: {tasks}, of before and of every run")))
    memory = [cost.peak_memory_bytes for cost in costs.values() if cost.peak_memory_bytes is not None]
    most = max(memory, default=schedule.memory_bytes)
    kept = "the models of all runs are kept" if plan.keep_models else "models are deleted once they are measured"
    line = f"estimate: {in_words(seconds)} in all, {gigabytes(most)} memory, {gigabytes(schedule.disk_bytes)} disk"
    console.print(Text(for_terminal(f"{line}; {kept}")))


def _cost(cost: StepCost | None) -> tuple[str, str]:
    """A step's time and memory against the control's; a dash where they are not known."""
    return (DASH, DASH) if cost is None else (times(cost.time_ratio.value), times(cost.memory_ratio))


def _s(many: int) -> str:
    return "" if many == 1 else "s"


# --- when it is done -----------------------------------------------------------------------------------


def show_trial(trial: Trial, console: Console) -> None:
    """Print the table of the arms, ranks or why there are none, doses, and the findings with the next command."""
    from rich.text import Text

    console.print(Text(for_terminal(f"{trial.model.id} → {trial.output}"), style="bold"))
    console.print(Text(for_terminal(budget(trial))))
    console.print()
    table = rows(trial)
    if console.width >= WIDE:
        console.print(_table(trial, table, 34, effects=True, costs=True))
    else:
        names = 34 if console.width >= ROOMY else 24
        console.print(_table(trial, table, names, effects=True, costs=False))
        console.print(_table(trial, table, names, effects=False, costs=True))
    for line in _beneath(trial, table):
        console.print(Text(for_terminal(line)))
    console.print()
    console.print(_panel(trial))


def _table(trial: Trial, table: Sequence[Row], names: int, *, effects: bool, costs: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_lines=False)
    made.add_column("arm", overflow="fold", max_width=names)
    if costs:
        made.add_column("parameters\nadded", justify="right", no_wrap=True)
        made.add_column("time ÷\ncontrol", justify="right", no_wrap=True)
        made.add_column("memory ÷\ncontrol", justify="right", no_wrap=True)
    if effects:
        for key in keys(trial):
            made.add_column(f"Δ {TITLES[key]}\n95 % interval", justify="right", no_wrap=True)
    if costs:
        made.add_column("verdict", overflow="fold", min_width=14)
    for row in table:
        made.add_row(*_line(row, effects, costs), end_section=row.kind == "control")
    return made


def _line(row: Row, effects: bool, costs: bool) -> list[RenderableType]:
    from rich.text import Text

    cells: list[RenderableType] = [Text(for_terminal(row.name), style="bold" if row.kind == "arm" else "")]
    if costs:
        time = row.time.replace(" per step", "")
        cells += [Text(for_terminal(text or DASH)) for text in (row.added, time, row.memory)]
    if effects:
        cells += [_cell(of) for of in row.measures] or [Text(row.status), Text(""), Text("")]
    if costs:
        words = row.verdict or ("" if row.measures else row.status)
        cells.append(Text(for_terminal("\n".join([words, *row.notes[:1]]) if words else DASH)))
    return cells


def _cell(of: Measure) -> RenderableType:
    from rich.text import Text

    text = Text(of.value + (" †" if of.unpaired else ""), style="bold" if of.clear else "")
    text.append(f" {of.spread}" if of.spread else "", style="not bold dim")
    return text.append(f"\n{for_terminal(of.interval)}" if of.interval else "", style="not bold dim")


def _beneath(trial: Trial, table: Sequence[Row]) -> list[str]:
    """What has to be said under the table: arms without numbers, caveats, ranks, doses."""
    lines = [f"{row.name} {row.status}: {row.reason}" for row in table if row.reason and not row.measures]
    lines += [f"{row.name}: {row.reason}" for row in table if row.reason and row.measures]
    lines += [f"† {name}: {why}" for name, why in caveats(trial)]
    lines.append("before and control: absolute values; intervals cover texts, SD is over training seeds")
    if trial.unranked:
        lines.append(f"nothing is ranked: {trial.unranked}")
    for ranking in rankings(trial):
        lines.append(f"ranked by {ranking.title} (arms of one place are a tie):")
        for place, arms in ranking.places:
            lines.append(f"  {place}. {', '.join(placed(name, ties) for name, ties in arms)}")
    return [*lines, *(f"{dose.title}: {recommendation(dose)}" for dose in trial.doses)]


def _panel(trial: Trial) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    if not trial.findings:
        return Text(headline(trial))
    first, *others = trial.findings
    lines: list[RenderableType] = [
        Text(for_terminal(headline(trial)), style="bold"),
        Text(for_terminal(f"{first.seen}. {first.why}")),
    ]
    for finding in others:
        text = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
        lines.append(text.append(for_terminal(f"{finding.seen}.")))
    if first.next:
        lines += [Text(), Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan")]
    colour = _SEVERITY_COLOURS.get(first.severity, "none")
    return Panel(Group(*lines), title="TRIAL", border_style=colour, title_align="left", padding=(0, 1))
