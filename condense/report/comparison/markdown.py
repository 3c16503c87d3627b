"""A comparison as Markdown: what was found, members side by side, differences to the first. Records in, text out."""

from __future__ import annotations

from condense.records.comparison import Comparison, Member
from condense.report.diagnosis.figures import NOTHING
from condense.report.escape import for_code, for_markdown
from condense.report.text import DASH, corpus_line, number, parameter_count, percent, signed
from condense.report.treatment.figures import WITHOUT_TOP

VALUES = (("mean_cosine", "deep mean cosine", 3), (WITHOUT_TOP, "without top 3", 3), ("effective_rank", "eff. rank", 1))
CHANGES = (
    ("mean_cosine", "deep mean cosine", 4), (WITHOUT_TOP, "without top 3", 4), ("effective_rank", "effective rank", 1),
    ("bits_per_byte", "bits per byte", 4), ("loss", "loss", 4),
)  # fmt: skip


def comparison_markdown(comparison: Comparison) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    corpus, first = comparison.reference.corpus, for_markdown(comparison.reference.name)
    lines = [
        f"# condense: {comparison.kind} of {len(comparison.members)}, against {first}",
        "",
        f"{for_markdown(corpus_line(corpus))}.",
        "",
    ]
    for finding in comparison.findings:
        lines.append(f"- **{for_markdown(finding.title)}**: {for_markdown(finding.seen)}. {for_markdown(finding.why)}")
    lines += ["", f"Next: `{for_code(comparison.findings[0].next)}`", ""]
    if comparison.caveats:
        lines += ["Before reading the differences:", ""]
        lines += [f"- {for_markdown(caveat)}" for caveat in comparison.caveats]
        lines.append("")
    lines += ["## Side by side", "", *_members(comparison), "", "## Differences to the first", ""]
    lines += [*_differences(comparison), "", "<details><summary>How it was made</summary>", ""]
    if comparison.command:
        lines.append(f"- command: `{for_code(comparison.command)}`")
    lines.append(f"- protocol `{for_code(str(comparison.protocol.get('hash', '')))}`")
    lines += [
        f"- {for_markdown(m.name)}: weights `{for_code(str(m.model.weights_sha256))}`, windows "
        f"`{for_code(m.corpus.windows_sha256)}`"
        for m in comparison.members
    ]
    return "\n".join([*lines, "", "</details>"]) + "\n"


def _members(comparison: Comparison) -> list[str]:
    heads = ["member", "parameters", *(title for _, title, _ in VALUES), "of random", "bits/byte", "loss", "rho", "tau"]
    heads.append("verdict")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for member in comparison.members:
        cells = [for_markdown(member.name), parameter_count(member.model.parameters)]
        cells += [number(member.deep.get(key, NOTHING).value, digits) for key, _, digits in VALUES]
        cells.append(percent(member.deep.get("effective_rank", NOTHING).null_ratio))
        cells += [number(of.value, 3) for of in (member.quality.bits_per_byte, member.quality.loss)]
        cells += [_plus(value) for value in (member.trend.spearman.rho, member.trend.kendall.tau)]
        cells.append(f"{member.verdict.level}: {for_markdown(member.verdict.attribution)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _differences(comparison: Comparison) -> list[str]:
    heads = ["member", *(title for _, title, _ in CHANGES), "paired"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for member in comparison.members[1:]:
        lines.append(f"| {' | '.join(_changes(member))} |")
    return lines


def _changes(member: Member) -> list[str]:
    effect = member.difference
    if effect is None:
        return [for_markdown(member.name), *(DASH for _ in CHANGES), DASH]
    both = {**effect.deep, **effect.quality}
    cells = [signed(both.get(key, NOTHING), digits) for key, _, digits in CHANGES]
    return [for_markdown(member.name), *cells, "yes" if effect.paired else "no"]


def _plus(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"
