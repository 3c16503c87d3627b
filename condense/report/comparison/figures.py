"""Which charts a comparison is drawn with over depth, and how members are called. Records in, charts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from condense.records.comparison import Comparison, Member
from condense.report.charts import Axis, Chart, Series
from condense.report.depth import depth_axis, padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure, Look
from condense.report.text import difference, number, shortened, typeset
from condense.report.treatment.figures import WITHOUT_TOP

MOST_CURVES = 12
MOST_STEPS = 8
DEEP = 48
WITH_BANDS = 4
INKS = ("accent", "warm", "leaf", "plum", "ink", "quiet")
DASHES = ("solid", "longdash", "dot", "dashdot", "dash")
SYMBOLS = ("circle", "diamond", "square", "none")
RAMP = 8
OUTPUT_AT = 1.08


def looks(comparison: Comparison) -> dict[str, Look]:
    """How every member is drawn: a run from light to dark, others by ink, dash and mark together."""
    members = comparison.members
    if comparison.trajectory is not None:
        last = max(1, len(members) - 1)
        return {
            m.name: Look(called(m), f"t{round(i * (RAMP - 1) / last)}", DASHES[0] if i % 2 == 0 else "longdash", "none")
            for i, m in enumerate(members)
        }
    marked = len(members) <= len(INKS)  # more lines with marks would be a thicket
    return {
        m.name: Look(
            called(m), INKS[i % len(INKS)], DASHES[(i + i // len(INKS)) % len(DASHES)],
            SYMBOLS[i % len(SYMBOLS)] if marked else "none",
        )
        for i, m in enumerate(members)
    }  # fmt: skip


def called(member: Member) -> str:
    """A member's name, shortened in its middle; in a run its step."""
    if member.step is not None:
        return f"step {member.step:,}".replace(",", "\u202f")
    return shortened(member.name)


def drawn(comparison: Comparison, most: int | None = None) -> tuple[Member, ...]:
    """The members that are drawn: all, or so many spread over them, with the first, the last and the peak."""
    members = comparison.members
    deep = max(member.blocks for member in members) > DEEP
    most = most or (MOST_STEPS if comparison.trajectory or deep else MOST_CURVES)
    if len(members) <= most:
        return members
    places = {round(i * (len(members) - 1) / (most - 1)) for i in range(most)}
    peak = comparison.trajectory.peak if comparison.trajectory else None
    place = next((i for i, member in enumerate(members) if peak and member.name == peak.name), None)
    if place is not None and place not in places:
        inner = places - {0, len(members) - 1}
        places = places - {min(inner, key=lambda other: abs(other - place))} | {place}
    return tuple(members[place] for place in sorted(places))


def left_out(comparison: Comparison, shown: Sequence[Member], where: str = "the table of members") -> str:
    """The sentence that says that not all are drawn, and where they are; nothing if all are."""
    if len(shown) == len(comparison.members):
        return ""
    return f" Shown are {len(shown)} of the {len(comparison.members)}; all are in {where}."


# --- over depth ------------------------------------------------------------------------------------------


def depth_figures(comparison: Comparison) -> list[Figure]:
    """The members over depth, overlaid; and their differences to the first where the blocks correspond."""
    made = [
        _overlaid(comparison, "mean_cosine", "How alike are two tokens of one text?"),
        _overlaid(comparison, WITHOUT_TOP, "The same, without each text’s top three dimensions"),
    ]
    if comparison.kind != "trajectory":
        made += _differences(comparison)
    return [*made, _overlaid(comparison, "effective_rank", "How many directions are in use?")]


def same_depth(members: Sequence[Member]) -> bool:
    """Whether the sites of all members correspond one to one."""
    labels = {tuple(site.label for site in member.sites) for member in members}
    return len(labels) == 1


def _overlaid(comparison: Comparison, key: str, title: str) -> Figure:
    shown, styles = drawn(comparison), looks(comparison)
    rank = key == "effective_rank"
    bands = len(shown) <= WITH_BANDS and comparison.trajectory is None
    series = [_curve(member, key, styles[member.name], 1 if rank else 3, bands) for member in shown]
    axis = depth_axis(shown[0].sites)
    if not same_depth(shown):
        axis = _relative_axis(shown)
        series = [_relative(line, member) for line, member in zip(series, shown, strict=True)]
    if rank:
        series = [*_null(shown), *series]
    lowest = min((v for s in series for v in (*s.values, *(s.low or ())) if v is not None), default=0.0)
    chart = Chart(
        f"chart-{key.replace('_', '-')}", axis, "directions" if rank else "cosine", tuple(reversed(series)),
        y_range=None if rank else (min(0.0, lowest) - 0.02, 1.02), height=420,
    )  # fmt: skip
    if rank and axis.at:
        known = [v for s in series for v in s.values if v is not None]
        chart = replace(chart, y_range=(0.0, 1.05 * max(known, default=1.0)))
    return Figure(chart, title, typeset(_words(comparison, key) + left_out(comparison, shown)))


def _curve(member: Member, key: str, style: Look, digits: int, bands: bool) -> Series:
    of = [site.metrics.get(key, NOTHING) for site in member.sites]
    drawn_band = bands and any(e.low is not None for e in of)
    return Series(
        style.words, [e.value for e in of], style.ink, [e.low for e in of] if drawn_band else None,
        [e.high for e in of] if drawn_band else None, style.dash, style.symbol, 2.0, digits,
    )  # fmt: skip


