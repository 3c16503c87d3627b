"""The numbers and words that an assertion asks of a run: its own, or its change against a baseline.

numpy is loaded where an interval has to be taken: for changes, and for the blocks of `any-block`, which are judged
side by side and share the .05 between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from condense.diagnosis.verdict import ROGUE, SINK
from condense.gate.assertions import ORDERED, RATIOS, Target
from condense.intervals import ALPHA, coverage_note, over_documents
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, SiteReading, Verdict


@dataclass(frozen=True)
class Reading:
    """A number at one place, with its interval; the reason where it is undefined or has none.

    The interval's level is 95 %, and 1 − .05/blocks for each block of `any-block`. For a change, `value` is
    run − baseline, `current` and `reference` are the two.
    """

    where: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    current: float | None = None
    reference: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Place:
    """Where a target's number is: `key` tells places of one target apart, and finds them again in the baseline."""

    key: int
    where: str
    estimate: Estimate
    site: SiteReading | None = None


def absolute(run: Diagnosis, target: Target) -> tuple[Reading, ...]:
    """The target's number at every place that it names: one, or all blocks for `any-block`."""
    if missing := _missing(run, target):
        return (Reading("", reason=missing),)
    readings = []
    for place in _places(run, target):
        own = _at_level(run, target, place.estimate) if target.scope == "any-block" else place.estimate
        own = _ratio(own) if target.metric in RATIOS else own
        readings.append(_reading(place.where, own, own.value, None, run))
    return tuple(readings)


def _reading(where: str, own: Estimate, current: float | None, reference: float | None, run: Diagnosis) -> Reading:
    """A reading of an estimate; a number without an interval says why it has none."""
    reason = None
    if own.value is None:
        reason = own.reason or "undefined in this run"
    elif own.low is None or own.high is None:
        reason = own.reason or coverage_note(run.corpus.documents) or "there is no interval"
    return Reading(where, own.value, own.low, own.high, current, reference, reason)


def _at_level(run: Diagnosis, target: Target, own: Estimate) -> Estimate:
    """A number of one block with the interval that it has when all blocks are judged side by side."""
    if own.value is None or own.per_text is None:
        return replace(own, low=None, high=None)
    spread = over_documents(own.per_text, run.corpus.documents)
    low, high = spread.bounds(_alpha(run, target))
    return replace(own, low=low, high=high, reason=spread.reason)


def _alpha(run: Diagnosis, target: Target) -> float:
    return ALPHA / max(1, len(_blocks(run, target))) if target.scope == "any-block" else ALPHA


def change(run: Diagnosis, baseline: Diagnosis, target: Target) -> tuple[Reading, ...]:
    """Run − baseline of the target's number at every place that it names, paired by text where that is possible."""
    if missing := _missing(run, target):
        return (Reading("", reason=missing),)
    if missing := _missing(baseline, target):
        return (Reading("", reason=f"in the baseline, {missing}"),)
    others = {place.key: place for place in _places(baseline, target)}
    readings = []
    for place in _places(run, target):
        other = others.get(place.key)
        if other is None:
            readings.append(Reading(place.where, current=place.estimate.value, reason="the baseline has no such block"))
            continue
        change = _difference(run, baseline, target, place, other)
        readings.append(_reading(place.where, change, place.estimate.value, other.estimate.value, run))
    return tuple(readings)


def _missing(run: Diagnosis, target: Target) -> str | None:
    """Why a run cannot have the target at all."""
    if target.stack and target.stack not in {site.stack for site in run.sites}:
        return f"the model has no {target.stack} stack"
    if target.scope in ("quality", "verdict") or _sites(run, target):
        return None
    return f"the model has {len(_blocks(run, target))} blocks" if target.index else f"there is no {target.scope}"


def _places(run: Diagnosis, target: Target) -> list[_Place]:
    if target.scope == "quality":
        of: Estimate = getattr(run.quality, target.metric)
        return [_Place(0, "on the same windows", of)]
    key, sites = target.metric.removesuffix(".null_ratio"), _sites(run, target)
    prefix = f"{target.stack} " if target.stack else ""
    if target.scope == "deep":
        span = f"{sites[0].index} to {sites[-1].index}" if len(sites) > 1 else f"{sites[0].index}"
        return [_Place(0, f"{prefix}mean of blocks {span}", run.deep_of(target.stack)[key])]
    numbered = target.scope == "any-block"
    return [_Place(s.index if numbered else 0, prefix + s.label, s.metrics[key], s) for s in sites]


