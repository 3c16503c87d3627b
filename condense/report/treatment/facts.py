"""What the page of a treatment says beside its charts: cards, tables of the arms, cost, provenance, glossary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from condense.records.base import Estimate, Finding
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Effect, Treatment
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.diagnosis.page import written
from condense.report.glossary import GLOSSARY, term
from condense.report.parts import Mark, Strip
from condense.report.tasks import TaskRow, taken_from, task_rows
from condense.report.text import corpus_line, difference, in_words, number, typeset
from condense.report.treatment.cards import excludes_zero, measured, signed_value
from condense.report.treatment.markdown import QUALITY_ROWS, ROWS, quality
from condense.report.treatment.terminal import gigabytes

OUTCOMES = {
    "dispersed": "Dispersed", "dispersed-at-a-cost": "Dispersed at a cost",
    "too-small-to-count": "Too small to count", "inconclusive": "Inconclusive", "no-control": "No control",
    "condensed-further": "Condensed further",
}  # fmt: skip
ICONS = {"dispersed": "ok", "dispersed-at-a-cost": "condensed", "too-small-to-count": "info",
         "inconclusive": "none", "no-control": "none", "condensed-further": "severe"}  # fmt: skip
LEVELS = {"dispersed": "ok", "dispersed-at-a-cost": "condensed", "condensed-further": "severe"}


@dataclass(frozen=True)
class Row:
    """A row of the table of the arms; `clear` if the interval of the difference excludes 0."""

    title: str
    cells: tuple[str, ...]
    change: str
    interval: str
    clear: bool


def name_of(treatment: Treatment) -> str:
    """The model's id; of a long path only its last part."""
    name = treatment.model
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if last and (len(name) > 48 or name[:1] in "/.~") else name


def treated_with(treatment: Treatment) -> str:
    """What was done to the model, in one line."""
    plan, schedule = treatment.plan, treatment.schedule
    layers = {"all": "all layers", "late": "the deepest half of the layers", "early": "the first half of the layers",
              "last": "the last layer"}.get(plan.layers, f"layers {plan.layers}")  # fmt: skip
    where = "hidden states 1 to L, the last one normed" if plan.paper_sites else layers
    tuned = f", LoRA of rank {plan.lora_r}" if plan.use_peft else ""
    steps = f"{schedule.steps} step{'' if schedule.steps == 1 else 's'} of {written(schedule.tokens_per_step)} tokens"
    return f"treated with the {plan.loss} loss at coefficient {plan.coefficient:g} on {where}{tuned}; {steps} per arm"


