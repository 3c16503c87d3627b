"""The orchestration that `treat` and `trial` share: prepared once, then every arm under every seed.

    prepare    text → rows and windows, what a step takes, the plan is announced, space on the disk is checked
    before     the model as it came is measured
    runs       seed by seed every arm: trained from the source weights, saved, reloaded, measured, marked as finished

A run lies in `FOLDER/ARM/seed-N`; what is finished and sound is never repeated. Saved and reloaded files are measured.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from condense.diagnosis.run import environment
from condense.errors import CondenseError, RunError, UsageError
from condense.evaluation.harness import OpenTasks, find_tasks, open_tasks
from condense.evaluation.run import check_model
from condense.files import json_or_none, sha256, write_text
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.jobs import JobOptions
from condense.records.learning import Tried, tuning_lines
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, TrialPlan
from condense.records.serial import decode, encode
from condense.records.treatment import Overhead
from condense.records.trial import StepCost
from condense.training.arm_names import slug
from condense.training.costs import Costed, step_costs
from condense.training.interventions import adapted
from condense.training.learning import default_points
from condense.training.prepare import (
    Prepared,
    first_batch,
    prepare_text,
    refuse_small_disk,
)
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from condense.trials.arm_run import BEFORE, Also, ArmRunInput, Watch, attempt, measure, nothing_else, train_and_measure
from condense.trials.estimate import estimate
from condense.trials.folder import (
    MEASURED,
    Runs,
    begin,
    failure,
    failures,
    finish_step,
    is_done,
    read_run,
)
from condense.trials.pool import in_workers, run_all
from condense.trials.ray_session import Room, refuse_without_ray, room_for, threads
from condense.trials.refusals import refuse_settings
from condense.trials.tuning import (
    TUNING,
    Search,
    Setting,
    chosen_setting,
    tuned_fingerprint,
    tuned_plan,
)
from condense.version import __version__

FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class Request:
    """What is asked of the orchestration.

    folder     where the runs go: OUT.work of a treatment, OUT/arms of a trial.
    timed      the arms whose step is timed for the plan, in turn, `rounds` times; the first is the control.
    all_costs  whether time and peak memory of a step of every arm are measured before training.
    lenient    whether a run that fails is written down and the next one begun; so it is in workers (`jobs`) always.
    keeps      whether the model of an arm under a seed is kept once it is measured.
    begins     called when nothing can be refused any more: clears what an earlier run left, unless it is resumed.
    title      what a model is called in the records; name: what trackers call all of it.
    also       what else is made of a measured model, written into its run's folder.
    processes  how many train each arm together.
    """

    model: str
    text: Any
    plan: TrialPlan
    folder: Path
    timed: Mapping[str, ArmSpec]
    keeps: Callable[[ArmSpec, int], bool]
    title: Callable[[ArmSpec, int], str]
    begins: Callable[[], None]
    name: str = "condense"
    rounds: int = 1
    all_costs: bool = False
    lenient: bool = False
    also: Also = nothing_else
    processes: int = 1
    text_column: str = "text"
    resume: bool = False
    dry_run: bool = False
    jobs: JobOptions = field(default_factory=JobOptions)
    watch: Watch = field(default_factory=Watch)
    options: ModelOptions = field(default_factory=ModelOptions)


@dataclass
class Job:
    """A request with what was prepared for it.

    opened: the model as it came, until it has been measured; room: of the workers, None without any.
    """

    asked: Request
    texts: Prepared
    tasks: OpenTasks
    fingerprint: str
    opened: Checkpoint | None
    overhead: Overhead = field(default_factory=lambda: Overhead(None, None))
    room: Room | None = None
    chosen: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def search(self) -> Search | None:
        """The search for settings, where the trial asks for one."""
        plan, folder = self.asked.plan, self.asked.folder.with_name(TUNING)
        return Search(plan, folder, self._plain_run, self.texts) if plan.tune else None

    def fingerprint_of(self, spec: ArmSpec) -> str:
        """The fingerprint of an arm's runs."""
        return tuned_fingerprint(self.fingerprint, self.chosen.get(spec.name))

    @property
    def seeds(self) -> range:
        """The training seeds."""
        first = self.asked.plan.training.seed
        return range(first, first + self.asked.plan.seeds)

    def folder_of(self, spec: ArmSpec, seed: int) -> Path:
        """The folder of a run."""
        return self.asked.folder / slug(spec) / f"seed-{seed}"

    def is_done(self, spec: ArmSpec, seed: int) -> bool:
        """Whether a run is finished, with its model where that is kept."""
        return is_done(self.folder_of(spec, seed), self.fingerprint_of(spec), with_model=self.asked.keeps(spec, seed))

    def todo(self) -> list[tuple[int, ArmSpec]]:
        """The runs that are not finished, seed by seed."""
        runs = [(seed, spec) for seed in self.seeds for spec in self.asked.plan.arms]
        return [(seed, spec) for seed, spec in runs if not (self.asked.resume and self.is_done(spec, seed))]

    def run_of(self, spec: ArmSpec, seed: int) -> ArmRunInput:
        """The input of a run, with what the search chose for its arm."""
        run = self._plain_run(spec, seed)
        plan, control = (tuned_plan(run.training, self.chosen.get(arm.name)) for arm in (spec, self.asked.plan.arms[0]))
        return replace(run, training=plan, then=control, fingerprint=self.fingerprint_of(spec))

    def _plain_run(self, spec: ArmSpec, seed: int) -> ArmRunInput:
        """The input of a run; random weights are each training seed's own, the same for all of its arms."""
        asked, options = self.asked, self.asked.options
        shift = seed - self.seeds[0] if options.random_init else 0
        return ArmRunInput(
            spec=spec,
            seed=seed,
            training=asked.plan.training,
            model=asked.model,
            options=replace(options, seed=options.seed + shift),
            folder=self.folder_of(spec, seed),
            fingerprint=self.fingerprint,
            title=asked.title(spec, seed),
            keep=asked.keeps(spec, seed),
            resume=asked.resume,
            group=asked.name,
            also=asked.also,
            points=self.points,
        )

    @property
    def points(self) -> int:
        """How many points the curve of a run has, the end among them; none for a model without bits per byte."""
        windows, asked = self.texts.validation, self.asked.plan.curve_points
        if self.texts.masked or not all(windows.predicted_bytes):
            return 0
        return default_points(self.texts.schedule.train_tokens, windows.ids.numel()) if asked is None else asked

    def batch(self, tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
        """A micro-batch of the first rows."""
        return first_batch(tokenizer, rows, self.texts.schedule, self.texts.masked, self.asked.plan.training.seed)


def prepare(asked: Request) -> Job:
    """Open model and text, check that a run to be resumed is the same, time a step, announce the plan.

    UnavailableError for a model or text that cannot be used, UsageError for settings that do not go together or are
    not those of the run to be resumed, RunError where the disk is too small.
    """
    training, watch = asked.plan.training, asked.watch
    refuse_without_ray(asked.jobs, asked.options)
    found = find_tasks(training.eval_tasks, training.include_path)
    tasks = OpenTasks() if asked.dry_run else open_tasks(found)
    watch.on_phase("loading")
    opened = checkpoints.load(asked.model, asked.options)
    if training.eval_tasks:
        check_model(opened)
    watch.on_phase("reading text")
    processes = asked.processes, _begun_with(asked)
    texts = prepare_text(asked.model, opened, asked.text, asked.text_column, training, asked.plan, *processes)
    refuse_settings(asked.plan, opened, texts)
    facts = _facts(asked, texts, opened)
    if asked.resume:
        _refuse_other(asked, facts)
    job = Job(asked, texts, tasks, sha256(json.dumps(facts, sort_keys=True)), opened)
    if asked.jobs.in_workers:
        job.room = room_for(asked.jobs, asked.options, len(job.todo()))
    with threads(job.room.cpus if job.room else None):
        estimate(job, opened)
    watch.on_plan(asked.plan, job.texts.schedule, job.overhead)
    refuse_small_disk(asked.folder, job.texts.schedule.disk_bytes)
    return job


def run_arms(job: Job) -> Runs:
    """Train and measure what is not finished yet, and read all of it.

    RunError for a run that failed; InterruptedRunError after a signal, with a checkpoint saved.
    """
    with threads(job.room.cpus if job.room else None):
        return _run_arms(job)


def _run_arms(job: Job) -> Runs:
    asked, training, opened, job.opened = job.asked, job.asked.plan.training, job.opened, None
    if opened is None:
        raise ValueError("a job runs once")
    kept = {**_facts(asked, job.texts, opened), "processes": _begun_with(asked)}
    asked.begins()
    write_text(asked.folder / FINGERPRINT, json.dumps(kept, sort_keys=True))
    costs, unavailable = _all_costs(job, opened) if asked.all_costs else ({}, {})
    before = asked.folder / "before"
    if not is_done(before, job.fingerprint):
        asked.watch.on_run("before", training.seed, 0, 0)
        begin(before, job.fingerprint)
        measured = replace(job.run_of(BEFORE, training.seed), folder=before, title=asked.model)
        measure(measured, opened, job.texts, job.tasks, asked.watch)
        finish_step(before, MEASURED, job.fingerprint, (None, ()))
    info, around = opened.info, environment(opened.model)
    del opened
    gc.collect()
    searching = bool(job.search and job.search.todo(asked.resume))
    with in_workers(asked.jobs, job.room if searching or job.todo() else None, asked.watch):
        tried = _search(job, unavailable)
        _train_all(job, unavailable)
    schedule = job.texts.schedule
    folders = {spec.name: {seed: job.folder_of(spec, seed) for seed in job.seeds} for spec in asked.plan.arms}
    prints = {spec.name: job.fingerprint_of(spec) for spec in asked.plan.arms}
    return Runs(
        model=info,
        environment=around,
        schedule=schedule,
        overhead=job.overhead,
        before=read_run(before, training.seed, schedule),
        arms={
            name: {s: read_run(path, s, schedule) for s, path in by_seed.items() if is_done(path, prints[name])}
            for name, by_seed in folders.items()
        },
        costs=costs,
        unavailable=unavailable,
        failures={name: failures(by_seed) for name, by_seed in folders.items()},
        tuning=tried,
        texts=job.texts,
    )


def _facts(asked: Request, texts: Prepared, opened: Checkpoint) -> dict[str, Any]:
    """All that decides the numbers of a run; arms and seeds, which may be added to one, are not in it."""
    schedule, training = texts.schedule, asdict(asked.plan.training)
    left_out = {"seeds"} if training["fsdp"] else {"seeds", "fsdp"}  # the latter is younger than runs on disks
    return {
        "training": {key: value for key, value in training.items() if key not in left_out},
        "model": asked.model,
        "weights": opened.info.weights_sha256,
        "condense": __version__,
        "train": schedule.train_sha256,
        "validation": schedule.validation_sha256,
        "windows": texts.validation.info.windows_sha256,
        "probe": texts.probe.info.windows_sha256,
    }


def _begun_with(asked: Request) -> int:
    """How many processes the run that is resumed was begun with: its batch options hold for each of so many."""
    kept = json_or_none(asked.folder / FINGERPRINT) if asked.resume else None
    begun = kept.get("processes", 1) if isinstance(kept, dict) else asked.processes
    return begun if isinstance(begun, int) and begun > 0 else 1


def _refuse_other(asked: Request, facts: Mapping[str, Any]) -> None:
    """UsageError if the run to be resumed had other settings, model, text or version; it names what differs."""
    old = json_or_none(asked.folder / FINGERPRINT)
    if old is None:  # missing or damaged: each run carries the fingerprint too
        return
    same = isinstance(old, dict) and json.loads(json.dumps(facts))
    differing = [key for key in facts if not same or old.get(key) != same[key]]
    if differing:
        raise UsageError(
            f"{asked.folder} holds a run with other settings, model or text (different: {', '.join(differing)})",
            "resume with the same ones, or pass --force to start anew",
        )


def _all_costs(job: Job, opened: Checkpoint) -> tuple[dict[str, StepCost], dict[str, str]]:
    """What a step of each arm takes, and why some arms cannot be had; kept for a resume."""
    asked, texts = job.asked, job.texts
    path, names = asked.folder / "costs.json", [spec.name for spec in asked.plan.arms]
    kept = json_or_none(path)
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # missing or damaged
        if (kept["fingerprint"], kept["arms"]) == (job.fingerprint, names):
            return {name: decode(StepCost, cost) for name, cost in kept["costs"].items()}, dict(kept["reasons"])
    asked.watch.on_phase("what a step costs")
    first, lora = job.seeds[0], asked.plan.training.use_peft
    timed = adapted(job.run_of(asked.plan.arms[0], first).fresh().model, asked.plan.training) if lora else opened.model
    batch = job.batch(opened.tokenizer, texts.rows)
    reasons: dict[str, str] = {}
    arms = []
    for spec in asked.plan.arms:
        if not remedy_of(spec).other_tokens:
            arms.append(Costed(spec, timed, batch))
            continue
        try:
            source, rows, _ = job.run_of(spec, first).source(texts)
        except CondenseError as error:
            reasons[spec.name] = str(error)
            continue
        added = len(source.model.get_input_embeddings().weight) - len(opened.model.get_input_embeddings().weight)
        arms.append(Costed(spec, source.model, job.batch(source.tokenizer, rows), added))
    costs = step_costs(asked.model, asked.options, asked.plan.training, texts.schedule, arms, asked.watch.on_text)
    values = {"fingerprint": job.fingerprint, "arms": names, "reasons": reasons, "costs": encode(costs)}
    write_text(path, json.dumps(values, allow_nan=False))
    return costs, reasons


def _search(job: Job, unavailable: dict[str, str]) -> dict[str, tuple[Tried, ...]]:
    """Try every setting of `--tune` for every arm, and choose; an arm without one that trains is unavailable."""
    search, watch = job.search, job.asked.watch
    if search is None:
        return {}
    todo = [run for run in search.todo(job.asked.resume) if run.spec.name not in unavailable]
    if job.room and todo:
        run_all(todo, search.prepared, job.asked.folder / FINGERPRINT, job.asked.jobs, job.room, watch)
        todo = []
    for number, run in enumerate(todo):
        watch.on_run(run.name, run.seed, number, len(todo))
        if (reason := attempt(run, search.prepared, OpenTasks(), watch)) is not None:
            watch.on_note(f"{run.title}: {reason}; going on with the others")
    tried = {spec.name: search.tried(spec) for spec in job.asked.plan.arms if spec.name not in unavailable}
    grid = search.plan.grid()
    job.chosen = {name: best for name, made in tried.items() if (best := chosen_setting(grid, made)) is not None}
    for line in tuning_lines(tried):
        watch.on_note(f"chosen for {line}")
    control = job.asked.plan.arms[0].name
    for name, settings in tried.items():
        if name not in job.chosen:
            unavailable[name] = f"no setting of --tune could be trained: {settings[0].reason}"
    if control not in job.chosen:
        raise RunError(unavailable.get(control, "the control has no setting"), "try smaller rates with --tune")
    return tried


def _train_all(job: Job, unavailable: Mapping[str, str]) -> None:
    """Every arm under every seed that is not finished; a failure ends it, or is written down where that was asked."""
    asked = job.asked
    todo = [(seed, spec) for seed, spec in job.todo() if spec.name not in unavailable]
    if job.room and todo:
        inputs = [job.run_of(spec, seed) for seed, spec in todo]
        run_all(inputs, job.texts, asked.folder / FINGERPRINT, asked.jobs, job.room, asked.watch)
        todo = []
    for number, (seed, spec) in enumerate(todo):
        asked.watch.on_run(spec.name, seed, number, len(todo))
        if not asked.lenient:
            train_and_measure(job.run_of(spec, seed), job.texts, job.tasks, asked.watch)
        elif (reason := attempt(job.run_of(spec, seed), job.texts, job.tasks, asked.watch)) is not None:
            asked.watch.on_note(f"{spec.name}, seed {seed}: {reason}; going on with the others")
    control = asked.plan.arms[0]
    if not any(is_done(job.folder_of(control, seed), job.fingerprint_of(control)) for seed in job.seeds):
        raise RunError(
            f"the control arm failed under every seed: {failure(job.folder_of(control, job.seeds[0]))}",
            "without a control nothing can be said of the other arms",
        )
