"""treat(): one arm beside its control, before / control / treated, and the effect of the loss.

A trial of one arm that keeps the model of the first seed and has a record and a page of its own. Everything lives in
`OUT.work/` until it is finished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch import Tensor

from condense.comparison.differences import effect_of
from condense.diagnosis.distributed import ranks_of, together
from condense.errors import RunError, UsageError
from condense.evaluation.run import task_effects_over_seeds
from condense.folders import (
    MARK,
    Mark,
    clear,
    describe,
    is_empty,
    names_in,
    publish,
    read_mark,
    refuse_foreign,
    refuse_source,
    remove_unfinished,
    resolved,
    stage,
    try_out,
    work_folder,
    write_mark,
)
from condense.lock import locked, refuse_in_use
from condense.models.checkpoint import Checkpoint
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import CONTROL, ArmSpec, Plan, TrialPlan
from condense.records.treatment import TREATMENT_SCHEMA, Arm, SeedModel, Treatment, TreatmentSeed
from condense.texts.documents import Document
from condense.texts.windows import Windows
from condense.training.costs import ROUNDS
from condense.training.prepare import disk_needed, refuse_small_disk
from condense.treatment.cloud import drawn_block, project, token_states
from condense.treatment.processes import Team, sharding
from condense.treatment.verdict import assess
from condense.trials.arm_run import Watch
from condense.trials.folder import TRAINED, Run, Runs, clear_runs, read_step, refuse_links
from condense.trials.runs import Job, Request, prepare, run_arms
from condense.trials.search import with_coefficient
from condense.version import __version__

KIND, STAGED, SEARCH = "treatment", "final", "search"
# What OUT always holds; none of it may be somebody else's when a run begins.
NAMES = (
    *("README.md", "condense.json", "report.html", "report.md"),
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
)


@takes(ModelOptions)
def treat(
    model: str | Path,
    text: str | Path | Iterable[str] | Iterable[Document],
    output: str | Path,
    plan: Plan | None = None,
    *,
    text_column: str = TextOptions.text_column,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    command: str = "",
    watch: Watch | None = None,
    options: ModelOptions | None = None,
    **fields: Any,
) -> Treatment | None:
    """Fine-tune with dispersion loss beside cross-entropy, beside a control arm, and report the difference.

    model: as for `load`, with its options as an object or as keywords; text: a path or documents; output: the
    folder that becomes the treated checkpoint with README.md, condense.json, report.html and report.md. With
    `plan.seeds` above 1 both arms are trained under every seed; the checkpoint is that of the first. None for a dry
    run. With `plan.coefficient` None it is searched first, on part of the training text; RunError where none is found.
    UsageError for an output that is not empty, UnavailableError for a model or text that cannot be used, RunError
    for a run that failed; `training.InterruptedRunError` after a signal, with a checkpoint saved.

    Under torchrun every process has to call this with the same arguments: the first one prepares, measures and writes,
    all of them train, and all get its result or its error. The others do not read `text`.
    """
    plan = (plan or Plan()).resolved()
    options = replace(ModelOptions.of(options, fields), dtype="float32")
    ranks = ranks_of()
    plan = sharding(plan, ranks)
    with together(ranks, training=True):
        team = Team(ranks)
        if not ranks.is_first:
            return cast("Treatment | None", team.follow(options))
        treated = ArmSpec("treated", "dispersion", plan.loss, plan.layers, plan.first_coefficient)
        watch = watch or Watch()
        if ranks.size > 1:
            watch = replace(watch, on_train=team.tell)
        request = Request(
            model=str(model),
            text=text,
            plan=TrialPlan((CONTROL, treated) if plan.control else (treated,), plan.seeds, plan, curve_points=0),
            folder=work_folder(resolved(output)),
            timed={"control": CONTROL, "treated": replace(treated, coefficient=abs(plan.first_coefficient) or 0.1)},
            rounds=ROUNDS,
            keeps=lambda spec, seed: spec.name == treated.name and seed == plan.seed,
            title=lambda spec, seed: f"{model} ({spec.name}{'' if seed == plan.seed else f', seed {seed}'})",
            begins=lambda: _begin(request.folder, resume),
            name=resolved(output).name,
            also=_write_cloud,
            processes=ranks.size,
            text_column=text_column,
            resume=resume,
            dry_run=dry_run,
            watch=watch,
            options=options,
        )
        return team.lead(lambda: _treat(request, output, force=force, command=command))


def _treat(request: Request, output: str | Path, *, force: bool, command: str) -> Treatment | None:
    """Check the folders, train and measure, and put the result in the place of OUT; nothing of it for a dry run."""
    plan, started = request.plan.training, time.perf_counter()
    work, target, resume = request.folder, resolved(output), request.resume
    _check_output(target, work, request.model, resume=resume, force=force)
    _try_out(work, target)
    refuse_in_use(target)  # a trial that writes there
    if request.dry_run:
        prepare(request)
        return None
    with locked(work):
        job = prepare(request)
        _refuse_small_output(job, work, target)
        if (treatment := _published(target, job.fingerprint, force=force) if resume else None) is None:
            settings = job.fingerprint
            search = with_coefficient(job, work / SEARCH) if plan.coefficient is None else None
            plan = plan if search is None else replace(plan, coefficient=search.chosen)
            runs = run_arms(job)
            request.watch.on_phase("writing")
            treatment = _assembled(plan, request.model, str(output), runs, command, time.perf_counter() - started)
            treatment = replace(treatment, search=search)
            _publish(treatment, runs, work, target, (settings, job.fingerprint))
        _clear(work)
    _remove_empty(work, request.watch)
    return treatment


def _remove_empty(work: Path, watch: Watch) -> None:
    """Remove OUT.work, and say so where foreign files keep it."""
    with contextlib.suppress(OSError):
        work.rmdir()
    if work.exists():
        watch.on_note(f"{work} stays: it holds files that condense did not make")


def _write_cloud(current: Checkpoint, windows: Windows, folder: Path) -> None:
    path = folder / "cloud.safetensors"
    temporary = folder / f".{path.name}.tmp"
    save_file({"cloud": token_states(current.model, windows)}, temporary)
    temporary.replace(path)


# --- the folder ----------------------------------------------------------------------------------------


def _check_output(target: Path, work: Path, model: str | Path, *, resume: bool, force: bool) -> None:
    """UsageError if OUT or OUT.work cannot be used as asked, or holds what condense did not make."""
    refuse_source(model, target, work)
    mark, left = read_mark(target), not is_empty(work)
    ours = mark is not None and mark.kind == KIND
    if not is_empty(target) and not force and not (resume and ours):
        raise UsageError(
            f"{target} is not empty", "choose another --output, or pass --force to replace what condense made in it"
        )
    refuse_foreign(target, {*NAMES, *(mark.files if mark else ())})
    if resume and not left and not ours:
        raise UsageError(f"there is nothing to resume: {work} does not exist", "run without --resume")
    if not left:
        return
    if read_mark(work) is None:
        raise UsageError(f"{work} was not made by condense", "move it away, or choose another --output")
    if not resume and not force:
        raise UsageError(f"{work} is left from an interrupted run", "pass --resume to go on, or --force to start anew")


def _try_out(work: Path, target: Path) -> None:
    """UsageError where OUT.work or OUT cannot be written; both are tried before anything is loaded."""
    try:
        try_out(work)
    except UsageError as error:
        if not target.is_mount():
            raise
        inside = f"choose a folder on that disk, such as {target / 'model'}"
        raise UsageError(f"{error}, and the run needs {work.name} beside {target}", inside) from None
    try_out(target)


def _refuse_small_output(job: Job, work: Path, target: Path) -> None:
    """RunError where OUT is on a disk of its own that the finished model would not fit on."""
    if job.opened is not None and target.exists() and target.stat().st_dev != work.stat().st_dev:
        one = disk_needed(job.opened, replace(job.asked.plan.training, save_steps=None), 1, 0)
        refuse_small_disk(target / "model", one)  # what is in OUT already counts for nothing: it is replaced at the end


def _begin(work: Path, resume: bool) -> None:
    """Mark the folder as condense's, and clear the work of an earlier run that is not resumed."""
    refuse_links(work)
    refuse_links(work / SEARCH)
    write_mark(work, Mark("work"))
    if not resume:
        _remove_runs(work)


