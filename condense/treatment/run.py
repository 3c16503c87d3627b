"""treat(): arms on the same windows, before / control / treated, and what can be said of the loss.

The straight line: split the text, make rows, train control and treated from the same weights, save, reload
and measure each on validation and probe windows, take the paired difference, judge it. What is measured is
the saved and reloaded file. Everything lives in `OUT.work/` until it is renamed into place.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from condense.comparison.differences import difference
from condense.errors import UsageError
from condense.evaluation.harness import OpenTasks, find_tasks, open_tasks
from condense.evaluation.run import check_model, evaluate, task_effects
from condense.files import write_text
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import Plan, Schedule
from condense.records.serial import decode, encode
from condense.records.tasks import TaskScore
from condense.records.treatment import TREATMENT_SCHEMA, Arm, Overhead, Treatment
from condense.texts.documents import Document
from condense.training.arms import measure_arm, train_arm
from condense.training.interventions import Intervention, dispersion_config
from condense.training.loop import OnStep, Trained
from condense.training.prepare import Prepared, first_batch, prepare_text, training_memory
from condense.training.saving import prepare, refuse_small_disk
from condense.training.step_time import measure_overhead
from condense.treatment.projection import drawn_block, project, token_states
from condense.treatment.verdict import assess
from condense.version import __version__


@dataclass(frozen=True)
class Watch:
    """What a caller is told while a treatment runs; every callback may be left out."""

    on_plan: Callable[[Plan, Schedule, Overhead], None] = lambda plan, schedule, overhead: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_text: Callable[[int, int], None] = lambda done, total: None
    on_step: OnStep = lambda step, steps, logs: None


@dataclass(frozen=True)
class _Job:
    """What all arms share."""

    model: str
    options: ModelOptions
    plan: Plan
    schedule: Schedule
    texts: Prepared
    work: Path
    resume: bool
    watch: Watch
    tasks: OpenTasks = field(default_factory=OpenTasks)


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
    folder that becomes the treated checkpoint with README.md, condense.json, report.html and report.md. Returns
    None for a dry run. UsageError for an output that is not empty, UnavailableError for a model or text that cannot
    be used, RunError for a run that failed; `training.InterruptedRunError` after a signal, with a checkpoint saved.
    """
    plan, watch, started = plan or Plan(), watch or Watch(), time.perf_counter()
    found = find_tasks(plan.eval_tasks, plan.include_path)
    tasks = OpenTasks() if dry_run else open_tasks(found)
    target = Path(output)
    work = prepare(target, resume=resume, force=force, dry_run=dry_run)
    options = replace(ModelOptions.of(options, fields), dtype="float32")
    watch.on_phase("loading")
    opened = checkpoints.load(model, options)
    if plan.eval_tasks:
        check_model(opened)
    job, overhead = _job(str(model), opened, text, text_column, plan, options, work, resume, watch)
    watch.on_plan(plan, job.schedule, overhead)
    refuse_small_disk(work, job.schedule.disk_bytes)
    if dry_run:
        return None
    job = replace(job, tasks=tasks)
    _fingerprint(job)
    arms, clouds = _arms(job, opened)
    drawn, shares = project(clouds)
    arms = {name: replace(arm, cloud=drawn[name]) for name, arm in arms.items()}
    against = "control" if "control" in arms else "before"
    effect = difference(arms["treated"].validation, arms[against].validation, against, plan.seed)
    treatment = Treatment(
        schema=TREATMENT_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=str(model),
        output=str(target),
        plan=plan,
        schedule=job.schedule,
        arms=arms,
        effect=effect,
        probe_effect=difference(arms["treated"].probe, arms[against].probe, against, plan.seed),
        overhead=overhead,
        verdict=assess(plan, str(model), arms, effect, command),
        timing={"total_seconds": time.perf_counter() - started},
        cloud_site=f"block {drawn_block(arms['treated'].validation.sites[-1].index)}",
        cloud_variance=shares,
        task_effects=task_effects(arms["treated"].tasks, arms[against].tasks, plan.seed),
    )
    stage(treatment, work, target)
    return treatment


def _job(
    name: str, opened: Checkpoint, text: Any, column: str, plan: Plan, options: ModelOptions, work: Path,
    resume: bool, watch: Watch,
) -> tuple[_Job, Overhead]:  # fmt: skip
    watch.on_phase("reading text")
    texts = prepare_text(name, opened, text, column, plan)
    batch = first_batch(opened.tokenizer, texts.rows, texts.schedule, texts.masked, plan.seed)
    watch.on_phase("timing a step")
    overhead = measure_overhead(opened.model, batch, dispersion_config(plan, abs(plan.coefficient) or 0.1))
    schedule = _estimated(plan, texts.schedule, overhead, opened)
    return _Job(name, options, plan, schedule, texts, work, resume, watch), overhead


