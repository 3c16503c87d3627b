"""The search of a coefficient: short runs on part of the training text, each against one control.

Effect and cost grow with the steps: after a fifth of them a dose is held to a fifth of what counts at the end, and to a
fifth of the cost that is tolerated there. The search reads neither the validation nor the probe text of the treatment
that it is made for: the chosen dose is the largest of several, and what it does is measured on text that had no part in
the choice. Every run is one of `trials.arm_run`, so that a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from condense.comparison.differences import effect_of
from condense.comparison.verdict import signed
from condense.errors import RunError
from condense.evaluation.harness import OpenTasks
from condense.files import sha256
from condense.models import checkpoint as checkpoints
from condense.records.base import Estimate
from condense.records.plans import COEFFICIENT, CONTROL, SEARCH_DOSES, ArmSpec, Plan, TrialPlan
from condense.records.treatment import DoseSearch, TriedDose
from condense.texts.documents import Document
from condense.training.prepare import Prepared, prepare_text
from condense.training.rows import VALIDATION_SHARE
from condense.trials.arm_run import attempt
from condense.trials.doses import RATIO_HIGH, next_dose, rounded
from condense.trials.folder import Run, clear_run, failure, is_done, read_run
from condense.trials.runs import Job, Request

CHARACTERS = 8
"""How many characters of text stand for a token: enough in every language, so that the part is never too short."""


def search_dose(job: Job, plan: Plan, folder: Path) -> DoseSearch:
    """The coefficient with the largest effect within the quality tolerance, found in `folder` by short runs.

    job: of the treatment, prepared; its model is released for the search and opened again afterwards. `chosen` is None
    where no dose had a measurable effect within the tolerance. RunError where the control fails, InterruptedRunError
    after a signal.
    """
    short = _short_plan(job, plan)
    search = _prepared(job, short, folder)
    watch, seed = job.asked.watch, short.seed
    runs = 1 + SEARCH_DOSES + len(job.todo())
    control = _finished(search, CONTROL, 0, runs)
    if control is None:
        raise RunError(f"the control of the search failed: {failure(search.folder_of(CONTROL, seed))}")
    points: list[TriedDose] = []
    share = search.texts.schedule.steps / job.texts.schedule.steps
    seconds = control.record.seconds
    while (coefficient := next_tried(points)) is not None:
        spec = ArmSpec(f"coefficient-{coefficient:g}", "dispersion", short.loss, short.layers, coefficient)
        run = _finished(search, spec, len(points) + 1, runs)
        points.append(_failed(search, spec) if run is None else _point(coefficient, run, control, short, share))
        seconds += run.record.seconds if run else 0.0
        watch.on_note(f"search: coefficient {coefficient:g}: {_words(points[-1])}")
    chosen, reason = chosen_dose(points)
    if chosen is not None:
        watch.on_note(f"search: coefficient {chosen:g} is taken, {reason}")
    job.opened = checkpoints.load(job.asked.model, job.asked.options)
    key = "bits_per_byte" if control.validation.quality.bits_per_byte.value is not None else "loss"
    base: Estimate = getattr(control.validation.quality, key)
    schedule = search.texts.schedule
    return DoseSearch(
        steps=schedule.steps,
        train_tokens=schedule.train_tokens,
        documents=len(set(control.validation.corpus.documents)),
        train_sha256=schedule.train_sha256,
        validation_sha256=schedule.validation_sha256,
        points=tuple(points),
        chosen=chosen,
        reason=reason,
        quality_key=key,
        least=share * short.min_effect,
        tolerated=None if base.value is None else share * short.quality_tolerance * base.value,
        share=share,
        alpha=0.05 / SEARCH_DOSES,
        seconds=seconds,
    )


def with_coefficient(job: Job, folder: Path) -> DoseSearch:
    """Search the coefficient of the job's arms and give it to them; its fingerprint holds it from then on.

    RunError where no coefficient had a measurable effect within the quality tolerance: none is trained then.
    """
    asked = job.asked
    asked.begins()
    search = search_dose(job, asked.plan.training, folder)
    if search.chosen is None:
        kept = [point.coefficient for point in search.points if within_tolerance(point)]
        largest = f"--coefficient {max(kept):g} --force trains the largest that held quality; " if kept else ""
        raise RunError(
            f"the search found no coefficient, and none is trained: {search.reason} ({search_words(search)})",
            f"{largest}a larger --max-steps or --learning-rate shows more effect; more --num-texts or more text shows "
            "better whether quality holds",
        )
    specs = tuple(spec if spec == CONTROL else replace(spec, coefficient=search.chosen) for spec in asked.plan.arms)
    job.asked = replace(asked, plan=replace(asked.plan, arms=specs), begins=lambda: None)
    job.fingerprint = sha256(f"{job.fingerprint} {search.chosen:g}")
    return search


def search_words(search: DoseSearch) -> str:
    """Every coefficient that was tried with what it came to, weakest first."""
    ordered = sorted(search.points, key=lambda point: point.coefficient)
    return "; ".join(f"{point.coefficient:g}: {_words(point)}" for point in ordered)


def _short_plan(job: Job, plan: Plan) -> Plan:
    """The plan of every run of the search: the same batches and rows for fewer steps, under the first seed alone."""
    schedule = job.texts.schedule
    steps = plan.search_steps(schedule.steps)
    return replace(
        plan,
        max_steps=steps,
        warmup=plan.warmup if plan.warmup < 1 else round(plan.warmup * steps / schedule.steps),  # the same share
        train_tokens=None,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        max_length=schedule.row_length,
        eval_tasks=(),
        eval_limit=None,
        include_path=None,
        seeds=1,
        save_steps=None,
        report_to="none",
        control=True,
    )


def _prepared(job: Job, short: Plan, folder: Path) -> Job:
    """The job of the search: part of the training documents, split again; the model of the treatment is released."""
    asked, opened = job.asked, job.opened
    if opened is None:
        raise ValueError("the model of the job was released")
    asked.watch.on_phase("searching the coefficient")
    tokens = (short.max_steps or 1) * job.texts.schedule.tokens_per_step
    measured = job.texts.validation.ids.numel() / VALIDATION_SHARE
    part = _part_of(job.texts.parts.train, int(CHARACTERS * (tokens + 2 * measured)))
    texts: Prepared = prepare_text(asked.model, opened, part, "text", short, None, asked.processes)
    job.opened = None
    del opened
    gc.collect()
    request = Request(
        model=asked.model,
        text=None,
        plan=TrialPlan((CONTROL,), 1, short, curve_points=0),
        folder=folder,
        timed={},
        keeps=lambda spec, seed: False,
        title=lambda spec, seed: f"{asked.model} (search, {spec.name})",
        begins=lambda: None,
        name=asked.name,
        processes=asked.processes,
        resume=asked.resume,
        watch=asked.watch,
        options=asked.options,
    )
    facts = f"{job.fingerprint} {short.max_steps} {texts.schedule.train_sha256}"
    return Job(request, texts, OpenTasks(), sha256(facts), None)


def _part_of(documents: Sequence[Document], characters: int) -> Iterator[Document]:
    """The first documents of a shuffled text, until there are so many characters."""
    for document in documents:
        yield document
        characters -= len(document.text)
        if characters < 0:
            return


def _finished(search: Job, spec: ArmSpec, number: int, runs: int) -> Run | None:
    """A run of the search, trained and measured unless that was done; None for one that failed.

    number: how many of all `runs` were before it.
    """
    seed = search.asked.plan.training.seed
    folder = search.folder_of(spec, seed)
    if not is_done(folder, search.fingerprint):
        name = "control" if spec == CONTROL else f"coefficient {spec.coefficient:g}"
        search.asked.watch.on_run(f"search: {name}", seed, number, runs)
        if attempt(search.run_of(spec, seed), search.texts, search.tasks, search.asked.watch) is not None:
            return None
    return read_run(folder, seed, search.texts.schedule)


def _failed(search: Job, spec: ArmSpec) -> TriedDose:
    """A dose whose run failed: it diverged, or there was no room for it; its reason stays in the record."""
    folder = search.folder_of(spec, search.asked.plan.training.seed)
    missing = Estimate(None, reason=failure(folder) or "the run failed")
    clear_run(folder)
    return TriedDose(spec.coefficient or 0.0, missing, missing, "inconclusive", "not measured")


def _point(coefficient: float, run: Run, control: Run, short: Plan, share: float) -> TriedDose:
    """What a dose came to, held to what counts and what is tolerated at the end in proportion to the steps."""
    effect = effect_of(
        {short.seed: run.validation},
        {short.seed: control.validation},
        "control",
        least=share * short.min_effect,
        tolerance=share * short.quality_tolerance,
        compared=SEARCH_DOSES,
        site_keys=(),
    )
    quality = effect.words["quality"]
    cone = effect.words["mean_cosine"].word
    return TriedDose(
        coefficient,
        _without_texts(effect.deep["mean_cosine"]),
        _without_texts(effect.quality[quality.key]),
        cone,
        quality.word,
        run.record.penalty_to_ce,
    )


def _without_texts(estimate: Estimate) -> Estimate:
    return replace(estimate, per_text=None, deleted=None)


def _words(point: TriedDose) -> str:
    if point.effect.value is None:
        return f"failed ({point.effect.reason})"
    return f"{point.word} ({point.effect.value:+.3f}), quality {point.quality_word}"


# --- which dose ------------------------------------------------------------------------------------------


def within_tolerance(dose: TriedDose) -> bool:
    """Whether quality is shown to be held at a dose, or improved, and the cone is not narrowed."""
    return dose.quality_word in ("improved", "held") and dose.word != "more condensed"


def next_tried(points: Sequence[TriedDose]) -> float | None:
    """The coefficient that a search tries next, from those it tried; None where it is at its end.

    It begins at `COEFFICIENT`, rises by three (further where the penalty is far below a tenth of cross-entropy) until
    quality is not shown to be held or the penalty competes with cross-entropy, falls by three until it is, and halves
    a factor above 2 between the two once, on a logarithmic scale; at most `SEARCH_DOSES` in all.
    """
    if not points:
        return COEFFICIENT
    if len(points) >= SEARCH_DOSES:
        return None
    kept = [point for point in points if within_tolerance(point)]
    failed = [point.coefficient for point in points if not within_tolerance(point)]
    if not kept:
        return rounded(min(failed) / 3)
    top = max(kept, key=lambda point: point.coefficient)
    if not failed:
        ratio = top.penalty_to_ce
        if ratio is not None and ratio >= RATIO_HIGH:
            return None
        small = None if top.word == "more spread" else next_dose(top.coefficient, ratio)
        return small or rounded(3 * top.coefficient)
    low, high = top.coefficient, min(c for c in failed if c > top.coefficient) if max(failed) > top.coefficient else 0.0
    between = rounded((low * high) ** 0.5)
    tried = {point.coefficient for point in points}
    return between if high > 2 * low and low < between < high and between not in tried else None


def chosen_dose(points: Sequence[TriedDose]) -> tuple[float | None, str]:
    """The coefficient with the largest measurable fall within the quality tolerance, or None; with the reason."""
    kept = [point for point in points if within_tolerance(point)]
    fell = [point for point in kept if point.word == "more spread"]
    if fell:
        best = min(fell, key=lambda point: point.effect.value or 0.0)
        quality = "improved" if best.quality_word == "improved" else "is held"
        return best.coefficient, (
            f"the largest measurable fall of the deep mean cosine ({signed(best.effect)}) whose quality {quality} "
            f"({signed(best.quality)})"
        )
    tried = ", ".join(f"{point.coefficient:g}" for point in sorted(points, key=lambda point: point.coefficient))
    if any(point.word == "more spread" for point in points):
        return None, f"of {tried} each that spread the representation is not shown to hold quality"
    if not kept:
        return None, f"at {tried} quality is not shown to be held"
    if all(point.word == "smaller than what counts" for point in kept):
        return None, f"at {tried} the effect is smaller than what counts, or quality is not shown to be held"
    return None, f"at {tried} no measurable fall is within the quality tolerance"