def _clear(work: Path) -> None:
    """Remove what condense made in OUT.work, its mark last."""
    _remove_runs(work)
    (work / MARK).unlink(missing_ok=True)


def _remove_runs(work: Path) -> None:
    """Remove the runs in OUT.work, and what was to become OUT; the mark stays."""
    clear(work / STAGED)
    clear_runs(work / SEARCH)
    clear_runs(work)
    remove_unfinished(work, ())


def _published(target: Path, fingerprint: str, *, force: bool) -> Treatment | None:
    """The treatment of a run that was interrupted after OUT was whole; None if it was not yet.

    UsageError if OUT holds another treatment that is not to be replaced.
    """
    mark = read_mark(target)
    if mark is None or mark.kind != KIND:
        return None
    if mark.fingerprint == fingerprint:
        return Treatment.from_json(target / "condense.json") if mark.is_whole(target) else None
    if force:
        return None
    raise UsageError(f"{target} holds another treatment", "choose another --output, or pass --force to replace it")


def _publish(treatment: Treatment, runs: Runs, work: Path, target: Path, fingerprints: tuple[str, str]) -> None:
    """Complete the treated model with card, JSON, reports and the logs of all arms, and put it in the place of OUT.

    fingerprints: of the settings, by which OUT is known again, and of the runs, which also holds a coefficient that
    was searched.
    """
    from condense.report.treatment.text import model_card, treatment_markdown

    run = runs.arms["treated"][treatment.plan.seed]
    settings, of_runs = fingerprints
    step = read_step(run.folder, TRAINED, of_runs)
    if step is None:
        raise RunError(f"{run.folder / 'model'} is not what was saved", "run again with --resume to make it again")
    written = {
        "README.md": model_card(treatment),
        "report.md": treatment_markdown(treatment),
        "report.html": treatment.to_html(),
        "condense.json": treatment.to_json(),
    }
    linked = {name.removeprefix("model/"): run.folder / name for name in step.files}
    files = {name.removeprefix("model/"): file for name, file in step.files.items()}
    for name, file in _logs(runs).items():
        linked[name], files[name] = file, describe(file.parent, [file.name])[file.name]
    stage(work / STAGED, Mark(KIND, settings, files), linked, written)
    publish(work / STAGED, target)


