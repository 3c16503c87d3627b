"""`condense treat MODEL -o DIR`: before, control, treated, and one report of what the loss did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from condense.cli.console import MANNER, command_line, console, quieten_libraries, say, say_first
from condense.cli.groups import Without, command
from condense.cli.measure import ExpectWorld, Model, go_offline, ranks_of_run, training_text
from condense.cli.progress import run_progress
from condense.errors import UnavailableError
from condense.records.options import OUTPUT, Flag, ModelOptions, RunOptions, TextOptions
from condense.records.plans import Plan

if TYPE_CHECKING:
    from rich.console import Console

    from condense.records.plans import TrialPlan
    from condense.records.treatment import Overhead, Power, Schedule, Treatment

    ShowPlan = Callable[[TrialPlan, Schedule, Overhead, Console], None]

Result = TypeVar("Result")
Output = Flag("Becomes the treated checkpoint.", OUTPUT, ("--output", "-o"), metavar="DIR")
PushToHub = Flag("Upload the result to this repository.", OUTPUT)
Trained = Without("dtype", "device_map", "seed")
"""Of the options of a model those that training sets itself: float32, one device, and the first seed's weights."""


@command
def treat(
    model: Model,
    output: Annotated[Path, Output],
    *,
    push_to_hub: Annotated[str | None, PushToHub] = None,
    expect_world: Annotated[int | None, ExpectWorld] = None,
    corpus: TextOptions,
    plan: Plan,
    options: Annotated[ModelOptions, Trained],
    run: RunOptions,
) -> None:
    """Fine-tune with dispersion loss, beside a control arm, and report before / control / treated.

    condense's own runs: fine-tuning with it gained no quality. From random
    weights a longer warm-up gave most of what it seemed to give early, a
    placebo as much of the rest, and nothing was left after 1,600 steps: search
    rate and warm-up first (`condense trial --tune`; docs/study/results.md).
    """
    ranks = ranks_of_run(expect_world, "train")
    first = ranks is None or ranks.is_first
    go_offline(options)
    text = training_text(corpus) if first else None
    quieten_libraries()
    treatment = _train(model, text, output, plan, corpus.text_column, options, run)
    if treatment is None or not first:
        return
    from condense.report.treatment.text import show_treatment

    show_treatment(treatment, console())
    say(f"wrote {output} (the treated checkpoint, with README.md, condense.json, report.html, report.md)")
    if push_to_hub:
        from condense.models.hub import push

        push(output, push_to_hub, options.token)
        say(f"uploaded to {push_to_hub}")


def _train(
    model: str, text: Any, output: Path, plan: Plan, column: str, options: ModelOptions, run: RunOptions
) -> Treatment | None:
    """Run the treatment with bars on stderr; None for a dry run."""
    from condense.report.treatment.text import show_plan
    from condense.treatment.run import treat
    from condense.trials.verdict import power_before

    def show(plan: TrialPlan, schedule: Schedule, overhead: Overhead, screen: Console) -> None:
        power = power_before(plan.seeds, 1, _spread_before(output))
        show_plan(plan.training, schedule, overhead, screen, power)

    start = partial(treat, model, text, output, plan, text_column=column, options=options)
    return run_training(start, show, run, f"{output}.work")


def run_training(start: Callable[..., Result], show: ShowPlan, run: RunOptions, kept_in: str) -> Result:
    """Start `treat` or `trial` with bars on stderr; a signal ends the command and names where the work is kept.

    show: prints the plan once it is known, on the given console; not with --quiet, but for a dry run.
    """
    from condense.training.loop import InterruptedRunError

    def show_plan(plan: TrialPlan, schedule: Schedule, overhead: Overhead, screen: Console) -> None:
        if not MANNER.quiet or run.dry_run:
            show(plan, schedule, overhead, screen)

    try:
        with run_progress(show_plan) as watch:
            repeated = {"resume": run.resume, "force": run.force, "dry_run": run.dry_run}
            return start(**repeated, command=command_line(), watch=watch)
    except InterruptedRunError as stopped:
        say_first(f"interrupted; what was done is in {kept_in}: run again with --resume to go on")
        raise typer.Exit(stopped.code) from None


def _spread_before(output: Path) -> list[tuple[str, Mapping[str, Power]]]:
    """How much the seeds vary in the treatment that the folder holds already; nothing if it cannot be read."""
    from condense.records.treatment import Treatment

    try:
        return [("", Treatment.from_json(output / "condense.json").effect.power)]
    except UnavailableError:
        return []
