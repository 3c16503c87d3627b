"""trial(): remedies side by side, each arm under each seed on the same rows and windows, each against the control.

The straight line: text to rows and windows once, what a step costs, the model before, then seed by seed every arm:
train, save, reload, measure; at the end differences, ties, a dose, words. Every run that is finished lies in
`OUT/arms/ARM/seed-N` and is never repeated; an arm that fails is reported and the others go on.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from condense.diagnosis.run import environment
from condense.errors import CondenseError, UsageError
from condense.evaluation.harness import OpenTasks, find_tasks, open_tasks
from condense.evaluation.run import check_model
from condense.files import write_text
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import TrialPlan
from condense.records.serial import decode, encode
from condense.records.trial import StepCost, Trial
from condense.texts.documents import Document
from condense.training.costs import Costed, step_costs
from condense.training.interventions import Intervention, adapted
from condense.training.prepare import first_batch, prepare_text, training_memory
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from condense.training.saving import refuse_small_disk
from condense.training.step_time import Pass, interleaved
from condense.trials.results import assembled
from condense.trials.runs import Job, TrialWatch, arm_source, fresh, is_done, measure_before, place_of, run_all
from condense.version import __version__

_MEASURING = 0.45  # of a forward and backward pass: what measuring the same tokens takes


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
    watch: TrialWatch | None = None,
    options: ModelOptions | None = None,
    **fields: Any,
) -> Trial | None:
    """Train every arm under every seed on the same text and report each against the control.

    model: as for `load`, with its options as an object or as keywords; text: a path or documents; output: the
    folder of trial.json, report.html, report.md, trial.csv and arms/. Returns None for a dry run. An arm that fails
    is in the result with its reason; RunError if the control itself never succeeds. UsageError for an output that
    is not empty, UnavailableError for a model or text that cannot be used, `training.InterruptedRunError` after a
    signal.
    """
    watch, started = watch or TrialWatch(), time.perf_counter()
    found = find_tasks(plan.training.eval_tasks, plan.training.include_path)
    tasks = OpenTasks() if dry_run else open_tasks(found)
    target = Path(output)
    ours = check_target(target, resume=resume, force=force)
    options = replace(ModelOptions.of(options, fields), dtype="float32")
    watch.on_phase("loading")
    opened = checkpoints.load(model, options)
    if plan.training.eval_tasks:
        check_model(opened)
    watch.on_phase("reading text")
    texts = prepare_text(str(model), opened, text, text_column, plan.training)
    job = Job(str(model), options, plan, texts, target / "arms", resume, watch, tasks)
    seconds, memory = _estimate(job, opened)
    kept = plan.seeds * len(plan.arms) if plan.keep_models else 1
    schedule = replace(
        texts.schedule, seconds=seconds, memory_bytes=memory, disk_bytes=kept * 4 * opened.info.parameters
    )
    watch.on_plan(plan, schedule, {}, seconds)
    refuse_small_disk(target, schedule.disk_bytes)
    if dry_run:
        return None
    if ours and not resume:
        shutil.rmtree(job.folder)
    _fingerprint(job, opened)
    costs, reasons = _costs(job, opened)
    measure_before(job, opened)
    around = environment(opened.model)
    info, device = opened.info, str(opened.model.device)
    del opened
    gc.collect()
    run_all(job, device, reasons)
    made = assembled(
        plan, job.folder, info, schedule, costs=costs, reasons=reasons, command=command, output=str(target),
        created=datetime.now(UTC).isoformat(timespec="seconds"), around=around,
        timing={} if resume else {"total_seconds": time.perf_counter() - started},
    )  # fmt: skip
    write_trial(made, target)
    return made


def check_target(target: Path, *, resume: bool, force: bool) -> bool:
    """Whether there is a trial in the output folder; UsageError if anything is, unless it is to be resumed or replaced.

    Replacing removes the runs of the earlier trial and nothing else.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder", "choose another --output")
    ours = (target / "arms" / "fingerprint.json").exists()
    if resume and not ours:
        raise UsageError(f"there is nothing to resume: {target} holds no trial", "run without --resume")
    if target.is_dir() and any(target.iterdir()) and not (resume or force):
        go_on, leave = "pass --resume to go on, or --force to start anew", "choose another --output, or pass --force"
        raise UsageError(f"{target} is not empty", go_on if ours else leave)
    return ours


