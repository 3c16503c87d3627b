"""Which charts a trial is drawn with, how its arms look, and what each chart says in words. Records in, charts out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from condense.records.base import Estimate
from condense.records.trial import (
    ArmResult,
    DosePoint,
    DoseResponse,
    SitePoint,
    Trial,
    curve,
    mean,
    quality_key,
    reading,
    tolerated,
)
from condense.report.charts import POINTS, Axis, Chart, Figure, Look, Series, Values, over_steps, padded
from condense.report.depth import deepest_half, depth_axis, differences, overlay
from condense.report.parts import Line, Strip, strip
from condense.report.tables import digits_of, title_of
from condense.report.text import NOTHING, WITHOUT_TOP, difference, listed, number, sentence
from condense.report.trial.tables import sites_by_arm
from condense.training.remedies import remedy_of

BEFORE = Look("before", "quiet", "dot", "square")
CONTROL = Look("control", "warm", "longdash", "diamond")
READS = "deepest half: what the table reads"
MARKS, THIN = 12, 1.8
MOST_STEPS, FEW_STEPS = 60, 24
MOST_POINTS, MOST_WITH_CURVES, MOST_RUNS = 550, 200, 70
_DASHES = ("solid", "dash", "dashdot", "longdash", "dot")
_SYMBOLS = ("circle", "square", "triangle", "diamond")


def looks(trial: Trial) -> dict[str, Look]:
    """The look of every arm by its name; no two are the same up to twenty arms, even without colour.

    The colour says the remedy, dash and mark say which of its arms.
    """
    found, index = {}, count()
    of_remedy: dict[str, int] = {}
    for arm in trial.arms:
        name, remedy = arm.spec.name, remedy_of(arm.spec)
        if remedy.is_control:
            found[name] = CONTROL._replace(words=name)
            continue
        at, inks = next(index), remedy.inks
        own = of_remedy[remedy.name] = of_remedy.get(remedy.name, -1) + 1
        found[name] = Look(name, inks[own % len(inks)], _DASHES[at % len(_DASHES)], _SYMBOLS[at % len(_SYMBOLS)])
    return found


# --- every arm against the control ---------------------------------------------------------------------


def strips(trial: Trial) -> list[Strip]:
    """Differences to the control in mean cosine and in quality, each with its interval and a dot per seed."""
    training, bound, key = trial.plan.training, tolerated(trial), quality_key(trial)
    least, share = training.min_effect, 100 * training.quality_tolerance
    held = f"tinted: quality held, up to {bound:+.4f} ({share:g} % of the control’s)" if bound else ""
    counts = f"tinted: within ±{least:g}, too small to count"
    made = (
        _strip(trial, "mean_cosine", ("more spread", "more condensed"), (-least, least), counts),
        _strip(trial, key, ("better", "worse"), (float("-inf"), bound or 0.0), held),
    )
    return [one for one in made if one is not None]


def _strip(trial: Trial, key: str, ways: tuple[str, str], zone: tuple[float, float], note: str) -> Strip | None:
    named, lines = looks(trial), []
    for arm in trial.arms:
        if arm is trial.control:
            continue
        if arm.effect is None:
            lines.append(Line(named[arm.spec.name], Estimate(None, reason=arm.status)))
            continue
        by_seed = {effect.seed: effect.metrics.get(key, NOTHING).value for effect in arm.effect.by_seed}
        seeds = {seed: value for seed, value in by_seed.items() if value is not None}
        lines.append(Line(named[arm.spec.name], arm.effect.metrics.get(key, NOTHING), seeds))
    return strip(
        title_of(key), "arm − control", lines, digits_of(key), zone=zone if note else None, ways=ways, key=note
    )


# --- over depth ----------------------------------------------------------------------------------------


def depth_figures(trial: Trial) -> list[Figure]:
    """All arms over depth, overlaid: the mean cosine, its difference to the control, what lies behind it."""
    found = sites_by_arm(trial)
    if not found:
        return []
    made = [
        _depth_of_arms(trial, found, "mean_cosine", "How alike are two tokens of one text?"),
        _effects(trial, found),
    ]
    curves = any(arm.learning for arm in trial.arms)
    points = len(found) * len(found["before"])
    if curves and (points > MOST_POINTS / 2 or sum(len(arm.runs) for arm in trial.arms) > MOST_RUNS):
        made = [figure and replace(figure, still=True) for figure in made]
    if points <= (MOST_WITH_CURVES if curves else MOST_POINTS):  # more would not fit into 2.3 MB; the table has them
        made += [
            _depth_of_arms(trial, found, WITHOUT_TOP, "The same, without each text’s top three dimensions", wide=False),
            _depth_of_arms(trial, found, "effective_rank", "How many directions are in use?", wide=False),
        ]
    return [figure for figure in made if figure is not None]


def _depth_of_arms(
    trial: Trial, found: Mapping[str, tuple[SitePoint, ...]], key: str, title: str, *, wide: bool = True
) -> Figure | None:
    named, sites = looks(trial), found["before"]
    series = []
    for name, points in reversed(list(found.items())):  # the legend turns them round again
        values = [Estimate(getattr(point, key)) for point in points]
        series.append(named.get(name, BEFORE).curve(values, digits_of(key), marks=MARKS, width=THIN))
    if not any(v is not None for s in series for v in s.values):
        return None
    shade = deepest_half(sites, READS) if wide else None
    height, width = (440, 1000) if wide else (340, 520)
    chart = overlay(key, depth_axis(sites), series, shade=shade, top=None, height=height, width=width)
    return Figure(chart, title, _depth_words(trial, key), wide=wide)


def _depth_words(trial: Trial, key: str) -> str:
    digits = digits_of(key)
    before, control = reading(trial.before, key).value, mean(trial.control, key)
    words = f"Over the deepest half, {title_of(key).removeprefix('deep ')}: {number(before, digits)} before, "
    words += f"{number(control, digits)} in the control."
    moved = [(arm.spec.name, arm.effect.metrics.get(key, NOTHING)) for arm in trial.arms if arm.effect]
    known = [(name, change) for name, change in moved if change.value is not None]
    if not known:
        return words
    name, change = max(known, key=lambda pair: abs(pair[1].value or 0.0))
    words += f" Furthest from it is {name}: {difference(change, digits)}."
    return words + (" An arm’s line is the mean over its seeds." if key == "mean_cosine" else "")


def _effects(trial: Trial, found: Mapping[str, tuple[SitePoint, ...]]) -> Figure | None:
    """Arm − control at every site, without bands: eight of them would hide each other."""
    named, sites, series = looks(trial), found["before"], []
    for arm in reversed(trial.arms):
        at = {(e.stack, e.site, e.index): e.metrics for e in (arm.effect.sites if arm.effect else ())}
        changes = [at.get((s.stack, s.site, s.index), {}).get("mean_cosine", NOTHING) for s in sites]
        if any(e.value is not None for e in changes):
            series.append(named[arm.spec.name].curve(changes, bands=False, marks=MARKS, width=THIN))
    if not series:
        return None
    least, shade = trial.plan.training.min_effect, deepest_half(sites, READS)
    chart = differences("chart-effects", depth_axis(sites), series, "arm − control", least, "control", shade)
    words = "Arm − control in mean cosine, paired by seed and text. Below 0 an arm is more spread than the control."
    return Figure(replace(chart, height=420), "What each arm did, layer by layer", words)


# --- effect against cost -------------------------------------------------------------------------------


def tradeoff(trial: Trial) -> Figure | None:
    """Every arm by what it cost in quality (across) and what it did to the mean cosine (up)."""
    named, key, arms = looks(trial), quality_key(trial), []
    for arm in _by_dose(trial):
        metrics = arm.effect.metrics if arm.effect else {}
        effect, cost = metrics.get("mean_cosine", NOTHING), metrics.get(key, NOTHING)
        if effect.value is not None and cost.value is not None:
            arms.append((arm, effect, cost))
    if not arms:
        return None
    series = _joined_by_dose(trial, [arm.spec.name for arm, _, _ in arms], [effect.value for _, effect, _ in arms])
    for index, (arm, effect, cost) in enumerate(arms):
        alone = [NOTHING] * index + [effect] + [NOTHING] * (len(arms) - index - 1)
        point = named[arm.spec.name]._replace(dash=POINTS).curve(alone, whiskers=True)
        left, right = ([None if estimate is NOTHING else end for estimate in alone] for end in (cost.low, cost.high))
        series.append(replace(point, left=left, right=right))
    least, bound = trial.plan.training.min_effect, tolerated(trial)
    effects, costs = [effect for _, effect, _ in arms], [cost for _, _, cost in arms]
    axis = Axis(
        title=f"{title_of(key)}: arm − control (to the left: better)",
        at=tuple(cost.value or 0.0 for cost in costs),
        span=padded([0.0, *_values_and_bounds(costs), *([bound] if bound else [])]),
    )
    chart = Chart(
        "chart-tradeoff",
        axis,
        "deep mean cosine: arm − control",
        tuple(series),
        y_range=padded([0.0, -1.5 * least, 1.5 * least, *_values_and_bounds(effects)]),
        edges=((0.0, "control"),),
        uprights=((0.0, ""), *(((bound, "tolerance"),) if bound else ())),
        zone=(-least, least),
        height=460,
    )
    return Figure(chart, "Effect against cost", _tradeoff_words(trial, [arm for arm, _, _ in arms], bound))


def _values_and_bounds(estimates: Sequence[Estimate]) -> list[float]:
    return [v for e in estimates for v in (e.value, e.low, e.high) if v is not None]


def _by_dose(trial: Trial) -> list[ArmResult]:
    """The arms of each dose–response curve together, weakest first, so that a line can join them."""
    order = [point.arm for dose in trial.doses for point in dose.points]
    first = sorted((arm for arm in trial.arms if arm.spec.name in order), key=lambda arm: order.index(arm.spec.name))
    return [*first, *(arm for arm in trial.arms if arm.spec.name not in order)]


def _joined_by_dose(trial: Trial, names: Sequence[str], values: Values) -> list[Series]:
    """A thin line through the arms that differ in their coefficient alone."""
    made = []
    for dose in trial.doses:
        inside = [name in {point.arm for point in dose.points} for name in names]
        if sum(inside) > 1:
            on = [Estimate(value if held else None) for value, held in zip(values, inside, strict=True)]
            made.append(Look(f"{dose.title}, by coefficient", "quiet").curve(on, width=1.2))
    return made


def _tradeoff_words(trial: Trial, arms: Sequence[ArmResult], bound: float | None) -> str:
    words = "Further down is more spread, further right is worse language modelling; bars are 95 % intervals."
    if bound is not None:
        share = 100 * trial.plan.training.quality_tolerance
        words += f" Quality counts as held up to +{number(bound, 4)} ({share:g} % of the control’s)."
    if all(arm.verdict_reason for arm in arms):
        return f"{words} No arm has a word: {arms[0].verdict_reason}."
    kinds = ("improved", "held", "not shown to be held", "not measured", "worse")
    spread = [(kind, [arm.spec.name for arm in arms if _is_spread(arm) and arm.quality == kind]) for kind in kinds]
    parts = [f"{listed(names)} (quality {kind})" for kind, names in spread if names]
    return (
        f"{words} Measurably more spread: {'; '.join(parts)}."
        if parts
        else f"{words} No arm is measurably more spread."
    )


def _is_spread(arm: ArmResult) -> bool:
    return arm.verdict in ("dispersed", "dispersed-at-a-cost")


# --- dose and response ---------------------------------------------------------------------------------


def dose_figures(trial: Trial, dose: DoseResponse, rank: int) -> list[Figure]:
    """Effect and cost over the coefficient; nothing below two points."""
    if len(dose.points) < 2:
        return []
    points = through_zero(dose.points)
    labels = tuple(f"{point.coefficient:g}" for point in points)
    axis = Axis(labels, labels, "coefficient")  # evenly apart, for they are mostly chosen by factors
    key, bound, least = quality_key(trial), tolerated(trial), trial.plan.training.min_effect
    effects, costs = [point.effect for point in points], [point.quality for point in points]
    words, style, made = "mean over seeds, 95 % interval", ("arm − control",), []
    if _values_and_bounds(effects):
        line = Look(words, "accent", symbol="circle").curve(effects)
        span = padded([*_values_and_bounds(effects), -1.5 * least, 1.5 * least])
        chart = Chart(f"chart-dose-{rank}-effect", axis, *style, (line,), y_range=span, height=320, width=520)
        chart = replace(chart, edges=((0.0, "control"),), zone=(-least, least))
        takeaway = f"Deep mean cosine, arm − control; lower is more spread. {_points(points, effects, 3)}"
        made.append(Figure(chart, "What it does", takeaway, wide=False))
    if _values_and_bounds(costs):
        line = Look(words, "plum", "dash", "square").curve(costs, digits_of(key), width=2.5)
        span = padded([*_values_and_bounds(costs), 0.0, *([1.2 * bound] if bound else [])])
        chart = Chart(f"chart-dose-{rank}-cost", axis, *style, (line,), y_range=span, height=320, width=520)
        chart = replace(chart, edges=((0.0, "control"), *(((bound, "tolerance"),) if bound else ())))
        takeaway = (
            f"{title_of(key).capitalize()}, arm − control; lower is better. {_points(points, costs, digits_of(key))}"
        )
        made.append(Figure(chart, "What it costs", takeaway, wide=False))
    return made


def through_zero(points: Sequence[DosePoint]) -> list[DosePoint]:
    """The points, with the control at coefficient 0 among them where there are negative ones."""
    if not any(point.coefficient < 0 for point in points):
        return list(points)
    zero = Estimate(0.0, 0.0, 0.0)
    control = replace(points[0], arm="control", coefficient=0.0, effect=zero, quality=zero, verdict=None)
    return sorted([*points, control], key=lambda point: point.coefficient)


def _points(points: Sequence[DosePoint], estimates: Sequence[Estimate], digits: int) -> str:
    pairs = zip(points, estimates, strict=True)
    parts = [f"{p.coefficient:g}: {difference(e, digits)}" for p, e in pairs if p.coefficient]
    way = _direction(points, estimates)
    return f"{'; '.join(parts)}.{f' {sentence(way)}' if way else ''}"


def direction_words(trial: Trial, dose: DoseResponse) -> str:
    """Whether cosine and quality go one way from negative coefficients to positive ones; empty without both signs."""
    points, key = through_zero(dose.points), quality_key(trial)
    ways = {"mean_cosine": [point.effect for point in points], key: [point.quality for point in points]}
    said = [f"{title_of(name)}: {way}" for name, values in ways.items() if (way := _direction(points, values))]
    return "; ".join(said)


def _direction(points: Sequence[DosePoint], estimates: Sequence[Estimate]) -> str:
    values = [estimate.value for estimate in estimates]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not points[0].coefficient < 0 < points[-1].coefficient:
        return ""
    steps = [later - earlier for earlier, later in itertools.pairwise(known)]
    if all(step <= 0 for step in steps):
        return "the means fall all the way through 0"
    if all(step >= 0 for step in steps):
        return "the means rise all the way through 0"
    return "the means do not go one way through 0"


# --- while they trained --------------------------------------------------------------------------------


def training_figures(trial: Trial) -> list[Figure]:
    """Cross-entropy and live mean cosine of every arm over the steps, mean over its seeds."""
    curves, named, made = {arm.spec.name: curve(arm) for arm in trial.arms}, looks(trial), []
    for key, title, unit in (
        ("ce_loss", "Cross-entropy", "nats per token"),
        ("mean_cosine", "Mean cosine, live", "cosine"),
    ):
        logged = {
            name: dict(zip(one.step, getattr(one, key), strict=False))
            for name, one in reversed(curves.items())  # the legend turns them round again
            if any(value is not None for value in getattr(one, key))
        }
        if not logged:
            continue
        last = max(step for values in logged.values() for step in values)
        ends = [_last_reading(name, values, last) for name, values in reversed(logged.items())]
        words = f"At step {last}, mean over seeds: {', '.join(ends)}."
        if key == "ce_loss" and any(remedy_of(arm.spec).other_tokens for arm in trial.arms):
            words += " Nats per token are not comparable where the vocabulary differs; the table reads bits per byte."
        small = any(arm.learning for arm in trial.arms)  # whose curves need the room
        drawn = over_steps(key, unit, logged, named, FEW_STEPS if small else MOST_STEPS, marks=MARKS)
        made.append(Figure(drawn, title, words, still=small))
    return made


def _last_reading(name: str, values: Mapping[int, float | None], last: int) -> str:
    """An arm's last value; an arm whose loss has fallen to 0 reads no cosine from then on."""
    step = max(step for step, value in values.items() if value is not None)
    return f"{name} {number(values[step])}" + ("" if step == last else f" (last read at step {step})")
