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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from condense import checkpoint as checkpoints
from condense.arm_names import slug
from condense.arms import adapted, intervention, measure_arm, train_arm
from condense.checkpoint import Checkpoint
from condense.corpus import Windows, windows
from condense.costs import Costed, step_costs
from condense.diagnosis import environment
from condense.documents import Document
from condense.errors import CondenseError, RunError, UnavailableError, UsageError
from condense.interventions import Intervention
from condense.outcomes import Schedule
from condense.overhead import Pass, interleaved
from condense.preparation import Prepared, first_batch, prepare_text, training_rows
from condense.remedies import enlarge_vocabulary
from condense.rescoring import rescored
from condense.results import assembled
from condense.saving import write_trial
from condense.serial import decode, encode, write_text
from condense.training import InterruptedRunError, OnStep, Trained
from condense.training_text import Rows
from condense.trials import ArmSpec, StepCost, Trial, TrialPlan
from condense.version import __version__

_MEASURING = 0.45  # of a forward and backward pass: what measuring the same tokens takes


@dataclass(frozen=True)
class TrialWatch:
    """What a caller is told while a trial runs; every callback may be left out.

    on_run(arm, seed, done, total) before each run; the others as in `treatment.Watch`.
    """

    on_plan: Callable[[TrialPlan, Schedule, Mapping[str, StepCost], float], None] = lambda p, s, c, t: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_run: Callable[[str, int, int, int], None] = lambda arm, seed, done, total: None
    on_text: Callable[[int, int], None] = lambda done, total: None
    on_step: OnStep = lambda step, steps, logs: None
    on_note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class _Job:
    """What all runs share."""

    model: str
    options: dict[str, Any]
    plan: TrialPlan
    texts: Prepared
    folder: Path
    resume: bool
    watch: TrialWatch

    @property
    def seeds(self) -> range:
        """The training seeds."""
        first = self.plan.training.seed
        return range(first, first + self.plan.seeds)


def trial(
    model: str | Path,
    text: str | Path | Iterable[str] | Iterable[Document],
    output: str | Path,
    plan: TrialPlan,
    *,
    text_column: str = "text",
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    command: str = "",
    watch: TrialWatch | None = None,
    **options: Any,
) -> Trial | None:
    """Train every arm under every seed on the same text and report each against the control.

    model: as for `load`, with its keyword options; text: a path or documents; output: the folder of trial.json,
    report.html, report.md, trial.csv and arms/. Returns None for a dry run. An arm that fails is in the result with
    its reason; RunError if the control itself never succeeds. UsageError for an output that is not empty,
    UnavailableError for a model or text that cannot be used, `training.InterruptedRunError` after a signal.
    """
    watch, started = watch or TrialWatch(), time.perf_counter()
    target = Path(output)
    check_target(target, resume=resume, force=force, dry_run=dry_run)
    options = {**options, "dtype": "float32"}
    watch.on_phase("loading")
    opened = checkpoints.load(model, **options)
    watch.on_phase("reading text")
    texts = prepare_text(str(model), opened, text, text_column, plan.training)
    job = _Job(str(model), options, plan, texts, target / "arms", resume, watch)
    estimate = _estimate(job, opened)
    watch.on_plan(plan, texts.schedule, {}, estimate)
    if dry_run:
        return None
    _fingerprint(job)
    costs, reasons = _costs(job, opened)
    _before(job, opened)
    around = environment(opened.model)
    info, device = opened.info, str(opened.model.device)
    del opened
    gc.collect()
    _run_all(job, device, reasons)
    made = assembled(
        plan, job.folder, info, texts.schedule, costs=costs, reasons=reasons, command=command, output=str(target),
        created=datetime.now(UTC).isoformat(timespec="seconds"), around=around,
        timing={"total_seconds": time.perf_counter() - started},
    )  # fmt: skip
    write_trial(made, target)
    return made


