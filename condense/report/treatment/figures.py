"""Which charts a treatment is drawn with, and what each one says in words. Records in, charts out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from condense.records.base import Estimate
from condense.records.diagnosis import SiteReading
from condense.records.treatment import SiteEffect, Treatment
from condense.report.charts import POINTS, Axis, Chart, Figure, Look, Panels, over_steps, padded
from condense.report.depth import (
    StackView,
    deepest_half,
    depth_axis,
    differences,
    gaussian_null,
    overlay,
    readings,
    site_label,
    stack_views,
)
from condense.report.tables import digits_of
from condense.report.text import NOTHING, WITHOUT_TOP, difference, listed, number, percent, signed

LOOKS = {
    "before": Look("before", "quiet", "dot", "square"),
    "control": Look("control: cross-entropy only", "warm", "longdash", "diamond"),
    "treated": Look("treated: with the loss", "accent", "solid", "circle"),
}
COSINE = Look("mean cosine", "accent", symbol="circle")
REST = Look("without each text’s top 3 dimensions", "warm", "longdash", "diamond")
MOST_STEPS = 150


def look(arm: str) -> Look:
    """How an arm is called and drawn."""
    return LOOKS.get(arm, Look(arm, "plum", "dash"))


def site_effects(treatment: Treatment, sites: Sequence[SiteReading]) -> list[SiteEffect]:
    """The differences at these sites, in their order."""
    found = {(site.stack, site.site, site.index): site for site in treatment.effect.sites}
    return [found.get((s.stack, s.site, s.index), SiteEffect(s.site, s.stack, s.index, {})) for s in sites]


# --- over depth ----------------------------------------------------------------------------------------


def depth_figures(treatment: Treatment) -> list[Figure]:
    """The arms over depth, overlaid, and their difference with its interval."""
    views = {name: stack_views(arm.validation)[0] for name, arm in treatment.arms.items()}
    if not views["treated"].blocks:
        return []
    return [
        _depth_of_arms(views, "mean_cosine", "How alike are two tokens of one text?", _cosine_words(treatment, views)),
        _depth_of_arms(
            views, WITHOUT_TOP, "The same, without each text’s top three dimensions", _without_words(treatment)
        ),
        _effect(treatment, views["treated"]),
        _depth_of_arms(views, "effective_rank", "How many directions are in use?", _rank_words(treatment)),
    ]


def _depth_of_arms(views: Mapping[str, StackView], key: str, title: str, words: str) -> Figure:
    sites = views["treated"].sites
    series = gaussian_null(sites) if key == "effective_rank" else []
    series += [
        look(name).curve(readings(view.sites, key), digits_of(key))
        for name, view in views.items()
        if len(view.sites) == len(sites)
    ]
    return Figure(overlay(key, depth_axis(sites), series, shade=deepest_half(sites)), title, words)


def _each(treatment: Treatment, key: str, digits: int) -> str:
    """The deep number of every arm, in words."""
    named = {"before": "before", "control": "in the control", "treated": "treated"}
    return listed(
        [
            f"{number(arm.validation.deep.get(key, NOTHING).value, digits)} {named.get(name, name)}"
            for name, arm in treatment.arms.items()
        ]
    )


def _cosine_words(treatment: Treatment, views: Mapping[str, StackView]) -> str:
    words = f"Over the deepest half the mean cosine is {_each(treatment, 'mean_cosine', 2)}."
    last = [view.sites[-1] for view in views.values()]
    end = [site.metrics.get("mean_cosine", NOTHING).value for site in last if site.site == "output"]
    if len(end) == len(views):
        words += f" At the output, after the final norm: {', '.join(number(v, 2) for v in end)}, in the same order."
    if "control" in views:
        words += " Between before and control lies training as such, between control and treated the loss."
    return words


_OPENED = {
    "cone opened": "the cone itself opened",
    "three dimensions rescaled": "three dimensions were rescaled, and the cone behind them is as it was",
    "both": "in part the cone opened, in part three dimensions were rescaled",
    "neither": "neither did the cone open nor were three dimensions rescaled",
    "not clear": "whether the cone opened or three dimensions were rescaled is not clear",
}


def _without_words(treatment: Treatment) -> str:
    deep, opened = treatment.effect.deep, treatment.verdict.opened
    whole, rest = deep.get("mean_cosine", NOTHING), deep.get(WITHOUT_TOP, NOTHING)
    words = f"With the three strongest dimensions of each text set aside: {_each(treatment, WITHOUT_TOP, 2)}."
    left = f"Of a difference of {difference(whole)} this leaves {difference(rest)}"
    return f"{words} {left}: {_OPENED.get(opened, opened)}."


def _rank_words(treatment: Treatment) -> str:
    change = treatment.effect.deep.get("effective_rank", NOTHING)
    words = f"Over the deepest half the effective rank is {_each(treatment, 'effective_rank', 1)}"
    null = treatment.arms["treated"].validation.deep.get("effective_rank", NOTHING).null
    words += f", of {null:.0f} for random directions" if null else ""
    return f"{words}; treated − {treatment.effect.against} {difference(change, 1)}."


def _effect(treatment: Treatment, view: StackView) -> Figure:
    at, against = site_effects(treatment, view.sites), treatment.effect.against
    series = [
        style.curve([site.metrics.get(key, NOTHING) for site in at], 4, whiskers=True)
        for key, style in ((WITHOUT_TOP, REST), ("mean_cosine", COSINE))
    ]
    axis, title = depth_axis(view.sites), f"treated − {against}"
    shade, least = deepest_half(view.sites), treatment.effect.least()
    chart = differences("chart-effect", axis, series, title, least, "no change", shade)
    heading = "What the loss did, layer by layer" if against == "control" else "What changed, layer by layer"
    return Figure(chart, heading, _effect_words(treatment, at))


def _effect_words(treatment: Treatment, at: Sequence[SiteEffect]) -> str:
    blocks = [site for site in at if site.site == "block"]
    falls, rises = (sum(site.words.get("mean_cosine") == word for site in blocks) for word in DIRECTIONS)
    words = f"Treated − {treatment.effect.against}: the mean cosine falls measurably at {falls} of {len(blocks)} blocks"
    words += f" and rises at {rises}" if rises else ""
    known = [site for site in blocks if site.metrics.get("mean_cosine", NOTHING).value is not None]
    far = max(known, key=lambda site: abs(site.metrics["mean_cosine"].value or 0.0), default=None)
    words += f", and differs most at {site_label(far)}: {difference(far.metrics['mean_cosine'])}." if far else "."
    rest = sum(site.words.get(WITHOUT_TOP) == DIRECTIONS[0] for site in blocks)
    words += f" Without the top three dimensions it falls at {rest}."
    if at[-1].site == "output":
        out = [difference(at[-1].metrics.get(key, NOTHING)) for key in ("mean_cosine", WITHOUT_TOP)]
        words += f" At the output, after the final norm, the two differ by {' and '.join(out)}."
    return words


DIRECTIONS = ("more spread", "more condensed")

# --- while it trained ----------------------------------------------------------------------------------

Logged = Mapping[str, Mapping[int, float | None]]


def training_figures(treatment: Treatment) -> list[Figure]:
    """Cross-entropy, penalty, mean cosine and gradient norm over the steps, as far as they were logged."""
    curves = {name: arm.curve for name, arm in treatment.arms.items() if arm.curve.step}
    described = {
        "ce_loss": ("Cross-entropy", "nats per token", _ce_words),
        "penalty": ("The penalty", "coefficient × loss", _penalty_words),
        "mean_cosine": ("Mean cosine, live", "cosine", _live_words),
        "gradient_norm": ("Gradient norm", "length", _norm_words),
    }
    made = []
    for key, (title, unit, say) in described.items():
        logged = {
            name: dict(zip(curve.step, getattr(curve, key), strict=False))
            for name, curve in curves.items()
            if key != "penalty" or name != "control"
        }
        values = [v for arm in logged.values() for v in arm.values() if v is not None]
        if not values:
            continue
        norm, clip = key == "gradient_norm", treatment.plan.max_grad_norm
        looks = {name: look(name) for name in logged}
        chart = over_steps(key, unit, logged, looks, MOST_STEPS, floor=0.0 if norm else None, width=520)
        if norm and clip <= 1.2 * max(values):
            chart = replace(chart, edges=((clip, "clip"),))
        made.append(Figure(chart, title, say(treatment, logged), wide=False))
    return made


def _last(values: Mapping[int, float | None]) -> float | None:
    """Mean over the last tenth of what was logged."""
    known = [value for _, value in sorted(values.items()) if value is not None]
    tail = known[-max(1, len(known) // 10) :]
    return sum(tail) / len(tail) if tail else None


def _first_and_last(logged: Logged, digits: int) -> str:
    """Where each arm came from and where it ended, or where it was last read: with the loss at 0 no cosine is."""
    parts = []
    for name, values in logged.items():
        known = {step: value for step, value in sorted(values.items()) if value is not None}
        early = known and max(known) < max(values)
        until = f" (last read at step {max(known)})" if early else ""
        first = next(iter(known.values()), None)
        parts.append(f"{name} from {number(first, digits)} to {number(_last(values), digits)}{until}")
    return "; ".join(parts)


def _ce_words(treatment: Treatment, logged: Logged) -> str:
    words = f"From the first step to the mean of the last tenth: {_first_and_last(logged, 3)}."
    ends = [_last(logged[name]) for name in ("treated", "control") if name in logged]
    if len(ends) == 2 and None not in ends:
        gap = (ends[0] or 0.0) - (ends[1] or 0.0)
        words += f" By then treated − control is {signed(gap)} nats per token."
    return words


def _penalty_words(treatment: Treatment, logged: Logged) -> str:
    ratio = treatment.arms["treated"].penalty_to_ce
    words = f"Coefficient × {treatment.plan.loss} loss: {_first_and_last(logged, 3)}. Lower is more spread."
    return words + (
        f" Its size is {100 * ratio:.2g} % of cross-entropy on average while it is on." if ratio is not None else ""
    )


def _live_words(treatment: Treatment, logged: Logged) -> str:
    return f"On the training batches, over the treated layers: {_first_and_last(logged, 2)}."


def _norm_words(treatment: Treatment, logged: Logged) -> str:
    clip, parts = treatment.plan.max_grad_norm, []
    for name, values in logged.items():
        known = sorted(v for v in values.values() if v is not None)
        over = sum(v > clip for v in known) / len(known) if known else None
        parts.append(f"{name} {number(known[len(known) // 2] if known else None, 2)} ({percent(over)} above)")
    return f"Median before clipping at {clip:g}: {', '.join(parts)}."


# --- the cloud -----------------------------------------------------------------------------------------


def cloud_panels(treatment: Treatment) -> list[Panels]:
    """The same tokens of every arm in the same two axes; nothing if no cloud was kept."""
    clouds = {name: [p for p in arm.cloud if len(p) == 2] for name, arm in treatment.arms.items() if arm.cloud}
    points = [point for cloud in clouds.values() for point in cloud]
    if len(points) < 2:
        return []
    across, up = (padded([p[axis] for p in points]) for axis in (0, 1))
    tall = max(0.3, min(1.4, (up[1] - up[0]) / ((across[1] - across[0]) or 1.0)))
    shares = [f" ({percent(share)})" for share in treatment.cloud_variance[:2]] + ["", ""]
    charts = []
    for rank, (name, cloud) in enumerate(clouds.items()):
        axis = Axis(title=f"first axis{shares[0]}", at=tuple(p[0] for p in cloud), span=across)
        dots = look(name)._replace(dash=POINTS).curve([Estimate(p[1]) for p in cloud], width=2.5)
        chart = Chart(f"chart-cloud-{rank}", axis, f"second axis{shares[1]}", (dots,), y_range=up, equal=True)
        charts.append(replace(chart, width=340, height=round(276 * tall) + 60))
    spreads = {name: _spread(cloud) for name, cloud in clouds.items()}
    names = tuple((look(name).words, f"spread {number(spread, 2)}") for name, spread in spreads.items())
    words = _cloud_words(treatment, spreads)
    return [Panels(tuple(charts), names, "The same tokens, before and after", words, len(charts))]


def _cloud_words(treatment: Treatment, spreads: Mapping[str, float]) -> str:
    count = len(treatment.arms["treated"].cloud)
    held = sum(treatment.cloud_variance[:2])
    words = (
        f"The unit states of the same {count} validation tokens at {treatment.cloud_site}, in the two principal axes "
        "of all arms together; a unit is equally long on both axes. "
    )
    if held:
        words += f"These axes hold {percent(held)} of the variance; the rest is out of sight. "
    spread = ", ".join(f"{number(value, 2)} {name}" for name, value in spreads.items())
    return f"{words}Spread around each arm’s own middle, in this plane: {spread}."


def _spread(points: Sequence[tuple[float, ...]]) -> float:
    """Root mean square distance from the middle."""
    middle = [sum(p[axis] for p in points) / len(points) for axis in (0, 1)]
    return math.sqrt(sum((p[0] - middle[0]) ** 2 + (p[1] - middle[1]) ** 2 for p in points) / len(points))
