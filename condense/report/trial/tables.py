"""The tables of a trial as cells, one home for all surfaces: an arm a row, every seed, every site, ranks, pairs, tasks.

Numbers have plain minus signs here; a page that can do better typesets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from condense.files import size_in_words
from condense.records.base import Estimate
from condense.records.plans import RANK_SEEDS
from condense.records.trial import (
    QUALITY_KEYS,
    ArmEffect,
    ArmResult,
    ArmRun,
    DoseResponse,
    SitePoint,
    Trial,
    depth,
    mean,
    quality_key,
    reading,
    spread,
    what_fell,
)
from condense.report.depth import site_label
from condense.report.tables import (
    EMPTY,
    Cell,
    Column,
    Table,
    change_cell,
    digits_of,
    plain_cell,
    power_table,
    score_cell,
    shown,
    sort_key,
    task_change,
    title_of,
    value_cell,
)
from condense.report.text import (
    DASH,
    LAYERS,
    WITHOUT_TOP,
    difference,
    interval,
    number,
    parameter_count,
    plural,
    times,
    verdict_words,
)
from condense.training.remedies import dose_in_words, schedule_of, while_on

MISSING = Estimate(None, reason="not measured")
_OPENED = {
    "both": "cone opened and three dimensions rescaled",
    "cone opened": "the cone opened",
    "not clear": "what opened is not clear",
}

# --- the arms beside each other ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One arm (or the model before) in the table; `reason` says why an arm has no numbers, or not all."""

    name: str
    kind: Literal["before", "control", "arm"]
    status: str = "done"
    added: str = ""
    time: str = ""
    time_note: str = ""
    memory: str = ""
    measures: tuple[Cell, ...] = ()
    verdict: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


def keys(trial: Trial) -> tuple[str, str, str]:
    """What the table reads: the deep mean cosine, the effective rank, and the measure of quality."""
    return "mean_cosine", "effective_rank", quality_key(trial)


def rows(trial: Trial) -> list[Row]:
    """Before, control, then every other arm in the order of the plan."""
    others = [arm for arm in trial.arms if arm is not trial.control]
    return [_before_row(trial), _control_row(trial), *(_arm_row(trial, arm) for arm in others)]


def _before_row(trial: Trial) -> Row:
    readings = [(key, reading(trial.before, key)) for key in keys(trial)]
    cells = tuple(value_cell(e, digits_of(key), bounds=True, share=False) for key, e in readings)
    return Row("before", "before", measures=cells)


def _control_row(trial: Trial) -> Row:
    arm, cost, measures = trial.control, trial.control.cost, list[Cell]()
    for key in keys(trial):
        notes = _spread_notes(arm, key, spread(arm, key))
        measures.append(replace(plain_cell(mean(arm, key), digits_of(key)), notes=notes))
    return Row(
        arm.spec.name,
        "control",
        arm.status,
        added=f"0, of {parameter_count(arm.parameters)}",
        time=DASH if cost.seconds is None else f"{cost.seconds:.3g} s per step",
        time_note=f"median of {cost.rounds} rounds" if cost.rounds else cost.reason or "",
        memory=DASH if cost.peak_memory_bytes is None else size_in_words(cost.peak_memory_bytes),
        measures=tuple(measures),
        verdict="reference",
        reason=_reason(trial, arm),
    )


def _arm_row(trial: Trial, arm: ArmResult) -> Row:
    if arm.effect is None:
        return Row(arm.spec.name, "arm", arm.status, reason=arm.reason or "no reason was recorded")
    ratio, covers = arm.cost.time_ratio, while_on(schedule_of(arm.spec, trial.plan.training.coefficient_schedule))
    notes = [arm.verdict_reason] if arm.verdict_reason else [f"quality {arm.quality}"] if arm.quality else []
    notes += [] if arm.opened in (None, "neither") else [_OPENED.get(arm.opened, arm.opened)]
    return Row(
        arm.spec.name,
        "arm",
        arm.status,
        added=added(arm.parameters_added),
        time=times(ratio.value, 3),
        time_note=interval(ratio, 3) + covers if ratio.value is not None else ratio.reason or "",
        memory=times(arm.cost.memory_ratio),
        measures=tuple(_measure_cells(arm.effect, arm, key) for key in keys(trial)),
        verdict=verdict_words(arm.verdict) if arm.verdict else "No verdict",
        notes=tuple(notes),
        reason=_reason(trial, arm),
    )