def _estimated(plan: Plan, schedule: Schedule, overhead: Overhead, opened: Checkpoint) -> Schedule:
    per_row = overhead.seconds_per_step
    trained = [per_row["treated"]] + ([per_row["control"]] if plan.control else [])
    seconds = sum(trained) * schedule.steps * schedule.accumulation
    peak = max(overhead.peak_memory_bytes.values(), default=0)
    return replace(schedule, seconds=seconds, memory_bytes=training_memory(plan, opened, peak))


def _fingerprint(job: _Job) -> None:
    """Refuse to resume a run whose settings, model or text are others; write them down at the start."""
    path = job.work / "fingerprint.json"
    mine = json.dumps(
        {
            "plan": asdict(job.plan), "model": job.model, "condense": __version__, "rows": len(job.texts.rows),
            "train": job.schedule.train_sha256, "validation": job.schedule.validation_sha256,
            "probe": job.texts.probe.info.windows_sha256,
        },
        sort_keys=True,
    )  # fmt: skip
    if path.exists() and path.read_text(encoding="utf-8") != mine:
        raise UsageError(
            f"{job.work} holds a run with other settings, model or text", "resume with the same ones, or pass --force"
        )
    write_text(path, mine)


def _arms(job: _Job, opened: Checkpoint) -> tuple[dict[str, Arm], dict[str, torch.Tensor]]:
    """Before, control and treated, each measured; finished ones of an interrupted run are read back."""
    arms: dict[str, Arm] = {}
    clouds: dict[str, torch.Tensor] = {}
    names = ["before", *(["control"] if job.plan.control else []), "treated"]
    for name in names:
        done = job.work / name / "arm.json"
        cloud = job.work / name / "cloud.pt"
        if job.resume and done.exists() and cloud.exists():
            arms[name] = decode(Arm, json.loads(done.read_text(encoding="utf-8")))
            clouds[name] = torch.load(cloud, weights_only=True)
            continue
        if name == "before":
            current, trained = opened, None
        else:
            trained = _trained(job, name)
            current = checkpoints.load(job.work / name / "model", device=str(opened.model.device))
        arms[name], clouds[name] = _measured(job, current, name, trained)
        done.parent.mkdir(parents=True, exist_ok=True)
        torch.save(clouds[name], cloud)
        write_text(done, json.dumps(encode(arms[name]), allow_nan=False))
    return arms, clouds


def _trained(job: _Job, name: str) -> Trained:
    """Train one arm from the source weights and save it."""
    job.watch.on_phase(f"{name}: training")
    source = checkpoints.load(job.model, job.options)
    coefficient = job.plan.coefficient if name == "treated" else 0.0
    return train_arm(
        source, job.texts.rows, job.plan, job.schedule, Intervention(dispersion_config(job.plan, coefficient)),
        job.work / name, masked=job.texts.masked, resume=job.resume, on_step=job.watch.on_step,
    )  # fmt: skip


def _measured(job: _Job, current: Checkpoint, name: str, trained: Trained | None) -> tuple[Arm, torch.Tensor]:
    validation, probe = measure_arm(
        current, job.model if name == "before" else f"{job.model} ({name})", job.texts.validation, job.texts.probe,
        job.plan.seed, on_phase=lambda text: job.watch.on_phase(f"{name}: {text}"), on_text=job.watch.on_text,
    )  # fmt: skip
    cloud = token_states(current.model, job.texts.validation)
    arm = Arm(validation, probe, tasks=_task_scores(job, current, name))
    if trained is not None:
        arm = replace(
            arm, curve=trained.curve, seconds=trained.seconds, trained_tokens=job.schedule.train_tokens,
            penalty_to_ce=trained.penalty_to_ce if name == "treated" else None,
        )  # fmt: skip
    return arm, cloud


def _task_scores(job: _Job, current: Checkpoint, name: str) -> tuple[TaskScore, ...]:
    if not job.tasks.names:
        return ()
    job.watch.on_phase(f"{name}: downstream tasks")
    plan = job.plan
    return evaluate(current, job.tasks, limit=plan.eval_limit, seed=plan.seed, on_request=job.watch.on_text)


def _readable(folder: Path) -> None:
    """Give every file the mode that the umask asks for; safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def stage(treatment: Treatment, work: Path, target: Path) -> None:
    """Complete the treated model folder with card, JSON and reports, rename it into place, drop the work folder."""
    from condense.report.treatment.card import model_card
    from condense.report.treatment.markdown import treatment_markdown

    model = work / "treated" / "model"
    adapter = work / "treated" / "adapter"
    if adapter.is_dir():
        adapter.rename(model / "adapter")
    write_text(model / "README.md", model_card(treatment))
    write_text(model / "report.md", treatment_markdown(treatment))
    treatment.to_html(model / "report.html")
    treatment.to_json(model / "condense.json")
    _readable(model)
    old = None
    if target.exists():
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        target.rename(old)
    model.rename(target)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
