"""Several runs over their steps: each run as a curve, the differences at equal steps, as charts, cards and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from condense.comparison.overlay import OWN_WINDOWS, Paired, paired_runs, reference_of, where, word_at
from condense.records.base import Estimate
from condense.records.comparison import Comparison, Kind, Member
from condense.report.charts import POINTS, Axis, Chart, Figure, Look, Series, known_values, padded
from condense.report.comparison.figures import (
    DASHES,
    INKS,
    SYMBOLS,
    change_of,
    deep_of,
)
from condense.report.comparison.trajectory import QUALITY, position, step_axis
from condense.report.console import new_table
from condense.report.parts import Card, effect_card, interval_words, quality_card
from condense.report.tables import Cell, Column, Table, change_cell, digits_of, value_cell
from condense.report.text import DASH, NOTHING, WITHOUT_TOP, number, quality_of, shortened, signed, thousands
from condense.report.treatment.figures import REST

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MOST_MARKS = 40
MOST_IN_WORDS = 3
_SHORT = {
    "more spread": "spread",
    "more condensed": "condensed",
    "smaller than what counts": "too small",
    "inconclusive": "open",
    OWN_WINDOWS: "unpaired",
    "not shown to be held": "open",
    "not measured": DASH,
}
_DECIDED = ("more spread", "more condensed", "improved", "worse")


def runs_of(comparison: Comparison) -> dict[str, list[Member]]:
    """The members of every run, in the order of steps."""
    listed = comparison.overlay.runs if comparison.overlay else ()
    return {run.name: [member for member in comparison.members if member.run == run.name] for run in listed}


def run_looks(comparison: Comparison) -> dict[str, Look]:
    """How every run is drawn: by ink, dash and mark together, as the runs at the last step are over depth."""
    return {
        name: Look(shortened(name), INKS[i % len(INKS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)])
        for i, name in enumerate(runs_of(comparison))
    }


def at_last_common_step(comparison: Comparison) -> Comparison:
    """The runs at the last step that all have, as a comparison of models; of each run's last where there is none."""
    step, chosen = common_step(comparison), []
    for name, own in runs_of(comparison).items():
        member = next((m for m in own if step is not None and (m.step or 0) == step), own[-1])
        chosen.append(replace(member, name=name, step=None, run=None))
    kind: Kind = "pair" if len(chosen) == 2 else "family"
    return replace(comparison, members=tuple(chosen), kind=kind, overlay=None)


def common_step(comparison: Comparison) -> int | None:
    """The last step that all runs have."""
    sets = [{member.step or 0 for member in own} for own in runs_of(comparison).values()]
    return max(set.intersection(*sets), default=None) if sets else None


# --- charts ----------------------------------------------------------------------------------------------


def overlay_figures(comparison: Comparison) -> list[Figure]:
    """The runs over their steps, and what each differs by at the steps that it shares with the first."""
    if comparison.overlay is None:
        return []
    steps = sorted({member.step or 0 for member in comparison.members})
    axis = step_axis(steps, comparison.overlay.scale)
    pairs = [pair for pair in paired_runs(comparison.members, comparison.overlay) if pair.members]
    made = [_cone_of_runs(comparison, axis, steps)]
    if pairs:
        made.append(_cone_differences(comparison, pairs, axis, steps))
    return [
        *made,
        *_quality_of_runs(comparison, axis, steps),
        *(_quality_differences(comparison, pairs, axis, steps) if pairs else []),
        _rank_of_runs(comparison, axis, steps),
    ]


def _curve(
    look: Look,
    members: Sequence[Member],
    estimates: Sequence[Estimate],
    steps: Sequence[int],
    scale: str,
    digits: int = 3,
    *,
    width: float = 2.0,
) -> Series:
    style = look if len(members) <= MOST_MARKS else look._replace(symbol="none")
    at = tuple(position(member.step or 0, steps, scale) for member in members)
    places = tuple(f"step {thousands(member.step or 0)}" for member in members)
    return style.curve(estimates, digits, width=width, at=at, places=places)


def _scale(comparison: Comparison) -> str:
    return comparison.overlay.scale if comparison.overlay else "linear"


