"""The runs of a trial: one arm under one seed each, trained, saved, reloaded, measured, and marked when finished.

A finished run lies in `OUT/arms/ARM/seed-N` and is never repeated; one that fails is written down and the next begun.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from condense.diagnosis.quality import rescored
from condense.errors import CondenseError, RunError
from condense.evaluation.harness import OpenTasks
from condense.evaluation.run import evaluate
from condense.files import write_text
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Schedule, TrialPlan
from condense.records.serial import decode, encode
from condense.records.trial import StepCost
from condense.texts.windows import Windows, windows
from condense.training.arms import measure_arm, train_arm
from condense.training.loop import InterruptedRunError, OnStep, Trained
from condense.training.prepare import Prepared
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from condense.trials.arm_names import slug


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
class Job:
    """What all runs share."""

    model: str
    options: ModelOptions
    plan: TrialPlan
    texts: Prepared
    folder: Path
    resume: bool
    watch: TrialWatch
    tasks: OpenTasks = field(default_factory=OpenTasks)

    @property
    def seeds(self) -> range:
        """The training seeds."""
        first = self.plan.training.seed
        return range(first, first + self.plan.seeds)


def place_of(job: Job, spec: ArmSpec, seed: int) -> Path:
    """The folder of a run."""
    return job.folder / slug(spec) / f"seed-{seed}"


def is_done(folder: Path) -> bool:
    """Whether a run is finished."""
    return (folder / "run.json").exists()


def measure_before(job: Job, opened: Checkpoint) -> None:
    """Measure the model as it came."""
    folder = job.folder / "before"
    if is_done(folder):
        return
    job.watch.on_run("before", job.plan.training.seed, 0, 0)
    _measure(job, opened, folder, job.model, job.texts.validation, job.texts.probe)
    _finish(folder, None, ())


def run_all(job: Job, device: str, reasons: Mapping[str, str]) -> None:
    """Every arm under every seed that is not done; a failure is written down and the next one begun."""
    todo = [(seed, spec) for seed in job.seeds for spec in job.plan.arms if spec.name not in reasons]
    todo = [(seed, spec) for seed, spec in todo if not is_done(place_of(job, spec, seed))]
    for number, (seed, spec) in enumerate(todo):
        folder = place_of(job, spec, seed)
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
    if not any(is_done(place_of(job, spec, seed)) for seed in job.seeds for spec in job.plan.arms[:1]):
        raise RunError(
            f"the control arm failed under every seed: {_reason(place_of(job, job.plan.arms[0], job.seeds[0]))}",
            "without a control nothing can be said of the other arms",
        )


def _reason(folder: Path) -> str:
    try:
        return str(json.loads((folder / "failed.json").read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError):
        return "no reason is known"


def _run(job: Job, spec: ArmSpec, seed: int, folder: Path, device: str) -> None:
    """Train, save, reload and measure one arm under one seed."""
    plan = replace(job.plan.training, seed=seed)
    kept = folder / "trained.json"
    if kept.exists() and (folder / "model").is_dir():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        trained, details = decode(Trained, saved["trained"]), tuple(saved["details"])
    else:
        job.watch.on_phase("training")
        source, rows, details = arm_source(job, spec)
        trained = train_arm(
            source, rows, plan, job.texts.schedule, remedy_of(spec).acts(spec, plan), folder,
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


def fresh(job: Job) -> Checkpoint:
    """The source weights, opened anew."""
    return checkpoints.load(job.model, job.options)


def arm_source(job: Job, spec: ArmSpec) -> tuple[Checkpoint, Rows, tuple[str, ...]]:
    """The source weights, the rows of this arm, and what there is to say of them."""
    source, enlarge = fresh(job), remedy_of(spec).enlarge
    if enlarge is None:
        return source, job.texts.rows, ()
    return enlarge(source, job.texts, job.plan.training)


def _windows(job: Job, spec: ArmSpec, current: Checkpoint) -> tuple[Windows, Windows]:
    """The windows that every arm is measured on; the same documents in its own tokens for another tokenizer."""
    validation, probe = job.texts.validation, job.texts.probe
    if not remedy_of(spec).other_tokens:
        return validation, probe
    again = [
        windows(
            current.tokenizer, documents, num_texts=len(old), max_length=old.info.length, positions=current.positions,
            source=old.info.source,
        )
        for documents, old in ((job.texts.parts.validation, validation), (None, probe))
    ]  # fmt: skip
    return again[0], again[1]


def _measure(job: Job, current: Checkpoint, folder: Path, name: str, validation: Windows, probe: Windows) -> None:
    """Measure a model on both texts and on the tasks, and write it; bits per byte always on the control's bytes."""
    seed = job.plan.training.seed
    found = measure_arm(current, name, validation, probe, seed, on_phase=job.watch.on_phase, on_text=job.watch.on_text)
    for kind, diagnosis, own, reference in zip(
        ("validation", "probe"), found, (validation, probe), (job.texts.validation, job.texts.probe), strict=True
    ):
        if own is not reference:
            diagnosis = replace(diagnosis, quality=rescored(diagnosis.quality, current, reference, seed))
        diagnosis.to_json(folder / f"{kind}.json")
    if job.tasks.names:
        job.watch.on_phase("downstream tasks")
        limit = job.plan.training.eval_limit
        scores = evaluate(current, job.tasks, limit=limit, seed=seed, on_request=job.watch.on_text)
        write_text(folder / "tasks.json", json.dumps(encode(scores), allow_nan=False))


def _finish(folder: Path, trained: Trained | None, details: tuple[str, ...]) -> None:
    """The mark of a finished run, written last."""
    write_text(folder / "run.json", json.dumps({"trained": encode(trained), "details": details}, allow_nan=False))
