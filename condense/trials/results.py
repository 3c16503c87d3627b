"""The finished runs of a trial, read back from their folders, to one record: effects, ties, doses, words.

Nothing is trained or measured here, so a trial can be put together again from its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condense.evaluation.run import over_seeds, task_effects
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, ModelInfo
from condense.records.plans import ArmSpec, Schedule, TrialPlan
from condense.records.serial import decode
from condense.records.tasks import TaskScore
from condense.records.treatment import Curve
from condense.records.trial import TRIAL_SCHEMA, ArmResult, ArmRun, SitePoint, StepCost, Trial
from condense.training.loop import Trained
from condense.training.remedies import remedy_of
from condense.trials.arm_names import slug
from condense.trials.effects import MEASURES, arm_effect, compare_pairs, rank_arms
from condense.trials.verdict import arm_verdict, dose_responses, trial_findings, unranked
from condense.version import __version__


@dataclass(frozen=True)
class _Run:
    """One finished run: its record, and the diagnoses that the effects are taken from."""

    record: ArmRun
    validation: Diagnosis
    probe: Diagnosis
    details: tuple[str, ...]


def assembled(
    plan: TrialPlan,
    folder: Path,
    model: ModelInfo,
    schedule: Schedule,
    *,
    costs: Mapping[str, StepCost],
    reasons: Mapping[str, str],
    command: str,
    output: str,
    created: str,
    around: Mapping[str, Any],
    timing: Mapping[str, float],
) -> Trial:
    """The record of a trial from the runs in `folder` (OUT/arms).

    costs and reasons: what a step of each arm takes, and why some arms cannot be had, by name.
    """
    before = _read(folder / "before", plan.training.seed, schedule)
    first = plan.training.seed
    runs = {spec.name: _runs(folder, spec, range(first, first + plan.seeds), schedule) for spec in plan.arms}
    control = runs[plan.arms[0].name]
    texts = before.validation.corpus.texts
    arms = [
        _result(spec, plan, runs[spec.name], control, before, costs.get(spec.name, StepCost()),
                reasons.get(spec.name), _failures(folder, spec, plan))
        for spec in plan.arms
    ]  # fmt: skip
    other = [spec.name for spec in plan.arms if remedy_of(spec).other_tokens]
    measured = {name: {seed: run.validation for seed, run in of.items()} for name, of in runs.items() if of}
    pairs = compare_pairs(measured, other, first)
    seeds = min((len(of) for of in runs.values() if of), default=0)
    reason = unranked(seeds, texts, len(measured))
    if reason is None:
        ranks = {key: rank_arms(list(measured), pairs, key) for key in MEASURES}
        placed = {name: {key: ranks[key][name] for key in MEASURES} for name in measured}
        arms = [replace(arm, ranks=placed.get(arm.spec.name, {})) for arm in arms]
    doses = dose_responses(arms)
    return Trial(
        schema=TRIAL_SCHEMA,
        condense=__version__,
        created=created,
        command=command,
        model=model,
        output=output,
        plan=plan,
        schedule=schedule,
        environment=around,
        validation=before.validation.corpus,
        probe=before.probe.corpus,
        before=before.record,
        arms=tuple(arms),
        pairs=pairs,
        unranked=reason,
        doses=doses,
        findings=trial_findings(plan, model, arms, doses, reason, command),
        timing={**timing, "training_seconds": sum(run.seconds for arm in arms for run in arm.runs)},
        protocol=before.validation.protocol,
    )


def _runs(folder: Path, spec: ArmSpec, seeds: range, schedule: Schedule) -> dict[int, _Run]:
    places = {seed: folder / slug(spec) / f"seed-{seed}" for seed in seeds}
    return {seed: _read(place, seed, schedule) for seed, place in places.items() if (place / "run.json").exists()}


def _read(place: Path, seed: int, schedule: Schedule) -> _Run:
    """A finished run from its folder."""
    written = json.loads((place / "run.json").read_text(encoding="utf-8"))
    trained = None if written["trained"] is None else decode(Trained, written["trained"])
    validation, probe = (Diagnosis.from_json(place / f"{kind}.json") for kind in ("validation", "probe"))
    scores = place / "tasks.json"
    record = ArmRun(
        seed=seed,
        deep=_lean(validation.deep),
        quality=validation.quality,
        probe_deep=_lean(probe.deep),
        probe_quality=probe.quality,
        sites=tuple(_point(validation, index) for index in range(len(validation.sites))),
        weights_sha256=validation.model.weights_sha256,
        curve=Curve() if trained is None else trained.curve,
        seconds=0.0 if trained is None else trained.seconds,
        trained_tokens=0 if trained is None else schedule.train_tokens,
        penalty_to_ce=None if trained is None else trained.penalty_to_ce or None,
        folder="/".join(place.parts[-2:] if trained is None else place.parts[-3:]),
        tasks=decode(tuple[TaskScore, ...], json.loads(scores.read_text(encoding="utf-8"))) if scores.exists() else (),
    )
    return _Run(record, validation, probe, tuple(written["details"]))


def _lean(deep: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Deep numbers without their values per text, which lie in the run's diagnoses."""
    return {key: replace(of, per_text=None) for key, of in deep.items()}