def _null(shown: Sequence[Member]) -> list[Series]:
    """The Gaussian null, where it is one for all."""
    nulls = {tuple(site.metrics.get("effective_rank", NOTHING).null for site in member.sites) for member in shown}
    values = next(iter(nulls))
    if len(nulls) > 1 or not any(v is not None for v in values):
        return []
    name = "Gaussian null: random directions of the same shape"
    line = Series(name, list(values), "edge", dash="dashdot", width=1.5, digits=1)
    return [line]


def _relative_axis(shown: Sequence[Member]) -> Axis:
    """Depth from 0 to 1 for models of different depth; the output stands apart on the right."""
    apart = int(all(member.sites[-1].site == "output" for member in shown))
    marks = [(place / 4, f"{place / 4:g}") for place in range(5)] + ([(OUTPUT_AT, "out")] if apart else [])
    return Axis(
        title="depth: 0 what block 1 receives, 1 what the last block leaves", apart=apart, at=(0.0, 1.0),
        span=(-0.02, OUTPUT_AT + 0.03), marks=tuple(marks),
    )  # fmt: skip


def _relative(series: Series, member: Member) -> Series:
    at = tuple(OUTPUT_AT if site.site == "output" else site.depth for site in member.sites)
    return replace(series, at=at, places=tuple(site.label for site in member.sites))


def _words(comparison: Comparison, key: str) -> str:
    digits = 1 if key == "effective_rank" else 2
    if comparison.kind == "pair":
        first, other = comparison.members
        change = other.difference.deep.get(key, NOTHING) if other.difference else NOTHING
        words = (
            f"Over the deepest half {_deep(first, key, digits)} in {called(first)} and {_deep(other, key, digits)} in "
            f"{called(other)}"
        )
        return words + (f": a difference of {difference(change, 3 if digits == 2 else 1)}." if change.value is not None
                        else ".")  # fmt: skip
    known = [(m.deep.get(key, NOTHING).value, m) for m in comparison.members]
    ordered = sorted((pair for pair in known if pair[0] is not None), key=lambda pair: pair[0] or 0.0)
    if not ordered:
        return "It is not defined for any of them."
    (low, least), (high, most) = ordered[0], ordered[-1]
    if comparison.trajectory is not None:
        return (
            f"Light is early, dark is late. Over the deepest half: lowest {number(low, digits)} at {called(least)}, "
            f"highest {number(high, digits)} at {called(most)}."
        )
    return (
        f"Over the deepest half from {number(low, digits)} ({called(least)}) to {number(high, digits)} "
        f"({called(most)})."
    )


def _deep(member: Member, key: str, digits: int) -> str:
    return number(member.deep.get(key, NOTHING).value, digits)


def _differences(comparison: Comparison) -> list[Figure]:
    """Each member − the first, block by block, with intervals while there are few."""
    first = comparison.reference
    others = [m for m in drawn(comparison)[1:] if m.difference and len(m.difference.sites) == len(first.sites)]
    if not others:
        return []
    styles = looks(comparison)
    if comparison.kind == "pair":
        own = others[0]
        pairs = [
            (own, WITHOUT_TOP, Look("without each text’s top 3 dimensions", "warm", "longdash", "diamond")),
            (own, "mean_cosine", Look("mean cosine", "accent", "solid", "circle")),
        ]
    else:
        pairs = [(member, "mean_cosine", styles[member.name]) for member in others]
    bands = len(pairs) <= WITH_BANDS
    series = []
    for member, key, style in pairs if comparison.kind == "pair" else reversed(pairs):
        of = [site.metrics.get(key, NOTHING) for site in (member.difference.sites if member.difference else ())]
        line = Series(
            style.words, [e.value for e in of], style.ink, [e.low for e in of] if bands else None,
            [e.high for e in of] if bands else None, style.dash, style.symbol, 2.0, 4, whiskers=bands,
        )  # fmt: skip
        series.append(line)
    values = [v for s in series for v in (*s.values, *(s.low or ()), *(s.high or ())) if v is not None]
    chart = Chart(
        "chart-difference", depth_axis(first.sites), f"− {called(first)}", tuple(series),
        y_range=padded([*values, -0.02, 0.02]), edges=((0.0, "the same"),), zone=(-0.01, 0.01), height=400,
    )  # fmt: skip
    return [Figure(chart, "Where they differ, layer by layer", _difference_words(others, first))]


def _difference_words(others: Sequence[Member], first: Member) -> str:
    parts = []
    for member in others[:3]:
        sites = member.difference.sites if member.difference else ()
        at = [(site, site.metrics.get("mean_cosine", NOTHING)) for site in sites]
        far = max((pair for pair in at if pair[1].value is not None), key=lambda pair: abs(pair[1].value or 0.0),
                  default=None)  # fmt: skip
        if far is not None:
            place = f"block {far[0].index}" if far[0].site == "block" else far[0].site
            parts.append(f"{called(member)} most at {place}: {difference(far[1])}")
    words = f"Mean cosine, each minus {called(first)} on the same texts. " + "; ".join(parts)
    return typeset(f"{words}." if parts else words)
