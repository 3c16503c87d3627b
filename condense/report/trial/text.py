"""A trial as Markdown and on the terminal: the plan before it starts, the table of the arms first, then the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from condense.files import size_in_words
from condense.records.learning import Tried, tuning_lines
from condense.records.plans import ArmSpec
from condense.records.trial import ArmResult, Trial, quality_key, reading
from condense.report.console import COLOURS, new_table, say, show_panel, show_table, text
from condense.report.escape import for_code, for_markdown
from condense.report.tables import Cell, digits_of, markdown_rows, markdown_table, title_of
from condense.report.text import (
    DASH,
    LAYERS,
    difference,
    folded,
    in_words,
    markdown_findings,
    markdown_head,
    number,
    plural,
    sentence,
    times,
)
from condense.report.trial.figures import direction_words, through_zero
from condense.report.trial.learning import clock_words, learning_lines, learning_table, other_table, tuning_table
from condense.report.trial.tables import (
    MISSING,
    Row,
    budget,
    caveats,
    headline,
    keys,
    placed,
    rankings,
    recommendation,
    rows,
    settings,
)
from condense.training.remedies import dose_in_words, remedy_of, schedule_of, while_on

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

    from condense.records.plans import TrialPlan
    from condense.records.treatment import Schedule
    from condense.records.trial import StepCost, Trial


def trial_markdown(trial: Trial) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [
        *markdown_head(trial.condense, f"trial of remedies on {trial.model.id}"),
        for_markdown(f"{budget(trial)}."),
        "",
        *_arms_markdown(trial),
        "",
        *_ranks(trial),
        *_doses(trial),
        *_learning(trial),
        *_tuning(trial),
        *(["## Findings", "", *markdown_findings(trial.findings)] if trial.findings else []),
        *_tasks(trial),
        *_definitions(trial),
        *_seeds_markdown(trial),
        *_provenance(trial),
    ]
    return "\n".join(lines)


def _arms_markdown(trial: Trial) -> list[str]:
    """The arms beside each other, each against the control, and notes below."""
    cosine, rank, quality = map(title_of, keys(trial))
    head = ["arm", "parameters added", "time per step ÷ control", "peak memory ÷ control"]
    head += [f"{cosine} (Δ vs control, 95 % CI)", f"{rank} (Δ)", f"{quality} (Δ)", "verdict"]
    lines = markdown_rows(head, map(_markdown_cells, rows(trial)))
    beneath = (
        "Before and control: absolute values. Differences: mean over the training seeds, 95 % interval; bold where it "
        f"excludes 0. SD: standard deviation over the {plural(trial.plan.seeds, 'seed')}."
    )
    notes = [f"† {for_markdown(name)}: {for_markdown(why)}." for name, why in caveats(trial)]
    return [*lines, "", beneath, *notes]


def _markdown_cells(row: Row) -> list[str]:
    name = for_markdown(row.name)
    if not row.measures:
        return [name, *[DASH] * 6, f"**{row.status}**: {for_markdown(row.reason)}"]
    time = f"{row.time} ({row.time_note})" if row.time_note else row.time
    notes = [*row.notes, *([row.reason] if row.reason else [])]
    verdict = "; ".join([f"**{row.verdict}**" if row.kind == "arm" else row.verdict, *map(for_markdown, notes)])
    costs = (row.added or DASH, for_markdown(time) or DASH, row.memory or DASH)
    return [name, *costs, *map(_measure_markdown, row.measures), verdict or DASH]


def _measure_markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.strong else cell.text
    text += f" [{cell.interval}]" if cell.interval else ""
    notes = f" ({for_markdown(', '.join(cell.notes))})" if cell.notes else ""
    return f"{text} {cell.mark}{notes}" if cell.mark else f"{text}{notes}"


def _ranks(trial: Trial) -> list[str]:
    if trial.unranked:
        return [f"Nothing is ranked: {for_markdown(trial.unranked)}.", ""]
    lines = []
    for ranking in rankings(trial):
        lines += [f"**Ranked by {ranking.title}** (arms of one place are a tie):", ""]
        for rank, arms in ranking.places:
            named = ", ".join(placed(name, ties) for name, ties in arms)
            lines.append(f"- place {rank}: {for_markdown(named)}")
        lines += [f"- not ranked: {for_markdown(name)} ({for_markdown(why)})" for name, why in ranking.without]
        lines.append("")
    return lines


def _doses(trial: Trial) -> list[str]:
    lines, key = [], quality_key(trial)
    head = ("arm", "coefficient", f"{title_of('mean_cosine')} (Δ)", f"{title_of(key)} (Δ)")
    for dose in trial.doses:
        points = (
            (for_markdown(p.arm), f"{p.coefficient:g}", difference(p.effect), difference(p.quality, digits_of(key)))
            if p.coefficient
            else (for_markdown(p.arm), "0", "reference", "reference")
            for p in through_zero(dose.points)
        )
        title, said = for_markdown(dose.title), (recommendation(trial, dose), direction_words(trial, dose))
        lines += [f"## Dose and response: {title}", ""]
        for words in filter(None, said):
            lines += [for_markdown(sentence(words)), ""]
        lines += [*markdown_rows(head, points), ""]
    return lines


def _learning(trial: Trial) -> list[str]:
    tables = [table for table in (learning_table(trial), other_table(trial)) if table is not None]
    if not tables:
        return []
    lines = [f"- {for_markdown(line)}" for line in (*learning_lines(trial), clock_words(trial)) if line]
    made = ["## How fast each arm learns", "", *lines, ""]
    for table in tables:
        made += [f"**{for_markdown(table.title)}**", "", *markdown_table(table), "", for_markdown(table.note), ""]
    return made


def _tuning(trial: Trial) -> list[str]:
    table = tuning_table(trial)
    if table is None:
        return []
    lines = [f"- {for_markdown(line)}" for line in tuning_lines(tuned(trial))]
    return ["## Settings tried", "", *lines, "", *markdown_table(table), "", for_markdown(table.note), ""]


def tuned(trial: Trial) -> dict[str, Sequence[Tried]]:
    """What the search tried for each arm; nothing without one."""
    return {arm.spec.name: arm.tuning for arm in trial.arms if arm.tuning}


def _tasks(trial: Trial) -> list[str]:
    effects = [(arm.spec.name, effect) for arm in trial.arms for effect in arm.task_effects]
    if not effects:
        return []
    head = ("task", "metric", "arm", "score", "control", "difference [95 %]", "paired")
    cells = [
        (
            *map(for_markdown, (effect.task, effect.metric, name, number(effect.new), number(effect.old))),
            difference(effect.difference),
            "by sample" if effect.paired else "no",
        )
        for name, effect in effects
    ]
    return ["## Downstream tasks", "", *markdown_rows(head, cells), ""]


def _definitions(trial: Trial) -> list[str]:
    lines = ["## The arms", ""]
    for arm in trial.arms:
        chosen = ", ".join(f"{name} {value}" for name, value in settings(trial, arm))
        chosen = f" ({for_markdown(chosen)})" if chosen else ""
        text, source = for_markdown(arm.definition), for_markdown(arm.source)
        lines.append(f"- **{for_markdown(arm.spec.name)}**{chosen}: {text} Source: {source}.")
        lines += [f"  - {for_markdown(detail)}" for detail in arm.details]
    return [*lines, ""]


def _seeds_markdown(trial: Trial) -> list[str]:
    head = ("arm", "seed", *(f"{title_of(key)} (Δ)" for key in keys(trial)))
    cells = [
        (
            for_markdown(arm.spec.name),
            str(run.seed),
            *(_seed(arm, run.seed, key, reading(run, key).value) for key in keys(trial)),
        )
        for arm in trial.arms
        for run in arm.runs
    ]
    return folded("Every seed", markdown_rows(head, cells))


def _seed(arm: ArmResult, seed: int, key: str, value: float | None) -> str:
    effects = arm.effect.by_seed if arm.effect else ()
    change = next((effect.metrics.get(key, MISSING) for effect in effects if effect.seed == seed), MISSING)
    own = number(value, digits_of(key))
    return f"{own} ({difference(change, digits_of(key))})" if change.value is not None else own


def _provenance(trial: Trial) -> list[str]:
    facts = {
        "command": trial.command,
        "created": trial.created,
        "condense": trial.condense,
        "weights sha256": trial.model.weights_sha256 or "not known",
        "adapter": "; ".join(part for part in (trial.plan.training.tuned, trial.schedule.adapter) if part),
        "left out of the text": "; ".join(trial.schedule.notes),
        "training text sha256": trial.schedule.train_sha256,
        "validation text sha256": trial.schedule.validation_sha256,
        "validation windows sha256": trial.validation.windows_sha256,
        "protocol": str(trial.protocol.get("hash", "")),
    }
    cells = [(key, f"`{for_code(value)}`") for key, value in facts.items() if value]
    return folded("How it was made", markdown_rows(("", ""), cells))


# --- on the terminal -------------------------------------------------------------------------------------


WIDE = 138
ROOMY = 96

# --- before it starts ----------------------------------------------------------------------------------


def in_a_line(spec: ArmSpec, plan: TrialPlan) -> str:
    """What an arm is, in a line; its full definition with its source stands in the report."""
    dose = dose_in_words(spec.coefficient, schedule_of(spec, plan.training.coefficient_schedule))
    dose = f", {dose}" if dose else ""
    if "loss" in remedy_of(spec).takes:
        loss, layers = spec.loss or plan.training.loss, spec.layers or plan.training.layers
        return f"{loss} loss on {LAYERS.get(layers, f'layers {layers}')}{dose}"
    return f"{remedy_of(spec).in_a_line}{dose}"


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
        *([f"training: {plan.training.tuned}; {schedule.adapter}"] if plan.training.use_peft else []),
    )
    if grid := plan.grid():
        searched = plural(len(grid) * len(plan.arms), "run")
        say(
            console,
            f"search: {plural(len(grid), 'setting')} × {plural(len(plan.arms), 'arm')} = {searched} more, on seed "
            f"{plan.tuning_seed}, measured on {plan.tune_text or 'half of the validation documents'} alone",
        )
    if plan.other_text:
        say(console, f"another domain: {plan.other_text} is scored too")
    if plan.then_text:
        steps = plan.then_steps or max(4, schedule.steps // 4)
        say(console, f"then: every final model is trained on {plan.then_text} for {plural(steps, 'step')}")
    console.print(_plan_table(plan, costs))
    if plan.training.eval_tasks:
        say(console, f"tasks: {', '.join(plan.training.eval_tasks)}, of before and of every run")
    peaks = [cost.peak_memory_bytes for cost in costs.values() if cost.peak_memory_bytes is not None]
    most = max(peaks, default=schedule.memory_bytes)
    kept = "the models of all runs are kept" if plan.keep_models else "models are deleted once they are measured"
    memory, disk = f"{size_in_words(most)} memory{_at_once(schedule)}", f"{size_in_words(schedule.disk_bytes)} disk"
    line = f"estimate: {in_words(seconds)} in all, {memory}, {disk}"
    say(console, f"{line}; {kept}", *(f"power: {line}" for line in power))


def _at_once(schedule: Schedule) -> str:
    """How many runs share the machine or the cluster, in words; nothing where they follow each other here."""
    if schedule.threads is None:
        return ""
    return f" and {plural(schedule.threads, 'thread')} a run, {plural(schedule.jobs, 'run')} at once"


def _plan_table(plan: TrialPlan, costs: Mapping[str, StepCost]) -> RichTable:
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
        covers = "" if cost is None else while_on(schedule_of(spec, plan.training.coefficient_schedule))
        what = f"{in_a_line(spec, plan)}{covers and f'; time and memory{covers}'}"
        table.add_row(text(spec.name, "bold"), text(what), *(known if costs else ()))
    return table


# --- when it is done -----------------------------------------------------------------------------------


def show_trial(trial: Trial, console: Console) -> None:
    """Print the table of the arms, ranks or why there are none, doses, and the findings with the next command."""
    say(console, f"{trial.model.id} → {trial.output}", style="bold")
    say(console, budget(trial), "")
    table = rows(trial)
    if console.width >= WIDE:
        show_table(console, _arm_rows(trial, table, console, 34, effects=True, costs=True), spare=(5, 3, 1, 2))
    else:
        names = 34 if console.width >= ROOMY else 24
        show_table(console, _arm_rows(trial, table, console, names, effects=True, costs=False), spare=(2,))
        show_table(console, _arm_rows(trial, table, console, names, effects=False, costs=True), spare=(3, 1, 2))
    say(console, *_beneath(trial, table), "")
    if not trial.findings:
        say(console, headline(trial))
        return
    show_panel(console, "TRIAL", COLOURS[trial.findings[0].severity], trial.findings)


def _arm_rows(
    trial: Trial, table: Sequence[Row], console: Console, names: int, *, effects: bool, costs: bool
) -> RichTable:
    heads = ["arm"]
    heads += ["parameters\nadded", "time ÷\ncontrol", "memory ÷\ncontrol"] if costs else []
    heads += [f"Δ {title_of(key)}\n95 % interval" for key in keys(trial)] if effects else []
    made = new_table(console, heads, names=names)
    if costs:
        made.add_column("verdict", overflow="fold", min_width=14)
    for row in table:
        made.add_row(*_terminal_cells(row, effects, costs), end_section=row.kind == "control")
    return made


def _terminal_cells(row: Row, effects: bool, costs: bool) -> list[RenderableType]:
    cells: list[RenderableType] = [text(row.name, "bold" if row.kind == "arm" else "")]
    if costs:
        cells += [text(words or DASH) for words in (row.added, row.time.replace(" per step", ""), row.memory)]
    if effects:
        cells += [_terminal_measure(cell) for cell in row.measures] or [text(row.status), "", ""]
    if costs:
        words = row.verdict or ("" if row.measures else row.status)
        cells.append(text("\n".join([words, *row.notes[:1]]) if words else DASH))
    return cells


def _terminal_measure(cell: Cell) -> RenderableType:
    """A difference with its spread over seeds behind it and its interval below; ranks are listed under the table."""
    made = text(cell.text + (f" {cell.mark}" if cell.mark else ""), "bold" if cell.strong else "")
    spread = [note for note in cell.notes if not note.startswith("place ")]
    made.append(f" {spread[0]}" if spread else "", style="not bold dim")
    return made.append(f"\n{cell.interval}" if cell.interval else "", style="not bold dim")


def _beneath(trial: Trial, table: Sequence[Row]) -> list[str]:
    """Notes below the table: arms without numbers, caveats, ranks, doses."""
    lines = [f"{row.name} {row.status}: {row.reason}" for row in table if row.reason and not row.measures]
    lines += [f"{row.name}: {row.reason}" for row in table if row.reason and row.measures]
    lines += [f"† {name}: {why}" for name, why in caveats(trial)]
    covers = [
        (arm.spec.name, while_on(schedule_of(arm.spec, trial.plan.training.coefficient_schedule))) for arm in trial.arms
    ]
    lines += [f"{name}: time and memory{words}" for name, words in covers if words]
    lines.append("before and control: absolute values; SD is over training seeds")
    if trial.unranked:
        lines.append(f"nothing is ranked: {trial.unranked}")
    for ranking in rankings(trial):
        lines.append(f"ranked by {ranking.title} (arms of one place are a tie):")
        for rank, arms in ranking.places:
            lines.append(f"  {rank}. {', '.join(placed(name, ties) for name, ties in arms)}")
    for dose in trial.doses:
        said = (recommendation(trial, dose), direction_words(trial, dose))
        lines += [f"{dose.title}: {words}" for words in said if words]
    lines += [f"tuned: {line}" for line in tuning_lines(tuned(trial))]
    return [*lines, *learning_lines(trial)]
