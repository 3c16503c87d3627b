"""How a coefficient was searched: a sentence, a table, and what every one did and cost as charts."""

from __future__ import annotations

from dataclasses import replace

from condense.records.base import Estimate
from condense.records.plans import COEFFICIENT, SEARCH_DOSES, Plan
from condense.records.treatment import DoseSearch, Overhead, Schedule
from condense.report.charts import Axis, Chart, Figure, Look, known_values, padded
from condense.report.escape import for_markdown
from condense.report.tables import Cell, Column, Table, change_cell, digits_of, markdown_table, plain_cell, title_of
from condense.report.text import difference, in_words, number, percent, plural, sentence, thousands


def search_lead(search: DoseSearch) -> str:
    """What was done and what was taken, in sentences."""
    taken = "none was taken" if search.chosen is None else f"{search.chosen:g} was taken"
    return (
        f"{plural(len(search.points), 'coefficient')} beside one control, each trained for {search.steps} steps "
        f"({thousands(search.train_tokens)} tokens) on part of the training text and measured on "
        f"{plural(search.documents, 'document')} of it that were set apart, under one seed: {taken}, {search.reason}. "
        "The validation and the probe text had no part in it."
    )


def search_table(search: DoseSearch) -> Table:
    """One row per coefficient, weakest first: the differences to the search's control, with what they come to."""
    key = search.quality_key
    columns = (
        Column("mean cosine − control", full="deep mean cosine − control"),
        Column("counts as", full="what the difference comes to"),
        Column(f"{title_of(key)} − control", full=f"{title_of(key)} − control"),
        Column("quality", full="whether quality is within the tolerance"),
        Column("penalty / CE", full="penalty over cross-entropy"),
    )
    rows = []
    for point in sorted(search.points, key=lambda point: point.coefficient):
        chosen = point.coefficient == search.chosen
        cells = (
            change_cell(point.effect, 3),
            Cell(point.word, strong=chosen),
            change_cell(point.quality, digits_of(key)),
            Cell(point.quality_word, strong=chosen),
            plain_cell(point.penalty_to_ce, 3),
        )
        rows.append((f"{point.coefficient:g}{' (taken)' if chosen else ''}", cells))
    tolerated = "" if search.tolerated is None else f", quality held up to {number(search.tolerated, 4)}"
    share = f" (after {percent(search.share)} of the steps {percent(search.share)} of what counts at their end)"
    note = (
        f"An effect counts from {search.least:.2g}{tolerated}{share}; a word of a direction needs an interval at "
        f"{search.alpha:.2g} that excludes 0."
    )
    return Table(columns, tuple(rows), "The search of the coefficient", note, "coefficient")


def searched_of(search: DoseSearch | None) -> str:
    """How the coefficient was chosen, in brackets after it; empty where it was not searched."""
    if search is None:
        return ""
    tried = ", ".join(f"{point.coefficient:g}" for point in sorted(search.points, key=lambda p: p.coefficient))
    return f" (chosen of {tried} by runs of {search.steps} steps on part of the training text)"


def search_markdown(search: DoseSearch) -> list[str]:
    """The table with its sentences, as a section."""
    table = search_table(search)
    lead, note = for_markdown(search_lead(search)), for_markdown(table.note)
    return [f"## {table.title}", "", lead, "", *markdown_table(table), "", note, ""]


def search_planned(plan: Plan, schedule: Schedule, overhead: Overhead) -> list[str]:
    """What a search of the coefficient will do, and at most how long it takes."""
    if plan.coefficient is not None:
        return []
    steps = plan.search_steps(schedule.steps)
    passes = (1 + SEARCH_DOSES) * steps * schedule.accumulation
    known = max(overhead.seconds_per_step.values(), default=None)
    time = in_words(None if known is None else passes * known)
    return [
        f"search: at first a control and up to {SEARCH_DOSES} coefficients from {COEFFICIENT:g} on, {steps} steps each "
        f"on part of the training text, up to {time} of training; the largest effect that holds quality is taken, and "
        "without one nothing is trained"
    ]


def search_figures(search: DoseSearch) -> list[Figure]:
    """Effect and cost over the coefficient; nothing below two that could be measured."""
    points = sorted(
        (point for point in search.points if point.effect.value is not None), key=lambda point: point.coefficient
    )
    if len(points) < 2:
        return []
    labels = tuple(f"{point.coefficient:g}" for point in points)
    axis = Axis(labels, labels, "coefficient")  # evenly apart, for each is the last by a factor
    effects = Look("95 % interval", "accent", symbol="circle").curve([point.effect for point in points])
    span = padded([*known_values([effects]), -1.5 * search.least, 1.5 * search.least])
    chart = Chart("chart-search-effect", axis, "mean cosine − control", (effects,), y_range=span, height=320, width=520)
    zone = (-search.least, search.least)
    made = [
        Figure(
            replace(chart, edges=((0.0, "control"),), zone=zone),
            "What each did",
            sentence(_listed([point.effect for point in points], labels, 3)),
            wide=False,
        )
    ]
    costs = [point.quality for point in points]
    if any(cost.value is not None for cost in costs):
        digits, bound = digits_of(search.quality_key), search.tolerated
        line = Look("95 % interval", "plum", "dash", "square").curve(costs, digits)
        span = padded([*known_values([line]), 0.0, *([1.2 * bound] if bound else [])])
        title = f"{title_of(search.quality_key)} − control"
        chart = Chart("chart-search-cost", axis, title, (line,), y_range=span, height=320, width=520)
        chart = replace(chart, edges=((0.0, "control"), *(((bound, "tolerance"),) if bound else ())))
        made.append(Figure(chart, "What each cost", sentence(_listed(costs, labels, digits)), wide=False))
    return made


def _listed(estimates: list[Estimate], labels: tuple[str, ...], digits: int) -> str:
    return "; ".join(f"{label}: {difference(one, digits)}" for label, one in zip(labels, estimates, strict=True))