def _blocks(run: Diagnosis, target: Target) -> list[SiteReading]:
    stack = target.stack or run.main_stack
    return [site for site in run.sites if site.stack == stack and site.site == "block"]


def _sites(run: Diagnosis, target: Target) -> list[SiteReading]:
    blocks, stack = _blocks(run, target), target.stack or run.main_stack
    if target.scope == "deep":
        return [site for site in blocks if site.index > len(blocks) // 2]
    if target.scope == "any-block":
        return blocks
    if target.index is not None:
        wanted = target.index if target.index > 0 else len(blocks) + 1 + target.index
        return [site for site in blocks if site.index == wanted]
    return [site for site in run.sites if site.stack == stack and site.site == target.scope]


def _ratio(of: Estimate) -> Estimate:
    """A rank as a share of its null."""
    if of.null_ratio is None or not of.null:
        return Estimate(None, reason=of.reason or "it has no null")
    low, high = (None if bound is None else bound / of.null for bound in (of.low, of.high))
    return Estimate(of.null_ratio, low, high)


def _difference(run: Diagnosis, baseline: Diagnosis, target: Target, place: _Place, other: _Place) -> Estimate:
    from condense.comparison.differences import Pairing, difference_of, mean_of

    pairing = Pairing.of({0: run}, {0: baseline})
    if target.scope == "quality":
        spread = pairing.quality(target.metric)
    elif place.site is None or other.site is None:
        spread = pairing.deep(target.metric, target.stack)
    else:
        sides = mean_of(place.estimate, run.corpus.documents), mean_of(other.estimate, baseline.corpus.documents)
        spread = difference_of([sides], paired=pairing.same_tokens)
    low, high = spread.bounds(_alpha(run, target))
    return Estimate(spread.value, low, high, reason=spread.reason)


# --- words ------------------------------------------------------------------------------------------


def possible_words(run: Diagnosis, target: Target) -> tuple[str, ...]:
    """The verdict's word first, then the others that its intervals leave open; () if the verdict is undefined.

    Where the interval of the mean cosine or of the rank holds a band's edge, the word is that of one side by chance.
    """
    verdict = run.verdict_of(target.stack)
    word: str = getattr(verdict, target.metric)
    if word == "undefined":
        return ()
    explained = target.metric == "level" and verdict.attribution in (ROGUE, SINK)  # a watch, however wide the cone
    if not verdict.borderline or target.metric == "attribution" or explained:
        return (word,)
    cones, ranks = _cones(run, target, verdict), _ranks(run, target, verdict)
    others = {"cone": cones, "rank": ranks}.get(target.metric) or {
        _level(cone, rank) for cone in cones for rank in ranks
    }
    known = ORDERED[target.metric]
    return (word, *sorted(others - {word}, key=known.index))


def _cones(run: Diagnosis, target: Target, verdict: Verdict) -> set[str]:
    of = run.deep_of(target.stack)["mean_cosine"]
    edges = [verdict.bands[f"cone_{word}"] for word in ORDERED["cone"][1:]]
    ends = [end for end in (of.low, of.high) if end is not None]
    return {verdict.cone} | {ORDERED["cone"][sum(end >= edge for edge in edges)] for end in ends}


def _ranks(run: Diagnosis, target: Target, verdict: Verdict) -> set[str]:
    of = _ratio(run.deep_of(target.stack)["effective_rank"])
    low, reduced = verdict.bands["rank_low"], verdict.bands["rank_reduced"]
    ends = [end for end in (of.low, of.high) if end is not None]
    return {verdict.rank} | {"intact" if end > reduced else "reduced" if end >= low else "low" for end in ends}


def _level(cone: str, rank: str) -> str:
    """The level that a cone and a rank would give at most, whatever they are attributed to."""
    if cone in ("high", "severe"):
        return "severe" if cone == "severe" else "condensed"
    return {"low": "condensed", "reduced": "watch"}.get(rank, "ok")
