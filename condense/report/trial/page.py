"""A trial as one HTML file: the table of the arms first, then curves, each arm's definition, seeds, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from condense.files import size_in_words
from condense.records.base import PlotlyJs
from condense.records.trial import ArmResult, Trial
from condense.report.glossary import TRIAL, glossary
from condense.report.html import render
from condense.report.parts import Groups, Head, schedule_facts, without_windows
from condense.report.parts import provenance as groups_of
from condense.report.tables import title_of
from condense.report.text import (
    DASH,
    corpus_line,
    in_words,
    model_line,
    model_name,
    parameter_count,
    sentence,
    times,
)
from condense.report.trial import figures, learning, tables
from condense.training.remedies import schedule_of, while_on


def trial_page(trial: Trial, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a trial as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    trade, depth, training = figures.tradeoff(trial), figures.depth_figures(trial), figures.training_figures(trial)
    doses = [(dose, figures.dose_figures(trial, dose, rank)) for rank, dose in enumerate(trial.doses)]
    effects, tasks = figures.strips(trial), tables.task_tables(trial)
    looks = figures.looks(trial)
    learned = learning.learning_figures(trial, looks)
    sections = {
        "verdict": "The arms",
        "effects": "Effects" if effects else "",
        "ranks": "Ranks",
        "dose": "Effect and cost" if trade or doses else "",
        "learning": "Learning" if learned or trial.other else "",
        "findings": "Findings" if trial.findings else "",
        "depth": "Over depth" if depth else "",
        "training": "Training",
        "tasks": "Tasks" if tasks else "",
        "definitions": "Definitions",
        "seeds": "Every seed",
    }
    head = Head(
        kind="trial",
        about="trial of remedies",
        title=model_name(trial.model.id),
        name=trial.model.id,
        lines=(
            sentence(tables.budget(trial)),
            f"{model_line(trial.model)}; measured on {corpus_line(trial.validation)}",
        ),
        created=trial.created,
        version=trial.condense,
        sections=tuple((key, title) for key, title in sections.items() if title),
    )
    return render(
        head,
        [*([trade] if trade else []), *(figure for _, drawn in doses for figure in drawn), *learned, *depth, *training],
        plotlyjs,
        command=trial.command,
        provenance=provenance(trial),
        glossary=glossary("Trial", TRIAL),
        headline=tables.headline(trial),
        findings=trial.findings,
        rows=tables.rows(trial),
        heads=list(map(title_of, tables.keys(trial))),
        looks={"before": figures.BEFORE} | looks,
        seeds=trial.plan.seeds,
        caveats=tables.caveats(trial),
        unranked=trial.unranked,
        rankings=tables.rankings(trial),
        placed=tables.placed,
        strips=effects,
        pairs=tables.pair_tables(trial),
        power=tables.powers_of(trial),
        tradeoff=trade,
        doses=[(dose, tables.recommendation(trial, dose), drawn) for dose, drawn in doses],
        learned=learned,
        other=learning.other_table(trial),
        tuning=learning.tuning_table(trial),
        learning_table=learning.learning_table(trial),
        learning_lines=[*learning.learning_lines(trial), learning.clock_words(trial)],
        depth=depth,
        training=training,
        arms=[arm_facts(trial, arm) for arm in trial.arms],
        tasks=tasks,
        seed_table=tables.seed_table(trial),
        sites=tables.site_table(trial),
    )


@dataclass(frozen=True)
class ArmFacts:
    """One arm as its section shows it: what it is, by whom, its settings and what a step of it takes."""

    name: str
    title: str
    status: str
    reason: str
    definition: str
    source: str
    details: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]


def arm_facts(trial: Trial, arm: ArmResult) -> ArmFacts:
    """An arm as its section shows it."""
    cost, seeds = arm.cost, ", ".join(str(run.seed) for run in arm.runs)
    step = [] if cost.seconds is None else [f"{cost.seconds:.3g} s ({times(cost.time_ratio.value, 3)})"]
    covers = while_on(schedule_of(arm.spec, trial.plan.training.coefficient_schedule))
    if cost.peak_memory_bytes is not None:
        step.append(f"{size_in_words(cost.peak_memory_bytes)} ({times(cost.memory_ratio)})")
    facts = (
        *tables.settings(trial, arm),
        ("seeds trained", seeds or "none"),
        ("parameters", f"{parameter_count(arm.parameters)}, added {tables.added(arm.parameters_added)}"),
        ("a step takes", ", ".join(step) + covers if step else cost.reason or DASH),
    )
    reason = arm.reason or ("" if arm.status == "done" else "no reason was recorded")
    return ArmFacts(arm.spec.name, arm.title, arm.status, reason, arm.definition, arm.source, arm.details, facts)


_TRIAL = (
    *("seeds", "keep_models", "tune", "tune_text", "curve_points"),
    *("other_text", "then_text", "then_steps"),
)


def provenance(trial: Trial) -> Groups:
    """Everything that is needed to repeat the trial; loss, layers and coefficient are each arm's own."""
    run = {key: getattr(trial, key) for key in ("command", "created", "condense", "schema", "output")}
    own = ("coefficient", "loss", "layers", "control", "paper_sites")
    training = {key: value for key, value in asdict(trial.plan.training).items() if key not in own}
    names = [arm.spec.name for arm in trial.arms]
    groups: dict[str, Mapping[str, Any]] = {
        "Run": run | {"training of all runs": in_words(trial.timing.get("training_seconds"))},
        "Trial": {"arms": names} | {key: getattr(trial.plan, key) for key in _TRIAL},
        "Model before": asdict(trial.model),
        "Training": training,
        "Schedule of every arm": schedule_facts(trial.schedule),
        "Validation text": without_windows(asdict(trial.validation)),
        "Probe text": without_windows(asdict(trial.probe)),
        "Protocol": trial.protocol,
        "Environment": trial.environment,
        "Timing": trial.timing,
    }
    return groups_of(groups)