def check_target(target: Path, *, resume: bool, force: bool, dry_run: bool) -> None:
    """Refuse an output folder that holds anything, unless it is to be resumed or replaced.

    Replacing removes the runs of an earlier trial there and nothing else.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder", "choose another --output")
    ours = (target / "arms" / "fingerprint.json").exists()
    if resume and not ours:
        raise UsageError(f"there is nothing to resume: {target} holds no trial", "run without --resume")
    if target.is_dir() and any(target.iterdir()) and not (resume or force):
        go_on, leave = "pass --resume to go on, or --force to start anew", "choose another --output, or pass --force"
        raise UsageError(f"{target} is not empty", go_on if ours else leave)
    if force and not resume and ours and not dry_run:
        shutil.rmtree(target / "arms")


def _fingerprint(job: _Job) -> None:
    """Refuse to go on with other settings, model or text; arms and seeds may be added to a trial."""
    path = job.folder / "fingerprint.json"
    mine = json.dumps(
        {
            "training": asdict(job.plan.training), "model": job.model, "condense": __version__,
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


def _estimate(job: _Job, opened: Checkpoint) -> float:
    """Seconds of training and measuring of all runs, from one timed pass of the control."""
    schedule, plan = job.texts.schedule, job.plan
    job.watch.on_phase("timing a step")
    batch = _batch(job, opened.tokenizer, job.texts.rows)
    spent = interleaved({"control": Pass(opened.model, batch, Intervention())}, rounds=1)["control"].seconds[0]
    per_token = spent / (schedule.row_length * schedule.batch_size)
    training = per_token * schedule.train_tokens
    measuring = per_token * _MEASURING * (job.texts.validation.ids.numel() + job.texts.probe.ids.numel())
    runs = sum(not _is_done(_place(job, spec, seed)) for spec in plan.arms for seed in job.seeds)
    return runs * (training + measuring) + measuring


def _batch(job: _Job, tokenizer: Any, rows: Rows) -> dict[str, Any]:
    return first_batch(tokenizer, rows, job.texts.schedule, job.texts.masked, job.plan.training.seed)


def _costs(job: _Job, opened: Checkpoint) -> tuple[dict[str, StepCost], dict[str, str]]:
    """What a step of each arm costs, and why some arms cannot be had; kept for a resume."""
    place, names = job.folder / "costs.json", [spec.name for spec in job.plan.arms]
    if place.exists():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["arms"] == names:
            return {name: decode(StepCost, cost) for name, cost in kept["costs"].items()}, kept["reasons"]
    job.watch.on_phase("what a step costs")
    timed = adapted(_fresh(job).model, job.plan.training) if job.plan.training.use_peft else opened.model
    batch = _batch(job, opened.tokenizer, job.texts.rows)
    reasons: dict[str, str] = {}
    arms = []
    for spec in job.plan.arms:
        if spec.remedy != "larger-vocab":
            arms.append(Costed(spec, timed, batch))
            continue
        try:
            source, rows, _ = _source(job, spec)
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


# --- the runs ------------------------------------------------------------------------------------------


def _place(job: _Job, spec: ArmSpec, seed: int) -> Path:
    return job.folder / slug(spec) / f"seed-{seed}"


def _is_done(folder: Path) -> bool:
    return (folder / "run.json").exists()


def _before(job: _Job, opened: Checkpoint) -> None:
    """Measure the model as it came."""
    folder = job.folder / "before"
    if _is_done(folder):
        return
    job.watch.on_run("before", job.plan.training.seed, 0, 0)
    _measure(job, opened, folder, job.model, job.texts.validation, job.texts.probe)
    _finish(folder, None, ())


def _run_all(job: _Job, device: str, reasons: Mapping[str, str]) -> None:
    """Every arm under every seed that is not done; a failure is written down and the next one begun."""
    todo = [(seed, spec) for seed in job.seeds for spec in job.plan.arms if spec.name not in reasons]
    todo = [(seed, spec) for seed, spec in todo if not _is_done(_place(job, spec, seed))]
    for number, (seed, spec) in enumerate(todo):
        folder = _place(job, spec, seed)
        job.watch.on_run(spec.name, seed, number, len(todo))
        (folder / "failed.json").unlink(missing_ok=True)
        try:
            _run(job, spec, seed, folder, device)
        except InterruptedRunError:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            kind = "" if isinstance(error, CondenseError) else f"{type(error).__name__}: "
            write_text(folder / "failed.json", json.dumps({"reason": kind + line}))
            shutil.rmtree(folder / "model", ignore_errors=True)
            job.watch.on_note(f"{spec.name}, seed {seed}: {kind}{line}; going on with the others")
    if not any(_is_done(_place(job, spec, seed)) for seed in job.seeds for spec in job.plan.arms[:1]):
        raise RunError(
            f"the control arm failed under every seed: {_reason(_place(job, job.plan.arms[0], job.seeds[0]))}",
            "without a control nothing can be said of the other arms",
        )


def _reason(folder: Path) -> str:
    try:
        return str(json.loads((folder / "failed.json").read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError):
        return "no reason is known"


def _run(job: _Job, spec: ArmSpec, seed: int, folder: Path, device: str) -> None:
    """Train, save, reload and measure one arm under one seed."""
    plan = replace(job.plan.training, seed=seed)
    kept = folder / "trained.json"
    if kept.exists() and (folder / "model").is_dir():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        trained, details = decode(Trained, saved["trained"]), tuple(saved["details"])
    else:
        job.watch.on_phase("training")
        source, rows, details = _source(job, spec)
        trained = train_arm(
            source, rows, plan, job.texts.schedule, intervention(spec, plan), folder,
            masked=job.texts.masked, resume=job.resume, on_step=job.watch.on_step,
        )  # fmt: skip
        del source
        gc.collect()
        write_text(kept, json.dumps({"trained": encode(trained), "details": details}, allow_nan=False))
    current = checkpoints.load(folder / "model", device=device)
    validation, probe = _windows(job, spec, current)
    _measure(job, current, folder, f"{job.model} ({spec.name}, seed {seed})", validation, probe)
    _finish(folder, trained, (*details, *trained.details))
    if not job.plan.keep_models:
        shutil.rmtree(folder / "model")


def _fresh(job: _Job) -> Checkpoint:
    return checkpoints.load(job.model, **job.options)


def _source(job: _Job, spec: ArmSpec) -> tuple[Checkpoint, Rows, tuple[str, ...]]:
    """The source weights, the rows of this arm, and what there is to say of them."""
    source = _fresh(job)
    if spec.remedy != "larger-vocab":
        return source, job.texts.rows, ()
    if job.texts.masked:
        raise UnavailableError("larger-vocab needs a causal model: a masked one has no bits per byte to compare")
    if job.plan.training.use_peft:
        raise UnavailableError("larger-vocab needs full training: with LoRA the new rows would stay as they start")
    larger = enlarge_vocabulary(source.model, source.tokenizer, job.texts.parts.train)
    source = replace(source, model=larger.model, tokenizer=larger.tokenizer)
    return source, training_rows(source, job.texts.parts, job.texts.rows.length, job.texts.masked), larger.details


def _windows(job: _Job, spec: ArmSpec, current: Checkpoint) -> tuple[Windows, Windows]:
    """The windows that every arm is measured on; the same documents in its own tokens for another tokenizer."""
    validation, probe = job.texts.validation, job.texts.probe
    if spec.remedy != "larger-vocab":
        return validation, probe
    again = [
        windows(
            current.tokenizer, documents, num_texts=len(old), max_length=old.info.length, positions=current.positions,
            source=old.info.source,
        )
        for documents, old in ((job.texts.parts.validation, validation), (None, probe))
    ]  # fmt: skip
    return again[0], again[1]


def _measure(job: _Job, current: Checkpoint, folder: Path, name: str, validation: Windows, probe: Windows) -> None:
    """Measure a model on both texts and write the diagnoses; bits per byte always on the control's bytes."""
    seed = job.plan.training.seed
    found = measure_arm(current, name, validation, probe, seed, on_phase=job.watch.on_phase, on_text=job.watch.on_text)
    for kind, diagnosis, own, reference in zip(
        ("validation", "probe"), found, (validation, probe), (job.texts.validation, job.texts.probe), strict=True
    ):
        if own is not reference:
            diagnosis = replace(diagnosis, quality=rescored(diagnosis.quality, current, reference, seed))
        diagnosis.to_json(folder / f"{kind}.json")


def _finish(folder: Path, trained: Trained | None, details: tuple[str, ...]) -> None:
    """The mark of a finished run, written last."""
    write_text(folder / "run.json", json.dumps({"trained": encode(trained), "details": details}, allow_nan=False))
