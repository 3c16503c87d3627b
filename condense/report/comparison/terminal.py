"""A comparison on the terminal: a row per member with a bar, differences to the first, what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.report.comparison.figures import called, change_of, deep_of, word_of
from condense.report.comparison.markdown import KINDS
from condense.report.comparison.page import subject, title
from condense.report.console import COLOURS, bar, new_table, panel, say, speaks_unicode, text
from condense.report.text import DASH, WITHOUT_TOP, number, percent, shortened, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from condense.records.comparison import Comparison, Member

_BAR, _NAME = 5, 14


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the members side by side, each against the first, then the findings and the next command."""
    plain = not speaks_unicode(console)
    say(console, title(comparison), style="bold")
    say(console, f"{KINDS[comparison.kind]}: {subject(comparison)}")
    console.print(_table(comparison, console))
    notes = "Δ to the first ± half its 95 % interval, * where that excludes 0"
    unpaired = any(m.difference is not None and not m.difference.paired for m in comparison.members)
    notes += ", ~ unpaired" if unpaired else ""
    say(console, f"{notes}; no top 3: without three dimensions; rank: share of random directions; rho: with depth.")
    for caveat in comparison.caveats:
        say(console, f"{'!' if plain else '▲'} {caveat}", style="magenta")
    say(console, "")
    main, facts = comparison.findings[0], ""
    if comparison.kind == "pair":
        named = {"cone": "mean_cosine", "cone without three dimensions": WITHOUT_TOP, "quality": "quality"}
        words = {name: word_of(comparison.members[1], key) for name, key in named.items()}
        facts = " · ".join(f"{name}: {word}" for name, word in words.items() if word)
    heading = f"{called(comparison.reference)} and {len(comparison.members) - 1} more"
    console.print(panel(heading, COLOURS[main.severity], comparison.findings, facts=facts))


def _table(comparison: Comparison, console: Console) -> Table:
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
        table.add_row(text(mark + name, "bold" if mark else ""), *_cells(member, plain))
    return table


def _cells(member: Member, plain: bool) -> list[str]:
    cosine = deep_of(member, "mean_cosine").value
    return [
        f"{number(cosine)} {bar(cosine, plain, _BAR)}",
        _change(member),
        number(deep_of(member, WITHOUT_TOP).value, 2),
        percent(deep_of(member, "effective_rank").null_ratio),
        number(member.quality.bits_per_byte.value),
        signed(member.trend.spearman.rho, 2),
    ]


def _change(member: Member) -> str:
    if member.difference is None:
        return "first"
    of = change_of(member, "mean_cosine")
    if of.value is None:
        return DASH
    mark = ("*" if of.excludes_zero else " ") + ("" if member.difference.paired else "~")
    half = "" if of.low is None or of.high is None else f" ±{(of.high - of.low) / 2:.3f}"
    return f"{signed(of.value)}{half}{mark}"