def _cone_of_runs(comparison: Comparison, axis: Axis, steps: Sequence[int]) -> Figure:
    styles, scale = run_looks(comparison), _scale(comparison)
    series = tuple(
        _curve(styles[name], own, [deep_of(m, "mean_cosine") for m in own], steps, scale)
        for name, own in runs_of(comparison).items()
    )
    lowest = min(known_values(series), default=0.0)
    chart = Chart("chart-runs-cone", axis, "cosine", series, y_range=(min(0.0, lowest) - 0.02, 1.02), height=420)
    words = "; ".join(
        f"{shortened(name)} from {number(deep_of(own[0], 'mean_cosine').value, 2)} at step {own[0].step} to "
        f"{number(deep_of(own[-1], 'mean_cosine').value, 2)} at step {own[-1].step}"
        for name, own in list(runs_of(comparison).items())[:MOST_IN_WORDS]
    )
    words += ". Bands are 95 % intervals over documents, not over training seeds: each run is one run."
    return Figure(chart, "How narrow is the cone, run by run?", words)


def _cone_differences(comparison: Comparison, pairs: Sequence[Paired], axis: Axis, steps: Sequence[int]) -> Figure:
    styles, scale = run_looks(comparison), _scale(comparison)
    series = []
    if len(pairs) == 1:
        own = pairs[0].members
        series.append(
            _curve(REST._replace(ink="plum", dash="dot"), own, [change_of(m, WITHOUT_TOP) for m in own], steps, scale)
        )
    for pair in pairs:
        look = styles[pair.run]
        changes = [change_of(m, "mean_cosine") for m in pair.members]
        series.append(_curve(look._replace(symbol="none"), pair.members, changes, steps, scale))
        series += _counting(look, pair.members, "mean_cosine", changes, steps, scale)
    least = comparison.least
    bound = least or 0.0
    span = padded([*known_values(series), -2 * bound, 2 * bound])
    first = shortened(next(iter(styles)))
    chart = Chart("chart-runs-difference", axis, f"mean cosine − {first}", tuple(series), y_range=span, height=400)
    chart = replace(chart, edges=((0.0, "the same"),), zone=None if least is None else (-least, least))
    words = "; ".join(f"{shortened(pair.run)}: {_counts(pair)}" for pair in pairs[:MOST_IN_WORDS])
    alpha = word_alpha(pairs)
    return Figure(
        chart,
        "Where do they differ, at equal steps?",
        f"{words}. Bands are paired 95 % intervals; a mark stands where the difference counts: its interval at "
        f"{alpha:.2g} excludes 0. Tinted is what is too small to count.",
    )


def word_alpha(pairs: Sequence[Paired]) -> float:
    """The level at which an interval has to exclude 0 for a word."""
    effect = pairs[0].members[0].difference if pairs else None
    word = effect.words.get("mean_cosine") if effect else None
    return word.alpha if word else 0.05


def _counting(
    look: Look, members: Sequence[Member], key: str, changes: Sequence[Estimate], steps: Sequence[int], scale: str
) -> list[Series]:
    """A mark at every step where the difference counts."""
    counted = [
        Estimate(change.value) if word_at(member, key) in _DECIDED else NOTHING
        for member, change in zip(members, changes, strict=True)
    ]
    if all(estimate.value is None for estimate in counted):
        return []
    mark = look._replace(words=f"{look.words}: counts", dash=POINTS, symbol="circle")
    return [_curve(mark, members, counted, steps, scale, width=5.0)]


def _counts(pair: Paired) -> str:
    parts = [
        f"{word} {where(steps, pair.all_steps)}"
        for word in ("more spread", "more condensed", "smaller than what counts", "inconclusive", OWN_WINDOWS)
        if (steps := pair.steps("mean_cosine", word))
    ]
    return ", ".join(parts)


def quality_key_of(comparison: Comparison) -> str | None:
    """Bits per byte, or the loss where no member has them; None where nothing was measured."""
    known = (key for key in QUALITY if any(quality_of(m.quality, key).value is not None for m in comparison.members))
    return next(known, None)


def _quality_of_runs(comparison: Comparison, axis: Axis, steps: Sequence[int]) -> list[Figure]:
    key = quality_key_of(comparison)
    if key is None:
        return []
    styles, scale = run_looks(comparison), _scale(comparison)
    runs = runs_of(comparison)
    series = tuple(
        _curve(styles[name], own, [quality_of(m.quality, key) for m in own], steps, scale) for name, own in runs.items()
    )
    span = padded(known_values(series))
    chart = Chart("chart-runs-quality", axis, QUALITY[key], series, y_range=span, height=340, width=520)
    last = [
        f"{number(quality_of(own[-1].quality, key).value, 3)} ({shortened(name, 24)})" for name, own in runs.items()
    ]
    words = f"On the same texts, at the last step of each: {', '.join(last[:MOST_IN_WORDS])}."
    return [Figure(chart, "How well do they predict?", words, wide=False)]


