"""Charts as plain values: what is drawn, and the same as a plotly figure. No numbers are made here.

A `Chart` says what is to be seen; `plotly_figure` turns it into plotly JSON and `condense.report.svg` into
a static SVG. Colours are names (`@accent`) that the page resolves for the light, dark and printed skin, so
that a chart is described once. `plotly.graph_objects` is not needed and not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]
DASHES = {"solid": "solid", "dash": "dash", "dot": "dot", "longdash": "longdash", "dashdot": "dashdot"}
POINTS = "none"  # the dash of a series that is points only
SYMBOLS = {"circle": "circle", "square": "square", "diamond": "diamond", "triangle": "triangle-up", "none": ""}
PATTERNS = ("", "/", "x", ".", "\\")


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: one place per label, `gap` empty places before the last `apart` of them.

    With `at` it is a line of numbers from the first to the last of `span` instead, and has no labels; `marks` are
    its ticks, where they are not to be round numbers.
    """

    labels: tuple[str, ...] = ()
    ticks: tuple[str, ...] = ()
    title: str = "depth"
    apart: int = 0
    gap: int = 0
    at: tuple[float, ...] = ()
    span: tuple[float, float] | None = None
    marks: tuple[tuple[float, str], ...] = ()

    @property
    def inner(self) -> int:
        """How many places come before those that are set apart."""
        return len(self.at or self.labels) - self.apart

    def position(self, index: int) -> float:
        """Where the place with this index is drawn."""
        if self.at:
            return self.at[index]
        return index + (self.gap if index >= self.inner else 0)

    @property
    def places(self) -> list[str]:
        """All places in order; the gap is made of invisible ones (zero-width names, each its own)."""
        inner = self.inner
        return [*self.labels[:inner], *("\u200b" * (i + 1) for i in range(self.gap)), *self.labels[inner:]]


@dataclass(frozen=True)
class Series:
    """One curve: values along the axis (None where undefined), an optional interval, how it is drawn.

    With the dash `POINTS` no line joins the values; `whiskers` draws the interval of places set apart too. On an
    axis of numbers `whiskers` draws every interval as a bar, and `left` to `right` is the one along the axis.
    `marks` is the most marks that are put on the line, 0 for one at every place. `at` are places of its own on a
    line of numbers, `places` what they are called when one is pointed at.
    """

    name: str
    values: Values
    ink: str = "accent"
    low: Values | None = None
    high: Values | None = None
    dash: str = "solid"
    symbol: str = "none"
    width: float = 2.0
    digits: int = 3
    whiskers: bool = False
    left: Values | None = None
    right: Values | None = None
    marks: int = 0
    at: tuple[float, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def barred(self) -> bool:
        """Whether its intervals are bars at each point, along the axis too."""
        return self.whiskers and self.left is not None and self.right is not None


@dataclass(frozen=True)
class Cells:
    """A heatmap: one column of values per place on the axis, rows from `bottom` to `top`.

    `words` is its legend and `hover` what is said of a cell, where they are not shares of pairs.
    """

    columns: tuple[Values, ...]
    bottom: float
    top: float
    name: str
    peak: float
    words: str = ""
    hover: str = "%{x}, cosine %{y:.2f}: %{z:.1f} % of pairs"

    def row_centres(self) -> list[float]:
        """The middle of each row."""
        rows = len(self.columns[0]) if self.columns else 0
        step = (self.top - self.bottom) / rows if rows else 0.0
        return [round(self.bottom + (row + 0.5) * step, 6) for row in range(rows)]


@dataclass(frozen=True)
class Shade:
    """A stretch of the axis set off from the rest, with a word on what it is."""

    first: int
    last: int
    label: str


@dataclass(frozen=True)
class Chart:
    """What one drawing shows: curves, stacked bars or cells over one axis.

    `zone` tints the values between two; `equal` gives a unit the same length on both axes; `uprights` are edges
    across an axis of numbers; `moment` is a place on it, with a word on what happened there.
    """

    id: str
    axis: Axis
    y_title: str
    series: tuple[Series, ...] = ()
    bars: tuple[Series, ...] = ()
    cells: Cells | None = None
    y_range: tuple[float, float] | None = None
    log: bool = False
    edges: tuple[tuple[float, str], ...] = ()
    uprights: tuple[tuple[float, str], ...] = ()
    shade: Shade | None = None
    zone: tuple[float, float] | None = None
    equal: bool = False
    moment: tuple[float, str] | None = None
    height: int = 360
    width: int = 1000