def _point(diagnosis: Diagnosis, index: int) -> SitePoint:
    site = diagnosis.sites[index]
    keys = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
    cosine, without, rank = (site.metrics[key].value for key in keys)
    return SitePoint(site.site, site.stack, site.index, cosine, without, rank)


def _failures(folder: Path, spec: ArmSpec, plan: TrialPlan) -> list[str]:
    found = []
    for seed in range(plan.training.seed, plan.training.seed + plan.seeds):
        place = folder / slug(spec) / f"seed-{seed}" / "failed.json"
        if place.exists():
            found.append(f"seed {seed}: {json.loads(place.read_text(encoding='utf-8'))['reason']}")
    return found


def _result(
    spec: ArmSpec, plan: TrialPlan, runs: Mapping[int, _Run], control: Mapping[int, _Run], before: _Run,
    cost: StepCost, unavailable: str | None, failures: list[str],
) -> ArmResult:  # fmt: skip
    remedy = remedy_of(spec)
    made = ArmResult(
        spec=spec, status="done", title=remedy.title, definition=remedy.definition(spec), source=remedy.source,
        reason="; ".join(failures) or None, cost=cost, runs=tuple(run.record for run in runs.values()),
    )  # fmt: skip
    if unavailable is not None:
        return replace(made, status="unavailable", reason=unavailable)
    if not runs:
        return replace(made, status="failed", reason=made.reason or "it was not run")
    first = next(iter(runs.values()))
    parameters = first.validation.model.parameters
    made = replace(
        made, status="done" if len(runs) == plan.seeds else "partial", details=first.details, parameters=parameters,
        parameters_added=parameters - before.validation.model.parameters,
    )  # fmt: skip
    if remedy.is_control:
        return made
    effects = [
        arm_effect(
            {seed: getattr(run, text) for seed, run in runs.items()},
            {seed: getattr(run, text) for seed, run in control.items()},
            plan.training.seed, same_bytes=remedy.other_tokens,
        )
        for text in ("validation", "probe")
    ]  # fmt: skip
    if effects[0] is None:
        return made
    reference = next(iter(control.values())).validation.quality
    texts = before.validation.corpus.texts
    verdict, held, opened = arm_verdict(effects[0], reference, plan.training, texts)
    mine, theirs = (over_seeds([run.record.tasks for run in arm.values()]) for arm in (runs, control))
    return replace(
        made, effect=effects[0], probe_effect=effects[1], verdict=verdict, quality_held=held, opened=opened,
        task_effects=task_effects(mine, theirs, plan.training.seed),
    )  # fmt: skip
