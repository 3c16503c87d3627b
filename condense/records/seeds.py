"""What do the runs of an arm come to? Means and spreads over its seeds, for the pages. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from condense.records.diagnosis import Estimate
from condense.records.treatment import Curve
from condense.records.trial import ArmResult, ArmRun, SitePoint, Trial

QUALITY_KEYS = ("loss", "perplexity", "bits_per_byte")


def reading(run: ArmRun, key: str, *, probe: bool = False) -> Estimate:
    """A run's own number with its interval over texts: a deep metric, `loss`, `perplexity` or `bits_per_byte`."""
    if key in QUALITY_KEYS:
        of: Estimate = getattr(run.probe_quality if probe else run.quality, key)
        return of
    return (run.probe_deep if probe else run.deep).get(key, Estimate(None, reason="not measured"))


def mean(arm: ArmResult, key: str, *, probe: bool = False) -> float | None:
    """Mean over the seeds of an arm; None without runs, or where it is undefined under one seed."""
    return _mean(reading(run, key, probe=probe).value for run in arm.runs)


def spread(arm: ArmResult, key: str) -> float | None:
    """Standard deviation (n − 1) over the seeds of an arm; None below 2 seeds, or where one is undefined."""
    values = [reading(run, key).value for run in arm.runs]
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def depth(runs: tuple[ArmRun, ...]) -> tuple[SitePoint, ...]:
    """The sites of several runs, each number the mean over them; only sites that every run has."""
    if not runs:
        return ()
    tables = [{(site.stack, site.site, site.index): site for site in run.sites} for run in runs]
    made = []
    for at in runs[0].sites:
        same = [table.get((at.stack, at.site, at.index)) for table in tables]
        found = [site for site in same if site is not None]
        if len(found) == len(runs):
            made.append(
                SitePoint(
                    at.site, at.stack, at.index, _mean(site.mean_cosine for site in found),
                    _mean(site.mean_cosine_without_top_dimensions for site in found),
                    _mean(site.effective_rank for site in found),
                )
            )  # fmt: skip
    return tuple(made)


def curve(arm: ArmResult) -> Curve:
    """Training curves of an arm, each logged step the mean over its seeds; steps that one of them lacks are left out.

    `ce_loss` and `mean_cosine` only; the others stay empty.
    """
    logged = [run.curve for run in arm.runs if run.curve.step]
    if not logged:
        return Curve()
    places = [{step: place for place, step in enumerate(one.step)} for one in logged]
    steps = [step for step in logged[0].step if all(step in place for place in places)]
    at = [[(one, place[step]) for one, place in zip(logged, places, strict=True)] for step in steps]
    ce = [statistics.fmean(one.ce_loss[place] for one, place in row) for row in at]
    cosine = [_mean(one.mean_cosine[place] for one, place in row) if _has_cosine(logged) else None for row in at]
    return Curve(step=tuple(steps), ce_loss=tuple(ce), mean_cosine=tuple(cosine))


def quality_key(trial: Trial) -> str:
    """What quality is read from: `bits_per_byte`, or `loss` where the control has none."""
    return "bits_per_byte" if mean(trial.control, "bits_per_byte") is not None else "loss"


def tolerated(trial: Trial) -> float | None:
    """The rise in quality's number up to which quality counts as held; None if the control was not measured."""
    of = mean(trial.control, quality_key(trial))
    return None if of is None else trial.plan.training.quality_tolerance * of


def _has_cosine(curves: list[Curve]) -> bool:
    return all(len(one.mean_cosine) == len(one.step) for one in curves)


def _mean(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return statistics.fmean(known) if listed and len(known) == len(listed) else None
