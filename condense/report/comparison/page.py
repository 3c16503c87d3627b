"""A comparison as one HTML file: what was found first, members side by side, curves, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from condense.records.base import PlotlyJs
from condense.records.comparison import Comparison, Member
from condense.report.comparison import figures
from condense.report.comparison.figures import called, change_of, deep_of
from condense.report.comparison.overlay import (
    at_last_common_step,
    common_step,
    overlay_cards,
    overlay_figures,
    step_table,
)
from condense.report.comparison.same import read_beside, same_card, same_figures, same_table
from condense.report.comparison.text import KINDS, against, member_table, site_table, subject, title, value_of
from condense.report.comparison.trajectory import trajectory_figures
from condense.report.glossary import COMPARISON, glossary
from condense.report.html import render
from condense.report.parts import (
    Answer,
    Card,
    Groups,
    Head,
    Line,
    Strip,
    effect_card,
    interval_words,
    quality_card,
    strip,
    without_windows,
)
from condense.report.parts import provenance as groups_of
from condense.report.tables import Table
from condense.report.text import (
    WITHOUT_TOP,
    number,
    percent,
    signed,
    thousands,
)

ICONS = {"severe": "severe", "warning": "condensed", "info": "info", "good": "ok"}
MOST_IN_FULL = 24
MOST_OF_RUNS = 40


def comparison_page(comparison: Comparison, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a comparison as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    few, note = _at_few_steps(comparison)
    at_end = comparison if comparison.overlay is None else at_last_common_step(comparison)
    steps, size, depth = (
        trajectory_figures(comparison) if comparison.overlay is None else overlay_figures(comparison),
        [] if comparison.overlay else figures.size_figures(comparison),
        figures.depth_figures(at_end),
    )
    panels, same = figures.heat_panels(at_end), same_figures(comparison)
    sections = {
        "verdict": "What was found",
        "same": "The same model?" if read_beside(comparison) else "",
        "members": "Side by side",
        "findings": "Findings",
        "steps": "Over the steps" if steps else "",
        "size": "Over size" if size else "",
        "depth": "Over depth",
        "pairs": "All pairs" if panels else "",
        "layers": "Every layer",
    }
    head = Head(
        kind="comparison",
        about=KINDS[comparison.kind],
        title=title(comparison),
        name=title(comparison),
        lines=(subject(comparison),),
        created=comparison.created,
        version=comparison.condense,
        sections=tuple((key, words) for key, words in sections.items() if words),
    )
    return render(
        head,
        [*same, *steps, *size, *depth, *panels],
        plotlyjs,
        command=comparison.command,
        provenance=provenance(comparison),
        glossary=glossary("Comparison", COMPARISON),
        answer=answer(comparison),
        findings=comparison.findings,
        reference=against(comparison),
        strips=strips(comparison),
        same=same,
        same_rows=same_table(comparison) if read_beside(comparison) else None,
        members=_with_note(member_table(few), note),
        runs=_with_note(step_table(few), note) if comparison.overlay else None,
        at_step=common_step(comparison),
        steps=steps,
        size=size,
        depth=depth,
        panels=panels,
        layers=site_table(comparison),
    )


def _at_few_steps(comparison: Comparison) -> tuple[Comparison, str]:
    """Runs with very many checkpoints at steps spread over them, so that the page stays small, and what says so."""
    steps = sorted({member.step or 0 for member in comparison.members})
    if comparison.overlay is None or len(comparison.members) <= MOST_OF_RUNS:
        return comparison, ""
    most = max(2, MOST_OF_RUNS // len(comparison.overlay.runs))
    kept = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    few = replace(comparison, members=tuple(m for m in comparison.members if (m.step or 0) in kept))
    return few, f" Shown are {len(kept)} of the {len(steps)} steps; comparison.json has all."


def _with_note(table: Table, note: str) -> Table:
    return replace(table, note=f"{table.note}{note}")


# --- the answer ------------------------------------------------------------------------------------------


def answer(comparison: Comparison) -> Answer:
    """The main finding with three cards: the cone, what lies behind it or the peak, the quality."""
    main = comparison.findings[0]
    covers = next((m.difference.covers for m in reversed(comparison.members) if m.difference), "")
    icon = ICONS[main.severity]
    return Answer(
        level=icon if icon in ("severe", "condensed", "ok") else "none",
        icon=icon,
        word=f"{len(comparison.overlay.runs)} runs" if comparison.overlay else f"{len(comparison.members)} compared",
        aside=f"each against {against(comparison)}",
        finding=main,
        cards=cards(comparison),
        caveat=f"The intervals cover {covers or 'documents'}. Geometry is not quality: a condensed model can be good, "
        "a spread one poor.",
        caveats=comparison.caveats,
    )


def cards(comparison: Comparison) -> tuple[Card, ...]:
    """Three answers: of two, of a run over its steps, of several."""
    if comparison.kind == "pair":
        same, (cone, rest, quality) = same_card(comparison), _pair_cards(comparison)
        return (*same, cone, quality) if same else (cone, rest, quality)
    if comparison.overlay is not None:
        return overlay_cards(comparison)
    return _trajectory_cards(comparison) if comparison.trajectory is not None else _range_cards(comparison.members)


def _pair_cards(comparison: Comparison) -> tuple[Card, ...]:
    first, other = comparison.members
    effect, made = other.difference, []
    questions = {
        "mean_cosine": ("cone", f"Is {called(other)} more condensed?"),
        WITHOUT_TOP: ("cone without three dimensions", "Does the difference stay without each text’s top three?"),
    }
    for key, (name, question) in questions.items():
        word = effect.words.get(key) if effect else None
        also = f"from {number(deep_of(first, key).value)} to {number(deep_of(other, key).value)}"
        made.append(effect_card(name, question, change_of(other, key), word, 4, also=also))
    question = "Does it predict the same texts as well?"
    if effect is None:
        return (*made, Card("quality", question, "not measured"))
    key = effect.quality_key
    base, now, word = value_of(first, key).value, value_of(other, key).value, effect.words.get("quality")
    also = f"from {number(base)} to {number(now)}"
    said = word.word if word else "not judged"
    return (*made, quality_card(question, effect, base, said, also=also))


def _range_cards(members: tuple[Member, ...]) -> tuple[Card, ...]:
    cone = [(deep_of(m, "mean_cosine").value, m) for m in members]
    rank = [(deep_of(m, "effective_rank").null_ratio, m) for m in members]
    bits = [(m.quality.bits_per_byte.value, m) for m in members]
    return (
        _range("cone", "How far apart are the cones?", cone, "deep mean cosine", lambda v: number(v, 2)),
        _range("rank", "How many directions are left?", rank, "of random directions", percent),
        _range("quality", "How well do they predict the texts?", bits, "bits per byte", number),
    )


def _range(
    key: str, question: str, numbers: list[tuple[float | None, Member]], unit: str, write: Callable[[float | None], str]
) -> Card:
    known = sorted((pair for pair in numbers if pair[0] is not None), key=lambda pair: pair[0] or 0.0)
    if not known:
        return Card(key, question, "not known", interval="not measured")
    (low, least), (high, most) = known[0], known[-1]
    lowest, highest = f"{unit}; lowest {called(least)}", f"highest {called(most)}"
    return Card(key, question, f"{write(low)} to {write(high)}", interval=lowest, also=highest)


def _trajectory_cards(comparison: Comparison) -> tuple[Card, ...]:
    first, last = comparison.members[0], comparison.members[-1]
    change = change_of(last, "mean_cosine")
    ends = " → ".join(number(deep_of(member, "mean_cosine").value, 2) for member in (first, last))
    question = "From the first checkpoint to the last"
    cone = Card("cone", question, ends, signed(change.value), "deep mean cosine", interval_words(change, 3))
    return cone, _peak_card(comparison), _best_card(comparison.members)


def _peak_card(comparison: Comparison) -> Card:
    peak = comparison.trajectory.peak if comparison.trajectory else None
    question = "Does it condense on the way?"
    if peak is None:
        return Card("peak", question, "no peak", interval="no checkpoint stands out from both ends")
    word = f"{peak.value:.3f} at step {thousands(peak.step)}"
    also = f"then {signed(peak.fall.value)} to the last; {'early in the run' if peak.early else 'late'}"
    bounds = interval_words(peak.rise, 3)
    return Card("peak", question, word, signed(peak.rise.value), "above the first", bounds, also)


def _best_card(members: tuple[Member, ...]) -> Card:
    question = "And the prediction of the same texts?"
    bits = [(m.quality.bits_per_byte.value, m) for m in members if m.quality.bits_per_byte.value is not None]
    if not bits:
        return Card("quality", question, "not known", interval="not measured")
    best = min(bits, key=lambda pair: pair[0] or 0.0)
    ends = f"{number(bits[0][0], 2)} → {number(bits[-1][0], 2)}"
    return Card("quality", question, ends, number(best[0]), "bits per byte at best", called(best[1]))


def strips(comparison: Comparison) -> list[Strip]:
    """Each member with its interval on the deep mean cosine and on bits per byte; none of a run or of very many.

    Runs show them against step, and very many are better read in the table, which can be sorted.
    """
    members = comparison.members
    if comparison.trajectory is not None or comparison.overlay is not None or len(members) > MOST_IN_FULL:
        return []
    styles, made = figures.looks(comparison), []
    for heading, unit, key in (
        ("Deep mean cosine", "0 spread, 1 one direction", "mean_cosine"),
        ("Bits per byte", "lower is better", "bits_per_byte"),
    ):
        lines = [Line(styles[member.name], value_of(member, key)) for member in members]
        made.append(strip(heading, unit, lines, 3, first="member"))
    return [one for one in made if one is not None]


# --- provenance ------------------------------------------------------------------------------------------


def provenance(comparison: Comparison) -> Groups:
    """Everything that is needed to repeat the comparison."""
    run = {key: getattr(comparison, key) for key in ("command", "created", "condense", "schema", "kind")}
    groups: dict[str, Mapping[str, Any]] = {"Run": run}
    if len(comparison.members) > MOST_IN_FULL:
        groups["Weights"] = {m.name: m.model.weights_sha256 for m in comparison.members}
    kept = ("id", "revision", "weights_sha256", "parameters", "dtype", "source_format", "vocabulary_size", "notes")
    for member in comparison.members if len(comparison.members) <= MOST_IN_FULL else ():
        model = {key: value for key, value in asdict(member.model).items() if key in kept}
        more = {"from": member.source, "windows_sha256": member.corpus.windows_sha256}
        groups[f"Member: {called(member)}"] = model | more
    groups["Corpus of the first"] = without_windows(asdict(comparison.reference.corpus))
    groups["Protocol of the first"] = comparison.protocol
    groups["Environment of the first"] = comparison.environment
    return groups_of(groups)
