"""What the page of a comparison says beside its charts: cards, strips, provenance, glossary. Records in, values out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member
from condense.records.plans import Plan
from condense.report.comparison.figures import called
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.diagnosis.page import written
from condense.report.glossary import GLOSSARY, term
from condense.report.parts import Card, Mark, Strip
from condense.report.text import corpus_line, number, parameter_count, percent, shortened, typeset
from condense.report.treatment.cards import excludes_zero, gauge_of, interval_words, signed_value
from condense.report.treatment.figures import WITHOUT_TOP

LEAST, TOLERANCE = Plan.min_effect, Plan.quality_tolerance
ICONS = {"severe": "severe", "warning": "condensed", "info": "info", "good": "ok"}
KINDS = {"pair": "comparison of two", "family": "comparison of several", "trajectory": "a run over its steps"}
MOST_IN_TITLE = 3
MOST_IN_FULL = 24


def title(comparison: Comparison) -> str:
    """What is compared: the two names, the run, or how many."""
    if comparison.trajectory is not None:
        run = comparison.trajectory.run.replace("\\", "/").rstrip("/")
        return f"{shortened(run.rsplit('/', 1)[-1] or run, 48)}: {len(comparison.members)} checkpoints"
    names = [shortened(member.name, 34) for member in comparison.members]
    if len(names) == 2:
        return f"{names[1]} against {names[0]}"
    if len(names) <= MOST_IN_TITLE:
        return ", ".join(names)
    return f"{len(names)} models, against {names[0]}"


def subject(comparison: Comparison) -> str:
    """On what they were compared, in one line."""
    corpus, first = comparison.reference.corpus, comparison.reference
    sizes = sorted({member.model.parameters for member in comparison.members})
    size = " to ".join(dict.fromkeys(parameter_count(count) for count in (sizes[0], sizes[-1])))
    architectures = ", ".join(dict.fromkeys(member.model.architecture for member in comparison.members))
    return f"{architectures}, {size} parameters; {corpus_line(corpus)}; {first.model.dtype}"


# --- cards -----------------------------------------------------------------------------------------------


def cards(comparison: Comparison) -> list[Card]:
    """Three answers: the cone, the cone without three dimensions, the quality."""
    if comparison.kind == "pair":
        return _pair_cards(comparison.members[0], comparison.members[1])
    if comparison.trajectory is not None:
        return _course_cards(comparison)
    return _range_cards(comparison)


def _pair_cards(first: Member, other: Member) -> list[Card]:
    effect = other.difference
    deep: Mapping[str, Estimate] = effect.deep if effect else {}
    made = []
    for key, name, question in (
        ("mean_cosine", "cone", f"Is {called(other)} more condensed?"),
        (WITHOUT_TOP, "cone without three dimensions", "Does the difference stay without each text’s top three?"),
    ):
        of = deep.get(key, NOTHING)
        gauge = gauge_of(
            of,
            LEAST,
            (-LEAST, LEAST),
            "more spread",
            "more condensed",
            f"tinted: within ±{LEAST:g}, too small to count",
        )
        made.append(
            Card(name, question, _moved(of, "more condensed", "more spread"), signed_value(of.value, 4),
                 "deep mean cosine", interval_words(of, 4), _from_to(first.deep, other.deep, key, 3), gauge)
        )  # fmt: skip
    return [*made, _quality_card(first, other)]


def _moved(of: Estimate, up: str, down: str) -> str:
    if of.value is None:
        return "not defined"
    if of.low is not None and of.high is not None and -LEAST <= of.low and of.high <= LEAST:
        return "unchanged"
    if excludes_zero(of) and abs(of.value) >= LEAST:
        return up if of.value > 0 else down
    return "undecided"


def _from_to(first: Mapping[str, Estimate], other: Mapping[str, Estimate], key: str, digits: int) -> str:
    a, b = (number(deep.get(key, NOTHING).value, digits) for deep in (first, other))
    return f"from {typeset(a)} to {typeset(b)}"


def _quality_card(first: Member, other: Member) -> Card:
    question = "Does it predict the same texts as well?"
    for key, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
        of = other.difference.quality.get(key, NOTHING) if other.difference else NOTHING
        base = getattr(first.quality, key).value
        if of.value is None or not base:
            continue
        bound = TOLERANCE * base
        held = of.high is not None and of.high <= bound
        word = "as well" if held else "worse" if of.low is not None and of.low > bound else "not clear"
        note = f"tinted: as well, up to {number(bound, 4)} ({100 * TOLERANCE:g} % of {number(base, 3)})"
        gauge = gauge_of(of, bound, (-math.inf, bound), "better", "worse", note)
        also = f"from {number(base, 3)} to {number(getattr(other.quality, key).value, 3)}"
        unit += typeset(f" ({100 * of.value / base:+.2f} %)")
        return Card("quality", question, word, signed_value(of.value, 4), unit, interval_words(of, 4), also, gauge)
    reason = other.difference.quality.get("bits_per_byte", NOTHING).reason if other.difference else None
    return Card("quality", question, "not known", interval=reason or "not measured in both")


def _range_cards(comparison: Comparison) -> list[Card]:
    members = comparison.members
    cone = [(m.deep.get("mean_cosine", NOTHING).value, m) for m in members]
    rank = [(m.deep.get("effective_rank", NOTHING).null_ratio, m) for m in members]
    bits = [(m.quality.bits_per_byte.value, m) for m in members]
    return [
        _range("cone", "How far apart are the cones?", cone, "deep mean cosine", lambda v: number(v, 2)),
        _range("rank", "How many directions are left?", rank, "of random directions", percent),
        _range("quality", "How well do they predict the texts?", bits, "bits per byte", lambda v: number(v, 3)),
    ]


def _range(key: str, question: str, of: Sequence[tuple[float | None, Member]], unit: str, write: Any) -> Card:
    known = sorted((pair for pair in of if pair[0] is not None), key=lambda pair: pair[0] or 0.0)
    if not known:
        return Card(key, question, "not known", interval="not measured")
    (low, least), (high, most) = known[0], known[-1]
    word = typeset(f"{write(low)} to {write(high)}")
    return Card(key, question, word, interval=f"{unit}; lowest {called(least)}", also=f"highest {called(most)}")


def _course_cards(comparison: Comparison) -> list[Card]:
    members = comparison.members
    first, last = members[0], members[-1]
    peak = comparison.trajectory.peak if comparison.trajectory else None
    key = "mean_cosine"
    change = last.difference.deep.get(key, NOTHING) if last.difference else NOTHING
    ends = f"{number(first.deep.get(key, NOTHING).value, 2)} → {number(last.deep.get(key, NOTHING).value, 2)}"
    cone = Card(
        "cone", "From the first checkpoint to the last", typeset(ends), signed_value(change.value, 3),
        "deep mean cosine", interval_words(change, 3),
    )  # fmt: skip
    stands = Card(
        "peak", "Does it condense on the way?", "no peak", interval="no checkpoint stands out from both ends"
    )  # fmt: skip
    if peak is not None:
        stands = Card(
            "peak", "Does it condense on the way?", f"{peak.value:.3f} at step {peak.step:,}".replace(",", "\u202f"),
            signed_value(peak.rise.value, 3), "above the first", interval_words(peak.rise, 3),
            f"then {signed_value(peak.fall.value, 3)} to the last; " + ("early in the run" if peak.early else "late"),
        )  # fmt: skip
    bits = [(m.quality.bits_per_byte.value, m) for m in members if m.quality.bits_per_byte.value is not None]
    quality = Card("quality", "And the prediction of the same texts?", "not known", interval="not measured")
    if bits:
        best = min(bits, key=lambda pair: pair[0] or 0.0)
        quality = Card(
            "quality", "And the prediction of the same texts?", f"{number(bits[0][0], 2)} → {number(bits[-1][0], 2)}",
            number(best[0], 3), "bits per byte at best", called(best[1]),
        )  # fmt: skip
    return [cone, stands, quality]


# --- members on a line each ----------------------------------------------------------------------------------


def strips(comparison: Comparison) -> list[Strip]:
    """Each member with its interval on the deep mean cosine and on bits per byte; none of a run or of very many.

    A run shows them against step, and very many are better read in the table, which can be sorted.
    """
    if comparison.trajectory is not None or len(comparison.members) > MOST_IN_FULL:
        return []
    made = []
    cones = {member.name: member.deep.get("mean_cosine", NOTHING) for member in comparison.members}
    bits = {member.name: member.quality.bits_per_byte for member in comparison.members}
    for heading, unit, of in (
        ("Deep mean cosine", "0 spread, 1 one direction", cones), ("Bits per byte", "lower is better", bits),
    ):  # fmt: skip
        known = [v for e in of.values() for v in (e.value, e.low, e.high) if v is not None]
        if not known:
            continue
        low, high = padded(known)
        rows = tuple(
            _mark(called(m), of[m.name], low, high, "treated" if rank == 0 else "control")
            for rank, m in enumerate(comparison.members)
        )
        made.append(Strip(heading, unit, (number(low, 2), number(high, 2)), rows, ""))
    return made


def _mark(name: str, of: Estimate, low: float, high: float, ink: str) -> Mark:
    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    interval = "" if of.low is None else typeset(f"{number(of.low, 3)} to {number(of.high, 3)}")
    value = typeset(number(of.value, 3))
    return Mark(name, value, interval, place(of.value), place(of.low), place(of.high), ink)


# --- provenance ------------------------------------------------------------------------------------------------


def provenance(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to repeat the comparison: groups of (name, value)."""
    run = {"command": comparison.command, "created": comparison.created, "condense": comparison.condense,
           "schema": comparison.schema, "kind": comparison.kind}  # fmt: skip
    groups: list[tuple[str, Mapping[str, Any]]] = [("Run", run)]
    if len(comparison.members) > MOST_IN_FULL:
        groups.append(("Weights", {m.name: m.model.weights_sha256 for m in comparison.members}))
    for member in comparison.members if len(comparison.members) <= MOST_IN_FULL else ():
        model, corpus = asdict(member.model), member.corpus
        kept = ("id", "revision", "weights_sha256", "parameters", "dtype", "source_format", "vocabulary_size", "notes")
        values = {key: model[key] for key in kept} | {"from": member.source, "windows_sha256": corpus.windows_sha256}
        groups.append((f"Member: {called(member)}", values))
    corpus_values = {k: v for k, v in asdict(comparison.reference.corpus).items() if k != "windows"}
    groups += [("Corpus of the first", corpus_values), ("Protocol of the first", comparison.protocol),
               ("Environment of the first", comparison.environment)]  # fmt: skip
    return [
        (name, [(k.replace("_", " "), written(v)) for k, v in values.items() if v not in (None, (), [], "")])
        for name, values in groups
    ]


_TERMS = (
    term("paired-difference", "paired difference",
         "A member minus the first on the very same windows, text by text; the interval is a bootstrap over texts. "
         "What both share with a text cancels. Where the windows differ the texts of each are drawn for themselves: "
         "unpaired, and wider.", "Efron 1979"),
    term("trend", "trend over depth",
         "Rank correlation of the mean cosine with depth, Spearman’s rho and Kendall’s tau. Published as severity; "
         "here a trend, for random weights score +1.", "Liu et al. 2026, arXiv:2602.00217"),
    term("peak", "early peak",
         f"A checkpoint inside a run whose deep mean cosine lies at least {LEAST:g} above the first and the last, both "
         "paired intervals excluding 0; early if it lies in the first half of the steps.", "convention of condense"),
    term("measurable", "measurable",
         f"The 95 % interval of a difference in deep mean cosine excludes 0 and the difference is at least {LEAST:g}. "
         "Within ± that, there is no measurable difference; anything else is undecided.", "convention of condense"),
    term("deep", "deep",
         "Read over the deepest half of the blocks, as a median; see “deepest half” below.", "convention of condense"),
)  # fmt: skip
COMPARISON_GLOSSARY = [("Comparison", list(_TERMS)), *GLOSSARY]