def _quality_differences(
    comparison: Comparison, pairs: Sequence[Paired], axis: Axis, steps: Sequence[int]
) -> list[Figure]:
    key = quality_key_of(comparison)
    styles, scale = run_looks(comparison), _scale(comparison)
    if key is None or all(change_of(m, key).value is None for pair in pairs for m in pair.members):
        return []
    series: list[Series] = []
    for pair in pairs:
        look, changes = styles[pair.run], [change_of(m, key) for m in pair.members]
        series.append(_curve(look._replace(symbol="none"), pair.members, changes, steps, scale, 4))
        series += _counting(look, pair.members, "quality", changes, steps, scale)
    span = padded([*known_values(series), 0.0])
    title = f"{QUALITY[key]} − {shortened(next(iter(styles)), 24)}"
    chart = Chart("chart-runs-quality-difference", axis, title, tuple(series), y_range=span, height=340, width=520)
    words = "Below 0 it predicts the texts better; a mark stands where it is improved or worse."
    return [Figure(replace(chart, edges=((0.0, "the same"),)), "And beside the first?", words, wide=False)]


def _rank_of_runs(comparison: Comparison, axis: Axis, steps: Sequence[int]) -> Figure:
    styles, scale = run_looks(comparison), _scale(comparison)
    runs = runs_of(comparison)
    shares = {name: [Estimate(deep_of(m, "effective_rank").null_ratio) for m in own] for name, own in runs.items()}
    series = tuple(_curve(styles[name], own, shares[name], steps, scale, 2) for name, own in runs.items())
    chart = Chart("chart-runs-rank", axis, "share of the Gaussian null", series, y_range=(-0.02, 1.05), height=340)
    words = "Effective rank over the deepest half, as a share of that of random directions."
    return Figure(chart, "How many directions are left?", words)


# --- cards -----------------------------------------------------------------------------------------------


def overlay_cards(comparison: Comparison) -> tuple[Card, ...]:
    """Of two runs: the cone at the last common step, where they differ, quality; of more: each beside the first."""
    if comparison.overlay is None:
        return ()
    first, *_ = comparison.overlay.runs
    pairs = paired_runs(comparison.members, comparison.overlay)
    if len(pairs) > 1:
        return tuple(_cone_card(pair, comparison, f"{shortened(pair.run, 24)}: more condensed?") for pair in pairs[:3])
    pair, name = pairs[0], shortened(first.name, 24)
    if not pair.members:
        return (_cone_card(pair, comparison, f"Is it more condensed than {name}?"),)
    last = pair.members[-1]
    question = f"Does it predict as well at step {thousands(last.step or 0)}?"
    quality = Card("quality", question, "not measured")
    if last.difference is not None and "quality" in last.difference.words:
        word = last.difference.words["quality"]
        base = quality_of(reference_of(last, comparison.members).quality, word.key).value
        quality = quality_card(question, last.difference, base, word.word)
    return (_cone_card(pair, comparison, f"Is it more condensed than {name}?"), _steps_card(pair), quality)


def _cone_card(pair: Paired, comparison: Comparison, question: str) -> Card:
    if not pair.members:
        return Card("cone", question, "not compared", interval="no step in common")
    last = pair.members[-1]
    base = deep_of(reference_of(last, comparison.members), "mean_cosine").value
    also = f"at step {thousands(last.step or 0)}, from {number(base)} to {number(deep_of(last, 'mean_cosine').value)}"
    word = last.difference.words.get("mean_cosine") if last.difference else None
    return effect_card("cone", question, change_of(last, "mean_cosine"), word, 4, also=also)


def _steps_card(pair: Paired) -> Card:
    moved = pair.steps("mean_cosine", "more spread", "more condensed")
    largest = max(pair.members, key=lambda member: abs(change_of(member, "mean_cosine").value or 0.0))
    change = change_of(largest, "mean_cosine")
    return Card(
        "steps",
        "At which steps do they differ?",
        where(moved, pair.all_steps) if moved else "at none",
        value=signed(change.value),
        unit=f"at most, at step {thousands(largest.step or 0)}",
        interval=interval_words(change, 3),
        also="the largest of several looks a little larger than it is",
    )


# --- tables ----------------------------------------------------------------------------------------------


