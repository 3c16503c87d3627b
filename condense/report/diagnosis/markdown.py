"""A diagnosis as Markdown: the verdict first, the layer table folded. Records in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from condense.records.diagnosis import Diagnosis, SiteReading, Verdict
from condense.report.escape import for_code, for_markdown
from condense.report.tables import Column, Table, markdown_rows, markdown_table, shown, value_cell
from condense.report.text import (
    LEVELS,
    NOTHING,
    TWIN_WORDS,
    estimate,
    folded,
    listed,
    markdown_findings,
    markdown_head,
    quality_lines,
    subject,
)


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [*markdown_head(diagnosis.condense, diagnosis.model.id), for_markdown(subject(diagnosis)), ""]
    lines += _verdict(diagnosis.verdict)
    for name, stack in diagnosis.stacks.items():
        lines += [f"## {for_markdown(name)} stack", "", *_verdict(stack.verdict)]
    lines += ["## Quality on the same windows", ""]
    lines += [f"- {for_markdown(line)}" for line in quality_lines(diagnosis)]
    lines += ["", *folded("Layer table", markdown_table(layer_table(diagnosis.sites)))]
    return "\n".join([*lines, *folded("Provenance", _provenance(diagnosis))])


def _verdict(verdict: Verdict) -> list[str]:
    words = [f"**{LEVELS[verdict.level]}**", f"cone: {verdict.cone}", f"rank: {verdict.rank}"]
    words.append(f"attribution: {for_markdown(verdict.attribution)}")
    words += [f"borderline: {for_markdown(listed(verdict.borderline))}"] if verdict.borderline else []
    words += [for_markdown(verdict.reason)] if verdict.reason else []
    words += [TWIN_WORDS[verdict.twin]] if verdict.twin else []
    note = "The bands are a convention (no validated threshold is published); geometry is not quality."
    shares = [f"- {axis}: {for_markdown(verdict.share(axis))}" for axis in verdict.frequencies if verdict.share(axis)]
    drawn = ["How often resampled documents give each word:", "", *shares, ""] if shares else []
    beyond = [for_markdown(verdict.not_covered), ""] if verdict.not_covered else []
    return [" · ".join(words), "", *beyond, *drawn, *markdown_findings(verdict.findings), note, ""]


def layer_table(sites: Sequence[SiteReading]) -> Table:
    """One row per site with the metrics that are shown where there is room."""
    metrics, several = shown(2), len({site.stack for site in sites}) > 1
    rows = tuple(
        (
            f"{site.stack} {site.label}" if several else site.label,
            tuple(
                value_cell(site.metrics.get(m.key, NOTHING), m.digits, bounds=m.key == "mean_cosine") for m in metrics
            ),
        )
        for site in sites
    )
    return Table(tuple(Column(metric.title) for metric in metrics), rows)


def _provenance(diagnosis: Diagnosis) -> list[str]:
    model, corpus = diagnosis.model, diagnosis.corpus
    facts = {
        "weights sha256": model.weights_sha256 or "not known",
        "revision": model.revision or "none",
        "corpus sha256": corpus.sha256,
        "windows sha256": corpus.windows_sha256,
        "protocol": str(diagnosis.protocol.get("hash", "")),
        "condense": diagnosis.condense,
        "deep mean cosine": estimate(diagnosis.deep.get("mean_cosine", NOTHING)),
    }
    return markdown_rows(("", ""), ((key, f"`{for_code(value)}`") for key, value in facts.items()))
