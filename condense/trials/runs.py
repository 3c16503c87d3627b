"""The orchestration that `treat` and `trial` share: prepared once, then every arm under every seed.

    prepare    text → rows and windows, what a step takes, the plan is announced, room on the disk is checked
    before     the model as it came is measured
    runs       seed by seed every arm: trained from the source weights, saved, reloaded, measured, marked as finished
    read       the finished runs as records, for those who judge them

A run lies in `FOLDER/ARM/seed-N`; a finished one is never repeated. What is measured is the saved and reloaded file.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from condense.diagnosis.quality import rescored
from condense.diagnosis.run import analyze, environment
from condense.errors import CondenseError, RunError, UsageError
from condense.evaluation.harness import OpenTasks, find_tasks, open_tasks
from condense.evaluation.run import check_model, evaluate
from condense.files import write_text
from condense.folders import refuse_small_disk
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, ModelInfo
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Schedule, TrialPlan
from condense.records.serial import decode, encode
from condense.records.tasks import TaskScore
from condense.records.treatment import Curve, Overhead
from condense.records.trial import ArmRun, SitePoint, StepCost
from condense.texts.windows import Windows, windows
from condense.training.costs import Costed, Pass, interleaved, overhead_of, step_costs
from condense.training.interventions import adapted
from condense.training.loop import InterruptedRunError, OnStep, Trained, train_arm
from condense.training.prepare import Prepared, disk_needed, first_batch, prepare_text, training_memory
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from condense.trials.arm_names import slug
from condense.version import __version__

BEFORE = ArmSpec("before", "control")
_MEASURING = 0.45  # of a forward and backward pass: what measuring the same tokens takes


@dataclass(frozen=True)
class Watch:
    """What a caller is told while arms are trained; every callback may be left out.

    on_plan(plan, schedule, overhead) before anything is trained; on_run(arm, seed, done, total) before each run, with
    total 0 for the model as it came; on_note for what went wrong without an end to the whole.
    """

    on_plan: Callable[[TrialPlan, Schedule, Overhead], None] = lambda plan, schedule, overhead: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_run: Callable[[str, int, int, int], None] = lambda arm, seed, done, total: None
    on_text: Callable[[int, int], None] = lambda done, total: None
    on_step: OnStep = lambda step, steps, logs: None
    on_note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Request:
    """What is asked of the orchestration.

    folder     where the runs go: OUT.work of a treatment, OUT/arms of a trial.
    timed      the arms whose step is timed for the plan, in turn, `rounds` times; the first is the control.
    all_costs  whether time and peak memory of a step of every arm are measured before training.
    lenient    whether a run that fails is written down and the next one begun.
    keeps      whether the model of an arm under a seed is kept once it is measured.
    title      what a model is called in the records.
    also       what else is made of a measured model, written into its run's folder.
    """

    model: str
    text: Any
    plan: TrialPlan
    folder: Path
    timed: Mapping[str, ArmSpec]
    keeps: Callable[[ArmSpec, int], bool]
    title: Callable[[ArmSpec, int], str]
    rounds: int = 1
    all_costs: bool = False
    lenient: bool = False
    also: Callable[[Checkpoint, Windows, Path], None] = lambda checkpoint, windows, folder: None
    text_column: str = "text"
    resume: bool = False
    dry_run: bool = False
    watch: Watch = field(default_factory=Watch)
    options: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True)
class Run:
    """A finished run: its record, what was measured of it, how it trained (None for the model as it came)."""

    record: ArmRun
    validation: Diagnosis
    probe: Diagnosis
    trained: Trained | None
    details: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Runs:
    """All that was found: the model as it came, the finished runs by arm and seed, and why others are missing.

    costs: what a step of each arm takes; unavailable: why an arm cannot be had at all; failures: of single runs.
    """

    model: ModelInfo
    environment: Mapping[str, Any]
    schedule: Schedule
    overhead: Overhead
    before: Run
    arms: Mapping[str, Mapping[int, Run]]
    costs: Mapping[str, StepCost]
    unavailable: Mapping[str, str]
    failures: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Job:
    """A request with what was prepared for it."""

    asked: Request
    texts: Prepared
    tasks: OpenTasks

    @property
    def seeds(self) -> range:
        """The training seeds."""
        first = self.asked.plan.training.seed
        return range(first, first + self.asked.plan.seeds)

    def folder_of(self, spec: ArmSpec, seed: int) -> Path:
        """The folder of a run."""
        return self.asked.folder / slug(spec) / f"seed-{seed}"

    def fresh(self) -> Checkpoint:
        """The source weights, opened anew."""
        return checkpoints.load(self.asked.model, self.asked.options)

    def source_of(self, spec: ArmSpec) -> tuple[Checkpoint, Rows, tuple[str, ...]]:
        """The source weights, the rows of an arm, and what there is to say of them."""
        source, enlarge = self.fresh(), remedy_of(spec).enlarge
        if enlarge is None:
            return source, self.texts.rows, ()
        return enlarge(source, self.texts, self.asked.plan.training)

    def batch(self, tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
        """A micro-batch of the first rows."""
        return first_batch(tokenizer, rows, self.texts.schedule, self.texts.masked, self.asked.plan.training.seed)


def run_arms(asked: Request) -> Runs | None:
    """Prepare, announce the plan, and train and measure what is not finished yet; None for a dry run.

    UnavailableError for a model or text that cannot be used, UsageError for settings that do not go together or are
    not those of the run to be resumed, RunError for a run that failed, or where the disk is too small;
    InterruptedRunError after a signal, with a checkpoint saved.
    """
    training, watch = asked.plan.training, asked.watch
    tasks = find_tasks(training.eval_tasks, training.include_path)
    opened_tasks = OpenTasks() if asked.dry_run else open_tasks(tasks)
    watch.on_phase("loading")
    opened = checkpoints.load(asked.model, asked.options)
    if training.eval_tasks:
        check_model(opened)
    watch.on_phase("reading text")
    job = _Job(asked, prepare_text(asked.model, opened, asked.text, asked.text_column, training), opened_tasks)
    job, overhead = _estimated(job, opened)
    schedule = job.texts.schedule
    watch.on_plan(asked.plan, schedule, overhead)
    refuse_small_disk(asked.folder, schedule.disk_bytes)
    if asked.dry_run:
        return None
    _begin(job, opened)
    costs, unavailable = _all_costs(job, opened) if asked.all_costs else ({}, {})
    if not is_done(asked.folder / "before"):
        watch.on_run("before", training.seed, 0, 0)
        _measure(job, BEFORE, opened, asked.folder / "before", asked.model)
        _finish(asked.folder / "before", None, ())
    info, around, device = opened.info, environment(opened.model), str(opened.model.device)
    del opened
    gc.collect()
    _train_all(job, device, unavailable)
    before = read_run(asked.folder / "before", training.seed, schedule)
    arms = {spec.name: _finished(job, spec) for spec in asked.plan.arms}
    failures = {spec.name: _failures(job, spec) for spec in asked.plan.arms}
    return Runs(info, around, schedule, overhead, before, arms, costs, unavailable, failures)


# --- before anything is trained ------------------------------------------------------------------------


def _estimated(job: _Job, opened: Checkpoint) -> tuple[_Job, Overhead]:
    """The job with time, memory and disk in its schedule, from a few timed passes."""
    asked, texts, schedule = job.asked, job.texts, job.texts.schedule
    asked.watch.on_phase("timing a step")
    batch = job.batch(opened.tokenizer, texts.rows)
    acts = {name: remedy_of(spec).acts(spec, asked.plan.training) for name, spec in asked.timed.items()}
    spent = interleaved({name: Pass(opened.model, batch, act) for name, act in acts.items()}, asked.rounds)
    overhead = overhead_of(spent)
    steps = overhead.seconds_per_step
    control = next(iter(steps.values()))
    todo = [spec for seed in job.seeds for spec in asked.plan.arms if not is_done(job.folder_of(spec, seed))]
    training = sum(steps.get(spec.name, control) for spec in todo) * schedule.steps * schedule.accumulation
    tokens = texts.validation.ids.numel() + texts.probe.ids.numel()
    measuring = control / (schedule.row_length * schedule.batch_size) * _MEASURING * tokens
    kept = [asked.keeps(spec, seed) for seed in job.seeds for spec in asked.plan.arms]
    schedule = replace(
        schedule,
        seconds=training + measuring * (len(todo) + 1),
        memory_bytes=training_memory(asked.plan.training, opened, max(overhead.peak_memory_bytes.values(), default=0)),
        disk_bytes=disk_needed(opened.info.parameters, asked.plan.training, min(len(kept), sum(kept) + 1)),
    )
    return replace(job, texts=replace(texts, schedule=schedule)), overhead


def _begin(job: _Job, opened: Checkpoint) -> None:
    """Refuse to resume a run of other settings, model or text; arms and seeds may be added. Else clear the folder."""
    asked, schedule, training = job.asked, job.texts.schedule, asdict(job.asked.plan.training)
    path = asked.folder / "fingerprint.json"
    if not asked.resume and asked.folder.exists():
        shutil.rmtree(asked.folder)
    values = {
        "training": {key: value for key, value in training.items() if key != "seeds"},
        "model": asked.model,
        "weights": opened.info.weights_sha256,
        "condense": __version__,
        "train": schedule.train_sha256,
        "validation": schedule.validation_sha256,
        "windows": job.texts.validation.info.windows_sha256,
        "probe": job.texts.probe.info.windows_sha256,
    }
    mine = json.dumps(values, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != mine:
        raise UsageError(
            f"{asked.folder} holds a run with other settings, model or text",
            "resume with the same ones, or pass --force",
        )
    write_text(path, mine)


def _all_costs(job: _Job, opened: Checkpoint) -> tuple[dict[str, StepCost], dict[str, str]]:
    """What a step of each arm takes, and why some arms cannot be had; kept for a resume."""
    asked, texts = job.asked, job.texts
    path, names = asked.folder / "costs.json", [spec.name for spec in asked.plan.arms]
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["arms"] == names:
            return {name: decode(StepCost, cost) for name, cost in kept["costs"].items()}, kept["reasons"]
    asked.watch.on_phase("what a step costs")
    timed = adapted(job.fresh().model, asked.plan.training) if asked.plan.training.use_peft else opened.model
    batch = job.batch(opened.tokenizer, texts.rows)
    reasons: dict[str, str] = {}
    arms = []
    for spec in asked.plan.arms:
        if not remedy_of(spec).other_tokens:
            arms.append(Costed(spec, timed, batch))
            continue
        try:
            source, rows, _ = job.source_of(spec)
        except CondenseError as error:
            reasons[spec.name] = str(error)
            continue
        added = _embeddings(source.model) - _embeddings(opened.model)
        arms.append(Costed(spec, source.model, job.batch(source.tokenizer, rows), added))
    costs = step_costs(asked.model, asked.options, asked.plan.training, texts.schedule, arms, asked.watch.on_text)
    write_text(path, json.dumps({"arms": names, "reasons": reasons, "costs": encode(costs)}, allow_nan=False))
    return costs, reasons


def _embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


# --- the runs ------------------------------------------------------------------------------------------


def _train_all(job: _Job, device: str, unavailable: Mapping[str, str]) -> None:
    """Every arm under every seed that is not finished; a failure ends it, or is written down where that was asked."""
    asked = job.asked
    todo = [(seed, spec) for seed in job.seeds for spec in asked.plan.arms if spec.name not in unavailable]
    todo = [(seed, spec) for seed, spec in todo if not is_done(job.folder_of(spec, seed))]
    for number, (seed, spec) in enumerate(todo):
        folder = job.folder_of(spec, seed)
        asked.watch.on_run(spec.name, seed, number, len(todo))
        (folder / "failed.json").unlink(missing_ok=True)
        try:
            _train_and_measure(job, spec, seed, folder, device)
        except InterruptedRunError:
            raise
        except Exception as error:
            if not asked.lenient:
                raise
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            kind = "" if isinstance(error, CondenseError) else f"{type(error).__name__}: "
            write_text(folder / "failed.json", json.dumps({"reason": kind + line}))
            shutil.rmtree(folder / "model", ignore_errors=True)
            asked.watch.on_note(f"{spec.name}, seed {seed}: {kind}{line}; going on with the others")
    control = asked.plan.arms[0]
    if not any(is_done(job.folder_of(control, seed)) for seed in job.seeds):
        reason = (_failures(job, control) or ("no reason is known",))[0].partition(": ")[2]
        raise RunError(
            f"the control arm failed under every seed: {reason}",
            "without a control nothing can be said of the other arms",
        )


def _train_and_measure(job: _Job, spec: ArmSpec, seed: int, folder: Path, device: str) -> None:
    """Train, save, reload and measure one arm under one seed."""
    asked = job.asked
    plan, path = replace(asked.plan.training, seed=seed), folder / "trained.json"
    if path.exists() and (folder / "model").is_dir():
        saved = json.loads(path.read_text(encoding="utf-8"))
        trained, details = decode(Trained, saved["trained"]), tuple(saved["details"])
    else:
        asked.watch.on_phase("training")
        source, rows, details = job.source_of(spec)
        trained = train_arm(
            source, rows, plan, job.texts.schedule, remedy_of(spec).acts(spec, plan), folder,
            masked=job.texts.masked, resume=asked.resume, on_step=asked.watch.on_step,
        )  # fmt: skip
        del source
        gc.collect()
        write_text(path, json.dumps({"trained": encode(trained), "details": details}, allow_nan=False))
    current = checkpoints.load(folder / "model", device=device)
    _measure(job, spec, current, folder, asked.title(spec, seed))
    _finish(folder, trained, (*details, *trained.details))
    if not asked.keeps(spec, seed):
        shutil.rmtree(folder / "model")


def _windows_of(job: _Job, spec: ArmSpec, current: Checkpoint) -> tuple[Windows, Windows]:
    """The windows that every arm is measured on; the same documents in its own tokens for another tokenizer."""
    shared = (job.texts.validation, job.texts.probe)
    if not remedy_of(spec).other_tokens:
        return shared
    validation, probe = (
        windows(
            current.tokenizer,
            documents,
            num_texts=len(old),
            max_length=old.info.length,
            positions=current.positions,
            source=old.info.source,
        )
        for documents, old in zip((job.texts.parts.validation, None), shared, strict=True)
    )
    return validation, probe


def _measure(job: _Job, spec: ArmSpec, current: Checkpoint, folder: Path, name: str) -> None:
    """Measure a model on both texts and on the tasks, and write it; bits per byte always on the control's bytes."""
    watch, training = job.asked.watch, job.asked.plan.training
    named = replace(current, info=replace(current.info, id=name))
    shared = (job.texts.validation, job.texts.probe)
    own = _windows_of(job, spec, current)
    for kind, texts, reference in zip(("validation", "probe"), own, shared, strict=True):
        watch.on_phase(f"{kind} text")
        diagnosis = analyze(named, texts, seed=training.seed, on_text=watch.on_text)
        if texts is not reference:
            diagnosis = replace(diagnosis, quality=rescored(diagnosis.quality, current, reference, training.seed))
        diagnosis.to_json(folder / f"{kind}.json")
    job.asked.also(current, own[0], folder)
    if job.tasks.names:
        watch.on_phase("downstream tasks")
        scores = evaluate(current, job.tasks, limit=training.eval_limit, seed=training.seed, on_request=watch.on_text)
        write_text(folder / "tasks.json", json.dumps(encode(scores), allow_nan=False))


