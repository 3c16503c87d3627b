"""A treatment as Markdown and on the terminal: its tables, the model card, the plan before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from condense.files import size_in_words
from condense.metrics import QUALITY
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import SeedModel, Treatment, TreatmentSeed
from condense.report.console import cell_text, new_table, say, show_panel, show_table, text
from condense.report.depth import site_label
from condense.report.escape import for_code, for_markdown
from condense.report.tables import (
    CAUTION,
    Cell,
    Column,
    Table,
    change_cell,
    fine_digits,
    markdown_table,
    plain_cell,
    power_table,
    scored_by,
    shown,
    task_table,
    title_of,
)
from condense.report.text import (
    DASH,
    NOTHING,
    corpus_line,
    folded,
    in_words,
    markdown_findings,
    markdown_head,
    quality_of,
    times,
)
from condense.report.treatment.search import search_lead, search_markdown, search_planned, search_table, searched_of
from condense.training.remedies import dose_in_words, while_on

if TYPE_CHECKING:
    from rich.console import Console

    from condense.records.plans import Plan
    from condense.records.treatment import Overhead, Schedule


def runs_of(treatment: Treatment, *, probe: bool = False) -> dict[str, Diagnosis]:
    """The diagnosis of every arm on the validation text or on the probe text."""
    return {name: arm.probe if probe else arm.validation for name, arm in treatment.arms.items()}


def number_of(model: Diagnosis | SeedModel | TreatmentSeed, key: str) -> Estimate:
    """A deep number or one of quality of one model."""
    return quality_of(model.quality, key) if key in QUALITY else model.deep.get(key, NOTHING)


def arm_value(treatment: Treatment, name: str, key: str, *, probe: bool = False) -> float | None:
    """A deep number or one of quality of an arm; None where there is none.

    On the validation text it is the mean over the training seeds, so that treated − control is the difference that
    stands beside it; on the probe text, and of the model before, that of the first seed.
    """
    arm = treatment.arms[name]
    own = [seed if name == "treated" else seed.control for seed in treatment.seeds if name != "before" and not probe]
    models = [model for model in own if model is not None] if len(own) > 1 else [arm.probe if probe else arm.validation]
    values = [number_of(model, key).value for model in models]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def seed_words(treatment: Treatment, *, means: bool) -> str:
    """Which seeds the columns of the arms and of the difference are of; "" for one seed."""
    if len(treatment.seeds) < 2:
        return ""
    arms = "means" if means else f"the arms of seed {treatment.seeds[0].seed}, the difference a mean"
    return f"{arms} over {len(treatment.seeds)} seeds"


def arms_table(treatment: Treatment, *, probe: bool = False, level: int = 2) -> Table:
    """Every arm and the difference: the metrics that tables of this level have, then quality."""
    effect = treatment.probe_effect if probe else treatment.effect
    runs = runs_of(treatment, probe=probe)
    change = f"treated − {effect.against}"
    digits = {metric.key: fine_digits(metric.key) for metric in shown(level)}
    digits |= {metric.key: metric.digits for metric in reversed(shown(level, QUALITY))}
    rows = []
    for key, places in digits.items():
        cells = [plain_cell(arm_value(treatment, name, key, probe=probe), places) for name in runs]
        differences = effect.quality if key in QUALITY else effect.deep
        rows.append((title_of(key), (*cells, change_cell(differences.get(key, NOTHING), places))))
    note = corpus_line(next(reversed(runs.values())).corpus)
    note += "" if effect.paired else "; not the same windows in both arms, so not paired"
    columns = (*map(Column, runs), Column(change, full=f"{change} [95 %]"))
    seeds = seed_words(treatment, means=not probe)
    title = f"On the {'probe' if probe else 'validation'} text" + (f": {seeds}" if seeds else "")
    return Table(columns, tuple(rows), title, note, "")


def tasks_of(treatment: Treatment) -> Table:
    """Scores on downstream tasks; no rows if none was asked for."""
    arms = {name: arm.tasks for name, arm in treatment.arms.items()}
    return task_table(arms, treatment.task_effects, f"treated − {treatment.effect.against}")


def layer_table(treatment: Treatment) -> Table:
    """One row per site: every arm and the difference with its interval, for the metrics that every table has."""
    arms = {
        name: {(s.stack, s.site, s.index): s.metrics for s in arm.validation.sites}
        for name, arm in treatment.arms.items()
    }
    effects = {(s.stack, s.site, s.index): s.metrics for s in treatment.effect.sites}
    sites, against = treatment.arms["treated"].validation.sites, treatment.effect.against
    several = len({site.stack for site in sites}) > 1
    word = "effect" if against == "control" else "change"
    columns: list[Column] = []
    for metric in shown(1):
        group = metric.title.capitalize()
        columns += [Column(name, group, f"{metric.title} of the arm {name}") for name in arms]
        columns.append(Column(word, group, f"treated − {against}, {metric.title}"))
    rows = []
    for site in sites:
        site_key, cells = (site.stack, site.site, site.index), list[Cell]()
        for metric in shown(1):
            estimates = [metrics.get(site_key, {}).get(metric.key, NOTHING) for metrics in arms.values()]
            cells += [plain_cell(estimate.value, metric.digits) for estimate in estimates]
            cells.append(change_cell(effects.get(site_key, {}).get(metric.key, NOTHING), metric.digits))
        label = site_label(site)
        rows.append((f"{site.stack} {label}" if several else label, tuple(cells)))
    note = f"{word.capitalize()} is treated − {against}, under it the 95 % interval"
    seeds = seed_words(treatment, means=False)
    note += f": {seeds}." if seeds else "."
    return Table(tuple(columns), tuple(rows), "All sites in depth order, on the validation text", note)


def seed_table(treatment: Treatment) -> Table:
    """One row per training seed: control, treated and the difference in what every table has; none for one seed."""
    several = len(treatment.seeds) > 1
    against, keys = treatment.effect.against, [m.key for m in (*shown(1), *reversed(shown(1, QUALITY)))]
    columns, rows = [], []
    for key in keys:
        title, group = title_of(key), title_of(key)[:1].upper() + title_of(key)[1:]
        columns += [Column(name, group, f"{title}, {name}") for name in (against, "treated")]
        columns.append(Column("difference", group, f"treated − {against}, {title}"))
    columns.append(Column("sha256", "Weights", "first half of the hash of the treated weights"))
    for seed in treatment.seeds if several else ():
        reference = seed.control or treatment.arms["before"].validation
        cells: list[Cell] = []
        for key in keys:
            digits = fine_digits(key)
            change = (seed.effect.quality if key in QUALITY else seed.effect.deep).get(key, NOTHING)
            cells += [plain_cell(number_of(arm, key).value, digits) for arm in (reference, seed)]
            cells.append(change_cell(change, digits))
        rows.append((f"seed {seed.seed}", (*cells, Cell((seed.weights_sha256 or "")[:12] or DASH))))
    note = "Each with the 95 % interval over documents; the model of the first seed is the one that was kept."
    return Table(tuple(columns), tuple(rows), "Every training seed, on the validation text", note, "seed")


def powers_of(treatment: Treatment) -> Table:
    """What the seeds of this treatment could have shown; no rows where that is not known."""
    return power_table(("", power) for power in treatment.effect.power.values())


def scored(treatment: Treatment) -> str:
    """What was scored on downstream tasks, in one line."""
    return scored_by({name: arm.tasks for name, arm in treatment.arms.items()}, treatment.plan.eval_limit)


# --- Markdown ------------------------------------------------------------------------------------------


def treatment_markdown(treatment: Treatment) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    schedule, cost = treatment.schedule, treatment.overhead
    sites = f"Every layer: the arms and treated − {treatment.effect.against}"
    lines = [
        *markdown_head(treatment.condense, f"treatment of {treatment.model}"),
        *_verdict(treatment),
        *_arms_markdown(treatment),
        *_arms_markdown(treatment, probe=True),
        *_tasks(treatment),
        f"Cost of the loss{while_on(treatment.plan.coefficient_schedule)}, forward and backward in turn, {cost.rounds} "
        f"rounds: time {times(cost.time_ratio, 3)}{cost.time_noise}, peak memory {times(cost.memory_ratio, 3)}.",
        "",
        *(search_markdown(treatment.search) if treatment.search else []),
        *_seeds_markdown(treatment),
        *folded(sites, markdown_table(layer_table(treatment))),
        *folded(
            "How it was made",
            [
                f"- command: `{for_code(treatment.command)}`",
                f"- {for_markdown(_loss_line(treatment))}",
                f"- {schedule.steps} steps of {schedule.tokens_per_step} tokens; rows of {schedule.row_length}, "
                f"{'packed' if schedule.packed else 'one document each'}",
                *([f"- a step: {step_line(treatment.plan, schedule)}"] if schedule.processes > 1 else []),
                f"- training text `{for_code(schedule.train_sha256)}`",
                f"- validation text `{for_code(schedule.validation_sha256)}`",
                *([f"- {for_markdown(_adapter(treatment))}"] if treatment.plan.use_peft else []),
                *(f"- {for_markdown(note)}" for note in schedule.notes),
            ],
        ),
    ]
    return "\n".join(lines)


def _verdict(treatment: Treatment) -> list[str]:
    verdict = treatment.verdict
    words = [f"**{verdict.id.upper()}**", f"quality {verdict.quality}", f"what opened: {verdict.opened}"]
    words += [for_markdown(verdict.covers)] if verdict.covers else []
    return [" · ".join(words), "", *markdown_findings(verdict.findings)]


def _arms_markdown(treatment: Treatment, *, probe: bool = False) -> list[str]:
    table = arms_table(treatment, probe=probe)
    note = f"{for_markdown(table.note)}; geometry over the deepest half of the blocks."
    return [f"## {table.title}", "", note, "", *markdown_table(table), ""]


def _seeds_markdown(treatment: Treatment) -> list[str]:
    lines = []
    for table in (powers_of(treatment), seed_table(treatment)):
        lines += [f"## {table.title}", "", *markdown_table(table), ""] if table.rows else []
    return lines


def _tasks(treatment: Treatment) -> list[str]:
    table = tasks_of(treatment)
    if not table.rows:
        return []
    lead = f"{for_markdown(scored(treatment))}; ± is one standard error, ↑ or ↓ the better way."
    return ["## Downstream tasks", "", lead, "", *markdown_table(table), "", CAUTION, ""]


def _of_control(treatment: Treatment) -> str:
    """What the reference is."""
    if treatment.effect.against == "control":
        return "The control arm had the same data order, seeds and steps, without the loss."
    return "No control arm was trained: what changed may be the loss or more training."


# --- the model card ------------------------------------------------------------------------------------


def model_card(treatment: Treatment) -> str:
    """README.md of the treated model: base model, data hashes, arms, numbers, how to reproduce."""
    plan, schedule = treatment.plan, treatment.schedule
    before = treatment.arms["before"].validation.model
    lines = [
        "---",
        f"base_model: {json.dumps(treatment.model)}",
        "library_name: transformers",
        "tags: [condense, dispersion-loss]",
        f"generator: {json.dumps(f'condense {treatment.condense}')}",
        "---",
        "",
        f"# {for_markdown(treatment.model)}, treated with dispersion loss",
        "",
        *_verdict(treatment),
        *_arms_markdown(treatment),
        f"Every trained arm was measured on its saved and reloaded files. {_of_control(treatment)} Geometry is not "
        "quality.",
        "",
        *_tasks(treatment),
        "## How it was made",
        "",
        f"- {for_markdown(_loss_line(treatment))}",
        f"- training: {schedule.steps} steps of {schedule.tokens_per_step} tokens, learning rate "
        f"{plan.peak_rate:g}, seed {plan.seed}",
        *([f"- a step: {step_line(plan, schedule)}"] if schedule.processes > 1 else []),
        *([f"- adapter, merged into the weights: {for_markdown(_adapter(treatment))}"] if plan.use_peft else []),
        f"- training text sha256: `{for_code(schedule.train_sha256)}` ({schedule.train_documents} documents)",
        f"- validation text sha256: `{for_code(schedule.validation_sha256)}` "
        f"({schedule.validation_documents} documents)",
        f"- base weights sha256: `{for_code(before.weights_sha256 or 'not known')}`",
        f"- condense {for_markdown(treatment.condense)}",
        "",
        "```",
        for_code(treatment.command) or "condense.treat(...) from Python",
        "```",
        "",
        "The whole report is in `report.html`, its data in `condense.json`.",
    ]
    return "\n".join(lines) + "\n"


def _loss_line(treatment: Treatment) -> str:
    """The loss, its coefficient and schedule, and where it acts, in one line."""
    plan = treatment.plan
    dose = dose_in_words(plan.first_coefficient, plan.coefficient_schedule)
    return f"loss: {plan.loss}, {dose}{searched_of(treatment.search)}, layers {plan.layers}"


def _adapter(treatment: Treatment) -> str:
    """The adapter of a treatment in one line: rank, targets, what it trains, of which model."""
    parts = [treatment.plan.tuned, treatment.schedule.adapter, f"of {treatment.model}"]
    return "; ".join(part for part in parts if part)


# --- on the terminal -------------------------------------------------------------------------------------


_COLOURS = {"dispersed-at-a-cost": "magenta", "condensed-further": "red"}


def show_plan(plan: Plan, schedule: Schedule, overhead: Overhead, console: Console, power: Sequence[str] = ()) -> None:
    """Print what is about to run: tokens, steps, time, memory, disk; power: what the seeds can show, in lines."""
    arms = "control and treated" if plan.control else "treated only (no control arm)"
    dose = dose_in_words(plan.coefficient, plan.coefficient_schedule)
    dose = f"a searched coefficient{', ' if dose else ''}{dose}" if plan.coefficient is None else dose
    say(
        console,
        f"plan: {schedule.steps} steps of {schedule.tokens_per_step:,} tokens ({schedule.train_tokens:,} tokens) "
        f"for each arm: {arms}",
        *([f"step: {step_line(plan, schedule)}"] if schedule.processes > 1 else []),
        *search_planned(plan, schedule, overhead),
        f"loss: {plan.loss} on layers {plan.layers} at {dose}; learning rate "
        f"{plan.peak_rate:g}, {plan.lr_scheduler}, {_seeds_planned(plan)}",
        f"text: {schedule.train_documents} training and {schedule.validation_documents} validation documents; "
        f"{schedule.rows} rows of {schedule.row_length} tokens, {'packed' if schedule.packed else 'one document each'}",
        *schedule.notes,
        *([f"training: {plan.tuned}; {schedule.adapter}"] if plan.use_peft else []),
        cost_line(overhead, plan),
        f"estimate: {in_words(schedule.seconds)} in all, {size_in_words(schedule.memory_bytes)} memory"
        f"{' in each process' if schedule.processes > 1 else ''}, "
        f"{size_in_words(schedule.disk_bytes)} disk",
        *(f"power: {line}" for line in power),
    )
    if plan.eval_tasks:
        limit = "" if plan.eval_limit is None else f", the first {plan.eval_limit} samples of each"
        say(console, f"tasks, on before and every arm: {', '.join(plan.eval_tasks)}{limit}; not in the estimate")


def step_line(plan: Plan, schedule: Schedule) -> str:
    """What a step of several processes holds, in words."""
    rows, most = schedule.tokens_per_step // schedule.row_length, schedule.batch_size
    batches = f"{schedule.accumulation} micro-batch{'es' if schedule.accumulation > 1 else ''}"
    each = f"{batches} of {'up to ' if most > 1 else ''}{most} row{'s' if most > 1 else ''}"
    sharded = ", the model sharded over them (FSDP2)" if plan.fsdp else ""
    return f"{rows} rows, as {each} on each of {schedule.processes} processes{sharded}"


def _seeds_planned(plan: Plan) -> str:
    last = plan.seed + plan.seeds - 1
    return f"seed {plan.seed}" if plan.seeds == 1 else f"seeds {plan.seed} to {last}; the model of the first is kept"


def cost_line(overhead: Overhead, plan: Plan) -> str:
    """What the loss costs, in one line."""
    covers, time = while_on(plan.coefficient_schedule), f"{times(overhead.time_ratio)}{overhead.time_noise}"
    return f"cost of the loss{covers}: time {time}, peak memory {times(overhead.memory_ratio)}"


def show_treatment(treatment: Treatment, console: Console) -> None:
    """Print the arms beside each other, the paired difference, and the verdict."""
    verdict = treatment.verdict
    say(console, f"{treatment.model} → {treatment.output}", style="bold")
    for probe in (False, True):
        _show_table(arms_table(treatment, probe=probe, level=1 if probe else 2), console)
    _show_task_table(treatment, console)
    if treatment.search is not None:
        _show_table(search_table(treatment.search), console, spare=(5, 2, 4))
        say(console, search_lead(treatment.search))
    say(console, _loss_line(treatment), cost_line(treatment.overhead, treatment.plan))
    facts = f"quality {verdict.quality} · what opened: {verdict.opened}"
    facts += f" · {verdict.covers}" if verdict.covers else ""
    good = verdict.id == "dispersed" and all(finding.severity == "good" for finding in verdict.findings[:1])
    colour = "green" if good else _COLOURS.get(verdict.id, "")
    show_panel(console, verdict.id.upper(), colour, verdict.findings, facts=facts)


def _show_table(table: Table, console: Console, spare: Sequence[int] | None = None) -> None:
    printed = new_table(console, (table.first, *(column.head for column in table.columns)), title=table.title)
    for name, cells in table.rows:
        printed.add_row(text(name), *(cell_text(cell, one_line=console.width >= 80) for cell in cells))
    show_table(console, printed, spare=spare or range(1, len(table.columns)))


def _show_task_table(treatment: Treatment, console: Console) -> None:
    """Scores on downstream tasks with their standard errors below them, and the paired difference."""
    tasks = tasks_of(treatment)
    if not tasks.rows:
        return
    heads = [column.head for column in tasks.columns[2:]]
    table = new_table(console, ("", *heads), title=f"downstream tasks: {scored(treatment)}; ± one standard error")
    for task, (metric, samples, *cells) in tasks.rows:
        table.add_row(text(f"{task} ({samples.text})\n  {metric.text}"), *map(cell_text, cells))
    show_table(console, table, spare=range(1, len(heads)))
    say(console, CAUTION, style="dim")
