"""What the page of a treatment says beside its charts: cards, tables of the arms, cost, provenance, glossary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from condense.report.charts import Chart


@dataclass(frozen=True)
class Mark:
    """One arm on a strip: the number and its interval as text, and where they lie in percent; `ink` as of that arm."""

    arm: str
    value: str
    interval: str
    at: float | None
    low: float | None
    high: float | None
    ink: str = ""


@dataclass(frozen=True)
class Strip:
    """The arms on one line each, over the same scale, and the difference in words."""

    title: str
    unit: str
    ends: tuple[str, str]
    rows: tuple[Mark, ...]
    change: str


@dataclass(frozen=True)
class Gauge:
    """A difference on a line from −end to +end: what is tinted, interval and value, in percent of the line."""

    end: str
    zone: tuple[float, float]
    low: float | None
    high: float | None
    mark: float | None
    left: str
    right: str
    key: str


@dataclass(frozen=True)
class Card:
    """One of the three answers: its question, the word, the numbers, the gauge or the bars of the arms."""

    key: str
    question: str
    word: str
    value: str = ""
    unit: str = ""
    interval: str = ""
    also: str = ""
    gauge: Gauge | None = None
    bars: tuple[tuple[str, tuple[tuple[str, str, float], ...], str], ...] = ()


class Look(NamedTuple):
    """How an arm is called and drawn; told apart by dash and mark as well as by colour."""

    words: str
    ink: str
    dash: str
    symbol: str


LOOKS = {
    "before": Look("before", "quiet", "dot", "square"),
    "control": Look("control: cross-entropy only", "warm", "longdash", "diamond"),
    "treated": Look("treated: with the loss", "accent", "solid", "circle"),
}


OTHER = Look("", "plum", "dash", "none")


def look(arm: str) -> Look:
    """How an arm is called and drawn."""
    return LOOKS.get(arm, OTHER._replace(words=arm))


@dataclass(frozen=True)
class Figure:
    """A chart with its title and the sentence that says what it shows."""

    chart: Chart
    title: str
    takeaway: str
    wide: bool = True
