"""treat(): one arm beside its control, before / control / treated, and what can be said of the loss.

A trial of one arm that keeps the model of the first seed and has a record and a page of its own. Everything lives in
`OUT.work/` until it is finished.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from condense.comparison.differences import effect_of
from condense.evaluation.run import task_effects_over_seeds
from condense.files import write_text
from condense.folders import prepare
from condense.models.checkpoint import Checkpoint
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.treatment import TREATMENT_SCHEMA, Arm, SeedModel, Treatment, TreatmentSeed
from condense.texts.documents import Document
from condense.texts.windows import Windows
from condense.training.costs import ROUNDS
from condense.treatment.projection import drawn_block, project, token_states
from condense.treatment.verdict import assess
from condense.trials.runs import Request, Run, Runs, Watch, run_arms
from condense.version import __version__

CONTROL = ArmSpec("control", "control")


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
    `plan.seeds` above 1 both arms are trained under every seed; the checkpoint is that of the first. Returns None for
    a dry run. UsageError for an output that is not empty, UnavailableError for a model or text that cannot be used,
    RunError for a run that failed; `training.InterruptedRunError` after a signal, with a checkpoint saved.
    """
    plan, started = plan or Plan(), time.perf_counter()
    target = Path(output)
    work = prepare(target, resume=resume, force=force)
    treated = ArmSpec("treated", "dispersion", plan.loss, plan.layers, plan.coefficient)
    timed = replace(treated, coefficient=abs(plan.coefficient) or 0.1)
    request = Request(
        model=str(model),
        text=text,
        plan=TrialPlan((CONTROL, treated) if plan.control else (treated,), plan.seeds, plan),
        folder=work,
        timed={"control": CONTROL, "treated": timed},
        rounds=ROUNDS,
        keeps=lambda spec, seed: spec == treated and seed == plan.seed,
        title=lambda spec, seed: f"{model} ({spec.name}{'' if seed == plan.seed else f', seed {seed}'})",
        also=_write_cloud,
        text_column=text_column,
        resume=resume,
        dry_run=dry_run,
        watch=watch or Watch(),
        options=replace(ModelOptions.of(options, fields), dtype="float32"),
    )
    runs = run_arms(request)
    if runs is None:
        return None
    treatment = _assembled(plan, str(model), str(target), runs, command, time.perf_counter() - started)
    stage(treatment, runs.arms["treated"][plan.seed].folder, work, target)
    return treatment


def _write_cloud(current: Checkpoint, windows: Windows, folder: Path) -> None:
    save_file({"cloud": token_states(current.model, windows)}, folder / "cloud.safetensors")


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
        penalty_to_ce=trained.penalty_to_ce if trained is not None and name == "treated" else None,
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


# --- the folder ----------------------------------------------------------------------------------------


def _readable(folder: Path) -> None:
    """Give every file the mode that the umask asks for; safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def stage(treatment: Treatment, run: Path, work: Path, target: Path) -> None:
    """Complete the treated model folder with card, JSON and reports, rename it into place, drop the work folder."""
    from condense.report.treatment.markdown import model_card, treatment_markdown

    model = run / "model"
    adapter = run / "adapter"
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
