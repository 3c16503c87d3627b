"""What the page of a trial says beside its table and charts: each arm's definition, provenance, glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from condense.metrics import Metric
from condense.records.trial import ArmResult, Trial
from condense.report.diagnosis.page import written
from condense.report.glossary import GLOSSARY, term
from condense.report.text import DASH, corpus_line, in_words
from condense.report.treatment.facts import TREATMENT_GLOSSARY
from condense.report.treatment.terminal import gigabytes
from condense.report.trial.rows import added, count, times
from condense.report.trial.words import settings


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


def arm_facts(trial: Trial) -> list[ArmFacts]:
    """Every arm in the order of the plan."""
    return [_facts(trial, arm) for arm in trial.arms]


def _facts(trial: Trial, arm: ArmResult) -> ArmFacts:
    cost, seeds = arm.cost, ", ".join(str(run.seed) for run in arm.runs)
    step = [] if cost.seconds is None else [f"{cost.seconds:.3g} s ({times(cost.time_ratio.value, 3)})"]
    step += [] if cost.peak_memory_bytes is None else [
        f"{gigabytes(cost.peak_memory_bytes)} ({times(cost.memory_ratio)})"
    ]  # fmt: skip
    found = [
        *settings(arm), ("seeds trained", seeds or "none"),
        ("parameters", f"{count(arm.parameters)}, added {added(arm.parameters_added)}"),
        ("a step takes", ", ".join(step) or cost.reason or DASH),
    ]  # fmt: skip
    reason = arm.reason or ""
    if arm.status != "done" and not reason:
        reason = "no reason was recorded"
    return ArmFacts(arm.spec.name, arm.title, arm.status, reason, arm.definition, arm.source, arm.details, tuple(found))


def name_of(trial: Trial) -> str:
    """The model's id; of a long path only its last part."""
    name = trial.model.id
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if last and (len(name) > 48 or name[:1] in "/.~") else name


def subject(trial: Trial) -> str:
    """What was trained and on what it was measured, in one line."""
    model = trial.model
    return (
        f"{model.architecture}, {count(model.parameters)} parameters, {model.blocks} blocks of width "
        f"{model.hidden_size}; measured on {corpus_line(trial.validation)}"
    )


# --- provenance ----------------------------------------------------------------------------------------


def provenance(trial: Trial) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to repeat the trial: groups of (name, value)."""
    run = {"command": trial.command, "created": trial.created, "condense": trial.condense, "schema": trial.schema,
           "output": trial.output,
           "training of all runs": in_words(trial.timing.get("training_seconds"))}  # fmt: skip
    plan = {"arms": [arm.spec.name for arm in trial.arms], "seeds": trial.plan.seeds,
            "keep models": trial.plan.keep_models}  # fmt: skip
    schedule = asdict(trial.schedule) | {"disk_bytes": gigabytes(trial.schedule.disk_bytes),
                                         "memory_bytes": gigabytes(trial.schedule.memory_bytes),
                                         "seconds": in_words(trial.schedule.seconds)}  # fmt: skip
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run), ("Trial", plan), ("Model before", asdict(trial.model)), ("Training", _training(trial)),
        ("Schedule of every arm", schedule),
    ]  # fmt: skip
    for title, corpus in (("Validation text", trial.validation), ("Probe text", trial.probe)):
        values = asdict(corpus)
        groups.append((title, {key: values[key] for key in values if key != "windows"}))
    groups += [("Protocol", trial.protocol), ("Environment", trial.environment), ("Timing", trial.timing)]
    return [
        (name, [(k.replace("_", " "), written(v)) for k, v in values.items() if v not in (None, (), [])])
        for name, values in groups
        if values
    ]


def _training(trial: Trial) -> dict[str, Any]:
    """The settings of training that all arms share; loss, layers and coefficient are each arm's own."""
    own = ("coefficient", "loss", "layers", "control", "paper_sites")
    return {key: value for key, value in asdict(trial.plan.training).items() if key not in own}


# --- glossary ------------------------------------------------------------------------------------------

_TERMS = (
    term("arm", "arm",
         "One remedy with its settings. All arms start from the same weights and get the same rows in the same order, "
         "the same number of steps and the same seeds.", "convention of condense"),
    term("control", "control arm",
         "Cross-entropy alone. Between before and control lies training as such; only what differs from the control "
         "can be a remedy’s doing.", "convention of condense"),
    term("difference", "Δ, difference to the control",
         "Arm minus control, paired by seed and text, mean over seeds. The 95 % interval is a bootstrap over texts; it "
         "does not cover training seeds.", "Efron 1979"),
    term("seed-spread", "spread over seeds, SD",
         "Standard deviation of the difference over the training seeds: what another seed would change. Few seeds "
         "tell it badly.", "convention of condense"),
    term("place", "place, tie",
         "1 + the number of arms that are clearly better: the interval of the difference of the two excludes 0 and its "
         "sign is the same under every seed. What is not clear is a tie. Below 3 seeds nothing is ranked.",
         "convention of condense"),
    term("dose-response", "dose and response, recommended coefficient",
         "Arms that differ in their coefficient alone. Recommended is the one with the largest measurable effect whose "
         "quality is held, or none.", "convention of condense"),
    term("cost-of-step", "time and memory per step",
         "Time: training steps of all arms in turn, so that background load does not decide. Memory: the peak of a "
         "process per arm.", "convention of condense"),
)  # fmt: skip
_SHARED = ("measurable", "tolerance", "deep", "dispersion-loss", "what-opened")


def glossary() -> list[tuple[str, list[Metric]]]:
    """The terms of a trial, then those of every page."""
    shared = [metric for metric in TREATMENT_GLOSSARY[0][1] if metric.key in _SHARED]
    return [("Trial", [*_TERMS, *shared]), *GLOSSARY]
