"""The table of a trial as text cells, one home for all surfaces: an arm a row, each against the same control.

Numbers have plain minus signs here; a page that can do better typesets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from condense.records.base import Estimate
from condense.records.plans import RANK_SEEDS
from condense.records.trial import ArmEffect, ArmResult, Rank, Trial, mean, quality_key, reading, spread
from condense.report.text import DASH, number
from condense.report.treatment.cards import excludes_zero
from condense.report.treatment.facts import OUTCOMES
from condense.report.treatment.terminal import gigabytes

WITHOUT_TOP = "mean_cosine_without_top_dimensions"
DIGITS = {"mean_cosine": 3, WITHOUT_TOP: 3, "effective_rank": 1, "bits_per_byte": 4, "loss": 4, "perplexity": 2}
TITLES = {
    "mean_cosine": "deep mean cosine", WITHOUT_TOP: "deep mean cosine without top 3 dimensions",
    "effective_rank": "effective rank", "bits_per_byte": "bits per byte", "loss": "loss, nats per token",
    "perplexity": "perplexity",
}  # fmt: skip
MISSING = Estimate(None, reason="not measured")
_OPENED = {
    "cone opened": "the cone opened", "three dimensions rescaled": "three dimensions rescaled",
    "both": "cone opened and three dimensions rescaled",
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One measured cell: the number read first, its interval, the spread over seeds, the rank."""

    key: str
    value: str
    interval: str = ""
    spread: str = ""
    rank: str = ""
    clear: bool = False
    unpaired: bool = False


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
    measures: tuple[Measure, ...] = ()
    verdict: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


def keys(trial: Trial) -> tuple[str, str, str]:
    """What the table reads: the deep mean cosine, the effective rank, and the measure of quality."""
    return "mean_cosine", "effective_rank", quality_key(trial)


def rows(trial: Trial) -> list[Row]:
    """Before, control, then every other arm in the order of the plan."""
    others = [arm for arm in trial.arms if arm is not trial.control]
    return [_before(trial), _control(trial), *(_arm(trial, arm) for arm in others)]


def _before(trial: Trial) -> Row:
    of = [(key, reading(trial.before, key)) for key in keys(trial)]
    measures = tuple(
        Measure(key, number(e.value, DIGITS[key]), _plain(e, DIGITS[key]) or e.reason or "") for key, e in of
    )
    return Row("before", "before", measures=measures)


def _control(trial: Trial) -> Row:
    arm = trial.control
    measures = tuple(
        Measure(key, number(mean(arm, key), DIGITS[key]), spread=_own_spread(arm, key)) for key in keys(trial)
    )
    seconds, rounds = arm.cost.seconds, arm.cost.rounds
    return Row(
        arm.spec.name, "control", arm.status, f"0, of {count(arm.parameters)}",
        DASH if seconds is None else f"{seconds:.3g} s per step",
        f"median of {rounds} rounds" if rounds else arm.cost.reason or "",
        DASH if arm.cost.peak_memory_bytes is None else gigabytes(arm.cost.peak_memory_bytes),
        measures, "reference", reason=_reason(trial, arm),
    )  # fmt: skip


def _arm(trial: Trial, arm: ArmResult) -> Row:
    if arm.effect is None:
        return Row(arm.spec.name, "arm", arm.status, reason=arm.reason or "no reason was recorded")
    ratio = arm.cost.time_ratio
    notes = [arm.verdict_reason] if arm.verdict_reason else [f"quality {arm.quality}"] if arm.quality else []
    notes += [_OPENED[arm.opened]] if arm.opened in _OPENED else []
    return Row(
        arm.spec.name, "arm", arm.status, added(arm.parameters_added), times(ratio.value, 3),
        _plain(ratio, 3) if ratio.value is not None else ratio.reason or "", times(arm.cost.memory_ratio, 2),
        tuple(_measure(arm.effect, arm, key) for key in keys(trial)),
        OUTCOMES[arm.verdict] if arm.verdict else "No verdict", tuple(notes), _reason(trial, arm),
    )  # fmt: skip


