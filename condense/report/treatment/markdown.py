"""A treatment as Markdown: verdict, the three arms beside each other, effect per site. Records in, text out."""

from __future__ import annotations

from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment
from condense.report.escape import for_code, for_markdown
from condense.report.tasks import CAUTION, taken_from, task_rows
from condense.report.text import DASH, number, signed

ROWS: tuple[tuple[str, str, int], ...] = (
    ("mean_cosine", "deep mean cosine", 4),
    ("mean_cosine_without_top_dimensions", "… without top 3 dimensions", 4),
    ("top_dimension_share", "share of top 3 dimensions", 3),
    ("effective_rank", "effective rank", 1),
    ("entropy_rank", "entropy rank", 1),
    ("relative_variance", "relative variance", 4),
    ("cross_text_cosine", "cross-text cosine", 4),
)
QUALITY_ROWS: tuple[tuple[str, str, int], ...] = (
    ("bits_per_byte", "bits per byte", 4),
    ("loss", "loss (nats/token)", 4),
    ("perplexity", "perplexity", 2),
)


def treatment_markdown(treatment: Treatment) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [
        f"# condense: treatment of {for_markdown(treatment.model)}",
        "",
        *verdict_lines(treatment),
        "## On the validation text",
        "",
        *arms_table(treatment),
        "",
        "## On the probe text",
        "",
        *arms_table(treatment, probe=True),
        "",
        *tasks_lines(treatment),
        *_overhead(treatment),
        *_sites(treatment),
        "<details><summary>How it was made</summary>",
        "",
        f"- command: `{for_code(treatment.command)}`",
        f"- {treatment.schedule.steps} steps of {treatment.schedule.tokens_per_step} tokens; rows of "
        f"{treatment.schedule.row_length}, {'packed' if treatment.schedule.packed else 'one document each'}",
        f"- training text `{treatment.schedule.train_sha256}`",
        f"- validation text `{treatment.schedule.validation_sha256}`",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def verdict_lines(treatment: Treatment) -> list[str]:
    """The verdict with its findings."""
    verdict = treatment.verdict
    parts = (f"**{verdict.id.upper()}**", f"quality {verdict.quality}", verdict.opened, for_markdown(verdict.covers))
    lines = [" · ".join(part for part in parts if part), ""]
    for finding in verdict.findings:
        lines.append(f"- **{for_markdown(finding.title)}**: {for_markdown(finding.seen)}. {for_markdown(finding.why)}")
    return [*lines, "", f"Next: `{for_code(verdict.findings[0].next)}`", ""]


def arms_table(treatment: Treatment, *, probe: bool = False) -> list[str]:
    """The arms beside each other and the paired difference with its interval."""
    effect = treatment.probe_effect if probe else treatment.effect
    names = list(treatment.arms)
    lines = [
        f"| | {' | '.join(names)} | treated − {effect.against} [95 %] |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    runs = [arm.probe if probe else arm.validation for arm in treatment.arms.values()]
    for key, title, digits in ROWS:
        cells = [number(run.deep[key].value, digits) for run in runs]
        lines.append(f"| {title} | {' | '.join(cells)} | {signed(effect.deep[key], digits)} |")
    for key, title, digits in QUALITY_ROWS:
        cells = [number(quality(run, key).value, digits) for run in runs]
        change = signed(effect.quality[key], digits) if key in effect.quality else DASH
        lines.append(f"| {title} | {' | '.join(cells)} | {change} |")
    return lines


def tasks_lines(treatment: Treatment) -> list[str]:
    """The section on downstream tasks; nothing if none was asked for."""
    arms = {name: arm.tasks for name, arm in treatment.arms.items()}
    rows = task_rows(arms, treatment.task_effects)
    if not rows:
        return []
    lines = [
        "## Downstream tasks", "",
        f"{for_markdown(taken_from(arms, treatment.plan.eval_limit))}; ± is one standard error, ↑ or ↓ the better way.",
        "",
        f"| task | metric | n | {' | '.join(arms)} | treated − {treatment.effect.against} [95 %] |",
        f"|{'---|' * (len(arms) + 4)}",
    ]  # fmt: skip
    for row in rows:
        cells = [f"{value} {error}".strip() for value, error in row.cells]
        change = f"{row.change} [{row.interval.replace(' to ', ', ')}]" if row.interval else row.change
        change += f" ({for_markdown(row.remark)})" if row.remark else ""
        name, metric = for_markdown(row.task), for_markdown(row.metric)
        lines.append(f"| {name} | {metric} {row.better} | {row.samples} | {' | '.join(cells)} | {change} |")
    return [*lines, "", CAUTION, ""]


def quality(run: Diagnosis, key: str) -> Estimate:
    """One of a diagnosis' quality numbers by its key."""
    found: Estimate = getattr(run.quality, key)
    return found


def _overhead(treatment: Treatment) -> list[str]:
    cost = treatment.overhead
    return [
        f"Cost of the loss, forward and backward in turn, {cost.rounds} rounds: time × {number(cost.time_ratio, 3)}, "
        f"peak memory × {number(cost.memory_ratio, 3)}.",
        "",
    ]


def _sites(treatment: Treatment) -> list[str]:
    head = ("site", "mean cosine", "without top 3", "effective rank")
    lines = [
        f"<details><summary>Differences per site (treated − {treatment.effect.against})</summary>", "",
        f"| {' | '.join(head)} |", f"|{'---|' * len(head)}",
    ]  # fmt: skip
    for site in treatment.effect.sites:
        label = f"block {site.index}" if site.site == "block" else site.site
        keys = (("mean_cosine", 4), ("mean_cosine_without_top_dimensions", 4), ("effective_rank", 2))
        cells = [signed(site.metrics[key], digits) for key, digits in keys]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, "", "</details>", ""]