def step_table(comparison: Comparison) -> Table:
    """One row for every step and run beside the first: both values, the difference, its word, the same for quality."""
    first, *others = runs_of(comparison).items()
    several = len(others) > 1
    key = quality_key_of(comparison) or "bits_per_byte"
    unit = QUALITY[key]
    name = shortened(first[0], 24)
    columns = [Column("run", "Run", "run")] if several else []
    other = "its own" if several else shortened(others[0][0], 24)
    for group, title in (("Deep mean cosine", "deep mean cosine"), (unit.capitalize(), unit)):
        columns += [
            Column(name, group, f"{title} of {name}"),
            Column(other, group, f"{title}, {other}"),
            Column("difference", group, f"{title} − {name}"),
        ]
    columns.insert(
        4 if several else 3, Column("no top 3", "Deep mean cosine", f"difference without the top three − {name}")
    )
    steps = sorted({member.step or 0 for member in comparison.members})
    rows = []
    for step in steps:
        base = next((member for member in first[1] if member.step == step), None)
        for run, own in others:
            member = next((one for one in own if one.step == step), None)
            if member is not None or base is not None:
                cells = _step_cells(base, member, key)
                rows.append((f"step {thousands(step)}", (Cell(shortened(run, 24)), *cells) if several else cells))
    note = "Differences are taken at equal steps, with 95 % intervals over documents; other seeds are not covered."
    return Table(tuple(columns), tuple(rows), "The runs at every step", note, "step")


def _step_cells(base: Member | None, member: Member | None, key: str) -> tuple[Cell, ...]:
    def both(read: str, digits: int) -> list[Cell]:
        cells = []
        for one in (base, member):
            known = (
                NOTHING
                if one is None
                else deep_of(one, read)
                if read == "mean_cosine"
                else quality_of(one.quality, read)
            )
            cells.append(value_cell(known, digits, bounds=True))
        return cells

    def change(read: str, judged: str) -> Cell:
        if member is None or member.difference is None:
            return Cell(DASH, notes=("not in both",))
        word = word_at(member, judged)
        return change_cell(change_of(member, read), digits_of(read), (word,) if word else ())

    return (
        *both("mean_cosine", 3),
        change("mean_cosine", "mean_cosine"),
        change(WITHOUT_TOP, WITHOUT_TOP),
        *both(key, 3),
        change(key, "quality"),
    )


def overlay_rows(comparison: Comparison, console: Console) -> RichTable:
    """The same on the terminal: a row for every step and run beside the first."""
    first, *others = runs_of(comparison).items()
    several = len(others) > 1
    key = quality_key_of(comparison) or "bits_per_byte"
    names = [shortened(first[0], 12), "own" if several else shortened(others[0][0], 12)]
    unit = {"bits_per_byte": "Δ bits/byte", "loss": "Δ loss"}[key]
    heads = ("step", *(("run",) if several else ()), *names, "Δ cosine", "counts as", "Δ no top 3", unit, "quality")
    table = new_table(console, heads, left=2 if several else 1)
    table.collapse_padding = True
    table.columns[0].no_wrap = True
    table.columns[0].justify = "right"
    for index in (-4, -1):
        table.columns[index].justify = "left"
    for step in sorted({member.step or 0 for member in comparison.members}):
        base = next((member for member in first[1] if member.step == step), None)
        for run, own in others:
            member = next((one for one in own if one.step == step), None)
            if member is None and base is None:
                continue
            run_name = (shortened(run, 12),) if several else ()
            table.add_row(f"{step}", *run_name, *_terminal_step(base, member, key))
    return table


def _terminal_step(base: Member | None, member: Member | None, key: str) -> list[str]:
    values = [number(deep_of(one, "mean_cosine").value) if one else DASH for one in (base, member)]
    if member is None or member.difference is None:
        return [*values, DASH, DASH, DASH, DASH, DASH]
    words = [word_at(member, name) for name in ("mean_cosine", "quality")]
    cone, quality = (_SHORT.get(word, word) for word in words)
    return [*values, _half(member, "mean_cosine"), cone, _half(member, WITHOUT_TOP), _half(member, key), quality]


def _half(member: Member, key: str) -> str:
    """A difference with half its interval, a star where that excludes 0."""
    change = change_of(member, key)
    if change.value is None:
        return DASH
    mark = ("*" if change.excludes_zero else " ") + ("" if member.difference and member.difference.paired else "~")
    half = "" if change.low is None or change.high is None else f" ±{(change.high - change.low) / 2:.3f}"
    return f"{signed(change.value)}{half}{mark}"