def _measure(effect: ArmEffect, arm: ArmResult, key: str) -> Measure:
    of, digits = effect.metrics.get(key, MISSING), DIGITS[key]
    unpaired = key == "effective_rank" and bool(effect.unpaired)
    if of.value is None:
        return Measure(key, DASH, of.reason or "", unpaired=unpaired)
    wide = effect.spread.get(key)
    return Measure(
        key, f"{of.value:+.{digits}f}", signed_bounds(of, digits),
        _few(arm) if wide is None else f"SD {wide:.{digits}f}",
        ranked(arm.ranks[key]) if key in arm.ranks else "", excludes_zero(of), unpaired,
    )  # fmt: skip


def _own_spread(arm: ArmResult, key: str) -> str:
    wide = spread(arm, key)
    return _few(arm) if wide is None else f"SD {wide:.{DIGITS[key]}f}"


def _few(arm: ArmResult) -> str:
    return "one seed" if len(arm.runs) == 1 else ""


def _reason(trial: Trial, arm: ArmResult) -> str:
    """Why an arm with numbers is not complete; empty if it is."""
    if arm.status == "done":
        return ""
    return f"{len(arm.runs)} of {trial.plan.seeds} seeds: {arm.reason or 'no reason was recorded'}"


# --- how its numbers are written -----------------------------------------------------------------------


def signed_bounds(of: Estimate, digits: int) -> str:
    """The interval of a difference, both ends with their sign; empty if there is none."""
    if of.low is None or of.high is None:
        return ""
    return f"{of.low:+.{digits}f} to {of.high:+.{digits}f}"


def _plain(of: Estimate, digits: int) -> str:
    if of.low is None or of.high is None:
        return ""
    return f"{number(of.low, digits)} to {number(of.high, digits)}"


def times(ratio: float | None, digits: int = 2) -> str:
    """A ratio to the control."""
    return DASH if ratio is None else f"× {ratio:.{digits}f}"


def count(size: int | None) -> str:
    """A number of parameters, in thousands or millions where it is large."""
    if size is None:
        return DASH
    for least, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(size) >= least:
            return f"{size / least:.3g} {unit}"
    return str(size)


def added(size: int | None) -> str:
    """The parameters that an arm adds, with their sign."""
    if not size:
        return "0" if size == 0 else DASH
    return f"{'+' if size > 0 else '-'}{count(abs(size))}"


def ranked(rank: Rank) -> str:
    """A place among the arms, and whether others share it."""
    return f"place {rank.place}, tied" if rank.tied_with else f"place {rank.place}"


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
    if trial.unranked:
        return []
    named = list(dict.fromkeys(key for arm in trial.arms for key in arm.ranks))
    return [_ranking(trial, key) for key in named]


def _ranking(trial: Trial, key: str) -> Ranking:
    of = {arm.spec.name: arm.ranks[key] for arm in trial.arms if key in arm.ranks}
    places = []
    for place in sorted({rank.place for rank in of.values()}):
        here = [name for name, rank in of.items() if rank.place == place]
        places.append((place, tuple((name, tuple(o for o in of[name].tied_with if o not in here)) for name in here)))
    without = [(arm.spec.name, _unplaced(arm)) for arm in trial.arms if arm.effect is None or key not in arm.ranks]
    reference = trial.control.spec.name
    title = TITLES.get(key, key.replace("_", " "))
    return Ranking(key, title, tuple(places), tuple(pair for pair in without if pair[0] != reference))


def placed(name: str, ties: tuple[str, ...]) -> str:
    """An arm of a place, and whom it ties with elsewhere."""
    return f"{name} (tied with {', '.join(ties)})" if ties else name


def _unplaced(arm: ArmResult) -> str:
    if arm.status in ("failed", "unavailable"):
        return arm.status
    if len(arm.runs) < RANK_SEEDS:
        return f"{len(arm.runs)} seed{'' if len(arm.runs) == 1 else 's'}, fewer than {RANK_SEEDS}"
    return "not ranked on this measure"
