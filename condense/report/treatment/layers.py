"""The layer table of a treatment as cells: the arms beside each other at every site, and their difference."""

from __future__ import annotations

from collections.abc import Mapping

from condense.metrics import METRICS
from condense.records.base import Estimate
from condense.records.diagnosis import SiteReading
from condense.records.treatment import Treatment
from condense.report.diagnosis.figures import NOTHING
from condense.report.tables import Cell, Column, Table
from condense.report.text import number, typeset
from condense.report.treatment.figures import WITHOUT_TOP

_GROUPS = (
    ("mean_cosine", "Mean cosine", 3), (WITHOUT_TOP, "Without top 3 dimensions", 3),
    ("effective_rank", "Effective rank", 1),
)  # fmt: skip


def treatment_table(treatment: Treatment) -> Table:
    """One row per site: before, control and treated, and treated − control with its interval."""
    arms = {name: {_key(site): site for site in arm.validation.sites} for name, arm in treatment.arms.items()}
    effects = {(site.stack, site.site, site.index): site.metrics for site in treatment.effect.sites}
    sites = treatment.arms["treated"].validation.sites
    several = len({site.stack for site in sites}) > 1
    change = f"treated − {treatment.effect.against}"
    head = "effect" if treatment.effect.against == "control" else "change"
    columns, rows = [], []
    for key, group, _ in _GROUPS:
        columns += [Column(name, group, f"{METRICS[key].title} of the arm {name}") for name in arms]
        columns.append(Column(head, group, f"{change}, {METRICS[key].title}"))
    for site in sites:
        cells: list[Cell] = []
        for key, _, digits in _GROUPS:
            readings = [at.get(_key(site)) for at in arms.values()]
            cells += [_cell(reading, key, digits) for reading in readings]
            cells.append(_change(effects.get(_key(site), {}), key, digits))
        rows.append((f"{site.stack} {site.label}" if several else site.label, tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def table_note(treatment: Treatment) -> str:
    """What the columns of differences are."""
    word = "Effect" if treatment.effect.against == "control" else "Change"
    return f"{word} is treated − {treatment.effect.against}, under it the 95 % interval."


def _key(site: SiteReading) -> tuple[str, str, int]:
    return site.stack, site.site, site.index


def _cell(site: SiteReading | None, key: str, digits: int) -> Cell:
    value = (site.metrics.get(key, NOTHING) if site else NOTHING).value
    return Cell("–") if value is None else _written(value, number(value, digits))


def _change(metrics: Mapping[str, Estimate], key: str, digits: int) -> Cell:
    of = metrics.get(key, NOTHING)
    if of.value is None:
        return Cell("–", of.reason or "")
    note = "" if of.low is None or of.high is None else f"{of.low:+.{digits}f} to {of.high:+.{digits}f}"
    return _written(of.value, f"{of.value:+.{digits}f}", typeset(note))


def _written(value: float, text: str, note: str = "") -> Cell:
    return Cell(typeset(text), note, f"{value:.6g}")
