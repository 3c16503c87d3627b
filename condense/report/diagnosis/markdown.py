"""A diagnosis as Markdown: the verdict first, the layer table folded. Records in, text out."""

from __future__ import annotations

from condense.records.diagnosis import Diagnosis, SiteReading, Verdict
from condense.report.escape import for_code, for_markdown
from condense.report.text import LEVELS, estimate, number, percent, quality_lines, subject

_HEAD = ("site", "mean cosine", "95 % interval", "without top 3", "cross-text", "effective rank", "of null",
         "relative variance", "sink ratio")  # fmt: skip


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [f"# condense: {for_markdown(diagnosis.model.id)}", "", for_markdown(subject(diagnosis)), ""]
    lines += _verdict(diagnosis.verdict)
    for name, stack in diagnosis.stacks.items():
        lines += [f"## {name} stack", "", *_verdict(stack.verdict)]
    lines += [
        "## Quality on the same windows",
        "",
        *(f"- {line}" for line in map(for_markdown, quality_lines(diagnosis))),
        "",
    ]
    lines += _table(diagnosis.sites)
    lines += _provenance(diagnosis)
    return "\n".join(lines) + "\n"


def _verdict(verdict: Verdict) -> list[str]:
    word = LEVELS[verdict.level]
    lines = [
        f"**{word}** · cone: {verdict.cone} · rank: {verdict.rank} · attribution: {for_markdown(verdict.attribution)}"
        + (" · borderline" if verdict.borderline else ""),
        "",
    ]
    for finding in verdict.findings:
        lines += [
            f"- **{for_markdown(finding.title)}**",
            f"  - seen: {for_markdown(finding.seen)}",
            f"  - why it matters: {for_markdown(finding.why)}",
            f"  - next: `{for_code(finding.next)}`",
            f"  - source: {for_markdown(finding.source)}",
        ]
    return [
        *lines,
        "",
        "The bands are a convention (no validated threshold is published); geometry is not quality.",
        "",
    ]


def _table(sites: tuple[SiteReading, ...]) -> list[str]:
    stacks = {site.stack for site in sites}
    lines = ["<details><summary>Layer table</summary>", "", f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for site in sites:
        label = f"{site.stack} {site.label}" if len(stacks) > 1 else site.label
        m = site.metrics
        low, high = m["mean_cosine"].low, m["mean_cosine"].high
        cells = [
            label, number(m["mean_cosine"].value), f"{number(low)} to {number(high)}" if low is not None else "–",
            number(m["mean_cosine_without_top_dimensions"].value), number(m["cross_text_cosine"].value),
            number(m["effective_rank"].value, 1), percent(m["effective_rank"].null_ratio),
            number(m["relative_variance"].value), number(m["sink_ratio"].value, 1),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "</details>", ""]


def _provenance(diagnosis: Diagnosis) -> list[str]:
    model, corpus = diagnosis.model, diagnosis.corpus
    facts = {
        "weights sha256": model.weights_sha256 or "not known",
        "revision": model.revision or "none",
        "corpus sha256": corpus.sha256,
        "windows sha256": corpus.windows_sha256,
        "protocol": str(diagnosis.protocol.get("hash", "")),
        "condense": diagnosis.condense,
        "deep mean cosine": estimate(diagnosis.deep["mean_cosine"]),
    }
    rows = [f"| {key} | `{for_code(value)}` |" for key, value in facts.items()]
    return ["<details><summary>Provenance</summary>", "", "| | |", "|---|---|", *rows, "", "</details>"]
