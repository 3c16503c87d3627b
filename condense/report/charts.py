"""Charts as plain values: what is drawn, in which colours, with which title and sentence.

`condense.report.plotly` turns a `Chart` into plotly JSON and `condense.report.svg` into a static SVG. Colours are
names (`accent`) that the page resolves for the light, dark and printed skin, so that a chart is described once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from condense.records.base import Estimate

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


class Look(NamedTuple):
    """How a curve is called and drawn; distinguished by dash and mark as well as by colour."""

    words: str
    ink: str
    dash: str = "solid"
    symbol: str = "none"

    def curve(
        self,
        estimates: Sequence[Estimate],
        digits: int = 3,
        *,
        bands: bool = True,
        whiskers: bool = False,
        width: float | None = None,
        marks: int = 0,
        at: tuple[float, ...] = (),
        places: tuple[str, ...] = (),
    ) -> Series:
        """The curve of these estimates, with their intervals where `bands` asks for them and any is known.

        width: the accent is the thicker line unless given; the rest as in `Series`.
        """
        known = bands and any(estimate.low is not None for estimate in estimates)
        return Series(
            self.words,
            [estimate.value for estimate in estimates],
            self.ink,
            [estimate.low for estimate in estimates] if known else None,
            [estimate.high for estimate in estimates] if known else None,
            self.dash,
            self.symbol,
            width or (2.5 if self.ink == "accent" else 2.0),
            digits,
            whiskers=whiskers,
            marks=marks,
            at=at,
            places=places,
        )


def known_values(series: Sequence[Series]) -> list[float]:
    """Every value of some curves that is defined, the ends of their intervals too."""
    return [v for s in series for v in (*s.values, *(s.low or ()), *(s.high or ())) if v is not None]


def padded(values: Sequence[float | None]) -> tuple[float, float]:
    """The range of the values with a margin at both ends."""
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class Cells:
    """A heatmap: one column of values per place on the axis, rows from `bottom` to `top`.

    `words` is its legend and `hover` the text of a cell, where they are not shares of pairs.
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


@dataclass(frozen=True)
class Figure:
    """A chart with its title and the sentence that says what it shows; `still` leaves it a static drawing."""

    chart: Chart
    title: str
    takeaway: str
    wide: bool = True
    still: bool = False


@dataclass(frozen=True)
class Panels:
    """Small charts side by side over the same axes, with a name and a note under each.

    `still` leaves them static drawings, where a script would have too much to draw.
    """

    charts: tuple[Chart, ...]
    names: tuple[tuple[str, str], ...]
    title: str
    takeaway: str
    columns: int
    still: bool = False


# --- over training steps -------------------------------------------------------------------------------


def thinned(values: Sequence[float | None], most: int) -> list[float | None]:
    """Means of neighbouring steps, so many that at most `most` are left."""
    size = -(-len(values) // most) or 1
    groups = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [sum(group) / len(group) if group else None for group in groups]


def over_steps(
    key: str,
    unit: str,
    logged: Mapping[str, Mapping[int, float | None]],
    looks: Mapping[str, Look],
    most: int,
    *,
    marks: int = 0,
    floor: float | None = None,
    width: int = 1000,
) -> Chart:
    """What was logged of each arm, by step; at most `most` means of neighbouring steps are drawn.

    looks: by the arm's name; `marks` as in `Series`; floor: what the vertical axis must reach down to.
    """
    steps = sorted({step for values in logged.values() for step in values})
    series = []
    for name, values in logged.items():
        thin = [Estimate(value) for value in thinned([values.get(step) for step in steps], most)]
        look = looks[name] if marks or len(thin) <= 40 else looks[name]._replace(symbol="none")
        series.append(look.curve(thin, marks=marks))
    at = [float(step) for step in thinned(steps, most) if step is not None]
    axis = Axis(title="step", at=tuple(at), span=(0.0, 1.025 * max(steps[-1], 1)))
    ends = padded([*known_values(series), *([] if floor is None else [floor])])
    chart_id, height = f"chart-training-{key.replace('_', '-')}", 310 if width < 1000 else 380
    return Chart(chart_id, axis, unit, tuple(series), y_range=ends, height=height, width=width)