def is_done(folder: Path) -> bool:
    """Whether a run is finished."""
    return (folder / "run.json").exists()


def _finish(folder: Path, trained: Trained | None, details: tuple[str, ...]) -> None:
    """Mark a run as finished; written last."""
    write_text(folder / "run.json", json.dumps({"trained": encode(trained), "details": details}, allow_nan=False))


# --- finished runs as records --------------------------------------------------------------------------


def _finished(job: _Job, spec: ArmSpec) -> dict[int, Run]:
    """The finished runs of an arm by seed."""
    folders = {seed: job.folder_of(spec, seed) for seed in job.seeds}
    return {seed: read_run(folder, seed, job.texts.schedule) for seed, folder in folders.items() if is_done(folder)}


def _failures(job: _Job, spec: ArmSpec) -> tuple[str, ...]:
    """Why runs of an arm failed, one line each."""
    paths = {seed: job.folder_of(spec, seed) / "failed.json" for seed in job.seeds}
    return tuple(
        f"seed {seed}: {json.loads(path.read_text(encoding='utf-8'))['reason']}"
        for seed, path in paths.items()
        if path.exists()
    )


def read_run(folder: Path, seed: int, schedule: Schedule) -> Run:
    """A finished run from its folder."""
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    trained = None if written["trained"] is None else decode(Trained, written["trained"])
    validation, probe = (Diagnosis.from_json(folder / f"{kind}.json") for kind in ("validation", "probe"))
    scores = folder / "tasks.json"
    record = ArmRun(
        seed=seed,
        deep=without_texts(validation.deep),
        quality=validation.quality,
        probe_deep=without_texts(probe.deep),
        probe_quality=probe.quality,
        sites=tuple(_point(validation, index) for index in range(len(validation.sites))),
        weights_sha256=validation.model.weights_sha256,
        curve=Curve() if trained is None else trained.curve,
        seconds=0.0 if trained is None else trained.seconds,
        trained_tokens=0 if trained is None else schedule.train_tokens,
        penalty_to_ce=None if trained is None else trained.penalty_to_ce or None,
        folder="/".join(folder.parts[-2:] if trained is None else folder.parts[-3:]),
        tasks=decode(tuple[TaskScore, ...], json.loads(scores.read_text(encoding="utf-8"))) if scores.exists() else (),
    )
    return Run(record, validation, probe, trained, tuple(written["details"]), folder)


def without_texts(deep: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Deep numbers without their values per text, which lie in the run's diagnoses."""
    return {key: replace(estimate, per_text=None) for key, estimate in deep.items()}


def _point(diagnosis: Diagnosis, index: int) -> SitePoint:
    site = diagnosis.sites[index]
    keys = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
    cosine, without, rank = (site.metrics[key].value for key in keys)
    return SitePoint(site.site, site.stack, site.index, cosine, without, rank)