def _measure_cells(effect: ArmEffect, arm: ArmResult, key: str) -> Cell:
    """A difference to the control with its spread over seeds and its rank."""
    change, notes = effect.metrics.get(key, MISSING), _spread_notes(arm, key, effect.spread.get(key))
    rank = arm.ranks.get(key)
    notes += (f"place {rank.place}, tied" if rank.tied_with else f"place {rank.place}",) if rank else ()
    unpaired = key not in QUALITY_KEYS and effect.unpaired
    return replace(change_cell(change, digits_of(key), notes), mark="†" if unpaired else "")


def _spread_notes(arm: ArmResult, key: str, wide: float | None) -> tuple[str, ...]:
    if wide is not None:
        return (f"SD {wide:.{digits_of(key)}f}",)
    return ("one seed",) if len(arm.runs) == 1 else ()


def _reason(trial: Trial, arm: ArmResult) -> str:
    """Why an arm with numbers is not complete; empty if it is."""
    if arm.status == "done":
        return ""
    return f"{len(arm.runs)} of {trial.plan.seeds} seeds: {arm.reason or 'no reason was recorded'}"


def added(size: int | None) -> str:
    """The parameters that an arm adds, with their sign."""
    if not size:
        return "0" if size == 0 else DASH
    return f"{'+' if size > 0 else '-'}{parameter_count(abs(size))}"


# --- words that every surface has -----------------------------------------------------------------------


def budget(trial: Trial) -> str:
    """What every arm was given."""
    schedule = trial.schedule
    return (
        f"{plural(len(trial.arms), 'arm')} × {plural(trial.plan.seeds, 'training seed')}, each of "
        f"{plural(schedule.steps, 'step')} of {schedule.tokens_per_step:,} tokens, the same rows in the same order"
    )


def headline(trial: Trial) -> str:
    """What came of the trial, in a sentence."""
    return trial.findings[0].title if trial.findings else "Every arm against the same control"


def recommendation(trial: Trial, dose: DoseResponse) -> str:
    """Which coefficient to take, or none, and why; what fell, where that is not the cone alone."""
    chosen = "none" if dose.recommended is None else f"{dose.recommended:g}"
    return f"Recommended coefficient: {chosen} ({dose.reason}{what_fell(dose, trial.arms)})"


def caveats(trial: Trial) -> list[tuple[str, str]]:
    """Arms whose differences are not all paired by text, and why."""
    return [(arm.spec.name, arm.effect.unpaired) for arm in trial.arms if arm.effect and arm.effect.unpaired]


def settings(trial: Trial, arm: ArmResult) -> list[tuple[str, str]]:
    """What was chosen for an arm, as (name, value)."""
    spec, asked = arm.spec, trial.plan.training.coefficient_schedule
    layers = None if spec.layers is None else LAYERS.get(spec.layers, f"layers {spec.layers}")
    dose = dose_in_words(spec.coefficient, schedule_of(spec, asked)).removeprefix("coefficient ")
    remedy = "" if spec.name == spec.remedy else spec.remedy
    named = {"remedy": remedy, "loss": spec.loss, "sites": layers, "coefficient": dose}
    return [(name, value) for name, value in named.items() if value]


