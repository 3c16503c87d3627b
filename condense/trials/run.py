"""trial(): remedies side by side, each arm under each seed on the same rows and windows, each against the control.

The runs themselves are those of condense/trials/runs.py, in `OUT/arms`; an arm that fails is reported and the others
go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from condense.errors import UsageError
from condense.evaluation.run import task_effects_over_seeds
from condense.files import write_text
from condense.folders import (
    Mark,
    describe,
    described,
    is_empty,
    read_mark,
    refuse_foreign,
    refuse_source,
    remove_files,
    remove_unfinished,
    resolved,
    try_out,
    work_folder,
    write_mark,
)
from condense.lock import locked, refuse_in_use
from condense.records.base import Again
from condense.records.jobs import JobOptions
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import CONTROL, ArmSpec, TrialPlan
from condense.records.trial import TRIAL_SCHEMA, ArmResult, StepCost, Trial
from condense.texts.documents import Document
from condense.training.remedies import definition_of, remedy_of
from condense.trials.arm_run import Watch
from condense.trials.doses import dose_responses
from condense.trials.effects import MEASURES, arm_effect, compare_pairs, rank_arms, reference_of
from condense.trials.folder import Run, Runs, clear_runs, names_made, refuse_links, refuse_workers
from condense.trials.learning import learning_findings, with_learning
from condense.trials.runs import Request, prepare, run_arms
from condense.trials.scope import placebo_findings
from condense.trials.tuning import TUNING, tuning_findings
from condense.trials.verdict import arm_verdict, trial_findings, unranked
from condense.version import __version__

KIND, ARMS = "trial", "arms"
RUNS = (ARMS, TUNING)
NAMES = ("trial.json", "report.html", "report.md", "trial.csv")


@takes(ModelOptions)
def trial(
    model: str | Path,
    text: str | Path | Iterable[str] | Iterable[Document],
    output: str | Path,
    plan: TrialPlan,
    *,
    text_column: str = TextOptions.text_column,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    command: str = "",
    watch: Watch | None = None,
    jobs: JobOptions | None = None,
    options: ModelOptions | None = None,
    **fields: Any,
) -> Trial | None:
    """Train every arm under every seed on the same text and report each against the control.

    model: as for `load`, with its options as an object or as keywords; text: a path or documents; output: the
    folder of trial.json, report.html, report.md, trial.csv and arms/. Returns None for a dry run. An arm that fails
    is in the result with its reason; RunError if the control itself never succeeds. jobs: whether runs go into workers
    of Ray, several at once, each with threads of its own; the same numbers come out. UsageError for an output that
    is not empty, UnavailableError for a model or text that cannot be used, `training.InterruptedRunError` after a
    signal.
    """
    target, started = resolved(output), time.perf_counter()
    chosen = replace(ModelOptions.of(options, fields), dtype="float32")
    plan, jobs = replace(plan, training=plan.training.resolved()), jobs or JobOptions()
    if jobs.gpus_per_run == 0 and chosen.device == "auto":
        chosen = replace(chosen, device="cpu")
    refuse_arms(plan, chosen)
    _check_output(target, resume=resume, force=force)
    request = Request(
        model=str(model),
        text=text,
        plan=plan,
        folder=target / ARMS,
        timed={spec.name: spec for spec in plan.arms if spec == CONTROL or "coefficient" in remedy_of(spec).takes},
        keeps=lambda spec, seed: plan.keep_models,
        title=lambda spec, seed: f"{model} ({spec.name}, seed {seed})",
        begins=lambda: _begin(target, resume),
        name=target.name,
        all_costs=True,
        lenient=True,
        text_column=text_column,
        resume=resume,
        dry_run=dry_run,
        jobs=jobs,
        watch=watch or Watch(),
        options=chosen,
    )
    refuse_source(model, target, target / ARMS)
    try_out(target)
    refuse_in_use(work_folder(target))  # a treatment that will be put there
    if dry_run:
        prepare(request)
        return None
    with locked(target):
        job = prepare(request)
        runs = run_arms(job)
        request.watch.on_phase("writing")
        timing = {} if resume else {"total_seconds": time.perf_counter() - started}
        made = assembled(plan, runs, command=command, output=str(output), timing=timing)
        _write(made, target, job.fingerprint)
    return made


def refuse_arms(plan: TrialPlan, options: ModelOptions) -> None:
    """UsageError for an arm that is only for training from scratch where the model has its own weights."""
    names = [arm.name for arm in plan.arms if remedy_of(arm).from_scratch]
    if names and not options.random_init:
        raise UsageError(
            f"{', '.join(names)} is for training from scratch only", f"add --random-init, or leave {names[0]} out"
        )


# --- the folder ----------------------------------------------------------------------------------------


def _check_output(target: Path, *, resume: bool, force: bool) -> None:
    """UsageError if anything is in the output folder, unless it is a trial that is to be resumed or replaced."""
    mark = read_mark(target)
    ours = mark is not None and mark.kind == KIND
    if resume and not ours:
        raise UsageError(f"there is nothing to resume: {target} holds no trial", "run without --resume")
    if not is_empty(target) and not (resume or force):
        go_on, leave = "pass --resume to go on, or --force to start anew", "choose another --output, or pass --force"
        raise UsageError(f"{target} is not empty", go_on if ours else leave)
    refuse_foreign(target, NAMES if ours else (*NAMES, *RUNS))
    if not resume:
        refuse_foreign(target, mark.files if mark else ())


def _begin(target: Path, resume: bool) -> None:
    """Mark the folder as condense's, then clear an earlier trial that is not resumed.

    The mark is there from before the first file is removed until after the last one is written, so that whatever a
    kill leaves is known to be condense's.
    """
    for name in RUNS:
        refuse_links(target / name)
        refuse_workers(target / name)
    mark = read_mark(target)
    if mark is None:
        mark = Mark(KIND)
        write_mark(target, mark)
    if not resume:
        for name in RUNS:
            clear_runs(target / name)
        with contextlib.suppress(OSError):
            (target / TUNING).rmdir()
        remove_files(target, mark)
    owned = [name for name in NAMES if mark.owns(target, name)]
    write_mark(target, Mark(KIND, mark.fingerprint, describe(target, owned)))


def _write(made: Trial, target: Path, fingerprint: str) -> None:
    """Write trial.json, report.html, report.md and trial.csv; the mark says first what they will be, then what is."""
    from condense.report.tables import rows_csv

    texts = dict(zip(NAMES, (made.to_json(), made.to_html(), made.to_markdown(), rows_csv(made.rows())), strict=True))
    old = read_mark(target) or Mark(KIND)
    write_mark(target, Mark(KIND, fingerprint, described(texts), old.files))
    for name, text in texts.items():
        write_text(target / name, text)
    remove_unfinished(target, NAMES)
    runs = [f"{part}/{name}" for part in RUNS for name in names_made(target / part)]
    write_mark(target, Mark(KIND, fingerprint, describe(target, (*NAMES, *runs))))


# --- the record ----------------------------------------------------------------------------------------


def assembled(plan: TrialPlan, runs: Runs, *, command: str, output: str, timing: Mapping[str, float]) -> Trial:
    """The record of a trial from its runs."""
    before, model = runs.before, runs.model
    control = runs.arms[plan.arms[0].name]
    readings = {seed: run.validation for seed, run in control.items()}
    least = reference_of(readings, plan.training)
    results = [_result(spec, plan, runs, control) for spec in plan.arms]
    arms = with_learning(results, runs, control, least["bits_per_byte"], plan.training.quality_tolerance)
    other = [spec.name for spec in plan.arms if remedy_of(spec).other_tokens]
    measured = {
        name: {seed: run.validation for seed, run in by_seed.items()} for name, by_seed in runs.arms.items() if by_seed
    }
    pairs = compare_pairs(measured, least, other)
    seeds = min((len(by_seed) for by_seed in measured.values()), default=0)
    reason = unranked(seeds, len(measured))
    if reason is None:
        ranks = {key: rank_arms(list(measured), pairs, key) for key in MEASURES}
        placed = {name: {key: ranks[key][name] for key in MEASURES if name in ranks[key]} for name in measured}
        arms = [replace(arm, ranks=placed.get(arm.spec.name, {})) for arm in arms]
    doses = dose_responses(arms, plan.training.coefficient_schedule)
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
        findings=(
            *trial_findings(plan, model, before.record, arms, doses, reason, command),
            *placebo_findings(arms, pairs, Again(command)),
            *learning_findings(arms, runs.schedule.steps, Again(command)),
            *tuning_findings(plan, arms, runs.schedule.steps, Again(command)),
        ),
        timing={**timing, **_seconds(arms)},
        protocol=before.validation.protocol,
        **_texts(runs),
    )


def _texts(runs: Runs) -> dict[str, Any]:
    """The texts that a trial takes besides, as its record names them."""
    other, then = (runs.texts.other, runs.texts.then) if runs.texts else (None, None)
    made: dict[str, Any] = {"other": other.windows.info} if other else {}
    return made | ({"then": then.windows.info, "then_tokens": then.schedule.train_tokens} if then else {})


def _seconds(arms: Iterable[ArmResult]) -> dict[str, float]:
    """Seconds of training of all runs, and of the search where there was one."""
    made = [(sum(run.seconds for run in arm.runs), sum(one.seconds for one in arm.tuning)) for arm in arms]
    training, tuning = (sum(column) for column in zip(*made, strict=True))
    return {"training_seconds": training, **({"tuning_seconds": tuning} if tuning else {})}


def _result(spec: ArmSpec, plan: TrialPlan, found: Runs, control: Mapping[int, Run]) -> ArmResult:
    """The results of one arm, but for its ranks."""
    remedy, before, runs = remedy_of(spec), found.before, found.arms[spec.name]
    made = ArmResult(
        spec=spec,
        status="done",
        title=remedy.title,
        definition=definition_of(spec, plan.training.coefficient_schedule),
        source=remedy.source,
        reason="; ".join(found.failures[spec.name]) or None,
        cost=found.costs.get(spec.name, StepCost()),
        runs=tuple(run.record for run in runs.values()),
        tuning=found.tuning.get(spec.name, ()),
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
