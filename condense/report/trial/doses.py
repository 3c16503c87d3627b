"""Effect against cost: every arm as a point, and the curves of dose and response. Records in, charts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condense.records.base import Estimate
from condense.records.trial import ArmResult, DoseResponse, Trial, quality_key, tolerated
from condense.report.charts import POINTS, Axis, Chart, Series, Values
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure
from condense.report.text import difference, number, typeset
from condense.report.trial.looks import looks
from condense.report.trial.rows import DIGITS, TITLES


def tradeoff(trial: Trial) -> Figure | None:
    """Every arm by what it cost in quality (across) and what it did to the mean cosine (up)."""
    named, key = looks(trial), quality_key(trial)
    arms = [(arm, *_both(arm, key)) for arm in _by_dose(trial)]
    shown = [(arm, effect, cost) for arm, effect, cost in arms if effect.value is not None and cost.value is not None]
    if not shown:
        return None
    costs = [cost for _, _, cost in shown]
    at = tuple(cost.value or 0.0 for cost in costs)
    series = [*_joined(trial, [arm.spec.name for arm, _, _ in shown], [effect.value for _, effect, _ in shown])]
    for place, (arm, effect, cost) in enumerate(shown):
        look = named[arm.spec.name]

        def only(value: float | None, place: int = place) -> list[float | None]:
            return [value if i == place else None for i in range(len(shown))]

        series.append(
            Series(look.words, only(effect.value), look.ink, only(effect.low), only(effect.high), POINTS, look.symbol,
                   whiskers=True, left=only(cost.low), right=only(cost.high))
        )  # fmt: skip
    least, bound = trial.plan.training.min_effect, tolerated(trial)
    across = padded([0.0, *_ends(costs), *([bound] if bound else [])])
    up = padded([0.0, -1.5 * least, 1.5 * least, *_ends([effect for _, effect, _ in shown])])
    uprights = ((0.0, ""), *(((bound, "tolerance"),) if bound else ()))
    chart = Chart(
        "chart-tradeoff", Axis(title=f"{TITLES[key]}: arm − control (to the left: better)", at=at, span=across),
        "deep mean cosine: arm − control", tuple(series), y_range=up, edges=((0.0, "control"),), uprights=uprights,
        zone=(-least, least), height=460,
    )  # fmt: skip
    return Figure(chart, "Effect against cost", typeset(_tradeoff_words(trial, shown, bound)))


def _both(arm: ArmResult, key: str) -> tuple[Estimate, Estimate]:
    metrics: Mapping[str, Estimate] = arm.effect.metrics if arm.effect else {}
    return metrics.get("mean_cosine", NOTHING), metrics.get(key, NOTHING)


def _ends(of: Sequence[Estimate]) -> list[float]:
    return [v for e in of for v in (e.value, e.low, e.high) if v is not None]


def _by_dose(trial: Trial) -> list[ArmResult]:
    """The arms of each dose–response curve together, weakest first, so that a line can join them."""
    order = [point.arm for dose in trial.doses for point in dose.points]
    first = sorted((arm for arm in trial.arms if arm.spec.name in order), key=lambda arm: order.index(arm.spec.name))
    return [*first, *(arm for arm in trial.arms if arm.spec.name not in order)]


def _joined(trial: Trial, names: Sequence[str], values: Values) -> list[Series]:
    """A thin line through the arms that differ in their coefficient alone."""
    made = []
    for dose in trial.doses:
        inside = [name in {point.arm for point in dose.points} for name in names]
        if sum(inside) > 1:
            on = [value if held else None for value, held in zip(values, inside, strict=True)]
            made.append(Series(f"{dose.title}, by coefficient", on, "quiet", width=1.2))
    return made


def _tradeoff_words(
    trial: Trial, shown: Sequence[tuple[ArmResult, Estimate, Estimate]], bound: float | None
) -> str:  # fmt: skip
    held = [arm.spec.name for arm, _, _ in shown if arm.verdict == "dispersed"]
    words = "Further down is more spread, further right is worse language modelling; bars are 95 % intervals."
    if bound is not None:
        share = 100 * trial.plan.training.quality_tolerance
        words += f" Quality counts as held up to +{number(bound, 4)} ({share:g} % of the control’s)."
    if held:
        return f"{words} Measurably more spread with quality held: {_listed(held)}."
    return f"{words} No arm is measurably more spread with quality held."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- dose and response ---------------------------------------------------------------------------------


def dose_figures(trial: Trial, dose: DoseResponse, rank: int) -> list[Figure]:
    """Effect and cost over the coefficient; nothing below two points."""
    if len(dose.points) < 2:
        return []
    return [figure for figure in (_effect(trial, dose, rank), _cost(trial, dose, rank)) if figure is not None]


def _effect(trial: Trial, dose: DoseResponse, rank: int) -> Figure | None:
    of, least = [point.effect for point in dose.points], trial.plan.training.min_effect
    if not _ends(of):
        return None
    chart = Chart(
        f"chart-dose-{rank}-effect", _coefficients(dose), "arm − control", (_dosed(of, "accent", 3),),
        y_range=padded([*_ends(of), -1.5 * least, 1.5 * least]), edges=((0.0, "control"),), zone=(-least, least),
        height=320, width=520,
    )  # fmt: skip
    words = f"Deep mean cosine, arm − control; lower is more spread. {_points(dose, of, 3)}"
    return Figure(chart, "What it does", typeset(words), wide=False)


def _cost(trial: Trial, dose: DoseResponse, rank: int) -> Figure | None:
    of, key, bound = [point.quality for point in dose.points], quality_key(trial), tolerated(trial)
    if not _ends(of):
        return None
    edges = ((0.0, "control"), *(((bound, "tolerance"),) if bound else ()))
    chart = Chart(
        f"chart-dose-{rank}-cost", _coefficients(dose), "arm − control",
        (_dosed(of, "plum", DIGITS[key], "dash", "square"),),
        y_range=padded([*_ends(of), 0.0, *([1.2 * bound] if bound else [])]), edges=edges, height=320, width=520,
    )  # fmt: skip
    words = f"{TITLES[key].capitalize()}, arm − control; lower is better. {_points(dose, of, DIGITS[key])}"
    return Figure(chart, "What it costs", typeset(words), wide=False)


def _coefficients(dose: DoseResponse) -> Axis:
    """One place per coefficient, evenly apart, for they are mostly chosen by factors."""
    labels = tuple(f"{point.coefficient:g}" for point in dose.points)
    return Axis(labels, labels, "coefficient")


def _dosed(of: Sequence[Estimate], ink: str, digits: int, dash: str = "solid", symbol: str = "circle") -> Series:
    values, low, high = ([getattr(e, part) for e in of] for part in ("value", "low", "high"))
    drawn = any(v is not None for v in low)
    return Series(
        "mean over seeds, 95 % over texts", values, ink, low if drawn else None, high if drawn else None, dash, symbol,
        2.5, digits,
    )  # fmt: skip


def _points(dose: DoseResponse, of: Sequence[Estimate], digits: int) -> str:
    parts = [f"{p.coefficient:g}: {difference(e, digits)}" for p, e in zip(dose.points, of, strict=True)]
    return f"{'; '.join(parts)}."
