"""Which charts a treatment is drawn with, and what each one says in words. Records in, charts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from condense.records.base import Estimate
from condense.records.diagnosis import SiteReading
from condense.records.treatment import Treatment
from condense.report.charts import Chart, Series, Shade
from condense.report.depth import StackView, depth_axis, padded, stack_views
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure, Look, look
from condense.report.text import difference, number, typeset

WITHOUT_TOP = "mean_cosine_without_top_dimensions"


def arm_views(treatment: Treatment) -> dict[str, StackView]:
    """The main stack of every arm on the validation text."""
    return {name: stack_views(arm.validation)[0] for name, arm in treatment.arms.items()}


def site_effects(treatment: Treatment, sites: Sequence[SiteReading]) -> list[Mapping[str, Estimate]]:
    """The differences at these sites, in their order."""
    found = {(site.stack, site.site, site.index): site.metrics for site in treatment.effect.sites}
    return [found.get((site.stack, site.site, site.index), {}) for site in sites]


# --- over depth ----------------------------------------------------------------------------------------


def depth_figures(treatment: Treatment) -> list[Figure]:
    """The arms over depth, overlaid, and their difference with its interval."""
    views = arm_views(treatment)
    if not views["treated"].blocks:
        return []
    return [
        _overlaid(treatment, views, "mean_cosine", "How alike are two tokens of one text?", _cosine_words),
        _overlaid(treatment, views, WITHOUT_TOP, "The same, without each text’s top three dimensions", _without_words),
        _effect(treatment, views["treated"]),
        _overlaid(treatment, views, "effective_rank", "How many directions are in use?", _rank_words),
    ]


def _overlaid(
    treatment: Treatment, views: Mapping[str, StackView], key: str, title: str,
    say: Callable[[Treatment, Mapping[str, StackView]], str],
) -> Figure:  # fmt: skip
    rank, sites = key == "effective_rank", views["treated"].sites
    series = [
        _line(look(name), [site.metrics.get(key, NOTHING) for site in view.sites], 1 if rank else 3)
        for name, view in views.items()
        if len(view.sites) == len(sites)
    ]
    if rank:
        nulls = [site.metrics.get(key, NOTHING).null for site in sites]
        name = "Gaussian null: random directions of the same shape"
        series.insert(0, Series(name, nulls, "ink", dash="dashdot", width=1.5, digits=1))
    lowest = min((v for s in series for v in (*s.values, *(s.low or ())) if v is not None), default=0.0)
    chart = Chart(
        f"chart-{key.replace('_', '-')}", depth_axis(sites), "directions" if rank else "cosine", tuple(series),
        y_range=None if rank else (min(0.0, lowest) - 0.02, 1.02), shade=_deepest(sites), height=380,
    )  # fmt: skip
    return Figure(chart, title, typeset(say(treatment, views)))


def _line(style: Look, estimates: Sequence[Estimate], digits: int) -> Series:
    values, low, high = ([getattr(e, part) for e in estimates] for part in ("value", "low", "high"))
    drawn = any(v is not None for v in low)
    return Series(
        style.words, values, style.ink, low if drawn else None, high if drawn else None, style.dash, style.symbol,
        2.5 if style.ink == "accent" else 2.0, digits,
    )  # fmt: skip


def _deepest(sites: Sequence[SiteReading]) -> Shade | None:
    places = [i for i, site in enumerate(sites) if site.site == "block"]
    if len(places) < 2:
        return None
    return Shade(places[len(places) // 2], places[-1], "deepest half: what the verdict reads")


def _each(treatment: Treatment, key: str, digits: int) -> str:
    """The deep number of every arm, in words."""
    named = {"before": "before", "control": "in the control", "treated": "treated"}
    parts = [
        f"{number(arm.validation.deep.get(key, NOTHING).value, digits)} {named.get(name, name)}"
        for name, arm in treatment.arms.items()
    ]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _cosine_words(treatment: Treatment, views: Mapping[str, StackView]) -> str:
    words = f"Over the deepest half the mean cosine is {_each(treatment, 'mean_cosine', 2)}."
    last = [view.sites[-1] for view in views.values()]
    end = [site.metrics.get("mean_cosine", NOTHING).value for site in last if site.site == "output"]
    if len(end) == len(views):
        words += f" At the output, after the final norm: {', '.join(number(v, 2) for v in end)}, in the same order."
    if "control" in views:
        words += " Between before and control lies training as such, between control and treated the loss."
    return words


def _without_words(treatment: Treatment, views: Mapping[str, StackView]) -> str:
    deep = treatment.effect.deep
    whole, rest = deep.get("mean_cosine", NOTHING), deep.get(WITHOUT_TOP, NOTHING)
    words = f"With the three strongest dimensions of each text set aside: {_each(treatment, WITHOUT_TOP, 2)}."
    opened = _OPENED[treatment.verdict.opened]
    return f"{words} Of a difference of {difference(whole)} this leaves {difference(rest)}: {opened}"


_OPENED = {
    "cone opened": "the cone itself opened.",
    "three dimensions rescaled": "three dimensions were rescaled, and the cone behind them is as it was.",
    "both": "in part the cone opened, in part three dimensions were rescaled.",
    "neither": "neither did the cone open nor were three dimensions rescaled.",
    "not clear": "whether the cone opened or three dimensions were rescaled is not clear.",
}


def _rank_words(treatment: Treatment, views: Mapping[str, StackView]) -> str:
    change = treatment.effect.deep.get("effective_rank", NOTHING)
    words = f"Over the deepest half the effective rank is {_each(treatment, 'effective_rank', 1)}"
    null = treatment.arms["treated"].validation.deep.get("effective_rank", NOTHING).null
    words += f", of {null:.0f} for random directions" if null else ""
    return f"{words}; treated − {treatment.effect.against} {difference(change, 1)}."


# --- the effect ----------------------------------------------------------------------------------------


def _effect(treatment: Treatment, view: StackView) -> Figure:
    at, least, against = site_effects(treatment, view.sites), treatment.plan.min_effect, treatment.effect.against
    named = (
        (WITHOUT_TOP, Look("without each text’s top 3 dimensions", "warm", "longdash", "diamond")),
        ("mean_cosine", Look("mean cosine", "accent", "solid", "circle")),
    )
    series = []
    for key, style in named:
        line = _line(style, [metrics.get(key, NOTHING) for metrics in at], 4)
        series.append(Series(**{**vars(line), "whiskers": True}))
    values = [v for s in series for v in (*s.values, *(s.low or ()), *(s.high or ())) if v is not None]
    chart = Chart(
        "chart-effect", depth_axis(view.sites), f"treated − {against}", tuple(series),
        y_range=padded([*values, -2 * least, 2 * least]), edges=((0.0, "no change"),), zone=(-least, least),
        shade=_deepest(view.sites), height=400,
    )  # fmt: skip
    title = "What the loss did, layer by layer" if against == "control" else "What changed, layer by layer"
    return Figure(chart, title, _effect_words(treatment, view, at))


def _effect_words(treatment: Treatment, view: StackView, at: Sequence[Mapping[str, Estimate]]) -> str:
    least, against = treatment.plan.min_effect, treatment.effect.against
    blocks = [(site, metrics) for site, metrics in zip(view.sites, at, strict=True) if site.site == "block"]
    of = [(site.label, metrics.get("mean_cosine", NOTHING)) for site, metrics in blocks]
    falls, rises = (sum(_moved(e, least, sign) for _, e in of) for sign in (-1, 1))
    words = f"Treated − {against}: the mean cosine falls measurably at {falls} of {len(of)} blocks"
    words += f" and rises at {rises}" if rises else ""
    far = max(of, key=lambda pair: abs(pair[1].value or 0.0), default=None)
    words += f", and differs most at {far[0]}: {difference(far[1])}." if far and far[1].value is not None else "."
    rest = sum(_moved(metrics.get(WITHOUT_TOP, NOTHING), least, -1) for _, metrics in blocks)
    words += f" Without the top three dimensions it falls at {rest}."
    if view.sites[-1].site == "output":
        out = (difference(at[-1].get(key, NOTHING)) for key in ("mean_cosine", WITHOUT_TOP))
        words += " At the output, after the final norm, the two differ by {} and {}.".format(*out)
    return words


def _moved(of: Estimate, least: float, sign: int) -> bool:
    """Whether a difference is measurable and has this sign."""
    if of.value is None or of.low is None or of.high is None:
        return False
    return sign * of.value >= least and (of.low > 0 if sign > 0 else of.high < 0)
