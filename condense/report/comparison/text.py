"""A comparison in words and tables, as Markdown and on the terminal: what was found, members side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from condense.metrics import METRICS, QUALITY
from condense.records.base import Estimate
from condense.records.comparison import CURVES, Comparison, Member
from condense.report.comparison.figures import called, change_of, deep_of, drawn, left_out, same_depth, word_of
from condense.report.comparison.overlay import at_last_common_step, common_step, overlay_rows, step_table
from condense.report.comparison.same import read_beside, same_rows, same_table
from condense.report.console import COLOURS, bar, new_table, say, show_panel, show_table, speaks_unicode, text
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
    DASH,
    LEVEL_WORDS,
    NOTHING,
    WITHOUT_TOP,
    corpus_line,
    folded,
    markdown_findings,
    markdown_head,
    number,
    parameter_count,
    percent,
    quality_of,
    shortened,
    signed,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from condense.records.comparison import Comparison, Member


MOST_SITES = 400
KINDS = {
    "pair": "comparison of two",
    "family": "comparison of several",
    "trajectory": "a run over its steps",
    "overlay": "runs over their steps",
}

MOST_IN_TITLE = 3

# --- what is compared -------------------------------------------------------------------------------


def title(comparison: Comparison) -> str:
    """What is compared: the two names, the run, or how many."""
    if comparison.trajectory is not None:
        run = comparison.trajectory.run.replace("\\", "/").rstrip("/")
        return f"{shortened(run.rsplit('/', 1)[-1] or run, 48)}: {len(comparison.members)} checkpoints"
    runs = comparison.overlay.runs if comparison.overlay else comparison.members
    names = [shortened(one.name, 34) for one in runs]
    if len(names) == 2:
        return f"{names[1]} against {names[0]}"
    if len(names) <= MOST_IN_TITLE:
        return ", ".join(names)
    return f"{len(names)} {'runs' if comparison.overlay else 'models'}, against {names[0]}"


def against(comparison: Comparison) -> str:
    """What every member is compared to: the first, or the first run at the same step."""
    if comparison.overlay is not None:
        return f"{shortened(comparison.overlay.runs[0].name, 34)} at the same step"
    return called(comparison.reference)


def subject(comparison: Comparison) -> str:
    """On what they were compared, in one line."""
    first = comparison.reference
    sizes = sorted({member.model.parameters for member in comparison.members})
    size = " to ".join(dict.fromkeys(parameter_count(count) for count in (sizes[0], sizes[-1])))
    architectures = ", ".join(dict.fromkeys(member.model.architecture for member in comparison.members))
    return f"{architectures}, {size} parameters; {corpus_line(first.corpus)}; {first.model.dtype}"


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
    other, keys = against(comparison), [metric.key for metric in shown(level)] + quality_keys(comparison)
    sized = len({(member.model.parameters, member.blocks) for member in comparison.members}) > 1
    columns = []
    if sized:
        columns += [Column("parameters", "Model", "parameters"), Column("blocks", "Model", "blocks")]
    for key in keys:
        metric = METRICS.get(key) or QUALITY[key]
        group = metric.title.capitalize()
        columns += [Column("value", group, metric.title), Column("− first", group, f"{metric.title} − {other}")]
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
        estimate = value_of(member, key)
        cells.append(value_cell(estimate, digits, bounds=estimate.null_ratio is None, bar=key == "mean_cosine"))
        word = word_of(member, "quality" if key in QUALITY else key)
        difference = change_cell(change_of(member, key), digits_of(key), (word,) if word else ())
        alone = "first" if member.run is None else DASH
        cells.append(difference if member.difference else Cell(alone))
    trends = (member.trend.spearman.rho, member.trend.kendall.tau, member.paper.spearman.rho)
    verdict = member.verdict
    level = LEVEL_WORDS[verdict.level].lower()
    cells += [plain_cell(value, 2, signs=True) for value in trends]
    return (*cells, Cell(level, notes=(verdict.attribution,), sort=level), Cell(verdict.cone))


def site_table(comparison: Comparison) -> Table:
    """One row per site, a column per member and curve; models of different depth are joined by their labels.

    So that the page stays small it holds those members that are drawn, and of many deep ones only the mean cosine;
    comparison.json has all. Of several runs: at the last step that all have.
    """
    if comparison.overlay is not None:
        step, runs = common_step(comparison), at_last_common_step(comparison)
        note = "at the last of each run" if step is None else f"at step {step}, the last that all have"
        table = site_table(runs)
        return replace(table, note=f"{table.note} The runs {note}; comparison.json has all steps.")
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
        estimates = [(key, metrics.get(label, {}).get(key, NOTHING)) for key in keys for metrics in found]
        rows.append((label, tuple(plain_cell(estimate.value, digits_of(key)) for key, estimate in estimates)))
    note = f"One column per member and metric.{left_out(comparison, members, 'comparison.json')}"
    return Table(tuple(columns), tuple(rows), "All sites in depth order", note)


# --- Markdown --------------------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    first = comparison.reference
    lines = [
        *markdown_head(comparison.condense, f"{KINDS[comparison.kind]}, against {against(comparison)}"),
        f"{for_markdown(corpus_line(first.corpus))}.",
        "",
        *markdown_findings(comparison.findings),
    ]
    if comparison.caveats:
        lines += ["Before reading the differences:", "", *(f"- {for_markdown(one)}" for one in comparison.caveats), ""]
    if read_beside(comparison):
        lines += ["## Is it the same model?", "", *markdown_table(same_table(comparison)), ""]
    if comparison.overlay is not None:
        lines += ["## Step by step", "", *markdown_table(step_table(comparison)), ""]
    lines += ["## Side by side", "", *markdown_table(member_table(comparison, 2)), ""]
    facts = [f"- command: `{for_code(comparison.command)}`"] if comparison.command else []
    facts.append(f"- protocol `{for_code(str(comparison.protocol.get('hash', '')))}`")
    facts += [
        f"- {for_markdown(m.name)}: weights `{for_code(str(m.model.weights_sha256))}`, windows "
        f"`{for_code(m.corpus.windows_sha256)}`"
        for m in comparison.members
    ]
    return "\n".join([*lines, *folded("How it was made", facts)])


# --- on the terminal -------------------------------------------------------------------------------------


_BAR, _NAME = 5, 14


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the members side by side, each against the first, then the findings and the next command."""
    plain = not speaks_unicode(console)
    say(console, title(comparison), style="bold")
    say(console, f"{KINDS[comparison.kind]}: {subject(comparison)}")
    if comparison.overlay is not None:
        several = len(comparison.overlay.runs) > 2
        show_table(console, overlay_rows(comparison, console), spare=(6, 8, 5) if several else (5, 7, 4))
    else:
        show_table(console, _member_rows(comparison, console), spare=(6, 3, 4))
    notes = "Δ to the first ± half its 95 % interval, * where that excludes 0"
    unpaired = any(m.difference is not None and not m.difference.paired for m in comparison.members)
    notes += ", ~ unpaired" if unpaired else ""
    if comparison.overlay is not None:
        notes = notes.replace("to the first", f"to {against(comparison)}")
        say(console, f"{notes}; counts: at the level of all differences; no top 3: without three dimensions.")
    else:
        say(console, f"{notes}; no top 3: without three dimensions; rank: share of random directions; rho: with depth.")
    if (beside := same_rows(comparison, console)) is not None:
        show_table(console, beside)
    for caveat in comparison.caveats:
        say(console, f"{'!' if plain else '▲'} {caveat}", style="magenta")
    say(console, "")
    main, facts = comparison.findings[0], ""
    if comparison.kind == "pair":
        named = {"cone": "mean_cosine", "cone without three dimensions": WITHOUT_TOP, "quality": "quality"}
        words = {name: word_of(comparison.members[1], key) for name, key in named.items()}
        same = comparison.members[1].same
        words |= {"same model": same.word} if same else {}
        facts = " · ".join(f"{name}: {word}" for name, word in words.items() if word)
    heading = f"{called(comparison.reference)} and {len(comparison.members) - 1} more"
    if comparison.overlay is not None:
        heading = title(comparison)
    show_panel(console, heading, COLOURS[main.severity], comparison.findings, facts=facts)


