"""What a page is made of beside its charts: its head, the answer it opens with, cards, and strips of intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from condense.files import size_in_words
from condense.records.base import Estimate, Finding
from condense.report.charts import Look, padded
from condense.report.tables import digits_of
from condense.report.text import DASH, NOTHING, in_words, interval, number, signed, written

if TYPE_CHECKING:
    from condense.records.treatment import Effect, Schedule, Word


@dataclass(frozen=True)
class Head:
    """The top of a page: which kind of report, of what, made when, and its sections as (id, title)."""

    kind: str
    about: str
    title: str
    name: str
    lines: tuple[str, ...]
    created: str
    version: str
    sections: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mark:
    """A line of a strip: its number and interval as text; where they lie on the scale, in percent; a dot per seed.

    `other` is a second mark that is only compared with, `note` says why there is no number.
    """

    look: Look
    value: str
    interval: str = ""
    at: float | None = None
    low: float | None = None
    high: float | None = None
    dots: tuple[tuple[float, str], ...] = ()
    other: float | None = None
    note: str = ""


class Band(NamedTuple):
    """One word of a scale and where it begins and ends, in percent of the scale."""

    word: str
    start: float
    stop: float


@dataclass(frozen=True)
class Strip:
    """Numbers with their intervals over one scale: a single one in a card, or a line per arm or member.

    `ticks` are (percent, text), `zone` is tinted and `key` says what that means, `zero` is where 0 lies, `ways` what it
    means to be left and right of it, `bands` the words of the scale; `change` is a sentence below.
    """

    rows: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    title: str = ""
    unit: str = ""
    first: str = "arm"
    zero: float | None = None
    zone: tuple[float, float] | None = None
    ways: tuple[str, str] | None = None
    bands: tuple[Band, ...] = ()
    key: str = ""
    change: str = ""

    @property
    def short(self) -> bool:
        """Whether the names of all lines are short."""
        return all(len(row.look.words) < 10 for row in self.rows)

    @property
    def seeds(self) -> bool:
        """Whether any line has a dot per seed."""
        return any(row.dots for row in self.rows)


class Scale(NamedTuple):
    """A scale from `low` to `high`."""

    low: float
    high: float

    def at(self, value: float | None) -> float | None:
        """Where a value lies, in percent; at an end what is beyond it."""
        if value is None:
            return None
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(100 * share, 2)

    def mark(
        self,
        look: Look,
        estimate: Estimate,
        digits: int,
        *,
        signs: bool = False,
        seeds: Mapping[int, float] | None = None,
    ) -> Mark:
        """An estimate on this scale, with its value under each seed as a dot."""
        dots = tuple((self.at(v) or 0.0, signed(v, digits)) for v in (seeds or {}).values())
        if estimate.value is None:
            return Mark(look, DASH, dots=dots, note=estimate.reason or "not defined")
        text = signed(estimate.value, digits) if signs else number(estimate.value, digits)
        bounds = interval(estimate, digits, signs=signs)
        return Mark(look, text, bounds, self.at(estimate.value), self.at(estimate.low), self.at(estimate.high), dots)


class Line(NamedTuple):
    """What is drawn on a line of a strip: how, the estimate, and its value under each seed."""

    look: Look
    of: Estimate
    seeds: Mapping[int, float] = {}


def strip(
    title: str,
    unit: str,
    lines: Sequence[Line],
    digits: int,
    *,
    first: str = "arm",
    zone: tuple[float, float] | None = None,
    ways: tuple[str, str] | None = None,
    key: str = "",
    change: str = "",
) -> Strip | None:
    """Estimates on a line each over one scale; with `ways` they are differences and 0 is on it. None without values.

    zone: what is tinted; −inf reaches to the left end.
    """
    values = [v for line in lines for v in (line.of.value, line.of.low, line.of.high, *line.seeds.values())]
    if all(v is None for v in values):
        return None
    signs = ways is not None
    edges = [v for v in zone or () if math.isfinite(v)]
    scale = Scale(*padded([*values, *edges, *([0.0] if signs else [])]))
    ends = [signed(v, digits) if signs else number(v, 2) for v in scale]
    return Strip(
        rows=tuple(scale.mark(line.look, line.of, digits, signs=signs, seeds=line.seeds) for line in lines),
        ticks=((0.0, ends[0]), (100.0, ends[1])),
        title=title,
        unit=unit,
        first=first,
        zero=scale.at(0.0) if signs else None,
        zone=_tinted(scale, zone),
        ways=ways,
        key=key,
        change=change,
    )


def gauge(
    estimate: Estimate,
    digits: int,
    least: float,
    zone: tuple[float, float],
    ways: tuple[str, str],
    key: str,
    seeds: Mapping[int, float] | None = None,
) -> Strip | None:
    """One difference on a scale of its own from −end to +end, a dot per seed; None where it is undefined."""
    known = [abs(v) for v in (estimate.value, estimate.low, estimate.high, *(seeds or {}).values()) if v is not None]
    if not known:
        return None
    end = _round_up(max(*known, 2.5 * least))
    scale = Scale(-end, end)
    mark = scale.mark(Look("", "ink"), estimate, digits, signs=True, seeds=seeds)
    ticks = ((0.0, f"-{end:g}"), (50.0, "0"), (100.0, f"+{end:g}"))
    return Strip((mark,), ticks, zero=50.0, zone=_tinted(scale, zone), ways=ways, key=key)


def bands(estimate: Estimate, words: Sequence[str], edges: Sequence[float], other: float | None) -> Strip:
    """One share on a scale from 0 to 1 among the words that its bands have; `other` is what it is compared with."""
    scale, ends = Scale(0.0, 1.0), [0.0, *edges, 1.0]
    parts = zip(words, ends[:-1], ends[1:], strict=True) if len(ends) == len(words) + 1 else ()
    mark = Mark(
        Look("", "ink"),
        "",
        "",
        scale.at(estimate.value),
        scale.at(estimate.low),
        scale.at(estimate.high),
        (),
        scale.at(other),
    )
    ticks = ((0.0, "0"), *((100 * edge, f"{edge:.2f}".lstrip("0")) for edge in edges), (100.0, "1"))
    return Strip((mark,), ticks, bands=tuple(Band(word, 100 * a, 100 * b) for word, a, b in parts))


def _tinted(scale: Scale, zone: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if zone is None else (scale.at(zone[0]) or 0.0, scale.at(zone[1]) or 0.0)


def _round_up(value: float) -> float:
    """The next round number: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(round(unit * m, 12) for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if unit * m >= value * 0.999999)


