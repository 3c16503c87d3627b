"""A trial as Markdown: the table of the arms first, then ranks, doses, findings, definitions, every seed."""

from __future__ import annotations

from condense.records.trial import ArmResult, Trial, quality_key, reading
from condense.report.escape import for_code, for_markdown
from condense.report.tables import Cell, digits_of, markdown_rows, title_of
from condense.report.text import (
    DASH,
    difference,
    folded,
    markdown_findings,
    markdown_head,
    number,
    plural,
)
from condense.report.trial.tables import (
    MISSING,
    Row,
    budget,
    caveats,
    keys,
    placed,
    rankings,
    recommendation,
    rows,
    settings,
)


def trial_markdown(trial: Trial) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [
        *markdown_head(trial.condense, f"trial of remedies on {trial.model.id}"),
        for_markdown(f"{budget(trial)}."),
        "",
        *_arms(trial),
        "",
        *_ranks(trial),
        *_doses(trial),
        *(["## Findings", "", *markdown_findings(trial.findings)] if trial.findings else []),
        *_tasks(trial),
        *_definitions(trial),
        *_seeds(trial),
        *_provenance(trial),
    ]
    return "\n".join(lines)


def _arms(trial: Trial) -> list[str]:
    """The arms beside each other, each against the control, and what has to be said beneath."""
    cosine, rank, quality = map(title_of, keys(trial))
    head = ["arm", "parameters added", "time per step ÷ control", "peak memory ÷ control"]
    head += [f"{cosine} (Δ vs control, 95 % CI)", f"{rank} (Δ)", f"{quality} (Δ)", "verdict"]
    lines = markdown_rows(head, map(_cells, rows(trial)))
    beneath = (
        "Before and control: absolute values. Differences: mean over the training seeds, 95 % interval; bold where it "
        f"excludes 0. SD: standard deviation over the {plural(trial.plan.seeds, 'seed')}."
    )
    notes = [f"† {for_markdown(name)}: {for_markdown(why)}." for name, why in caveats(trial)]
    return [*lines, "", beneath, *notes]


def _cells(row: Row) -> list[str]:
    name = for_markdown(row.name)
    if not row.measures:
        return [name, *[DASH] * 6, f"**{row.status}**: {for_markdown(row.reason)}"]
    time = f"{row.time} ({row.time_note})" if row.time_note else row.time
    notes = [*row.notes, *([row.reason] if row.reason else [])]
    verdict = "; ".join([f"**{row.verdict}**" if row.kind == "arm" else row.verdict, *map(for_markdown, notes)])
    costs = (row.added or DASH, for_markdown(time) or DASH, row.memory or DASH)
    return [name, *costs, *map(_measure, row.measures), verdict or DASH]


def _measure(of: Cell) -> str:
    text = f"**{of.text}**" if of.strong else of.text
    text += f" [{of.interval}]" if of.interval else ""
    notes = f" ({for_markdown(', '.join(of.notes))})" if of.notes else ""
    return f"{text} {of.mark}{notes}" if of.mark else f"{text}{notes}"


def _ranks(trial: Trial) -> list[str]:
    if trial.unranked:
        return [f"Nothing is ranked: {for_markdown(trial.unranked)}.", ""]
    lines = []
    for ranking in rankings(trial):
        lines += [f"**Ranked by {ranking.title}** (arms of one place are a tie):", ""]
        for place, arms in ranking.places:
            named = ", ".join(placed(name, ties) for name, ties in arms)
            lines.append(f"- place {place}: {for_markdown(named)}")
        lines += [f"- not ranked: {for_markdown(name)} ({for_markdown(why)})" for name, why in ranking.without]
        lines.append("")
    return lines


def _doses(trial: Trial) -> list[str]:
    lines, key = [], quality_key(trial)
    head = ("arm", "coefficient", f"{title_of('mean_cosine')} (Δ)", f"{title_of(key)} (Δ)")
    for dose in trial.doses:
        points = (
            (for_markdown(p.arm), f"{p.coefficient:g}", difference(p.effect), difference(p.quality, digits_of(key)))
            for p in dose.points
        )
        lines += [f"## Dose and response: {for_markdown(dose.title)}", "", f"{for_markdown(recommendation(dose))}.", ""]
        lines += [*markdown_rows(head, points), ""]
    return lines


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
        chosen = ", ".join(f"{name} {value}" for name, value in settings(arm))
        chosen = f" ({for_markdown(chosen)})" if chosen else ""
        text, source = for_markdown(arm.definition), for_markdown(arm.source)
        lines.append(f"- **{for_markdown(arm.spec.name)}**{chosen}: {text} Source: {source}.")
        lines += [f"  - {for_markdown(detail)}" for detail in arm.details]
    return [*lines, ""]


def _seeds(trial: Trial) -> list[str]:
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
        "left out of the text": "; ".join(trial.schedule.notes),
        "training text sha256": trial.schedule.train_sha256,
        "validation text sha256": trial.schedule.validation_sha256,
        "validation windows sha256": trial.validation.windows_sha256,
        "protocol": str(trial.protocol.get("hash", "")),
    }
    cells = [(key, f"`{for_code(value)}`") for key, value in facts.items() if value]
    return folded("How it was made", markdown_rows(("", ""), cells))
