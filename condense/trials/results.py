"""The finished runs of a trial to one record: effects, ties, doses, words. Nothing is trained or measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from condense.evaluation.run import task_effects_over_seeds
from condense.records.plans import ArmSpec, TrialPlan
from condense.records.trial import TRIAL_SCHEMA, ArmResult, StepCost, Trial
from condense.training.remedies import remedy_of
from condense.trials.doses import dose_responses
from condense.trials.effects import MEASURES, arm_effect, compare_pairs, rank_arms, reference_of
from condense.trials.runs import Run, Runs
from condense.trials.verdict import arm_verdict, trial_findings, unranked
from condense.version import __version__


def assembled(plan: TrialPlan, runs: Runs, *, command: str, output: str, timing: Mapping[str, float]) -> Trial:
    """The record of a trial from its runs."""
    before, model = runs.before, runs.model
    control = runs.arms[plan.arms[0].name]
    arms = [_result(spec, plan, runs, control) for spec in plan.arms]
    other = [spec.name for spec in plan.arms if remedy_of(spec).other_tokens]
    measured = {
        name: {seed: run.validation for seed, run in by_seed.items()} for name, by_seed in runs.arms.items() if by_seed
    }
    readings = {seed: run.validation for seed, run in control.items()}
    pairs = compare_pairs(measured, reference_of(readings, plan.training), other)
    seeds = min((len(by_seed) for by_seed in measured.values()), default=0)
    reason = unranked(seeds, len(measured))
    if reason is None:
        ranks = {key: rank_arms(list(measured), pairs, key) for key in MEASURES}
        placed = {name: {key: ranks[key][name] for key in MEASURES} for name in measured}
        arms = [replace(arm, ranks=placed.get(arm.spec.name, {})) for arm in arms]
    doses = dose_responses(arms)
    return Trial(
        schema=TRIAL_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=model,
        output=output,
        plan=plan,
        schedule=runs.schedule,
        environment=runs.environment,
        validation=before.validation.corpus,
        probe=before.probe.corpus,
        before=before.record,
        arms=tuple(arms),
        pairs=pairs,
        unranked=reason,
        doses=doses,
        findings=trial_findings(plan, model, before.record, arms, doses, reason, command),
        timing={**timing, "training_seconds": sum(run.seconds for arm in arms for run in arm.runs)},
        protocol=before.validation.protocol,
    )


def _result(spec: ArmSpec, plan: TrialPlan, found: Runs, control: Mapping[int, Run]) -> ArmResult:
    """All that the trial says of one arm, but for its ranks."""
    remedy, before, runs = remedy_of(spec), found.before, found.arms[spec.name]
    made = ArmResult(
        spec=spec,
        status="done",
        title=remedy.title,
        definition=remedy.definition(spec),
        source=remedy.source,
        reason="; ".join(found.failures[spec.name]) or None,
        cost=found.costs.get(spec.name, StepCost()),
        runs=tuple(run.record for run in runs.values()),
    )
    if spec.name in found.unavailable:
        return replace(made, status="unavailable", reason=found.unavailable[spec.name])
    if not runs:
        return replace(made, status="failed", reason=made.reason or "it was not run")
    first = next(iter(runs.values()))
    parameters = first.validation.model.parameters
    made = replace(
        made,
        status="done" if len(runs) == plan.seeds else "partial",
        details=first.details,
        parameters=parameters,
        parameters_added=parameters - before.validation.model.parameters,
    )
    if remedy.is_control:
        return made
    compared = sum(bool(found.arms[other.name]) for other in plan.arms if not remedy_of(other).is_control)
    effect, probe_effect = (
        arm_effect(
            {seed: getattr(run, text) for seed, run in runs.items()},
            {seed: getattr(run, text) for seed, run in control.items()},
            plan.training,
            compared=compared,
            same_bytes=remedy.other_tokens,
        )
        for text in ("validation", "probe")
    )
    if effect is None:
        return made
    verdict, reason, quality, opened = arm_verdict(effect)
    seeds = sorted(runs.keys() & control.keys())
    mine, theirs = ([arm[seed].record.tasks for seed in seeds] for arm in (runs, control))
    return replace(
        made,
        effect=effect,
        probe_effect=probe_effect,
        verdict=verdict,
        verdict_reason=reason,
        quality=quality,
        opened=opened,
        task_effects=task_effects_over_seeds(mine, theirs),
    )
