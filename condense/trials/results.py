"""The finished runs of a trial to one record: effects, ties, doses, words. Nothing is trained or measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from condense.evaluation.run import over_seeds, task_effects
from condense.records.plans import ArmSpec, TrialPlan
from condense.records.trial import TRIAL_SCHEMA, ArmResult, StepCost, Trial
from condense.training.remedies import remedy_of
from condense.trials.effects import MEASURES, arm_effect, compare_pairs, rank_arms
from condense.trials.runs import Run, Runs
from condense.trials.verdict import arm_verdict, dose_responses, trial_findings, unranked
from condense.version import __version__


def assembled(plan: TrialPlan, runs: Runs, *, command: str, output: str, timing: Mapping[str, float]) -> Trial:
    """The record of a trial from its runs."""
    before, model, first = runs.before, runs.model, plan.training.seed
    control = runs.arms[plan.arms[0].name]
    texts = before.validation.corpus.texts
    arms = [_result(spec, plan, runs, control) for spec in plan.arms]
    other = [spec.name for spec in plan.arms if remedy_of(spec).other_tokens]
    measured = {
        name: {seed: run.validation for seed, run in by_seed.items()} for name, by_seed in runs.arms.items() if by_seed
    }
    pairs = compare_pairs(measured, other, first)
    seeds = min((len(by_seed) for by_seed in measured.values()), default=0)
    reason = unranked(seeds, texts, len(measured))
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
        findings=trial_findings(plan, model, arms, doses, reason, command),
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
