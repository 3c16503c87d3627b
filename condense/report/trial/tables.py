"""The further tables of a trial as cells: every arm and seed, every site, downstream tasks. Records in, cells out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from condense.records.base import Estimate
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.trial import ArmRun, Trial, reading
from condense.report.tables import Cell, Column, Table
from condense.report.text import DASH, difference, number, typeset
from condense.report.trial.figures import lines, site_label
from condense.report.trial.rows import DIGITS, MISSING, TITLES, WITHOUT_TOP, keys, signed_bounds

# --- every seed ----------------------------------------------------------------------------------------


def seed_table(trial: Trial) -> Table:
    """One row per arm and seed: its own numbers, the difference to the control under that seed, how it trained."""
    measured = list(dict.fromkeys((*keys(trial)[:1], WITHOUT_TOP, *keys(trial)[1:], "loss")))
    columns = []
    for key in measured:
        group = "Without top 3 dimensions" if key == WITHOUT_TOP else _capital(TITLES[key])
        columns += [Column("own", group, TITLES[key]), Column("Δ", group, f"{TITLES[key]}, arm − control")]
    columns += [Column("probe", "Probe text", f"{TITLES[measured[-2]]} on the probe text")]
    columns += [
        Column("tokens", "Training", "tokens trained on"), Column("seconds", "Training", "seconds of training"),
        Column("|penalty| ÷ CE", "Training", "size of the loss against cross-entropy"),
        Column("sha256", "Weights", "first half of the weights’ hash"),
    ]  # fmt: skip
    rows = [("before", _seed_cells(trial.before, {}, measured))]
    for arm in trial.arms:
        effects = {effect.seed: effect.metrics for effect in (arm.effect.by_seed if arm.effect else ())}
        for run in arm.runs:
            cells = _seed_cells(run, dict(effects.get(run.seed, {})), measured)
            rows.append((f"{arm.spec.name}, seed {run.seed}", cells))
    return Table(tuple(columns), tuple(rows))


def _seed_cells(run: ArmRun, effects: dict[str, Estimate], measured: Sequence[str]) -> tuple[Cell, ...]:
    cells = []
    for key in measured:
        cells += [_own(reading(run, key), DIGITS[key]), _change(effects.get(key, MISSING), DIGITS[key])]
    cells.append(_own(reading(run, measured[-2], probe=True), DIGITS[measured[-2]]))
    hash_ = run.weights_sha256 or ""
    return (
        *cells, Cell(f"{run.trained_tokens:,}", sort=str(run.trained_tokens)) if run.trained_tokens else Cell(DASH),
        Cell(f"{run.seconds:.0f}") if run.seconds else Cell(DASH),
        Cell(DASH) if run.penalty_to_ce is None else Cell(f"{run.penalty_to_ce:.2g}"),
        Cell(hash_[:12] or DASH),
    )  # fmt: skip


def _own(of: Estimate, digits: int) -> Cell:
    return Cell(DASH, of.reason or "") if of.value is None else _written(of.value, number(of.value, digits))


def _change(of: Estimate, digits: int) -> Cell:
    if of.value is None:
        return Cell(DASH)
    return _written(of.value, f"{of.value:+.{digits}f}", typeset(signed_bounds(of, digits)))


def _written(value: float, text: str, note: str = "") -> Cell:
    return Cell(typeset(text), note, f"{value:.4g}" if note or value < 0 else "")  # else the text itself sorts


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- every site ----------------------------------------------------------------------------------------

_SITE_GROUPS = (
    ("mean_cosine", "Mean cosine", 3), (WITHOUT_TOP, "Without top 3 dimensions", 3),
    ("effective_rank", "Effective rank", 1),
)  # fmt: skip


def site_table(trial: Trial) -> Table:
    """One row per site: the mean over seeds of every arm, and what it is before."""
    found = lines(trial)
    columns = [
        Column(name, group, f"{group.lower()} of {name}") for _, group, _ in _SITE_GROUPS for name in found
    ]  # fmt: skip
    rows = []
    for place, site in enumerate(found.get("before", ())):
        cells = [
            _plain(getattr(sites[place], key), digits) for key, _, digits in _SITE_GROUPS for sites in found.values()
        ]
        rows.append((site_label(site), tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def _plain(value: float | None, digits: int) -> Cell:
    return Cell(DASH) if value is None else _written(value, number(value, digits))


# --- downstream tasks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskRow:
    """An arm on one metric of one task: its score, the scores of its seeds, the difference to the control."""

    arm: str
    score: str
    seeds: str
    change: str = ""
    note: str = ""


@dataclass(frozen=True)
class TaskTable:
    """All arms on one metric of one task."""

    task: str
    metric: str
    better: str
    rows: tuple[TaskRow, ...]


def task_tables(trial: Trial) -> list[TaskTable]:
    """A table per task and metric, over before and every arm; none if no task was run."""
    runs = [trial.before, *(run for arm in trial.arms for run in arm.runs)]
    named = dict.fromkeys((score.task, score.metric) for run in runs for score in run.tasks)
    named |= dict.fromkeys((effect.task, effect.metric) for arm in trial.arms for effect in arm.task_effects)
    return [_task_table(trial, task, metric) for task, metric in named]


def _task_table(trial: Trial, task: str, metric: str) -> TaskTable:
    rows, higher = [TaskRow("before", *_scores((trial.before,), task, metric))], True
    same = (e for arm in trial.arms for e in arm.task_effects if (e.task, e.metric) == (task, metric))
    old = {trial.control.spec.name: next((e.old for e in same), None)}
    for arm in trial.arms:
        effect = next((e for e in arm.task_effects if (e.task, e.metric) == (task, metric)), None)
        scores = [score for run in arm.runs for score in run.tasks if (score.task, score.metric) == (task, metric)]
        higher = scores[0].higher_is_better if scores else effect.higher_is_better if effect else higher
        if effect is not None:
            _, seeds = _scores(arm.runs, task, metric)
            rows.append(TaskRow(arm.spec.name, number(effect.new), seeds, difference(effect.difference), _note(effect)))
        elif scores:
            _, seeds = _scores(arm.runs, task, metric)
            rows.append(TaskRow(arm.spec.name, number(old.get(arm.spec.name)), seeds))
    return TaskTable(task, metric, "higher is better" if higher else "lower is better", tuple(rows))


def _scores(runs: Sequence[ArmRun], task: str, metric: str) -> tuple[str, str]:
    """The score where there is one run, and every run's score with the harness's standard error."""
    found = [score for run in runs for score in run.tasks if (score.task, score.metric) == (task, metric)]
    return (number(found[0].value) if len(found) == 1 else DASH), ", ".join(map(_score, found)) or DASH


def _score(score: TaskScore) -> str:
    return number(score.value) + (f" ± {score.stderr:.3f}" if score.stderr is not None else "")


def _note(effect: TaskEffect) -> str:
    return f"{effect.samples} samples, {'paired' if effect.paired else 'not paired'}"
