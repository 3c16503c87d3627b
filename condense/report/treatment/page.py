"""A treatment as one HTML file: verdict first, the arms beside each other, effect, training, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from condense.files import size_in_words
from condense.records.base import Estimate, PlotlyJs
from condense.records.treatment import Overhead, Treatment, VerdictId
from condense.report.glossary import TREATMENT, glossary
from condense.report.html import render
from condense.report.parts import (
    Answer,
    Bars,
    Card,
    Groups,
    Head,
    Line,
    Strip,
    bar_width,
    effect_card,
    quality_card,
    schedule_facts,
    strip,
    without_windows,
)
from condense.report.parts import provenance as groups_of
from condense.report.tables import (
    CAUTION,
    digits_of,
)
from condense.report.text import (
    LAYERS,
    LEVEL_WORDS,
    NOTHING,
    WITHOUT_TOP,
    difference,
    in_words,
    model_name,
    number,
    plural,
    quality_of,
    subject,
    thousands,
    times,
    verdict_words,
)
from condense.report.treatment import text as tables
from condense.report.treatment.figures import cloud_panels, depth_figures, look, training_figures
from condense.report.treatment.search import search_figures, search_lead, search_table
from condense.training.remedies import dose_in_words, while_on

LEVELS = {"dispersed-at-a-cost": "condensed", "condensed-further": "severe"}


def treatment_page(treatment: Treatment, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a treatment as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    depth, training, clouds = depth_figures(treatment), training_figures(treatment), cloud_panels(treatment)
    quality, tasks, seeds = strips(treatment), tables.tasks_of(treatment), tables.seed_table(treatment)
    searched = search_figures(treatment.search) if treatment.search else []
    sections = {
        "verdict": "Verdict",
        "arms": "The arms",
        "findings": "Findings",
        "depth": "Over depth" if depth else "",
        "quality": "Quality" if quality else "",
        "tasks": "Tasks" if tasks.rows else "",
        "search": "The coefficient" if treatment.search else "",
        "seeds": "Every seed" if seeds.rows else "",
        "training": "Training",
        "cloud": "Token cloud" if clouds else "",
        "cost": "Cost",
        "layers": "Every layer",
    }
    return render(
        head(treatment, sections),
        [*depth, *searched, *training, *clouds],
        plotlyjs,
        command=treatment.command,
        provenance=provenance(treatment),
        glossary=glossary("Treatment", TREATMENT),
        answer=answer(treatment),
        controlled=treatment.effect.against == "control",
        findings=treatment.verdict.findings,
        tables=[tables.arms_table(treatment), tables.arms_table(treatment, probe=True)],
        arm_levels=[(name, LEVEL_WORDS[arm.validation.verdict.level]) for name, arm in treatment.arms.items()],
        depth=depth,
        strips=quality,
        tasks=tasks,
        scored=tables.scored(treatment),
        caution=CAUTION,
        searched=searched,
        search=search_table(treatment.search) if treatment.search else None,
        search_lead=search_lead(treatment.search) if treatment.search else "",
        training=training,
        clouds=clouds,
        overhead=overhead(treatment),
        seeds=seeds,
        power=tables.powers_of(treatment),
        layers=tables.layer_table(treatment),
        windows=treatment.arms["treated"].validation.corpus.windows,
    )


def head(treatment: Treatment, sections: Mapping[str, str]) -> Head:
    """The top of the page; sections without a title are not there."""
    return Head(
        kind="treatment",
        about="treatment with a dispersion loss",
        title=model_name(treatment.model),
        name=treatment.model,
        lines=(f"Treated with {treated_with(treatment)}.", subject(treatment.arms["before"].validation)),
        created=treatment.created,
        version=treatment.condense,
        sections=tuple((key, title) for key, title in sections.items() if title),
    )


def treated_with(treatment: Treatment) -> str:
    """What was done to the model, in one line."""
    plan, schedule = treatment.plan, treatment.schedule
    layers = LAYERS.get(plan.layers, f"layers {plan.layers}")
    where = "hidden states 1 to L, the last one normed" if plan.paper_sites else layers
    tuned = f", {plan.tuned}" if plan.use_peft else ""
    steps = f"{plural(schedule.steps, 'step')} of {thousands(schedule.tokens_per_step)} tokens"
    dose = dose_in_words(plan.first_coefficient, plan.coefficient_schedule)
    return f"the {plan.loss} loss on {where} at {dose}{tuned}; {steps} per arm"


# --- the answer ----------------------------------------------------------------------------------------


def answer(treatment: Treatment) -> Answer:
    """The verdict with its three cards: effect, quality, and what opened."""
    verdict, against = treatment.verdict, treatment.effect.against
    covers = f"The intervals cover {verdict.covers or 'documents'}"
    good = verdict.id == "dispersed" and all(finding.severity == "good" for finding in verdict.findings[:1])
    level = "ok" if good else LEVELS.get(verdict.id, "none")
    covers += "" if against == "control" else "; without a control arm the loss cannot be separated from more training"
    return Answer(
        level=level,
        icon="info" if level == "none" and verdict.id in ("dispersed", "too-small-to-count") else level,
        word=verdict_words(verdict.id),
        finding=verdict.findings[0] if verdict.findings else None,
        cards=(_effect_card(treatment), _quality_card(treatment), _opened_card(treatment)),
        caveat=f"{covers}. Geometry is not quality: a spread model is not for that reason a better one.",
        ladder=tuple(verdict_words(name) for name in get_args(VerdictId)),
    )


def _effect_card(treatment: Treatment) -> Card:
    change, word = treatment.effect.deep.get("mean_cosine", NOTHING), treatment.effect.words.get("mean_cosine")
    against = "its control" if treatment.effect.against == "control" else treatment.effect.against
    also = _probe(treatment.probe_effect.deep.get("mean_cosine", NOTHING), 3)
    question = f"Does the treated model differ from {against}?"
    return effect_card("effect", question, change, word, 3, also=also, seeds=seed_values(treatment, "mean_cosine"))


def _quality_card(treatment: Treatment) -> Card:
    effect, key = treatment.effect, treatment.effect.quality_key
    base = tables.arm_value(treatment, effect.against, key) if effect.against in treatment.arms else None
    also = _probe(treatment.probe_effect.quality.get(key, NOTHING), digits_of(key))
    question = "What did it cost in language modelling?"
    seeds = seed_values(treatment, key)
    return quality_card(question, effect, base, treatment.verdict.quality, also=also, seeds=seeds)


def seed_values(treatment: Treatment, key: str) -> dict[int, float]:
    """The difference under each training seed; nothing where there was one."""
    found = {s.seed: {**s.effect.deep, **s.effect.quality}.get(key, NOTHING).value for s in treatment.seeds}
    return {seed: value for seed, value in found.items() if value is not None} if len(found) > 1 else {}


def _opened_card(treatment: Treatment) -> Card:
    groups = []
    for key, title in (("mean_cosine", "mean cosine"), (WITHOUT_TOP, "without the top 3 dimensions")):
        rows = []
        for name in treatment.arms:
            value = tables.arm_value(treatment, name, key)
            rows.append((name, number(value, 2), bar_width(value), look(name).ink))
        change = difference(treatment.effect.deep.get(key, NOTHING))
        groups.append(Bars(title, tuple(rows), f"treated − {treatment.effect.against}: {change}"))
    question = "The cone itself, or only three dimensions?"
    return Card("what opened", question, treatment.verdict.opened, bars=tuple(groups))


def _probe(estimate: Estimate, digits: int) -> str:
    """The same on the probe text, which nobody trained on."""
    return "" if estimate.value is None else f"on the probe text: {difference(estimate, digits)}"


# --- the arms beside each other ------------------------------------------------------------------------


def strips(treatment: Treatment) -> list[Strip]:
    """Bits per byte (or the loss) of every arm with its interval, on validation and on probe."""
    made, seeds = [], tables.seed_words(treatment, means=False)
    seeds = f" ({seeds})" if seeds else ""
    for probe in (False, True):
        effect = treatment.probe_effect if probe else treatment.effect
        key = treatment.effect.quality_key
        lines = [
            Line(look(name)._replace(words=name), quality_of(run.quality, key))
            for name, run in tables.runs_of(treatment, probe=probe).items()
        ]
        change = difference(effect.quality.get(key, NOTHING), digits_of(key))
        made.append(
            strip(
                "probe text" if probe else "validation text",
                "bits per byte" if key == "bits_per_byte" else "nats per token",
                lines,
                digits_of(key),
                change=f"treated − {effect.against}: {change}{seeds}",
            )
        )
    return [one for one in made if one is not None]


def overhead(treatment: Treatment) -> dict[str, Any]:
    """What the loss costs in time and memory: ratios, their words, the numbers behind them."""
    cost = treatment.overhead
    seconds = {name: f"{value:.3g}" for name, value in cost.seconds_per_step.items()}
    memory = {name: size_in_words(value) for name, value in cost.peak_memory_bytes.items()}
    rows = [(words, values) for words, values in (("seconds per pass", seconds), ("peak memory", memory)) if values]
    return {
        "rounds": cost.rounds,
        "reason": cost.reason,
        "rows": rows,
        "ratios": [
            (times(cost.time_ratio), "time", _time_words(cost) + while_on(treatment.plan.coefficient_schedule)),
            (times(cost.memory_ratio), "peak memory", _more(cost.memory_ratio, "needs", "more", "less")),
        ],
    }


def _time_words(cost: Overhead) -> str:
    """How much longer a pass takes; as long where the rounds themselves range over 1."""
    if len(cost.time_range) == 2 and cost.time_range[0] <= 1 <= cost.time_range[1]:
        return f"with the loss a pass takes as much, within its noise{cost.time_noise}"
    return _more(cost.time_ratio, "takes", "longer", "less long") + cost.time_noise


def _more(ratio: float | None, verb: str, more: str, less: str) -> str:
    if ratio is None:
        return "not measured"
    change = 100 * (ratio - 1)
    if abs(change) < 1:
        return f"with the loss a pass {verb} as much, within 1 %"
    return f"with the loss a pass {verb} {abs(change):.0f} % {more if change > 0 else less}"


# --- provenance ----------------------------------------------------------------------------------------


def provenance(treatment: Treatment) -> Groups:
    """Everything that is needed to repeat the treatment."""
    run = {key: getattr(treatment, key) for key in ("command", "created", "condense", "schema", "output")}
    treated = treatment.arms["treated"]
    groups: dict[str, Mapping[str, Any]] = {
        "Run": run | {"duration": in_words(treatment.timing.get("total_seconds"))},
        "Model before": asdict(treatment.arms["before"].validation.model),
        "Plan": asdict(treatment.plan),
        "Schedule": schedule_facts(treatment.schedule),
    }
    for name, arm in treatment.arms.items():
        groups[f"Arm: {name}"] = {
            "weights_sha256": arm.validation.model.weights_sha256,
            "trained_tokens": arm.trained_tokens or None,
            "training": in_words(arm.seconds) if arm.seconds else None,
            "penalty_to_ce": arm.penalty_to_ce,
        }
    groups["Validation text"] = without_windows(asdict(treated.validation.corpus))
    groups["Probe text"] = without_windows(asdict(treated.probe.corpus))
    groups["Protocol"] = treated.validation.protocol
    environments = {name: arm.validation.environment for name, arm in treatment.arms.items()}
    if all(environment == treated.validation.environment for environment in environments.values()):
        environments = {"all arms": treated.validation.environment}
    return groups_of(groups | {f"Environment: {name}": values for name, values in environments.items()})
