"""A diagnosis on the terminal: verdict, layer table with a bar per site, next command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from condense.report.console import bar, new_table, panel, say, speaks_unicode, text
from condense.report.tables import shown
from condense.report.text import (
    LEVELS,
    NOTHING,
    TWIN_WORDS,
    WITHOUT_TOP,
    listed,
    number,
    percent,
    quality_lines,
    subject,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from condense.records.diagnosis import Diagnosis, SiteReading, Verdict

_COLOURS = {"severe": "red", "condensed": "red", "watch": "magenta", "ok": "green", "undefined": ""}
_HEADS = ("site", "mean cosine", "±", "no top 3", "eff. rank", "variance", "sink ×")
_SHOWN = ("mean_cosine", WITHOUT_TOP, "effective_rank", "relative_variance", "sink_ratio")
_BAR, _FIXED = 16, 58
"""The bar takes what is left of the width: the other columns take this many cells."""


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis: what was measured, the layer table, quality, the verdict and the next command."""
    say(console, diagnosis.model.id, style="bold")
    say(console, subject(diagnosis), "")
    stacks = list(dict.fromkeys(site.stack for site in diagnosis.sites))
    for name in stacks:
        if len(stacks) > 1:
            say(console, f"{name} stack", style="bold")
        console.print(_table([site for site in diagnosis.sites if site.stack == name], console))
    say(console, "0 is spread, 1 is one direction; % is of what random directions of the same shape have.", "")
    say(console, *quality_lines(diagnosis))
    if diagnosis.twin is not None:
        say(console, _twin(diagnosis, diagnosis.twin))
    say(console, "")
    for name, stack in diagnosis.stacks.items():
        console.print(_panel(stack.verdict, f"{name}: "))
    console.print(_panel(diagnosis.verdict, f"{stacks[-1]}: " if len(stacks) > 1 else ""))
    if diagnosis.verdict.not_covered:
        console.print(text(diagnosis.verdict.not_covered))


def _table(sites: Sequence[SiteReading], console: Console) -> Table:
    """The layer table; metrics that are shown where there is room follow as far as the width allows."""
    plain, labels = not speaks_unicode(console), max((len(site.label) for site in sites), default=0)
    left = console.width - _FIXED - labels
    more = []
    for metric in shown(2):
        if metric.key not in _SHOWN and left - _BAR >= len(metric.title) + 2:
            more.append(metric)
            left -= len(metric.title) + 2
    table = new_table(console, (*_HEADS, *(metric.title for metric in more)), left=2)
    for site in sites:
        mean, without, rank, variance, sink = (site.metrics.get(key, NOTHING) for key in _SHOWN)
        half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
        table.add_row(
            site.label,
            f"{number(mean.value, 2)} {bar(mean.value, plain, max(4, min(_BAR, left)))}",
            number(half, 2),
            number(without.value, 2),
            f"{number(rank.value, 0)} {percent(rank.null_ratio):>5}",
            number(variance.value, 2),
            number(sink.value, 0),
            *(number(site.metrics.get(metric.key, NOTHING).value, metric.digits) for metric in more),
            end_section=site.site == "embedding" or (site.site == "block" and site.depth == 1.0),
        )
    return table


def _twin(diagnosis: Diagnosis, twin: Diagnosis) -> str:
    own, other = ([run.deep.get(key, NOTHING).value for key in _SHOWN] for run in (diagnosis, twin))
    return (
        f"random twin (same config, random weights): deep mean cosine {number(other[0], 2)} against "
        f"{number(own[0], 2)} here; effective rank {number(other[2], 0)} against {number(own[2], 0)}"
        + (f"; {TWIN_WORDS[diagnosis.verdict.twin]}" if diagnosis.verdict.twin else "")
    )


def _panel(verdict: Verdict, head: str = "") -> RenderableType:
    colour = _COLOURS[verdict.level]
    axes = f"cone {verdict.cone} · rank {verdict.rank} · {verdict.attribution}"
    if not verdict.findings:
        return text(f"{LEVELS[verdict.level]}: {verdict.reason or axes}")
    drawn = [f"{axis}: {verdict.share(axis)}" for axis in verdict.borderline if verdict.share(axis)]
    shares = [f"resampled documents give {'; '.join(drawn)}"] if drawn else []
    return panel(
        LEVELS[verdict.level],
        colour,
        verdict.findings,
        head=head,
        facts=axes + (f" · borderline: {listed(verdict.borderline)}" if verdict.borderline else ""),
        notes=(*shares, "The bands are a convention: no validated threshold is published."),
    )
