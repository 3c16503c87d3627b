"""A training run that a monitor watched: deep numbers over the steps, every block at every step, what was alarming."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from condense.metrics import METRICS
from condense.records.base import Finding, PlotlyJs
from condense.records.monitor import Measurement, MonitorRun
from condense.report.charts import Axis, Cells, Chart, Figure, Look, over_steps
from condense.report.escape import for_markdown
from condense.report.glossary import glossary
from condense.report.html import render
from condense.report.parts import Answer, Card, Head
from condense.report.parts import provenance as groups_of
from condense.report.tables import Cell, Column, Table, digits_of, markdown_table, plain_cell, title_of
from condense.report.text import (
    markdown_findings,
    markdown_head,
    model_name,
    number,
    plural,
    signed,
    thousands,
)

if TYPE_CHECKING:
    from rich.console import Console

MOST_STEPS, MOST_COLUMNS, MOST_ROWS, MOST_LINES = 400, 120, 40, 20
LOOK = Look("", "accent", symbol="circle")
QUESTIONS = {
    "mean_cosine": ("cone", "Does the cone close?"),
    "effective_rank": ("rank", "Are directions lost?"),
    "relative_variance": ("variance", "What lies outside the mean?"),
}


def alarms(run: MonitorRun) -> list[tuple[int, str]]:
    """Every alarm with the step at which it was first raised; an alarm is known by what stands before its numbers."""
    found: dict[str, tuple[int, str]] = {}
    for one in run.measurements:
        for words in one.alarms:
            found.setdefault(re.split(r" -?\d", words)[0], (one.step, words))
    return list(found.values())


def keys_beside(run: MonitorRun) -> list[str]:
    """The numbers that were logged beside the geometry: a loss, say."""
    return list(dict.fromkeys(key for one in run.measurements for key in one.beside))


def finding(run: MonitorRun) -> Finding:
    """What came of the run: how far it got, what was alarming, what could not be measured."""
    raised, last = alarms(run), run.measurements[-1] if run.measurements else None
    title = "Nothing was measured yet"
    if last is not None:
        title = f"No alarm in {plural(len(run.measurements), 'measurement')}, up to step {last.step}"
    if raised:
        title = f"{plural(len(raised), 'alarm')}, the first at step {raised[0][0]}"
    seen = "; ".join(f"step {step}: {words}" for step, words in raised) or "every number kept near its first value"
    why = "An alarm compares with the first measurement. It is no defect by itself: read the loss beside it."
    return Finding("monitor", "warning" if raised else "info", title, seen, why, "", "convention of condense")


def _first_and_last(run: MonitorRun, key: str) -> tuple[float | None, float | None]:
    """The first and the last value of a deep number."""
    values = [one.deep[key] for one in run.measurements if key in one.deep]
    return (values[0], values[-1]) if values else (None, None)


# --- the page ------------------------------------------------------------------------------------------


def monitor_page(run: MonitorRun, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The run as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    drawn, main = figures(run), finding(run)
    sections = (("verdict", "The run"), ("steps", "Over the steps"), ("measurements", "Every measurement"))
    head = Head(
        kind="monitor",
        about="a training run, watched",
        title=model_name(run.model),
        name=run.model,
        lines=(subject(run),),
        created="",
        version=run.condense,
        sections=sections,
    )
    answer = Answer(
        level="condensed" if main.severity == "warning" else "ok" if run.measurements else "none",
        icon="condensed" if main.severity == "warning" else "ok" if run.measurements else "none",
        word="Alarm" if main.severity == "warning" else "No alarm" if run.measurements else "Waiting",
        finding=main,
        cards=cards(run),
        caveat="A fixed probe of few texts, without intervals: enough to see a change, not to compare models.",
        aside=f"at step {run.measurements[-1].step}" if run.measurements else "",
    )
    return render(
        head,
        drawn,
        plotlyjs,
        command="",
        provenance=groups_of({"Monitor": {k: v for k, v in asdict(run).items() if k != "measurements"}}),
        glossary=glossary(),
        answer=answer,
        figures=drawn,
        table=table(run),
    )


def subject(run: MonitorRun) -> str:
    """What is watched, in one line."""
    last = run.measurements[-1] if run.measurements else None
    errors = f"; {plural(last.errors, 'error')} while measuring" if last and last.errors else ""
    blocks = f"{last.measured} of {run.blocks} blocks" if last else f"{run.blocks} blocks"
    return f"{run.model}, {blocks} at {run.path}; {run.texts} probe texts, {run.tokens} tokens{errors}"


def cards(run: MonitorRun) -> tuple[Card, ...]:
    """The first and the last value of what a monitor measures."""
    made = []
    for key, (name, question) in QUESTIONS.items():
        first, last = _first_and_last(run, key)
        digits = digits_of(key)
        change = None if first is None or last is None else last - first
        word = f"{number(first, digits)} → {number(last, digits)}" if first is not None else "not measured"
        made.append(Card(name, question, word, "" if change is None else signed(change, digits), title_of(key)))
    return tuple(made)


def figures(run: MonitorRun) -> list[Figure]:
    """A curve for each deep number and each number beside, then every block at every step."""
    made = []
    for key in run.keys:
        metric = METRICS.get(key)
        logged: dict[int, float | None] = {one.step: one.deep.get(key) for one in run.measurements}
        title, unit, wide = title_of(key) if metric else key, metric.unit if metric else "", key == "mean_cosine"
        first, last = _first_and_last(run, key)
        words = f"From {number(first)} to {number(last)}, over the deepest half of the blocks."
        made += _monitor_curve(key, title[:1].upper() + title[1:], unit, logged, words, wide)
    for rank, key in enumerate(keys_beside(run)):
        beside = {one.step: one.beside.get(key) for one in run.measurements}
        made += _monitor_curve(f"beside-{rank}", key, key, beside, "Logged beside the geometry by the training loop.")
    return [*made, *_map(run)]


def _monitor_curve(
    key: str, title: str, unit: str, logged: Mapping[int, float | None], words: str, wide: bool = False
) -> list[Figure]:
    if all(value is None for value in logged.values()):
        return []
    look = LOOK._replace(words=title)
    chart = over_steps(key, unit, {title: logged}, {title: look}, MOST_STEPS, width=1000 if wide else 520)
    return [Figure(chart, title, words, wide=wide)]


def _map(run: MonitorRun) -> list[Figure]:
    """One column per measurement, one row per block."""
    every = -(-len(run.measurements) // MOST_COLUMNS) or 1
    shown = [one for one in run.measurements[::every] if "mean_cosine" in one.blocks]
    if len(shown) < 2:
        return []
    columns = tuple([None if v is None else max(0.0, v) for v in one.blocks["mean_cosine"]] for one in shown)
    labels = tuple(f"step {thousands(one.step)}" for one in shown)
    ticks = tuple(thousands(one.step) if i % (-(-len(shown) // 12)) == 0 else "" for i, one in enumerate(shown))
    hover = "%{x}, block %{y:.0f}: mean cosine %{z:.3f}"
    span = (0.5, run.blocks + 0.5)
    cells = Cells(columns, *span, "mean cosine", 1.0, "mean cosine: 0 or less to 1", hover)
    axis = Axis(labels, ticks, "training step, one column per measurement")
    chart = Chart(
        "chart-map", axis, "block", cells=cells, y_range=span, height=min(520, max(240, 90 + 26 * run.blocks))
    )
    words = "Columns are measurements in order; dark is one direction." + (
        f" Shown is every {every}th of {len(run.measurements)}." if every > 1 else ""
    )
    return [Figure(chart, "Every block at every step", words)]


def table(run: MonitorRun, most: int = 0) -> Table:
    """One row per measurement, the last `most` of them where that is given."""
    beside = keys_beside(run)
    columns = [Column(title_of(key) if key in METRICS else key, "Deepest half") for key in run.keys]
    columns += [Column(key, "Beside", key) for key in beside]
    columns += [Column("blocks", "Monitor", "blocks measured"), Column("alarms", "Monitor", "alarms raised")]
    rows = [(f"{one.step}", _monitor_cells(run, one, beside)) for one in run.measurements[-most:]]
    return Table(
        tuple(columns), tuple(rows), "Every measurement", "Geometry over the deepest half of the blocks.", "step"
    )


def _monitor_cells(run: MonitorRun, one: Measurement, beside: Sequence[str]) -> tuple[Cell, ...]:
    geometry = (plain_cell(one.deep.get(key), digits_of(key) if key in METRICS else 3) for key in run.keys)
    logged = (plain_cell(one.beside.get(key), 4) for key in beside)
    return (
        *geometry,
        *logged,
        Cell(f"{one.measured} of {run.blocks}", sort=str(one.measured)),
        Cell(str(len(one.alarms))),
    )


# --- Markdown and terminal -----------------------------------------------------------------------------


def monitor_markdown(run: MonitorRun) -> str:
    """The run as Markdown: alarms first, then the last measurements."""
    lines = [*markdown_head(run.condense, f"{run.model}, watched"), for_markdown(f"{subject(run)}."), ""]
    lines += markdown_findings([finding(run)])
    if len(run.measurements) > MOST_ROWS:
        lines += [f"The last {MOST_ROWS} of {len(run.measurements)} measurements.", ""]
    return "\n".join([*lines, *markdown_table(table(run, MOST_ROWS))]) + "\n"


def show_monitor(run: MonitorRun, console: Console) -> None:
    """Print the last measurements with a bar each, and what was alarming."""
    from condense.report.console import COLOURS, bar, new_table, say, show_panel, show_table, speaks_unicode, text

    say(console, subject(run), style="bold")
    rows, beside = run.measurements[-MOST_LINES:], keys_beside(run)[:2]
    shown = [key for key in ("effective_rank", "relative_variance") if key in run.keys]
    heads = ("step", "deep mean cosine", *(title_of(key).replace(" ", "\n") for key in shown), *beside)
    made = new_table(console, heads, left=2)
    for one in rows:
        cosine = one.deep.get("mean_cosine")
        made.add_row(
            text(f"{one.step}", "bold" if one.alarms else ""),
            f"{number(cosine)} {bar(cosine, not speaks_unicode(console))}",
            *(number(one.deep.get(key), digits_of(key)) for key in shown),
            *(number(one.beside.get(key), 4) for key in beside),
        )
    if rows:
        show_table(console, made)
    main = finding(run)
    show_panel(console, "ALARM" if main.severity == "warning" else "WATCHING", COLOURS[main.severity], [main])
