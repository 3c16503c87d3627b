"""A trial as Markdown: the table of the arms first, then ranks, doses, findings, definitions, every seed."""

from __future__ import annotations

from collections.abc import Sequence

from condense.records.trial import ArmResult, Trial, reading
from condense.report.escape import for_code, for_markdown
from condense.report.text import DASH, number, signed
from condense.report.trial.rows import DIGITS, MISSING, TITLES, Measure, Row, keys, placed, rankings, rows
from condense.report.trial.words import budget, caveats, dose_lines, recommendation, settings


def trial_markdown(trial: Trial) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [
        f"# condense: trial of remedies on {for_markdown(trial.model.id)}", "", for_markdown(f"{budget(trial)}."), "",
        *arms_table(trial), "",
        *_ranks(trial), *_doses(trial), *_findings(trial), *_tasks(trial), *_definitions(trial), *_seeds(trial),
        *_provenance(trial),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def arms_table(trial: Trial) -> list[str]:
    """The arms beside each other, each against the control, and what has to be said beneath."""
    key = TITLES[keys(trial)[2]]
    head = (
        "arm", "parameters added", "time per step ÷ control", "peak memory ÷ control",
        "deep mean cosine (Δ vs control, 95 % CI)", "effective rank (Δ)", f"{key} (Δ)", "verdict",
    )  # fmt: skip
    lines = [_line(head), f"|{'---|' * len(head)}"]
    lines += [_line(_cells(row)) for row in rows(trial)]
    lines += ["", _beneath(trial)]
    lines += [f"† {for_markdown(name)}: {for_markdown(why)}." for name, why in caveats(trial)]
    return lines


def _beneath(trial: Trial) -> str:
    seeds = trial.plan.seeds
    return (
        "Before and control: absolute values. Differences: mean over the training seeds, 95 % interval over texts; "
        f"bold where it excludes 0. SD: standard deviation over the {seeds} seed{'' if seeds == 1 else 's'}."
    )


def _cells(row: Row) -> list[str]:
    name = for_markdown(row.name)
    if not row.measures:
        return [name, *[DASH] * 6, f"**{row.status}**: {for_markdown(row.reason)}"]
    time = f"{row.time} ({row.time_note})" if row.time_note else row.time
    notes = [*row.notes, *([row.reason] if row.reason else [])]
    verdict = "; ".join([f"**{row.verdict}**" if row.kind == "arm" else row.verdict, *map(for_markdown, notes)])
    return [
        name, row.added or DASH, for_markdown(time) or DASH, row.memory or DASH, *map(_measured, row.measures),
        verdict or DASH,
    ]  # fmt: skip


def _measured(of: Measure) -> str:
    value = f"**{of.value}**" if of.clear else of.value
    parts = [part for part in (of.spread, of.rank) if part]
    return "".join(
        [
            value, f" [{for_markdown(of.interval)}]" if of.interval else "", " †" if of.unpaired else "",
            f" ({', '.join(parts)})" if parts else "",
        ]
    )  # fmt: skip


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
    lines = []
    for dose in trial.doses:
        lines += [
            f"## Dose and response: {for_markdown(dose.title)}", "", f"{for_markdown(recommendation(dose))}.", "",
            _line(("arm", "coefficient", "deep mean cosine (Δ)", f"{TITLES[keys(trial)[2]]} (Δ)")), f"|{'---|' * 4}",
        ]  # fmt: skip
        lines += [_line([for_markdown(arm), *cells]) for arm, *cells in dose_lines(trial, dose)]
        lines.append("")
    return lines


def _findings(trial: Trial) -> list[str]:
    if not trial.findings:
        return []
    lines = ["## Findings", ""]
    for finding in trial.findings:
        title, seen, why = map(for_markdown, (finding.title, finding.seen, finding.why))
        lines += [f"- **{title}**: {seen.rstrip('.')}. {why.rstrip('.')}. Source: {for_markdown(finding.source)}."]
        lines += [f"  Next: `{for_code(finding.next)}`"] if finding.next else []
    return [*lines, ""]


def _tasks(trial: Trial) -> list[str]:
    found = [(arm, effect) for arm in trial.arms for effect in arm.task_effects]
    if not found:
        return []
    head = ("task", "metric", "arm", "score", "control", "difference [95 %]", "paired")
    lines = ["## Downstream tasks", "", _line(head), f"|{'---|' * len(head)}"]
    for arm, effect in found:
        cells = [effect.task, effect.metric, arm.spec.name, number(effect.new), number(effect.old)]
        paired = "by sample" if effect.paired else "no"
        lines.append(_line([*map(for_markdown, cells), signed(effect.difference), paired]))
    return [*lines, ""]


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
    key = keys(trial)
    head = ("arm", "seed", *(f"{TITLES[k]} (Δ)" for k in key))
    lines = ["<details><summary>Every seed</summary>", "", _line(head), f"|{'---|' * len(head)}"]
    for arm in trial.arms:
        for run in arm.runs:
            cells = [_of_seed(arm, run.seed, k, reading(run, k).value) for k in key]
            lines.append(_line([for_markdown(arm.spec.name), str(run.seed), *cells]))
    return [*lines, "", "</details>", ""]


def _of_seed(arm: ArmResult, seed: int, key: str, value: float | None) -> str:
    effects = arm.effect.by_seed if arm.effect else ()
    change = next((effect.metrics.get(key, MISSING) for effect in effects if effect.seed == seed), MISSING)
    own = number(value, DIGITS[key])
    return f"{own} ({signed(change, DIGITS[key])})" if change.value is not None else own


def _provenance(trial: Trial) -> list[str]:
    facts = {
        "command": trial.command, "created": trial.created, "condense": trial.condense,
        "weights sha256": trial.model.weights_sha256 or "not known",
        "training text sha256": trial.schedule.train_sha256, "validation text sha256": trial.schedule.validation_sha256,
        "validation windows sha256": trial.validation.windows_sha256, "protocol": str(trial.protocol.get("hash", "")),
    }  # fmt: skip
    lines = [f"| {key} | `{for_code(value)}` |" for key, value in facts.items() if value]
    return ["<details><summary>How it was made</summary>", "", "| | |", "|---|---|", *lines, "", "</details>"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
