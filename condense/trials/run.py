"""trial(): remedies side by side, each arm under each seed on the same rows and windows, each against the control.

The runs themselves are those of condense/trials/runs.py, in `OUT/arms`; an arm that fails is reported and the others
go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from condense.errors import UsageError
from condense.files import write_text
from condense.records.options import ModelOptions, TextOptions, takes
from condense.records.plans import TrialPlan
from condense.records.trial import Trial
from condense.texts.documents import Document
from condense.training.remedies import remedy_of
from condense.trials.results import assembled
from condense.trials.runs import Request, Watch, run_arms


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
    watch: Watch | None = None,
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
    target, started = Path(output), time.perf_counter()
    chosen = replace(ModelOptions.of(options, fields), dtype="float32")
    refuse_arms(plan, chosen)
    check_target(target, resume=resume, force=force)
    request = Request(
        model=str(model),
        text=text,
        plan=plan,
        folder=target / "arms",
        timed={"control": plan.arms[0]},
        keeps=lambda spec, seed: plan.keep_models,
        title=lambda spec, seed: f"{model} ({spec.name}, seed {seed})",
        all_costs=True,
        lenient=True,
        text_column=text_column,
        resume=resume,
        dry_run=dry_run,
        watch=watch or Watch(),
        options=chosen,
    )
    runs = run_arms(request)
    if runs is None:
        return None
    timing = {} if resume else {"total_seconds": time.perf_counter() - started}
    made = assembled(plan, runs, command=command, output=str(target), timing=timing)
    write_trial(made, target)
    return made


def refuse_arms(plan: TrialPlan, options: ModelOptions) -> None:
    """UsageError for an arm that is only for training from scratch where the model has its own weights."""
    names = [arm.name for arm in plan.arms if remedy_of(arm).from_scratch]
    if names and not options.random_init:
        raise UsageError(
            f"{', '.join(names)} is for training from scratch only", f"add --random-init, or leave {names[0]} out"
        )


def check_target(target: Path, *, resume: bool, force: bool) -> None:
    """UsageError if anything is in the output folder, unless it is a trial that is to be resumed or replaced.

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


def write_trial(trial: Trial, target: Path) -> None:
    """Write trial.json, report.html, report.md and trial.csv into a trial's folder."""
    from condense.report.tables import rows_csv

    trial.to_json(target / "trial.json")
    trial.to_html(target / "report.html")
    trial.to_markdown(target / "report.md")
    write_text(target / "trial.csv", rows_csv(trial.rows()))
