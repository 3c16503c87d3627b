"""Is it the same model? The answer of a comparison as a table, as charts over depth, as rows on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from condense.metrics import PAIR
from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member, Same
from condense.report.charts import Chart, Figure
from condense.report.comparison.figures import called, change_of, drawn, looks, word_of
from condense.report.console import new_table
from condense.report.depth import depth_axis
from condense.report.parts import Card
from condense.report.tables import Cell, Column, Table, change_cell, digits_of
from condense.report.text import DASH, NOTHING, WITHOUT_TOP, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

DIFFERENCES = ("mean_cosine", WITHOUT_TOP, "dimension", "bits_per_byte")
FLOOR = 1e-10
"""1 − cosine below which a curve on a logarithmic scale is not followed."""


def read_beside(comparison: Comparison) -> list[tuple[Member, Same]]:
    """The members that were read beside the first, or that could not be and say why."""
    return [(member, member.same) for member in comparison.members if member.same is not None]


def small(value: float | None) -> str:
    """A divergence, which may be very small: three digits, or a power of ten."""
    if value is None:
        return DASH
    return "0" if value < 1e-9 else f"{value:.1e}" if value < 1e-4 else f"{value:.3g}"


def agreement(value: float | None) -> str:
    """A share of positions in percent, with digits where it is close to all."""
    return DASH if value is None else f"{100 * value:.2f} %"


def where(same: Same) -> str:
    """Where two models part, in words."""
    return same.from_site or ("nowhere" if same.word == "identical" else DASH)


def same_table(comparison: Comparison) -> Table:
    """One row per member read beside the first: the word, KL, agreement, and the differences of the diagnosis."""
    named = (("cosine", "mean_cosine"), ("no top 3", WITHOUT_TOP), ("dimension", "dimension"))
    columns = [
        Column("same?", "Token by token", "is it the same model?"),
        Column("from", "Token by token", "where the states part"),
        Column("KL, nats", "Token by token", PAIR["same.kl"].title),
        Column("top-1", "Token by token", PAIR["same.top1"].title),
        *(Column(head, "Difference to the first", f"difference in {key.replace('_', ' ')}") for head, key in named),
        Column("bits/byte", "Difference to the first", "difference in bits per byte"),
        Column("size", "Model", "size of the weights in MB"),
    ]
    rows = [(called(member), _same_cells(member, same)) for member, same in read_beside(comparison)]
    limits = {f"{same.tolerated:.3g}" for _, same in read_beside(comparison) if same.tolerated is not None}
    note = "Equivalent: the interval of the KL lies below what is tolerated"
    note += f", {' or '.join(sorted(limits))} nats per token." if limits else "."
    return Table(tuple(columns), tuple(rows), f"Against {called(comparison.reference)}", note, "member")


def _same_cells(member: Member, same: Same) -> tuple[Cell, ...]:
    cells = [Cell(same.word, notes=(same.reason,) if same.reason else ()), Cell(where(same))]
    for write, of in ((small, same.kl), (agreement, same.top1)):
        low, high = ("", "") if of.low is None else (write(of.low), write(of.high))
        cells.append(Cell(write(of.value), low, high, sort=f"{of.value or 0.0:.5g}"))
    for key in DIFFERENCES:
        word = word_of(member, "quality" if key == "bits_per_byte" else key)
        cells.append(change_cell(change_of(member, key), digits_of(key), (word,) if word else ()))
    size = member.model.weights_bytes
    return (*cells, Cell(DASH if size is None else _megabytes(size), sort=str(size or 0)))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def same_card(comparison: Comparison) -> tuple[Card, ...]:
    """The answer of a pair as a card."""
    found = read_beside(comparison)
    if comparison.kind != "pair" or not found:
        return ()
    same = found[0][1]
    kl = f"KL {small(same.kl.value)} nats per token" if same.kl.value is not None else same.kl.reason or ""
    bounds = "" if same.kl.high is None else f"{small(same.kl.low)} to {small(same.kl.high)}"
    also = f"the same top token in {agreement(same.top1.value)}" if same.top1.value is not None else ""
    return (
        Card("same", "Is it the same model?", same.word, interval=kl, also="; ".join(filter(None, (bounds, also)))),
    )


def same_figures(comparison: Comparison) -> list[Figure]:
    """How far the states of the same tokens are apart, over depth: 1 − cosine, and the debiased CKA."""
    chosen = {member.name for member in drawn(comparison)}
    found = [(member, same) for member, same in read_beside(comparison) if member.name in chosen and same.sites]
    full = [(m, s) for m, s in found if len(s.sites) == len(comparison.reference.sites)]
    if not full:
        return []
    styles, axis = looks(comparison), depth_axis(full[0][1].sites)
    apart = [
        styles[m.name].curve([_apart(site.cosine) for site in s.sites], 6, bands=len(full) <= 4, width=2.0)
        for m, s in full
        if any(site.cosine.value is not None for site in s.sites)
    ]
    alike = [styles[m.name].curve([site.cka for site in s.sites], 4, bands=len(full) <= 4, width=2.0) for m, s in full]
    made = []
    if apart:
        rounding = full[0][1].rounding
        least = min(v for curve in apart for v in (*curve.values, *(curve.low or ())) if v is not None)
        span = (math.log10(min(least, rounding / 10)) - 0.5, 0.3)
        chart = Chart("chart-same-cosine", axis, "1 − cosine", tuple(apart), y_range=span, log=True, height=380)
        chart = replace(chart, edges=((rounding, "rounding"),))
        made.append(Figure(chart, "How far apart are the states of the same tokens?", _parting(full)))
    low = min((site.cka.value for _, s in full for site in s.sites if site.cka.value is not None), default=0.0)
    chart = Chart(
        "chart-same-cka", axis, "debiased CKA", tuple(alike), y_range=(min(0.0, low) - 0.02, 1.02), height=300
    )
    words = "Debiased linear CKA: 1 is one geometry up to rotation and scale, 0 none in common."
    return [*made, Figure(chart, "Is their geometry the same?", words)]


def _apart(cosine: Estimate) -> Estimate:
    if cosine.value is None:
        return NOTHING
    low, high = (None if bound is None else max(FLOOR, 1 - bound) for bound in (cosine.high, cosine.low))
    return Estimate(max(FLOOR, 1 - cosine.value), low, high)


def _parting(full: Sequence[tuple[Member, Same]]) -> str:
    parts = []
    for member, same in full[:3]:
        parts.append(f"{called(member)} {f'parts at {where(same)}' if same.from_site else 'agrees everywhere'}")
    return f"{'; '.join(parts)}. Both models read the same token ids; sinks are left out."


def same_rows(comparison: Comparison, console: Console) -> RichTable | None:
    """The rows on the terminal; None where nothing was read beside the first."""
    found = read_beside(comparison)
    if not found:
        return None
    table = new_table(console, ("same model?", "KL, nats/token", "top-1", "from", "word"), left=4)
    table.columns[0].no_wrap = True
    for member, same in found:
        half = "" if same.kl.high is None or same.kl.low is None else f" ±{small((same.kl.high - same.kl.low) / 2)}"
        kl = f"{small(same.kl.value)}{half}" if same.kl.value is not None else DASH
        table.add_row(shortened(member.name, 14), kl, agreement(same.top1.value), where(same), same.word)
    return table
