"""Sinks: positions with outsized states. Their positions, tokens and blocks; and the finding."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from condense.diagnosis.verdict import Bands, Facts, Labels, sink_hides_rank
from condense.records.base import Finding
from condense.records.diagnosis import SinkAnatomy

if TYPE_CHECKING:
    from torch import Tensor

    from condense.diagnosis.summary import SiteTally

_LISTED = 8  # positions, tokens and channels that are listed


def sink_anatomy(
    tallies: Sequence[SiteTally], keep: Tensor, name: Callable[[int, int], str] | None
) -> SinkAnatomy | None:
    """A stack's sinks: positions, tokens, channels, and the blocks that make and remove them.

    keep (N, S): the positions that count if they are no sinks; name(window, position): the token there, None where the
    text must not be in the record. None where there is no sink.
    """
    inner = [tally for tally in tallies if tally.site.name != "output"]
    with_sink = [sum(len(sinks) > 0 for sinks in tally.sinks) for tally in inner]
    if not max(with_sink, default=0):
        return None
    half = max(with_sink) / 2
    first = next(i for i, count in enumerate(with_sink) if count >= half)
    after = next((i for i, count in enumerate(with_sink[first:], first) if count < half), None)
    seen = [(t.site.label, w, row) for t in inner for w, sinks in enumerate(t.sinks) for row in sinks.tolist()]
    at, _, longest = max(seen, key=lambda each: each[2][1])
    positions = sorted({(window, int(row[0])) for _, window, row in seen})
    return SinkAnatomy(
        stack=inner[0].site.stack,
        windows=len({window for window, _ in positions}),
        per_window=float(statistics.median(Counter(window for window, _ in positions).values())),
        dropped=sum(bool(keep[window, position]) for window, position in positions),
        positions=_most_common([position for _, position in positions]),
        tokens=() if name is None else _most_common([name(window, position) for window, position in positions]),
        channels=_most_common([int(channel) for _, _, row in seen for channel in row[2:]]),
        ratio=longest[1],
        at=at,
        up=inner[first].site.label,
        down=None if after is None else inner[after].site.label,
    )


_Listed = TypeVar("_Listed", int, str)


def _most_common(values: Sequence[_Listed]) -> tuple[_Listed, ...]:
    return tuple(value for value, _ in Counter(values).most_common(_LISTED))


def sink_finding(facts: Facts, labels: Labels, bands: Bands) -> Finding | None:
    """The finding on a stack's sinks; None where none is dropped, massive, or hides the rank."""
    ratios = [(v, i) for i, v in enumerate(facts.curves.get("sink_ratio", ())) if v is not None]
    peak, site = max(ratios, default=(0.0, 0))
    dropped = facts.sinks is not None and facts.sinks.dropped > 0
    # a cone alone takes the uncentred rank below the centred one, so the rank shows a sink only without a cone
    hidden = labels.cone == "low" and sink_hides_rank(facts.inputs, bands)
    if peak <= bands.sink_ratio and not dropped and not hidden:
        return None
    massive = peak > bands.sink_ratio or (facts.sinks is not None and facts.sinks.ratio > bands.sink_ratio)
    many = facts.sinks is not None and facts.sinks.per_window >= 1.5
    count = f"{facts.sinks.per_window:g} positions of a window" if many and facts.sinks else "One position of a window"
    carries = ("carry" if many else "carries") + (" massive activations" if massive else " an outsized state")
    seen = [f"the longest state is {peak:.0f} times the median at {facts.labels[site]}"]
    if facts.sinks is not None:
        seen.append(_anatomy(facts))
    drop = _rank_drop(facts)
    return Finding(
        id="attention-sink",
        severity="info",
        title=f"{count} {carries} ({'attention sinks' if many else 'an attention sink'})",
        seen="; ".join(seen + ([drop] if drop else [])),
        why="Any number that keeps them describes them, not the text. condense leaves position 0, special tokens and "
        "every state above 20 times the median out of the primary numbers and prints the naive ones beside them "
        "(_with_sink).",
        next=facts.command("analyze", "--csv layers.csv"),
        source="Sun et al. 2024, arXiv:2402.17762; Xiao et al. 2024, arXiv:2309.17453",
    )


def _anatomy(facts: Facts) -> str:
    """The positions, tokens and coordinates of the sinks, and the first and last block that has them."""
    sinks = facts.sinks
    if sinks is None:
        return ""
    parts = [f"{sinks.windows} of {facts.text.windows} windows have one"]
    parts.append(f"at position {', '.join(map(str, sinks.positions))}")
    if sinks.tokens:
        parts.append(f"on {', '.join(map(repr, sinks.tokens))}")
    parts.append(f"in coordinates {', '.join(map(str, sinks.channels))}")
    parts.append(f"from {sinks.up}" + (f" until before {sinks.down}" if sinks.down else " to the last block"))
    return " ".join(parts)


def _rank_drop(facts: Facts) -> str:
    """The largest decrease of the effective rank with sinks, beside the rank without; empty if none is by half."""
    naive, own = facts.curves.get("effective_rank_with_sink", ()), facts.curves.get("effective_rank", ())
    index = _largest_drop(naive[: len(naive) - (list(facts.labels[-1:]) == ["output"])])
    if index is None or not own:
        return ""
    numbers = (naive[index - 1], naive[index], own[index - 1], own[index])
    if None in numbers:
        return ""
    a, b, c, d = (f"{number:.0f}" for number in numbers)
    sites = f"from {facts.labels[index - 1]} to {facts.labels[index]}"
    return f"{sites} a naive effective rank that keeps them falls from {a} to {b}, the one without goes from {c} to {d}"


def _largest_drop(curve: Sequence[float | None]) -> int | None:
    """Index of the site where a curve decreases by the largest factor, if any decreases by half."""
    best, factor = None, 2.0
    for index in range(1, len(curve)):
        before, after = curve[index - 1], curve[index]
        if before and after and before / after >= factor:
            best, factor = index, before / after
    return best
