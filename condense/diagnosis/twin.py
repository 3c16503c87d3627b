"""The same architecture with random weights, several times: is the model more or less condensed than those?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from condense.diagnosis.summary import pooled, trend_of
from condense.diagnosis.verdict import Twin, TwinWord
from condense.intervals import Spread, over_documents
from condense.metrics import METRICS
from condense.models.checkpoint import Checkpoint, random_twin
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, Histogram, Paper, Quality, SiteReading, StackSummary
from condense.records.plans import Plan

INITIALISATIONS = 3


def initialisations(checkpoint: Checkpoint, seed: int, count: int = INITIALISATIONS) -> Iterator[Checkpoint]:
    """The same architecture under `count` other seeds than the model's own random weights; one is built at a time."""
    number = made = 0
    while made < count:
        twin = random_twin(checkpoint, 1000 * (seed + 1) + number)
        number += 1
        if twin.info.weights_sha256 != checkpoint.info.weights_sha256:
            made += 1
            yield twin
        del twin


def compare_with_twins(
    own: Estimate, twins: Sequence[Estimate], documents: Sequence[int], least: float = Plan.min_effect
) -> Twin | None:
    """The deep mean cosine of a model minus that of random initialisations; None where one is undefined.

    The model is itself one draw: V = V_doc of the windows' differences + var over initialisations·(1 + 1/K), combined
    as over seeds with K − 1 degrees of freedom. `more` or `less`: the interval excludes 0 and |difference| ≥ least.
    """
    values = [twin.value for twin in twins if twin.value is not None]
    if own.value is None or len(values) < len(twins) or len(values) < 2:
        return None
    differences = _floats_or_nan(own.per_text) - np.mean([_floats_or_nan(twin.per_text) for twin in twins], axis=0)
    over_windows = over_documents(differences, documents)
    count, variance = len(values), float(np.var(values, ddof=1))
    initial = (variance * (1 + 1 / count), count - 1.0)
    parts = (*over_windows.parts, initial) if over_windows.parts else ()
    spread = Spread(over_windows.value, parts, over_windows.reason)
    low, high = spread.bounds()
    word: TwinWord = "not distinguishable"
    if spread.value is not None and low is not None and high is not None and abs(spread.value) >= least:
        word = "more" if low > 0 else "less" if high < 0 else word
    difference = Estimate(spread.value, low, high, reason=spread.reason)
    return Twin(word, difference, float(np.mean(values)), min(values), max(values), count)


def mean_of(twins: Sequence[Diagnosis]) -> Diagnosis:
    """One diagnosis whose numbers are the means over several; intervals are over documents, for these models.

    Model, environment and verdict are those of the first.
    """
    first, documents = twins[0], twins[0].corpus.documents

    def of_sites(number: int) -> SiteReading:
        sites = [twin.sites[number] for twin in twins]
        counts = np.sum([site.histogram.counts for site in sites], axis=0).tolist()
        metrics = _means([site.metrics for site in sites], documents)
        return replace(sites[0], metrics=metrics, histogram=Histogram(tuple(counts)))

    sites = tuple(of_sites(number) for number in range(len(first.sites)))
    main = _mean_stack([StackSummary(t.deep, t.trend, t.paper, t.verdict) for t in twins], sites, first.main_stack)
    stacks = {name: _mean_stack([twin.stacks[name] for twin in twins], sites, name) for name in first.stacks}
    notes = (*first.model.notes, f"mean of {len(twins)} random initialisations")
    return replace(
        first,
        model=replace(first.model, notes=notes),
        pooled={},
        quality=_mean_quality([twin.quality for twin in twins]),
        sites=sites,
        deep=_means([twin.deep for twin in twins], documents),
        trend=main.trend,
        paper=main.paper,
        stacks={n: replace(s, deep=_means([t.stacks[n].deep for t in twins], documents)) for n, s in stacks.items()},
        timing={key: sum(twin.timing[key] for twin in twins) for key in first.timing},
    )


def _mean_stack(stacks: Sequence[StackSummary], sites: Sequence[SiteReading], name: str) -> StackSummary:
    """Replace trend and paper curve by those of the mean; deep numbers stay the first's."""
    curve = [site.metrics["mean_cosine"].value for site in sites if site.stack == name and site.site != "output"]
    paper = tuple(np.mean([stack.paper.mean_cosine for stack in stacks], axis=0).tolist())
    of_paper = trend_of(paper)
    return replace(
        stacks[0],
        trend=trend_of([value for value in curve if value is not None]),
        paper=Paper(paper, of_paper.spearman, of_paper.kendall),
    )


def _means(tables: Sequence[Mapping[str, Estimate]], documents: Sequence[int]) -> dict[str, Estimate]:
    return {key: _mean_estimate(key, [table[key] for table in tables], documents) for key in tables[0]}


def _mean_estimate(key: str, estimates: Sequence[Estimate], documents: Sequence[int] | None) -> Estimate:
    """The mean of several estimates; with documents an interval over them where each window has a value."""
    values = [estimate.value for estimate in estimates]
    undefined = next((estimate for estimate in estimates if estimate.value is None), None)
    if undefined is not None:
        return undefined
    per_text, low, high = None, None, None
    if all(estimate.per_text is not None for estimate in estimates):
        table = np.mean([_floats_or_nan(estimate.per_text) for estimate in estimates], axis=0)
        per_text = tuple(value if np.isfinite(value) else None for value in table.tolist())
        if documents is not None:
            low, high = over_documents(table, documents).clipped(METRICS[key].low, METRICS[key].high)
    nulls, ratios = [e.null for e in estimates], [e.null_ratio for e in estimates]
    if documents is not None and all(estimate.deleted for estimate in estimates):
        without = np.mean([_floats_or_nan(estimate.deleted) for estimate in estimates], axis=0)
        return pooled(_mean_of_all(values), [v if np.isfinite(v) else None for v in without.tolist()], documents, key)
    return Estimate(_mean_of_all(values), low, high, per_text, _mean_of_all(nulls), _mean_of_all(ratios))


def _mean_quality(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        loss=_mean_estimate("loss", [quality.loss for quality in qualities], None),
        perplexity=_mean_estimate("perplexity", [quality.perplexity for quality in qualities], None),
        bits_per_byte=_mean_estimate("bits_per_byte", [quality.bits_per_byte for quality in qualities], None),
        predicted_tokens=qualities[0].predicted_tokens,
        predicted_bytes=qualities[0].predicted_bytes,
        label=qualities[0].label,
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _floats_or_nan(values: Sequence[float | None] | None) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values or ()], dtype=np.float64)