# --- who is better -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """The arms by one measure, best first, and those without a place, with why.

    A tie need not be shared: an arm of a later place may tie with one of an earlier place. Those stand beside it.
    """

    key: str
    title: str
    places: tuple[tuple[int, tuple[tuple[str, tuple[str, ...]], ...]], ...]
    without: tuple[tuple[str, str], ...]


def rankings(trial: Trial) -> list[Ranking]:
    """One ranking per measure that any arm was ranked on; none where the trial ranks nothing."""
    named = {} if trial.unranked else dict.fromkeys(key for arm in trial.arms for key in arm.ranks)
    return [_ranking(trial, key) for key in named]


def _ranking(trial: Trial, key: str) -> Ranking:
    ranks = {arm.spec.name: arm.ranks[key] for arm in trial.arms if key in arm.ranks}
    places = []
    for at_rank in sorted({rank.place for rank in ranks.values()}):
        here = [name for name, rank in ranks.items() if rank.place == at_rank]
        ties = [tuple(other for other in ranks[name].tied_with if other not in here) for name in here]
        places.append((at_rank, tuple(zip(here, ties, strict=True))))
    out = [arm for arm in trial.arms if arm is not trial.control and (arm.effect is None or key not in arm.ranks)]
    others = tuple((arm.spec.name, _unplaced(arm)) for arm in out)
    return Ranking(key, title_of(key), tuple(places), others)


def placed(name: str, ties: tuple[str, ...]) -> str:
    """An arm of a place, and whom it ties with elsewhere."""
    return f"{name} (tied with {', '.join(ties)})" if ties else name


def _unplaced(arm: ArmResult) -> str:
    if arm.status in ("failed", "unavailable"):
        return arm.status
    if len(arm.runs) < RANK_SEEDS:
        return f"{plural(len(arm.runs), 'seed')}, fewer than {RANK_SEEDS}"
    return "not ranked on this measure"


def pair_tables(trial: Trial) -> list[Table]:
    """For each measure all pairs of arms: first − second, and whether one is clearly apart."""
    named = list(dict.fromkeys(key for pair in trial.pairs for key in pair.differences))
    known, tables = any(p is not None for pair in trial.pairs for p in pair.p.values()), []
    heads = (Column("second"), Column("first − second, 95 %"), *([Column("p")] if known else []), Column(""))
    for key in named:
        made = []
        for pair in trial.pairs:
            if key in pair.differences:
                p, clear = pair.p.get(key), pair.clear.get(key, False)
                change = Cell(difference(pair.differences[key], digits_of(key)))
                word = Cell("clear" if clear else "tie", strong=clear)
                chance = [] if not known else [Cell("<0.001") if p is not None and p < 0.001 else plain_cell(p, 3)]
                made.append((pair.first, (Cell(pair.second), change, *chance, word)))
        tables.append(Table(heads, tuple(made), f"By {title_of(key)}", first="first"))
    return tables


def powers_of(trial: Trial) -> Table:
    """What the seeds of this trial could have shown of each arm; no rows where that is not known."""
    effects = [(arm.spec.name, arm.effect.power) for arm in trial.arms if arm.effect]
    return power_table((f"{name}, ", power) for name, powers in effects for power in powers.values())


# --- every seed ----------------------------------------------------------------------------------------


def measured_keys(trial: Trial) -> list[str]:
    """The metrics that every table has, the measure of quality, and the loss."""
    return list(dict.fromkeys((*(metric.key for metric in shown(1)), quality_key(trial), "loss")))


def seed_table(trial: Trial) -> Table:
    """One row per arm and seed: its own numbers, the difference to the control under that seed, how it trained."""
    measured, quality = measured_keys(trial), quality_key(trial)
    columns = []
    for key in measured:
        title = title_of(key)
        group = "Without top 3 dimensions" if key == WITHOUT_TOP else title[:1].upper() + title[1:]
        columns += [Column("own", group, title), Column("Δ", group, f"{title}, arm − control")]
    columns += [
        Column("probe", "Probe text", f"{title_of(quality)} on the probe text"),
        Column("tokens", "Training", "tokens trained on"),
        Column("seconds", "Training", "seconds of training"),
        Column("|penalty| ÷ CE", "Training", "size of the loss against cross-entropy"),
        Column("sha256", "Weights", "first half of the weights’ hash"),
    ]
    made = [("before", _seed_cells(trial.before, {}, measured, quality))]
    for arm in trial.arms:
        effects = {effect.seed: effect.metrics for effect in (arm.effect.by_seed if arm.effect else ())}
        for run in arm.runs:
            cells = _seed_cells(run, effects.get(run.seed, {}), measured, quality)
            made.append((f"{arm.spec.name}, seed {run.seed}", cells))
    note = "Δ is arm − control under the same seed, under it the 95 % interval over documents."
    title = "Every arm under every seed, on the validation text"
    return Table(tuple(columns), tuple(made), title, note, "run")


def _seed_cells(
    run: ArmRun, effects: Mapping[str, Estimate], measured: Sequence[str], quality: str
) -> tuple[Cell, ...]:
    cells = []
    for key in measured:
        own, change = reading(run, key), effects.get(key, MISSING)
        cells.append(value_cell(own, digits_of(key), share=False))
        cells.append(EMPTY if change.value is None else change_cell(change, digits_of(key)))
    return (
        *cells,
        value_cell(reading(run, quality, probe=True), digits_of(quality)),
        Cell(f"{run.trained_tokens:,}", sort=str(run.trained_tokens)) if run.trained_tokens else EMPTY,
        Cell(f"{run.seconds:.0f}") if run.seconds else EMPTY,
        EMPTY if run.penalty_to_ce is None else Cell(f"{run.penalty_to_ce:.2g}", sort=sort_key(run.penalty_to_ce)),
        Cell((run.weights_sha256 or "")[:12] or DASH),
    )


# --- every site ----------------------------------------------------------------------------------------


def sites_by_arm(trial: Trial) -> dict[str, tuple[SitePoint, ...]]:
    """Before and every arm that was measured, over the sites of the judged stack; an arm is the mean of its seeds.

    That stack is the last one, which is the decoder where there are two.
    """
    stack = trial.before.sites[-1].stack if trial.before.sites else "decoder"
    found = {"before": trial.before.sites} | {arm.spec.name: depth(arm.runs) for arm in trial.arms}
    drawn = {name: tuple(site for site in sites if site.stack == stack) for name, sites in found.items()}
    return {name: sites for name, sites in drawn.items() if sites and len(sites) == len(drawn["before"])}


def site_table(trial: Trial) -> Table:
    """One row per site: the mean over seeds of every arm, and what it is before."""
    found, metrics = sites_by_arm(trial), [m for m in shown(1) if m.key in SitePoint.__dataclass_fields__]
    columns = [Column(name, m.title.capitalize(), f"{m.title} of {name}") for m in metrics for name in found]
    made = []
    for index, site in enumerate(found.get("before", ())):
        values = [(getattr(sites[index], m.key), m.digits) for m in metrics for sites in found.values()]
        made.append((site_label(site), tuple(plain_cell(value, digits) for value, digits in values)))
    title = "All sites in depth order, on the validation text"
    return Table(tuple(columns), tuple(made), title, "An arm is the mean over its seeds.")


# --- downstream tasks ----------------------------------------------------------------------------------


def task_tables(trial: Trial) -> list[Table]:
    """A table per task and metric, over before and every arm; none if no task was run."""
    runs = [trial.before, *(run for arm in trial.arms for run in arm.runs)]
    named = dict.fromkeys((score.task, score.metric) for run in runs for score in run.tasks)
    named |= dict.fromkeys((effect.task, effect.metric) for arm in trial.arms for effect in arm.task_effects)
    return [_task_table(trial, task, metric) for task, metric in named]


def _task_table(trial: Trial, task: str, metric: str) -> Table:
    effects = {
        arm.spec.name: next((e for e in arm.task_effects if (e.task, e.metric) == (task, metric)), None)
        for arm in trial.arms
    }
    control = next((effect.old for effect in effects.values() if effect), None)
    better = [effect.higher_is_better for effect in effects.values() if effect]
    made = [("before", (*_scores((trial.before,), task, metric), EMPTY))]
    for arm in trial.arms:
        effect, (_, seeds) = effects[arm.spec.name], _scores(arm.runs, task, metric)
        if effect:
            samples = f"{effect.samples} samples, {'paired' if effect.paired else 'not paired'}"
            change = replace(task_change(effect), notes=(samples,))
            made.append((arm.spec.name, (Cell(number(effect.new)), seeds, change)))
        elif seeds.text != DASH:
            made.append((arm.spec.name, (Cell(number(control if arm is trial.control else None)), seeds, EMPTY)))
    columns = tuple(map(Column, ("score", "each run ± standard error", "arm − control, 95 %")))
    word = "lower" if False in better else "higher"
    return Table(columns, tuple(made), task, f"{metric}, {word} is better", "arm")


def _scores(runs: Sequence[ArmRun], task: str, metric: str) -> tuple[Cell, Cell]:
    """The score where there is one run, and every run's score with the harness's standard error."""
    found = [score for run in runs for score in run.tasks if (score.task, score.metric) == (task, metric)]
    cells = [score_cell(score) for score in found]
    texts = ", ".join(" ".join((cell.text, *cell.notes)) for cell in cells)
    return (Cell(cells[0].text) if len(cells) == 1 else EMPTY), Cell(texts or DASH)
