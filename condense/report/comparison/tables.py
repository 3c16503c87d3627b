"""The tables of a comparison as cells: one row per member; every site of every member."""

from __future__ import annotations

from condense.metrics import METRICS
from condense.records.base import Estimate
from condense.records.comparison import CURVES, Comparison, Member
from condense.report.comparison.figures import called, drawn, same_depth
from condense.report.diagnosis.figures import NOTHING
from condense.report.tables import Cell, Column, Table
from condense.report.text import number, parameter_count, percent, shortened, typeset
from condense.report.treatment.cards import excludes_zero
from condense.report.treatment.figures import WITHOUT_TOP

DEEP = (
    ("mean_cosine", "Mean cosine", 3), (WITHOUT_TOP, "Without top 3 dimensions", 3),
    ("effective_rank", "Effective rank", 1),
)  # fmt: skip
QUALITY = (("bits_per_byte", "Bits per byte", 3), ("loss", "Loss, nats per token", 3))
MOST_SITES = 400
LEVELS = {"severe": "severe", "condensed": "condensed", "watch": "watch", "ok": "ok", "undefined": "no verdict"}


def member_table(comparison: Comparison) -> Table:
    """One row per member: deep metrics and quality with their intervals, each difference to the first, the trend."""
    against = called(comparison.reference)
    columns = list(_MODEL) if _differ(comparison) else []
    for key, group, _ in DEEP:
        columns += [Column("value", group, f"{METRICS[key].title} over the deepest half")]
        columns += [Column("− first", group, f"{METRICS[key].title}, difference to {against}")]
    quality = _quality(comparison)
    for _, group, _ in quality:
        columns += [Column("value", group, group), Column("− first", group, f"{group}, difference to {against}")]
    columns += [Column("rho", "Trend", "Spearman rho of mean cosine with depth"),
                Column("tau", "Trend", "Kendall tau of mean cosine with depth"),
                Column("published", "Trend", "Spearman rho as published: last state normed")]  # fmt: skip
    columns += [Column("level", "Verdict", "what the diagnosis says"), Column("cone", "Verdict", "the cone's word")]
    rows = tuple(
        (_row_name(member), tuple(_cells(member, _differ(comparison), quality))) for member in comparison.members
    )
    return Table(tuple(columns), rows)


_MODEL = (Column("parameters", "Model", "number of parameters"), Column("blocks", "Model", "number of blocks"))


def _differ(comparison: Comparison) -> bool:
    """Whether the members are of different size."""
    return len({(member.model.parameters, member.blocks) for member in comparison.members}) > 1


def _quality(comparison: Comparison) -> tuple[tuple[str, str, int], ...]:
    """Bits per byte, or the loss where no member has them."""
    known = any(member.quality.bits_per_byte.value is not None for member in comparison.members)
    return QUALITY[:1] if known else QUALITY[1:]


def _row_name(member: Member) -> str:
    return called(member) if member.step is not None else shortened(member.name, 34)


def _cells(member: Member, sized: bool, quality: tuple[tuple[str, str, int], ...]) -> list[Cell]:
    count, change = member.model.parameters, member.difference
    cells = [Cell(parameter_count(count), sort=str(count)), Cell(str(member.blocks))] if sized else []
    for key, _, digits in DEEP:
        of = member.deep.get(key, NOTHING)
        cells.append(_value(of, digits, share=key == "effective_rank", bar=key == "mean_cosine"))
        cells.append(_change(change.deep.get(key, NOTHING) if change else None, digits))
    for key, _, digits in quality:
        of = getattr(member.quality, key)
        cells.append(_value(of, digits))
        cells.append(_change(change.quality.get(key, NOTHING) if change else None, digits + 1))
    for value in (member.trend.spearman.rho, member.trend.kendall.tau, member.paper.spearman.rho):
        cells.append(Cell("–") if value is None else Cell(typeset(f"{value:+.2f}"), sort=f"{value:.6g}"))
    verdict = member.verdict
    return [*cells, Cell(LEVELS[verdict.level], verdict.attribution, sort=LEVELS[verdict.level]), Cell(verdict.cone)]


def _value(of: Estimate, digits: int, *, share: bool = False, bar: bool = False) -> Cell:
    if of.value is None:
        return Cell("–", of.reason or "")
    note = "" if of.low is None or of.high is None else f"{number(of.low, digits)} to {number(of.high, digits)}"
    if share and of.null_ratio is not None:
        note = f"{percent(of.null_ratio)} of random"
    meter = round(100 * min(1.0, max(0.0, of.value)), 1) if bar else None
    return Cell(typeset(number(of.value, digits)), typeset(note), f"{of.value:.6g}", meter)


def _change(of: Estimate | None, digits: int) -> Cell:
    """A difference, marked where its interval excludes 0; the first member has none."""
    if of is None:
        return Cell("first")
    if of.value is None:
        return Cell("–", of.reason or "")
    note = "" if of.low is None or of.high is None else f"{of.low:+.{digits}f} to {of.high:+.{digits}f}"
    mark = " *" if excludes_zero(of) else ""
    return Cell(typeset(f"{of.value:+.{digits}f}{mark}"), typeset(note), f"{of.value:.6g}")


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
    labels += [label for label in ("output",) if any(member.sites[-1].site == label for member in members)]
    found = {member.name: {site.label: site for site in member.sites} for member in members}
    rows = []
    for label in labels:
        cells = []
        for key in keys:
            for member in members:
                site = found[member.name].get(label)
                value = site.metrics.get(key, NOTHING).value if site else None
                digits = 1 if key == "effective_rank" else 3
                cells.append(Cell("–") if value is None else Cell(typeset(number(value, digits)), sort=f"{value:.6g}"))
        rows.append((label, tuple(cells)))
    return Table(tuple(columns), tuple(rows))