class Bars(NamedTuple):
    """Numbers between 0 and 1 as bars, each (name, text, percent, ink), under a title and with a note below."""

    title: str
    rows: tuple[tuple[str, str, float, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One of the answers under a verdict: its question, the word, the numbers, the strip or the bars.

    `resampled` says how often resamples of the documents give each word.
    """

    key: str
    question: str
    word: str
    value: str = ""
    unit: str = ""
    interval: str = ""
    also: str = ""
    strip: Strip | None = None
    bars: tuple[Bars, ...] = ()
    resampled: str = ""


def bar_width(value: float | None) -> float:
    """A value between 0 and 1 in percent of a bar."""
    return round(100 * min(1.0, max(0.0, value or 0.0)), 1)


def interval_words(estimate: Estimate, digits: int, *, signs: bool = True) -> str:
    """The interval of an estimate in words."""
    bounds = interval(estimate, digits, signs=signs)
    return f"95 % interval {bounds}" if bounds else "no interval"


def effect_card(
    key: str,
    question: str,
    estimate: Estimate,
    word: Word | None,
    digits: int,
    *,
    also: str = "",
    seeds: Mapping[int, float] | None = None,
) -> Card:
    """A difference in mean cosine: what it comes to, and where it lies beside what counts."""
    scale, least = None, word.least if word else None
    if least is not None:
        note = f"tinted: within ±{least:g}, too small to count"
        scale = gauge(estimate, digits, least, (-least, least), ("more spread", "more condensed"), note, seeds)
    return Card(
        key,
        question,
        word.word if word and estimate.value is not None else "not defined" if estimate.value is None else "not judged",
        value="" if estimate.value is None else signed(estimate.value, digits),
        unit="deep mean cosine",
        interval=interval_words(estimate, digits),
        also=also,
        strip=scale,
    )


def quality_card(
    question: str,
    effect: Effect,
    base: float | None,
    word: str,
    *,
    also: str = "",
    seeds: Mapping[int, float] | None = None,
) -> Card:
    """A difference in quality to a reference of this value (`base`): what it comes to beside what is tolerated."""
    key, bound = effect.quality_key, effect.least("quality")
    change, digits = effect.quality.get(key, NOTHING), digits_of(key)
    if change.value is None:
        return Card("quality", question, word, interval=change.reason or "not measured in both")
    unit, scale = {"bits_per_byte": "bits per byte", "loss": "nats per token"}.get(key, key), None
    if base and bound is not None:
        note = f"tinted: held, up to {number(bound, 4)} ({100 * bound / base:.3g} % of {number(base, 3)})"
        scale = gauge(change, digits, bound, (-math.inf, bound), ("better", "worse"), note, seeds)
    if base:
        unit += f" ({100 * change.value / base:+.2f} %)"
    bounds = interval_words(change, digits)
    return Card("quality", question, word, signed(change.value, digits), unit, bounds, also, scale)


@dataclass(frozen=True)
class Answer:
    """What a page opens with: the verdict's word among all words it could be, the main finding, the cards.

    `level` and `icon` are how the word is coloured and marked, `joint` stands between the words of the `ladder`, `tag`
    and `aside` behind the word; `caveats` are read before the numbers, `caveat` after them.
    """

    level: str
    icon: str
    word: str
    finding: Finding | None
    cards: tuple[Card, ...]
    caveat: str
    ladder: tuple[str, ...] = ()
    joint: str = "·"
    tag: str = ""
    aside: str = ""
    caveats: tuple[str, ...] = ()
    numbers: bool = True


Groups = list[tuple[str, list[tuple[str, str]]]]


def provenance(groups: Mapping[str, Mapping[str, Any]]) -> Groups:
    """What is needed to repeat a run, as groups of (name, value); what is not known is left out."""
    rows = {
        title: [(key.replace("_", " "), written(v)) for key, v in values.items() if v not in (None, (), [], "")]
        for title, values in groups.items()
    }
    return [(title, values) for title, values in rows.items() if values]


def without_windows(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus without the names of its windows, which have a place of their own."""
    return {key: value for key, value in corpus.items() if key != "windows"}


def schedule_facts(schedule: Schedule) -> dict[str, Any]:
    """What a plan came to, with its sizes and times in words."""
    words = {"disk_bytes": size_in_words(schedule.disk_bytes), "memory_bytes": size_in_words(schedule.memory_bytes)}
    return asdict(schedule) | words | {"seconds": in_words(schedule.seconds)}