def _member_rows(comparison: Comparison, console: Console) -> RichTable:
    trajectory, plain = comparison.trajectory is not None, not speaks_unicode(console)
    peak = comparison.trajectory.peak if comparison.trajectory else None
    heads = ("step" if trajectory else "member", "mean cosine", "Δ cosine", "no top 3", "rank", "bits/byte", "rho")
    table = new_table(console, heads, left=3)
    table.collapse_padding = True
    table.columns[0].no_wrap = True
    table.columns[0].justify = "right" if trajectory else "left"
    for member in comparison.members:
        name = f"{member.step}" if trajectory else shortened(member.name, _NAME)
        mark = "peak " if peak is not None and peak.name == member.name else ""
        table.add_row(text(mark + name, "bold" if mark else ""), *_terminal_cells(member, plain))
    return table


def _terminal_cells(member: Member, plain: bool) -> list[str]:
    cosine = deep_of(member, "mean_cosine").value
    return [
        f"{number(cosine)} {bar(cosine, plain, _BAR)}",
        _mean_cosine_change(member),
        number(deep_of(member, WITHOUT_TOP).value, 2),
        percent(deep_of(member, "effective_rank").null_ratio),
        number(member.quality.bits_per_byte.value),
        signed(member.trend.spearman.rho, 2),
    ]


def _mean_cosine_change(member: Member) -> str:
    if member.difference is None:
        return "first"
    change = change_of(member, "mean_cosine")
    if change.value is None:
        return DASH
    mark = ("*" if change.excludes_zero else " ") + ("" if member.difference.paired else "~")
    half = "" if change.low is None or change.high is None else f" ±{(change.high - change.low) / 2:.3f}"
    return f"{signed(change.value)}{half}{mark}"
