"""The three answers under the verdict of a treatment: effect, quality, what opened. Records in, values out."""

from __future__ import annotations

import math

from condense.records.base import Estimate
from condense.records.treatment import Treatment
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Card, Gauge
from condense.report.text import difference, number, typeset
from condense.report.treatment.figures import WITHOUT_TOP
from condense.report.treatment.markdown import quality


def cards(treatment: Treatment) -> list[Card]:
    """Effect, quality, and what opened."""
    return [_effect(treatment), _quality(treatment), _opened(treatment)]


def _effect(treatment: Treatment) -> Card:
    of, least = treatment.effect.deep.get("mean_cosine", NOTHING), treatment.plan.min_effect
    judged = treatment.effect.words.get("mean_cosine")
    word = "not defined" if of.value is None else judged.word if judged else "not judged"
    note = f"tinted: within ±{least:g}, too small to count"
    gauge = gauge_of(of, least, (-least, least), "more spread", "more condensed", note)
    return Card(
        "effect", f"Does the treated model differ from {_against(treatment)}?", word, signed_value(of.value, 3),
        "deep mean cosine", interval_words(of, 3), _probe(treatment.probe_effect.deep.get("mean_cosine", NOTHING), 3),
        gauge,
    )  # fmt: skip


def _quality(treatment: Treatment) -> Card:
    key, unit, of = measured(treatment)
    question = "What did it cost in language modelling?"
    if of.value is None:
        return Card("quality", question, "not known", interval=of.reason or "not measured in both arms")
    reference = treatment.arms.get(treatment.effect.against)
    base = quality(reference.validation, key).value if reference else None
    word, gauge = str(treatment.verdict.quality), None
    if base:
        tolerance = treatment.plan.quality_tolerance
        bound = tolerance * base
        note = f"tinted: held, up to {number(bound, 4)} ({100 * tolerance:g} % of {number(base, 3)})"
        gauge = gauge_of(of, bound, (-math.inf, bound), "better", "worse", note)
        unit += typeset(f" ({100 * of.value / base:+.2f} %)")
    also = _probe(treatment.probe_effect.quality.get(key, NOTHING), 4)
    return Card("quality", question, word, signed_value(of.value, 4), unit, interval_words(of, 4), also, gauge)


def _opened(treatment: Treatment) -> Card:
    words = {"both": "both, in part", "cone opened": "the cone opened"}
    groups = []
    for key, title in (("mean_cosine", "mean cosine"), (WITHOUT_TOP, "without the top 3 dimensions")):
        bars = []
        for name, arm in treatment.arms.items():
            value = arm.validation.deep.get(key, NOTHING).value
            bars.append((name, typeset(number(value, 2)), round(100 * min(1.0, max(0.0, value or 0.0)), 1)))
        groups.append((title, tuple(bars), difference(treatment.effect.deep.get(key, NOTHING))))
    opened = treatment.verdict.opened
    return Card(
        "what opened", "The cone itself, or only three dimensions?", words.get(opened, opened), bars=tuple(groups)
    )


def _against(treatment: Treatment) -> str:
    return "its control" if treatment.effect.against == "control" else treatment.effect.against


def measured(treatment: Treatment) -> tuple[str, str, Estimate]:
    """The quality that counts: bits per byte, or the loss of a model that has none."""
    bits = treatment.effect.quality.get("bits_per_byte", NOTHING)
    if bits.value is not None:
        return "bits_per_byte", "bits per byte", bits
    return "loss", "nats per token", treatment.effect.quality.get("loss", bits)


def _probe(of: Estimate, digits: int) -> str:
    """The same on the probe text, which nobody trained on."""
    return "" if of.value is None else f"on the probe text: {difference(of, digits)}"


def gauge_of(of: Estimate, least: float, zone: tuple[float, float], left: str, right: str, key: str) -> Gauge | None:
    """A difference on a line of its own; None where it is undefined."""
    known = [abs(v) for v in (of.value, of.low, of.high) if v is not None]
    if not known:
        return None
    end = _round_up(max(*known, 2.5 * least))

    def place(value: float | None) -> float | None:
        return None if value is None else round(50 + 50 * max(-1.0, min(1.0, value / end)), 2)

    start, stop = (place(v) or 0.0 for v in zone)
    return Gauge(f"{end:g}", (start, stop), place(of.low), place(of.high), place(of.value), left, right, key)


def _round_up(value: float) -> float:
    """The next round number: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(round(unit * m, 12) for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if unit * m >= value * 0.999999)


def excludes_zero(of: Estimate) -> bool:
    """Whether the interval of a difference leaves 0 out."""
    return of.low is not None and of.high is not None and (of.low > 0 or of.high < 0)


def signed_value(value: float | None, digits: int) -> str:
    """A number with its sign; nothing where it is undefined."""
    return "" if value is None else typeset(f"{value:+.{digits}f}")


def interval_words(of: Estimate, digits: int) -> str:
    """The interval of a difference in words."""
    if of.low is None or of.high is None:
        return "no interval"
    return typeset(f"95 % interval {of.low:+.{digits}f} to {of.high:+.{digits}f}")
