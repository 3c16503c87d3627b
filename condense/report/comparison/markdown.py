"""The tables of a comparison; its report as Markdown: what was found, members side by side. Records in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from condense.metrics import METRICS, QUALITY
from condense.records.base import Estimate
from condense.records.comparison import CURVES, Comparison, Member
from condense.report.comparison.figures import called, change_of, deep_of, drawn, left_out, same_depth, word_of
from condense.report.escape import for_code, for_markdown
from condense.report.tables import (
    Cell,
    Column,
    Table,
    change_cell,
    digits_of,
    markdown_table,
    plain_cell,
    shown,
    value_cell,
)
from condense.report.text import (
    LEVEL_WORDS,
    NOTHING,
    corpus_line,
    folded,
    markdown_findings,
    markdown_head,
    parameter_count,
    quality_of,
    shortened,
)

MOST_SITES = 400
KINDS = {"pair": "comparison of two", "family": "comparison of several", "trajectory": "a run over its steps"}

# --- tables ----------------------------------------------------------------------------------------------


def member_name(member: Member) -> str:
    """What a member is called in a table."""
    return called(member) if member.step is not None else shortened(member.name, 34)


def quality_keys(comparison: Comparison) -> list[str]:
    """Bits per byte, or the loss where no member has them."""
    known = any(member.quality.bits_per_byte.value is not None for member in comparison.members)
    return ["bits_per_byte"] if known else ["loss"]


def value_of(member: Member, key: str) -> Estimate:
    """A deep metric or a number of quality of a member."""
    return quality_of(member.quality, key) if key in QUALITY else deep_of(member, key)


def member_table(comparison: Comparison, level: int = 1) -> Table:
    """One row per member: size, metrics and quality with their intervals, each difference to the first, the trend."""
    against, keys = called(comparison.reference), [metric.key for metric in shown(level)] + quality_keys(comparison)
    sized = len({(member.model.parameters, member.blocks) for member in comparison.members}) > 1
    columns = []
    if sized:
        columns += [Column("parameters", "Model", "parameters"), Column("blocks", "Model", "blocks")]
    for key in keys:
        metric = METRICS.get(key) or QUALITY[key]
        group = metric.title.capitalize()
        columns += [Column("value", group, metric.title), Column("− first", group, f"{metric.title} − {against}")]
    columns += [Column("rho", "Trend", "rho with depth"), Column("tau", "Trend", "tau with depth")]
    columns += [Column("published", "Trend", "rho as published: last state normed")]
    columns += [Column("level", "Verdict", "what the diagnosis says"), Column("cone", "Verdict", "the cone’s word")]
    rows = [(member_name(member), _member_cells(member, keys, sized)) for member in comparison.members]
    paired = all(member.difference.paired for member in comparison.members if member.difference)
    note = "Under a value its 95 % interval or its share of the Gaussian null, under a difference the "
    note += "paired 95 % interval." if paired else "95 % interval."
    return Table(tuple(columns), tuple(rows), "All members", note, "member")


def _member_cells(member: Member, keys: Sequence[str], sized: bool) -> tuple[Cell, ...]:
    size = member.model.parameters
    cells = [Cell(parameter_count(size), sort=str(size)), Cell(str(member.blocks))] if sized else []
    for key in keys:
        digits = digits_of(key) if key in METRICS else 3
        of = value_of(member, key)
        cells.append(value_cell(of, digits, bounds=of.null_ratio is None, bar=key == "mean_cosine"))
        word = word_of(member, "quality" if key in QUALITY else key)
        difference = change_cell(change_of(member, key), digits_of(key), (word,) if word else ())
        cells.append(difference if member.difference else Cell("first"))
    trends = (member.trend.spearman.rho, member.trend.kendall.tau, member.paper.spearman.rho)
    verdict = member.verdict
    level = LEVEL_WORDS[verdict.level].lower()
    cells += [plain_cell(value, 2, signs=True) for value in trends]
    return (*cells, Cell(level, notes=(verdict.attribution,), sort=level), Cell(verdict.cone))


def site_table(comparison: Comparison) -> Table:
    """One row per site, a column per member and curve; models of different depth are joined by their labels.

    So that the page stays small it holds those members that are drawn, and of many deep ones only the mean cosine;
    comparison.json has all.
    """
    members = drawn(comparison)
    keys = CURVES if sum(len(member.sites) for member in members) <= MOST_SITES else CURVES[:1]
    columns = [
        Column(called(member), METRICS[key].title.capitalize(), f"{METRICS[key].title} of {member.name}")
        for key in keys
        for member in members
    ]
    labels = list(dict.fromkeys(site.label for member in members for site in member.sites if site.site != "output"))
    if not same_depth(members):
        labels.sort(key=lambda label: (label != "embedding", int(label.rpartition(" ")[2]) if " " in label else 0))
    labels += ["output"] if any(member.sites[-1].site == "output" for member in members) else []
    found = [{site.label: site.metrics for site in member.sites} for member in members]
    rows = []
    for label in labels:
        of = [(key, metrics.get(label, {}).get(key, NOTHING)) for key in keys for metrics in found]
        rows.append((label, tuple(plain_cell(estimate.value, digits_of(key)) for key, estimate in of)))
    note = f"One column per member and metric.{left_out(comparison, members, 'comparison.json')}"
    return Table(tuple(columns), tuple(rows), "All sites in depth order", note)


# --- Markdown --------------------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    first = comparison.reference
    lines = [
        *markdown_head(comparison.condense, f"{KINDS[comparison.kind]}, against {first.name}"),
        f"{for_markdown(corpus_line(first.corpus))}.",
        "",
        *markdown_findings(comparison.findings),
    ]
    if comparison.caveats:
        lines += ["Before reading the differences:", "", *(f"- {for_markdown(one)}" for one in comparison.caveats), ""]
    lines += ["## Side by side", "", *markdown_table(member_table(comparison, 2)), ""]
    facts = [f"- command: `{for_code(comparison.command)}`"] if comparison.command else []
    facts.append(f"- protocol `{for_code(str(comparison.protocol.get('hash', '')))}`")
    facts += [
        f"- {for_markdown(m.name)}: weights `{for_code(str(m.model.weights_sha256))}`, windows "
        f"`{for_code(m.corpus.windows_sha256)}`"
        for m in comparison.members
    ]
    return "\n".join([*lines, *folded("How it was made", facts)])