def _fingerprint(job: Job, opened: Checkpoint) -> None:
    """Refuse to go on with other settings, model or text; arms and seeds may be added to a trial."""
    path = job.folder / "fingerprint.json"
    mine = json.dumps(
        {
            "training": asdict(job.plan.training), "model": job.model, "weights": opened.info.weights_sha256,
            "condense": __version__,
            "train": job.texts.schedule.train_sha256, "validation": job.texts.schedule.validation_sha256,
            "windows": job.texts.validation.info.windows_sha256, "probe": job.texts.probe.info.windows_sha256,
        },
        sort_keys=True,
    )  # fmt: skip
    if path.exists() and path.read_text(encoding="utf-8") != mine:
        raise UsageError(
            f"{job.folder.parent} holds a trial with other settings, model or text",
            "resume with the same ones, or pass --force",
        )
    write_text(path, mine)


# --- what it will take ---------------------------------------------------------------------------------


def _estimate(job: Job, opened: Checkpoint) -> tuple[float, int | None]:
    """Seconds of training and measuring of all runs, and peak memory, from one timed pass of the control."""
    schedule, plan = job.texts.schedule, job.plan
    job.watch.on_phase("timing a step")
    batch = _batch(job, opened.tokenizer, job.texts.rows)
    spent = interleaved({"control": Pass(opened.model, batch, Intervention())}, rounds=1)["control"]
    per_token = spent.seconds[0] / (schedule.row_length * schedule.batch_size)
    training = per_token * schedule.train_tokens
    measuring = per_token * _MEASURING * (job.texts.validation.ids.numel() + job.texts.probe.ids.numel())
    runs = sum(not is_done(place_of(job, spec, seed)) for spec in plan.arms for seed in job.seeds)
    return runs * (training + measuring) + measuring, training_memory(plan.training, opened, spent.peaks[0])


def _batch(job: Job, tokenizer: Any, rows: Rows) -> dict[str, Any]:
    return first_batch(tokenizer, rows, job.texts.schedule, job.texts.masked, job.plan.training.seed)


def _costs(job: Job, opened: Checkpoint) -> tuple[dict[str, StepCost], dict[str, str]]:
    """What a step of each arm costs, and why some arms cannot be had; kept for a resume."""
    place, names = job.folder / "costs.json", [spec.name for spec in job.plan.arms]
    if place.exists():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["arms"] == names:
            return {name: decode(StepCost, cost) for name, cost in kept["costs"].items()}, kept["reasons"]
    job.watch.on_phase("what a step costs")
    timed = adapted(fresh(job).model, job.plan.training) if job.plan.training.use_peft else opened.model
    batch = _batch(job, opened.tokenizer, job.texts.rows)
    reasons: dict[str, str] = {}
    arms = []
    for spec in job.plan.arms:
        if not remedy_of(spec).other_tokens:
            arms.append(Costed(spec, timed, batch))
            continue
        try:
            source, rows, _ = arm_source(job, spec)
        except CondenseError as error:
            reasons[spec.name] = str(error)
            continue
        added = _rows_of(source.model) - _rows_of(opened.model)
        arms.append(Costed(spec, source.model, _batch(job, source.tokenizer, rows), added))
    costs = step_costs(job.model, job.options, job.plan.training, job.texts.schedule, arms, job.watch.on_text)
    write_text(place, json.dumps({"arms": names, "reasons": reasons, "costs": encode(costs)}, allow_nan=False))
    return costs, reasons


def _rows_of(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def write_trial(trial: Trial, target: Path) -> None:
    """Write trial.json, report.html, report.md and trial.csv into a trial's folder."""
    from condense.report.tables import rows_csv

    trial.to_json(target / "trial.json")
    trial.to_html(target / "report.html")
    trial.to_markdown(target / "report.md")
    write_text(target / "trial.csv", rows_csv(trial.rows()))