def shown(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with real minus signs in their numbers; commands stay as they are."""
    return [replace(f, title=typeset(f.title), seen=typeset(f.seen), why=typeset(f.why)) for f in findings]


# --- the arms beside each other ------------------------------------------------------------------------


def arm_tables(treatment: Treatment) -> list[dict[str, Any]]:
    """Before, control, treated and their difference on validation and on probe."""
    made = []
    for title, effect, probe in (("validation", treatment.effect, False), ("probe", treatment.probe_effect, True)):
        runs = [arm.probe if probe else arm.validation for arm in treatment.arms.values()]
        note = corpus_line(runs[-1].corpus)
        note += "" if effect.paired else "; not the same windows in both arms, so not paired"
        made.append({"title": title, "note": note, "against": effect.against, "rows": _rows(runs, effect)})
    return made


def _rows(runs: Sequence[Diagnosis], effect: Effect) -> list[Row]:
    rows = [
        _row(title, [run.deep.get(key, NOTHING) for run in runs], effect.deep.get(key, NOTHING), digits)
        for key, title, digits in ROWS
    ]
    return rows + [
        _row(title, [quality(run, key) for run in runs], effect.quality.get(key, NOTHING), digits)
        for key, title, digits in QUALITY_ROWS
    ]


def _row(title: str, of: Sequence[Estimate], change: Estimate, digits: int) -> Row:
    cells = tuple(typeset(number(estimate.value, digits)) for estimate in of)
    text = signed_value(change.value, digits) or "–"
    known = change.low is not None and change.high is not None
    bounds = f"{change.low:+.{digits}f}\u00a0to {change.high:+.{digits}f}" if known else ""
    return Row(title, cells, text, typeset(bounds), change.value is not None and excludes_zero(change))


def strips(treatment: Treatment) -> list[Strip]:
    """Bits per byte (or the loss) of every arm with its interval, on validation and on probe."""
    key, unit, _ = measured(treatment)
    made = []
    for title, probe in (("validation text", False), ("probe text", True)):
        effect = treatment.probe_effect if probe else treatment.effect
        runs = {name: quality(arm.probe if probe else arm.validation, key) for name, arm in treatment.arms.items()}
        known = [v for of in runs.values() for v in (of.value, of.low, of.high) if v is not None]
        if not known:
            continue
        low, high = padded(known)
        rows = tuple(_mark(name, of, low, high) for name, of in runs.items())
        change = f"treated − {effect.against}: {difference(effect.quality.get(key, NOTHING), 4)}"
        made.append(Strip(title, unit, (number(low, 2), number(high, 2)), rows, change))
    return made


def _mark(arm: str, of: Estimate, low: float, high: float) -> Mark:
    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    interval = "" if of.low is None else f"{number(of.low, 3)} to {number(of.high, 3)}"
    return Mark(arm, number(of.value, 4), interval, place(of.value), place(of.low), place(of.high))


# --- downstream tasks ----------------------------------------------------------------------------------


def tasks_table(treatment: Treatment) -> dict[str, Any]:
    """What was scored and the rows; no rows if no task was asked for."""
    arms = {name: arm.tasks for name, arm in treatment.arms.items()}
    rows = [_typeset_row(row) for row in task_rows(arms, treatment.task_effects)]
    return {"source": taken_from(arms, treatment.plan.eval_limit), "rows": rows}


def _typeset_row(row: TaskRow) -> TaskRow:
    cells = tuple((typeset(value), error) for value, error in row.cells)
    interval = typeset(row.interval).replace(" to ", "\u00a0to ")
    return replace(row, cells=cells, change=typeset(row.change), interval=interval)


# --- cost ----------------------------------------------------------------------------------------------


def overhead(treatment: Treatment) -> dict[str, Any]:
    """What the loss costs in time and memory: ratios, their words, the numbers behind them."""
    cost = treatment.overhead
    seconds, memory = cost.seconds_per_step, cost.peak_memory_bytes
    rows = []
    if seconds:
        rows.append(("seconds per pass", [(name, f"{value:.3g}") for name, value in seconds.items()]))
    if memory:
        rows.append(("peak memory", [(name, gigabytes(value)) for name, value in memory.items()]))
    return {
        "rounds": cost.rounds, "reason": cost.reason, "rows": rows,
        "ratios": [(_times(cost.time_ratio), "time", _more(cost.time_ratio, "takes", "longer", "less long")),
                   (_times(cost.memory_ratio), "peak memory", _more(cost.memory_ratio, "needs", "more", "less"))],
    }  # fmt: skip


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"× {ratio:.2f}"


def _more(ratio: float | None, verb: str, more: str, less: str) -> str:
    if ratio is None:
        return "not measured"
    change = 100 * (ratio - 1)
    if abs(change) < 1:
        return f"with the loss a pass {verb} as much, within 1 %"
    return f"with the loss a pass {verb} {abs(change):.0f} % {more if change > 0 else less}"


# --- provenance ----------------------------------------------------------------------------------------


def provenance(treatment: Treatment) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to repeat the treatment: groups of (name, value)."""
    before = treatment.arms["before"].validation
    run = {"command": treatment.command, "created": treatment.created, "condense": treatment.condense,
           "schema": treatment.schema, "output": treatment.output,
           "duration": in_words(treatment.timing.get("total_seconds"))}  # fmt: skip
    schedule = asdict(treatment.schedule) | {"disk_bytes": gigabytes(treatment.schedule.disk_bytes),
                                             "memory_bytes": gigabytes(treatment.schedule.memory_bytes),
                                             "seconds": in_words(treatment.schedule.seconds)}  # fmt: skip
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run),
        ("Model before", asdict(before.model)),
        ("Plan", asdict(treatment.plan)),
        ("Schedule", schedule),
    ]
    for name, arm in treatment.arms.items():
        values: dict[str, Any] = {
            "weights_sha256": arm.validation.model.weights_sha256,
            "trained_tokens": arm.trained_tokens or None,
        }
        values |= {"training": in_words(arm.seconds) if arm.seconds else None, "penalty_to_ce": arm.penalty_to_ce}
        groups.append((f"Arm: {name}", values))
    treated = treatment.arms["treated"]
    for title, diagnosis in (("Validation text", treated.validation), ("Probe text", treated.probe)):
        corpus = asdict(diagnosis.corpus)
        groups.append((title, {key: corpus[key] for key in corpus if key != "windows"}))
    groups.append(("Protocol", treated.validation.protocol))
    groups += _environments(treatment)
    return [
        (name, [(k.replace("_", " "), written(v)) for k, v in values.items() if v not in (None, (), [])])
        for name, values in groups
    ]


def _environments(treatment: Treatment) -> list[tuple[str, Mapping[str, Any]]]:
    """The environment of the arms: once if it was the same, else for each."""
    found = {name: arm.validation.environment for name, arm in treatment.arms.items()}
    first = next(iter(found.values()))
    if all(environment == first for environment in found.values()):
        return [("Environment of all arms", first)]
    return [(f"Environment: {name}", environment) for name, environment in found.items()]


# --- glossary ------------------------------------------------------------------------------------------

_TERMS = (
    term("control", "control arm",
         "The same model trained on the same rows in the same order, with the same seed and number of steps, by "
         "cross-entropy alone. Only what differs from it can be the loss.", "convention of condense"),
    term("paired-difference", "paired difference",
         "Treated minus control on the very same windows, text by text; the interval is a bootstrap over texts. What "
         "all arms share with a text cancels, so it is narrower than the arms’ own intervals. It does not cover "
         "training seeds.", "Efron 1979"),
    term("measurable", "measurable",
         "The 95 % interval of the difference in deep mean cosine excludes 0 and the difference is at least "
         "--min-effect. Within ± that, there is no measurable effect; anything else is inconclusive.",
         "convention of condense"),
    term("tolerance", "tolerance",
         "Quality counts as held if even the upper bound of the change in bits per byte is at most this share of the "
         "control’s value (--quality-tolerance).", "convention of condense"),
    term("deep", "deep",
         "Read over the deepest half of the blocks, as a median; see “deepest half” below.", "convention of condense"),
    term("dispersion-loss", "dispersion loss, penalty, coefficient",
         "A term added to cross-entropy that falls as the tokens of a text spread. The penalty is coefficient × the "
         "loss, a mean over the treated layers.", "Liu et al. 2026, arXiv:2602.00217"),
    term("what-opened", "what opened",
         "A loss on cosines is met most cheaply by rescaling the few dimensions that dominate them. If the difference "
         "stays without each text’s top three dimensions, the cone itself opened.",
         "Timkey & van Schijndel 2021, arXiv:2109.04404"),
)  # fmt: skip
TREATMENT_GLOSSARY = [("Treatment", list(_TERMS)), *GLOSSARY]
