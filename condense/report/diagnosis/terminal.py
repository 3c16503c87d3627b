"""A diagnosis on the terminal: verdict, layer table with a bar per site, next command. 80 columns are enough.

Colours are the terminal's own sixteen, so that they hold on light and dark grounds, and nothing is said
by colour alone. Everything from outside goes through `for_terminal` and `Text`, never through markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.report.console import _speaks_unicode, bar
from condense.report.escape import for_terminal
from condense.report.text import LEVELS, SEVERITIES, number, percent, quality_lines, subject

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from condense.records.base import Finding
    from condense.records.diagnosis import Diagnosis, SiteReading, Verdict

_COLOURS = {"severe": "red", "condensed": "red", "watch": "magenta", "ok": "green", "undefined": ""}


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis: what was measured, the layer table, quality, the verdict and the next command."""
    from rich.text import Text

    plain = not _speaks_unicode(console)
    console.print(Text(for_terminal(diagnosis.model.id), style="bold"))
    console.print(Text(for_terminal(subject(diagnosis))))
    console.print()
    stacks = list(dict.fromkeys(site.stack for site in diagnosis.sites))
    for name in stacks:
        if len(stacks) > 1:
            console.print(Text(f"{name} stack", style="bold"))
        console.print(_table([site for site in diagnosis.sites if site.stack == name], plain))
    console.print(Text("0 is spread, 1 is one direction; % is of what random directions of the same shape have."))
    console.print()
    for line in quality_lines(diagnosis):
        console.print(Text(for_terminal(line)))
    if diagnosis.twin is not None:
        console.print(Text(_twin(diagnosis, diagnosis.twin)))
    console.print()
    for name, stack in diagnosis.stacks.items():
        console.print(_panel(stack.verdict, f"{name}: "))
    console.print(_panel(diagnosis.verdict, f"{stacks[-1]}: " if len(stacks) > 1 else ""))


def _table(sites: list[SiteReading], plain: bool) -> Table:
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=ASCII if plain else SIMPLE_HEAD, pad_edge=False, padding=(0, 1), expand=False)
    table.add_column("site", no_wrap=True)
    table.add_column("mean cosine", no_wrap=True)
    table.add_column("±", justify="right", no_wrap=True)
    table.add_column("no top 3", justify="right", no_wrap=True)
    table.add_column("eff. rank", justify="right", no_wrap=True)
    table.add_column("variance", justify="right", no_wrap=True)
    table.add_column("sink ×", justify="right", no_wrap=True)
    for site in sites:
        m = site.metrics
        mean = m["mean_cosine"]
        half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
        rank = m["effective_rank"]
        table.add_row(
            site.label,
            f"{number(mean.value, 2)} {bar(mean.value, plain)}",
            number(half, 2),
            number(m["mean_cosine_without_top_dimensions"].value, 2),
            f"{number(rank.value, 0)} {percent(rank.null_ratio):>5}",
            number(m["relative_variance"].value, 2),
            number(m["sink_ratio"].value, 0),
            end_section=site.site == "embedding" or (site.site == "block" and site.depth == 1.0),
        )
    return table


def _twin(diagnosis: Diagnosis, twin: Diagnosis) -> str:
    own, other = diagnosis.deep["mean_cosine"].value, twin.deep["mean_cosine"].value
    return (
        f"random twin (same config, random weights): deep mean cosine {number(other, 2)} against "
        f"{number(own, 2)} here; effective rank {number(twin.deep['effective_rank'].value, 0)} against "
        f"{number(diagnosis.deep['effective_rank'].value, 0)}"
    )


def _panel(verdict: Verdict, prefix: str = "") -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    colour = _COLOURS[verdict.level]
    first, *others = verdict.findings
    axes = f"cone {verdict.cone} · rank {verdict.rank} · {verdict.attribution}"
    lines: list[RenderableType] = [
        Text(for_terminal(f"{prefix}{first.title}"), style="bold"),
        Text(for_terminal(axes + (" · borderline" if verdict.borderline else ""))),
        Text(),
        Text(for_terminal(_sentence(first.seen))),
        Text(for_terminal(first.why)),
    ]
    lines += [_finding(finding) for finding in others]
    lines += [
        Text(),
        Text("The bands are a convention: no validated threshold is published."),
        Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan"),
    ]
    title = Text(LEVELS[verdict.level], style=f"bold {colour}")
    return Panel(Group(*lines), title=title, border_style=colour or "none", title_align="left", padding=(0, 1))


def _finding(finding: Finding) -> RenderableType:
    from rich.text import Text

    text = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
    return text.append(for_terminal(f"{finding.seen}."))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
