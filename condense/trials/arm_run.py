"""One arm under one seed: from a picklable input to the record in the run's folder.

    source weights → trained → saved, reloaded → measured → marked as finished

`trial` and `treat` call it for one run after the other, in this process or in workers; a search calls it for its own.
What is finished and sound in the folder is not repeated.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from condense.diagnosis.quality import rescored
from condense.diagnosis.run import analyze
from condense.errors import CondenseError
from condense.evaluation.harness import OpenTasks
from condense.evaluation.run import evaluate
from condense.files import write_text
from condense.models import checkpoint as checkpoints
from condense.models.checkpoint import Checkpoint
from condense.records.learning import Beyond, Scores, TextScores
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.serial import encode
from condense.records.treatment import Overhead, Schedule
from condense.texts.windows import Windows
from condense.training.interventions import Intervention, adapted
from condense.training.learning import Evaluation, WindowScore, evaluated_steps
from condense.training.loop import InterruptedRunError, OnStep, Trained, train, train_arm
from condense.training.prepare import NextText, Prepared, training_rows, windows_for
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from condense.training.trackers import RunName
from condense.trials.folder import (
    FAILED,
    MEASURED,
    PROGRESS,
    TRAINED,
    begin,
    drop_checkpoints,
    drop_model,
    fail,
    finish_step,
    read_step,
)

NEXT_POINTS = 8
"""Evaluations while a final model learns the next text, the end among them."""
BEFORE = ArmSpec("before", "control")
Also = Callable[[Checkpoint, Windows, Path], None]


@dataclass(frozen=True)
class RunState:
    """How far a run in a worker is: so much is done of its phase (total 0 where that has no length)."""

    arm: str
    seed: int
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Watch:
    """Callbacks while arms are trained; every callback may be left out.

    on_plan(plan, schedule, overhead) before anything is trained; on_run(arm, seed, done, total) before each run, with
    total 0 for the model as it came; on_note for what went wrong without an end to the whole; on_train before an arm is
    trained, for the processes that train with this one. Of runs in workers nothing is told but on_workers(running,
    done, total), about once a second.
    """

    on_plan: Callable[[TrialPlan, Schedule, Overhead], None] = lambda plan, schedule, overhead: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_run: Callable[[str, int, int, int], None] = lambda arm, seed, done, total: None
    on_text: Callable[[int, int], None] = lambda done, total: None
    on_step: OnStep = lambda step, steps, logs: None
    on_note: Callable[[str], None] = lambda line: None
    on_workers: Callable[[Sequence[RunState], int, int], None] = lambda running, done, total: None
    on_train: Callable[[ArmTraining], None] = lambda training: None


def nothing_else(checkpoint: Checkpoint, windows: Windows, folder: Path) -> None:
    """The `also` of a run that makes nothing but its record."""


@dataclass(frozen=True)
class ArmRunInput:
    """What one arm under one seed needs besides its text; picklable, so that any process can run it.

    training     the plan of all arms; its own seed is the first one and decides what is measured, not how it trains.
    options      how the source is opened, with the seed of its weights where they are random.
    folder       the run's own: trained.json, run.json, validation.json, probe.json and the model go there.
    fingerprint  of settings, model and text: what another one left in the folder is removed.
    title        what the model is called in the records; group: what trackers call all runs that belong together.
    keep         whether the trained model stays once it is measured; resume: whether training goes on from the last
                 sound checkpoint in the folder.
    also         what else is made of the measured model, written into the folder.
    points       how many points the curve of bits per byte has, the end among them.
    then         the plan of training on the next text, where the texts have one: that of the control.
    searched     whether it is a run of a search, of which the validation text alone is measured.
    """

    spec: ArmSpec
    seed: int
    training: Plan
    model: str
    options: ModelOptions
    folder: Path
    fingerprint: str
    title: str
    keep: bool = False
    resume: bool = False
    group: str = "condense"
    also: Also = nothing_else
    points: int = 0
    searched: bool = False
    then: Plan | None = None

    @property
    def name(self) -> str:
        """The arm, with the setting that is tried where the run is one of a search."""
        return f"{self.spec.name} ({self.folder.parent.name.rpartition('+')[2]})" if self.searched else self.spec.name

    def fresh(self) -> Checkpoint:
        """The source weights, opened anew."""
        return checkpoints.load(self.model, self.options)

    def source(self, texts: Prepared) -> tuple[Checkpoint, Rows, tuple[str, ...]]:
        """The source weights, the rows of the arm, and what there is to say of them."""
        source, enlarge = self.fresh(), remedy_of(self.spec).enlarge
        return enlarge(source, texts, self.training) if enlarge else (source, texts.rows, ())


@dataclass(frozen=True)
class ArmTraining:
    """The training of one arm, as each of the processes does it that train together; picklable."""

    run: ArmRunInput
    rows: Rows
    schedule: Schedule
    masked: bool

    def train(self, source: Checkpoint, on_step: OnStep | None = None, evaluation: Evaluation | None = None) -> Trained:
        """Train the freshly opened source of the run, which is used up; the first process saves it in the folder."""
        run = self.run
        plan = replace(run.training, seed=run.seed)
        return train_arm(
            source,
            self.rows,
            plan,
            self.schedule,
            remedy_of(run.spec).acts(run.spec, plan),
            run.folder,
            masked=self.masked,
            resume=run.resume,
            on_step=on_step,
            name=RunName(f"{run.spec.name} seed {run.seed}", run.group),
            evaluation=evaluation,
        )


def attempt(run: ArmRunInput, texts: Prepared, tasks: OpenTasks, watch: Watch) -> str | None:
    """As `train_and_measure`, but a run that fails is written down: its reason, in one line; None for one that did not.

    InterruptedRunError is raised all the same.
    """
    try:
        train_and_measure(run, texts, tasks, watch)
    except InterruptedRunError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        reason = line if isinstance(error, CondenseError) else f"{type(error).__name__}: {line}"
        fail(run.folder, reason)
        return reason
    return None


def train_and_measure(run: ArmRunInput, texts: Prepared, tasks: OpenTasks, watch: Watch) -> None:
    """Train, save, reload and measure one arm under one seed; its record lies in the run's folder afterwards.

    What a run of other settings left in the folder is removed first. Errors as `train_arm` and `analyze`;
    InterruptedRunError after a signal, with a checkpoint saved.
    """
    folder = run.folder
    begin(folder, run.fingerprint)
    for name in (FAILED, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    step = read_step(folder, TRAINED, run.fingerprint)
    if step is None or step.trained is None:
        watch.on_phase("training")
        trained, details = _train(run, texts, watch)
    else:
        trained, details = step.trained, step.details
    device, trusted = run.options.device, run.options.trust_remote_code
    current = checkpoints.load(folder / "model", device=device, trust_remote_code=trusted)
    measure(run, current, texts, tasks, watch)
    finish_step(folder, MEASURED, run.fingerprint, (trained, (*details, *trained.details)))
    if not run.keep:
        drop_model(folder)


def _train(run: ArmRunInput, texts: Prepared, watch: Watch) -> tuple[Trained, tuple[str, ...]]:
    """Train one arm and save it in its folder: how it trained, and what there is to say of its source and rows."""
    folder = run.folder
    drop_model(folder)
    source, rows, details = run.source(texts)
    training = ArmTraining(run, rows, texts.schedule, texts.masked)
    watch.on_train(training)
    trained = training.train(source, watch.on_step, _evaluation(run, source, texts))
    del source
    gc.collect()
    finish_step(folder, TRAINED, run.fingerprint, (trained, details))
    drop_checkpoints(folder)
    return trained, details


def _evaluation(run: ArmRunInput, source: Checkpoint, texts: Prepared) -> Evaluation:
    """What scores the validation windows while an arm trains, by bytes where it has other tokens."""
    score = WindowScore(source, texts.validation, by_passage=remedy_of(run.spec).other_tokens)
    return Evaluation(score, evaluated_steps(texts.schedule.steps, run.points))


def measure(run: ArmRunInput, current: Checkpoint, texts: Prepared, tasks: OpenTasks, watch: Watch) -> None:
    """Measure a model on both texts and on the tasks, and write it; bits per byte always on the control's bytes."""
    training, folder = run.training, run.folder
    named = replace(current, info=replace(current.info, id=run.title))
    shared = (texts.validation, texts.probe)
    own = windows_for(current, texts) if remedy_of(run.spec).other_tokens else shared
    kinds = zip(("validation", "probe"), own, shared, strict=True)
    for kind, measured, reference in [next(kinds)] if run.searched else kinds:
        watch.on_phase(f"{kind} text")
        diagnosis = analyze(named, measured, seed=training.seed, on_text=watch.on_text)
        if measured is not reference:
            diagnosis = replace(diagnosis, quality=rescored(diagnosis.quality, current, reference, training.seed))
        diagnosis.to_json(folder / f"{kind}.json")
    if run.searched:
        return
    run.also(current, own[0], folder)
    if tasks.names:
        watch.on_phase("downstream tasks")
        scores = evaluate(current, tasks, limit=training.eval_limit, seed=training.seed, on_request=watch.on_text)
        write_text(folder / "tasks.json", json.dumps(encode(scores), allow_nan=False))
    _measure_beyond(run, current, texts, watch)  # last, for it trains the model further


