"""`condense trial MODEL -o DIR --arms …`: remedies side by side, each under several seeds, each against the control."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli.console import INTERNAL, MANNER, console, quieten_libraries, say
from condense.cli.groups import Without, command
from condense.cli.measure import Model, go_offline, training_text
from condense.cli.treat import Trained, run_training
from condense.errors import UnavailableError, UsageError
from condense.records.jobs import JobOptions
from condense.records.options import ARMS, OUTPUT, Flag, ModelOptions, RunOptions, TextOptions
from condense.records.plans import Plan, TrialPlan
from condense.records.treatment import Schedule

if TYPE_CHECKING:
    from rich.console import Console

    from condense.records.treatment import Overhead, Power
    from condense.records.trial import Trial

Output = Flag("Folder of report and runs.", OUTPUT, ("--output", "-o"), metavar="DIR")
Arms = Flag(
    "control, dispersion[:loss][@layers][+schedule][=coefficient], embedding-dropout, noisy-embedding, "
    "active-forgetting, larger-vocab, cosreg, simreg, coupled-adam, layernorm-scaling, placebo-shuffled, "
    "placebo-projection, placebo-norm.",
    ARMS,
    ("--arms",),
    metavar="ARM,…",
)
Coefficients = Flag("For every arm that takes a coefficient and names none.", ARMS, metavar="C,…", settings="found")
DEFAULT_ARMS = "control,dispersion,embedding-dropout,larger-vocab"
OfTheArms = Without("coefficient", "loss", "layers", "paper_sites", "control", "merge_adapter", "fsdp")
"""Options of one arm; in a trial they stand in the arm's name."""


@command
def trial(
    model: Model,
    output: Annotated[Path, Output],
    *,
    named_arms: Annotated[str, Arms] = DEFAULT_ARMS,
    coefficients: Annotated[str | None, Coefficients] = None,
    plan: TrialPlan,
    corpus: TextOptions,
    training: Annotated[Plan, OfTheArms],
    options: Annotated[ModelOptions, Trained],
    jobs: JobOptions,
    run: RunOptions,
) -> None:
    """Train remedies against condensation side by side, each against the same control, and report what each did."""
    plan = replace(plan, arms=_arms_of(named_arms, coefficients), training=training)
    _refuse_processes()
    text = training_text(corpus)
    go_offline(options)
    quieten_libraries()
    from condense.trials.run import trial as run_trial

    start = partial(run_trial, model, text, output, plan, text_column=corpus.text_column, options=options, jobs=jobs)
    finished = _train(start, output, run)
    if finished is not None:
        _finish(finished, output)


def _refuse_processes() -> None:
    """UsageError under torchrun, raised by every process and reported by the first."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        MANNER.rank = int(os.environ.get("RANK", "0") != "0")
        error = UsageError(
            "condense trial does not train one arm over several processes",
            "run several arms at once with trial --jobs N, or spread one with torchrun … -m condense treat",
        )
        error.shared = True
        raise error


def _arms_of(arms: str, coefficients: str | None) -> Any:
    from condense.training.arm_names import parse_arms

    try:
        numbers = tuple(float(part) for part in coefficients.split(",")) if coefficients else ()
    except ValueError:
        raise UsageError(f"--coefficients is {coefficients!r}", "use numbers such as 0.01,0.03,0.1") from None
    return parse_arms(arms, numbers)


def _train(start: Callable[..., Trial | None], output: Path, run: RunOptions) -> Trial | None:
    """Run the trial with bars on stderr; None for a dry run."""
    from condense.report.trial.text import show_trial_plan
    from condense.trials.verdict import power_before

    def show(plan: TrialPlan, schedule: Schedule, overhead: Overhead, screen: Console) -> None:
        power = power_before(plan.seeds, max(1, len(plan.arms) - 1), _spread_before(output))
        show_trial_plan(plan, schedule, {}, schedule.seconds, screen, power)

    return run_training(start, show, run, str(output))


def _spread_before(output: Path) -> list[tuple[str, Mapping[str, Power]]]:
    """How much the seeds of each arm vary in the trial that the folder holds already; nothing if it cannot be read."""
    from condense.records.trial import Trial

    try:
        earlier = Trial.from_json(output / "trial.json")
    except UnavailableError:
        return []
    return [(arm.spec.name, arm.effect.power) for arm in earlier.arms if arm.effect]


def _finish(finished: Trial, output: Path) -> None:
    """Show the table; exit 4, with everything written, if an arm failed."""
    from condense.report.trial.text import show_trial

    show_trial(finished, console())
    searched = ", tuning/" if finished.plan.tune else ""
    say(f"wrote {output} (trial.json, report.html, report.md, trial.csv, arms/{searched})")
    failed = [arm.spec.name for arm in finished.arms if arm.status in ("failed", "partial")]
    if failed:
        say(f"condense: {', '.join(failed)} failed; run again with --resume to try only what is missing")
        raise typer.Exit(INTERNAL)