def _logs(runs: Runs) -> dict[str, Path]:
    """The event files that trackers wrote, by their names in OUT: runs/ARM-seed-N/…, where the hub shows them too."""
    folders = {
        f"{name}-seed-{seed}": run.folder / "runs"
        for name, by_seed in runs.arms.items()
        for seed, run in by_seed.items()
    }
    return {f"runs/{arm}/{name}": folder / name for arm, folder in folders.items() for name in names_in(folder)}


# --- the record ----------------------------------------------------------------------------------------


def _assembled(plan: Plan, model: str, output: str, runs: Runs, command: str, seconds: float) -> Treatment:
    """The record of a treatment from its finished runs."""
    treated, against = runs.arms["treated"], "control" if plan.control else "before"
    others = runs.arms["control"] if plan.control else dict.fromkeys(treated, runs.before)
    drawn, shares = project({name: _cloud(run) for name, run in _first(runs, plan).items()})
    arms = {name: _arm(name, run, drawn[name]) for name, run in _first(runs, plan).items()}
    effect, probe_effect = (
        effect_of(
            {seed: getattr(run, kind) for seed, run in treated.items()},
            {seed: getattr(run, kind) for seed, run in others.items()},
            against,
            least=plan.min_effect,
            tolerance=plan.quality_tolerance,
        )
        for kind in ("validation", "probe")
    )
    return Treatment(
        schema=TREATMENT_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=model,
        output=output,
        plan=plan,
        schedule=runs.schedule,
        arms=arms,
        effect=effect,
        probe_effect=probe_effect,
        overhead=runs.overhead,
        verdict=assess(plan, model, arms, effect, command),
        timing={"total_seconds": seconds},
        cloud_site=f"block {drawn_block(arms['treated'].validation.sites[-1].index)}",
        cloud_variance=shares,
        task_effects=task_effects_over_seeds(
            [run.record.tasks for run in treated.values()], [others[seed].record.tasks for seed in treated]
        ),
        seeds=tuple(_seed(run, others[seed], against, plan) for seed, run in treated.items()),
    )


def _first(runs: Runs, plan: Plan) -> dict[str, Run]:
    """Before, control and treated of the first training seed."""
    return {"before": runs.before, **{name: by_seed[plan.seed] for name, by_seed in runs.arms.items()}}


def _cloud(run: Run) -> Tensor:
    cloud: Tensor = load_file(run.folder / "cloud.safetensors")["cloud"]
    return cloud


def _arm(name: str, run: Run, cloud: tuple[tuple[float, ...], ...]) -> Arm:
    record, trained = run.record, run.trained
    return Arm(
        validation=run.validation,
        probe=run.probe,
        curve=record.curve,
        seconds=record.seconds,
        trained_tokens=record.trained_tokens,
        penalty_to_ce=trained.curve.penalty_to_ce if trained is not None and name == "treated" else None,
        cloud=cloud,
        tasks=record.tasks,
    )


def _seed(run: Run, other: Run, against: str, plan: Plan) -> TreatmentSeed:
    """One training seed: the treated model, its control, and the effect without its sites."""
    record = run.record
    effect = effect_of(
        {record.seed: run.validation},
        {record.seed: other.validation},
        against,
        least=plan.min_effect,
        tolerance=plan.quality_tolerance,
    )
    control = SeedModel(other.record.deep, other.record.quality, other.record.weights_sha256)
    return TreatmentSeed(
        seed=record.seed,
        deep=record.deep,
        quality=record.quality,
        weights_sha256=record.weights_sha256,
        effect=replace(effect, sites=()),
        control=control if plan.control else None,
    )