def _measure_beyond(run: ArmRunInput, current: Checkpoint, texts: Prepared, watch: Watch) -> None:
    """Score the final model on the text of another domain, and train that very model on the next text."""
    other, then = texts.other, None if run.spec.name == BEFORE.name else texts.then
    if other is None and then is None:
        return
    made, by_passage = Beyond(), remedy_of(run.spec).other_tokens
    if other is not None:
        watch.on_phase("text of another domain")
        nats = WindowScore(current, other.windows, by_passage)(current.model)
        made = Beyond(TextScores(other.windows.info.windows_sha256, tuple(nats)))
    if then is not None and run.then is not None:
        watch.on_phase("the next text")
        made = replace(made, then=_learn_next(run, run.then, current, then, watch))
        settings = (run.then.peak_rate, run.then.warmup)
        made = replace(made, then_sha256=then.windows.info.windows_sha256, then_settings=settings)
    write_text(run.folder / "beyond.json", json.dumps(encode(made), allow_nan=False))


def _learn_next(run: ArmRunInput, plan: Plan, current: Checkpoint, then: NextText, watch: Watch) -> Scores:
    """Train the final model on the next text by cross-entropy, as the control is; scored before, on the way and after.

    The weights are thrown away; so is a checkpoint that a signal left, for it is short enough to be done again.
    """
    by_passage, plan = remedy_of(run.spec).other_tokens, replace(plan, seed=run.seed, save_steps=None, report_to="none")
    score, schedule, folder = WindowScore(current, then.windows, by_passage), then.schedule, run.folder / "runs/then"
    rows = then.rows
    if by_passage:
        rows = training_rows(current, then.parts, rows.length, False, rows.most)
    start = tuple(score(current.model))
    torch.manual_seed(run.seed)
    model: Any = adapted(current.model, plan) if plan.use_peft else current.model
    try:
        trained, model = train(
            model,
            current.tokenizer,
            rows,
            plan,
            schedule,
            intervention=Intervention(),
            folder=folder,
            masked=False,
            on_step=watch.on_step,
            evaluation=Evaluation(score, evaluated_steps(schedule.steps, NEXT_POINTS)),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    scores = trained.scores
    return replace(
        scores,
        step=(0, *scores.step, schedule.steps),
        seconds=(0.0, *scores.seconds, scores.total_seconds or 0.0),
        nats=(start, *scores.nats, tuple(score(model))),
    )
