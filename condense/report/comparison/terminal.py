"""A comparison on the terminal: a row per member with a bar, differences to the first, what was found. 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.records.base import Estimate
from condense.report.comparison.facts import KINDS, subject, title
from condense.report.comparison.figures import called
from condense.report.console import bar
from condense.report.diagnosis.figures import NOTHING
from condense.report.escape import for_terminal
from condense.report.text import DASH, SEVERITIES, number, percent, shortened
from condense.report.treatment.cards import excludes_zero

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from condense.records.comparison import Comparison, Member

_COLOURS = {"severe": "red", "warning": "magenta", "good": "green", "info": ""}
_BAR, _NAME = 5, 14


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the members side by side, each against the first, then the findings and the next command."""
    from rich.text import Text

    plain = not console.encoding.lower().replace("-", "").startswith("utf")
    console.print(Text(for_terminal(title(comparison)), style="bold"))
    console.print(Text(for_terminal(f"{KINDS[comparison.kind]}: {subject(comparison)}")))
    console.print(_table(comparison, plain))
    notes = "Δ to the first ± half its 95 % interval over texts, * where that excludes 0"
    unpaired = any(m.difference is not None and not m.difference.paired for m in comparison.members)
    notes += ", ~ unpaired" if unpaired else ""
    notes += "; no top 3: without three dimensions; rank: share of random directions; rho: with depth."
    console.print(Text(notes))
    for caveat in comparison.caveats:
        console.print(Text(for_terminal(f"▲ {caveat}" if not plain else f"! {caveat}"), style="magenta"))
    console.print()
    console.print(_panel(comparison))


def _table(comparison: Comparison, plain: bool) -> Table:
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ASCII if plain else SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    trajectory = comparison.trajectory is not None
    table.add_column("step" if trajectory else "member", no_wrap=True, justify="right" if trajectory else "left")
    for head in ("mean cosine", "Δ cosine"):
        table.add_column(head, no_wrap=True)
    for head in ("no top 3", "rank", "bits/byte", "rho"):
        table.add_column(head, justify="right", no_wrap=True)
    peak = comparison.trajectory.peak if comparison.trajectory else None
    for member in comparison.members:
        name = f"{member.step}" if trajectory else shortened(member.name, _NAME)
        mark = "peak " if peak is not None and peak.name == member.name else ""
        table.add_row(Text(for_terminal(mark + name), style="bold" if mark else ""), *_cells(member, plain))
    return table


def _cells(member: Member, plain: bool) -> list[str]:
    cosine, rank = member.deep.get("mean_cosine", NOTHING), member.deep.get("effective_rank", NOTHING)
    rho = member.trend.spearman.rho
    return [
        f"{number(cosine.value, 3)} {bar(cosine.value, plain, _BAR)}",
        _change(member),
        number(member.deep.get("mean_cosine_without_top_dimensions", NOTHING).value, 2),
        percent(rank.null_ratio),
        number(member.quality.bits_per_byte.value, 3),
        DASH if rho is None else f"{rho:+.2f}",
    ]


def _change(member: Member) -> str:
    if member.difference is None:
        return "first"
    of: Estimate = member.difference.deep.get("mean_cosine", NOTHING)
    if of.value is None:
        return DASH
    mark = ("*" if excludes_zero(of) else " ") + ("" if member.difference.paired else "~")
    half = "" if of.low is None or of.high is None else f" ±{(of.high - of.low) / 2:.3f}"
    return f"{of.value:+.3f}{half}{mark}"


def _panel(comparison: Comparison) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    first, *others = comparison.findings
    lines: list[RenderableType] = [
        Text(for_terminal(first.title), style="bold"),
        Text(for_terminal(f"{first.seen[:1].upper()}{first.seen[1:]}.")),
        Text(for_terminal(first.why)),
    ]
    for finding in others:
        text = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
        lines.append(text.append(for_terminal(f"{finding.seen}.")))
    lines += [Text(), Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan")]
    colour = _COLOURS[first.severity]
    head = Text(f"{called(comparison.reference)} and {len(comparison.members) - 1} more", style=f"bold {colour}")
    return Panel(
        Group(*lines), title=Text(for_terminal(head.plain), style=head.style), border_style=colour or "none",
        title_align="left", padding=(0, 1),
    )  # fmt: skip
