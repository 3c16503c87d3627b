"""What the runs of a treatment or a trial will take: time, memory and disk, from a few timed passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from condense.models.checkpoint import Checkpoint
from condense.records.plans import SEARCH_DOSES
from condense.records.schedules import share_on
from condense.training.costs import Pass, interleaved, overhead_of
from condense.training.interventions import as_trained
from condense.training.learning import FORWARD
from condense.training.prepare import disk_needed, training_memory
from condense.training.remedies import remedy_of, schedule_of
from condense.trials.ray_session import fitted, seconds_of

if TYPE_CHECKING:
    from condense.trials.runs import Job

_MEASURING = 0.45  # of a forward and backward pass: what measuring the same tokens takes


def estimate(job: Job, opened: Checkpoint) -> None:
    """Put time, memory and disk into the schedule of a job, and how many runs its workers have memory for."""
    asked, texts, schedule = job.asked, job.texts, job.texts.schedule
    asked.watch.on_phase("timing a step")
    batch = job.batch(opened.tokenizer, texts.rows)
    acts = {name: remedy_of(spec).acts(spec, asked.plan.training) for name, spec in asked.timed.items()}
    with as_trained(opened.model, asked.plan.training) as (model, trained, adapter):
        spent = interleaved({name: Pass(model, batch, act) for name, act in acts.items()}, asked.rounds)
    job.overhead = overhead_of(spent)
    memory = training_memory(trained, job.overhead.peak_memory_bytes)
    if job.room:
        job.room = fitted(job.room, asked.jobs, memory)
    searched = (1 + SEARCH_DOSES) * bool(asked.plan.training.search_steps(schedule.steps))
    kept = [asked.keeps(spec, seed) for seed in job.seeds for spec in asked.plan.arms]
    estimated = replace(
        schedule,
        seconds=_seconds(job),
        memory_bytes=memory,
        disk_bytes=disk_needed(opened, asked.plan.training, min(len(kept), sum(kept) + 1), len(kept) + searched + 1),
        adapter=adapter,
        jobs=job.room.jobs if job.room else 1,
        threads=job.room.cpus if job.room else None,
        notes=(*schedule.notes, *(job.room.notes if job.room else ())),
    )
    job.texts = replace(texts, schedule=estimated)


def _seconds_per_step(job: Job) -> dict[str, float]:
    """Seconds of a pass of each timed arm, mean over the steps: behind the end of its schedule it is the control's."""
    timed, asked = job.asked.timed, job.asked.plan.training.coefficient_schedule
    measured = job.overhead.seconds_per_step
    control = next(iter(measured.values()))
    shares = {name: share_on(schedule_of(spec, asked)) for name, spec in timed.items()}
    return {name: control + shares[name] * (seconds - control) for name, seconds in measured.items()}


def _seconds(job: Job) -> float:
    """Seconds of the model as it came, of the search and of all runs, so many at once as there are workers."""
    texts, schedule, steps = job.texts, job.texts.schedule, _seconds_per_step(job)
    control = next(iter(steps.values()))
    per_token, passes = control / (schedule.row_length * schedule.batch_size), schedule.steps * schedule.accumulation
    measuring = per_token * _MEASURING * (texts.validation.ids.numel() + texts.probe.ids.numel())
    scored = per_token * FORWARD * texts.validation.ids.numel() * max(0, job.points - 1)
    searched = job.search.todo(job.asked.resume) if job.search else []
    tried = [steps.get(run.spec.name, control) * passes + measuring / 2 for run in searched]
    then = control * texts.then.schedule.steps * schedule.accumulation if texts.then else 0.0
    runs = [steps.get(spec.name, control) * passes + scored + measuring + then for _, spec in job.todo()]
    jobs = job.room.jobs if job.room else 1
    doses = job.asked.plan.training.search_steps(schedule.steps)  # a control and, at most, so many coefficients
    dose = max(steps.values()) * doses * schedule.accumulation + measuring
    return measuring + (1 + SEARCH_DOSES) * dose * bool(doses) + seconds_of(tried, jobs) + seconds_of(runs, jobs)
