"""Which charts a trial is drawn with over depth, and what each one says in words. Records in, charts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condense.records.trial import SitePoint, Trial, depth, mean, reading
from condense.report.charts import Axis, Chart, Shade
from condense.report.depth import padded
from condense.report.diagnosis.figures import NOTHING
from condense.report.parts import Figure
from condense.report.text import difference, number, typeset
from condense.report.trial.looks import BEFORE, drawn, looks
from condense.report.trial.rows import DIGITS, TITLES, WITHOUT_TOP

MOST_POINTS = 550
Lines = Mapping[str, tuple[SitePoint, ...]]


def stack_of(trial: Trial) -> str:
    """The stack that is drawn and judged: the last one, which is the decoder where there are two."""
    return trial.before.sites[-1].stack if trial.before.sites else "decoder"


def site_label(site: SitePoint) -> str:
    """Short name of a site: `embedding`, `block 7`, `output`."""
    return f"block {site.index}" if site.site == "block" else site.site


def lines(trial: Trial) -> dict[str, tuple[SitePoint, ...]]:
    """Before and every arm that was measured, over the sites of the drawn stack; an arm is the mean of its seeds."""
    stack = stack_of(trial)
    found = {"before": trial.before.sites} | {arm.spec.name: depth(arm.runs) for arm in trial.arms}
    drawn = {name: tuple(site for site in sites if site.stack == stack) for name, sites in found.items()}
    expected = len(drawn["before"])
    return {name: sites for name, sites in drawn.items() if sites and len(sites) == expected}


# --- over depth ----------------------------------------------------------------------------------------


def depth_figures(trial: Trial) -> list[Figure]:
    """All arms over depth, overlaid: the mean cosine, its difference to the control, what lies behind it."""
    found = lines(trial)
    if not found:
        return []
    made = [
        _overlaid(trial, found, "mean_cosine", "How alike are two tokens of one text?", wide=True),
        _effects(trial, found["before"]),
    ]
    if len(found) * len(found["before"]) <= MOST_POINTS:  # more would not fit into 2.3 MB; the table has them
        made += [
            _overlaid(trial, found, WITHOUT_TOP, "The same, without each text’s top three dimensions", wide=False),
            _overlaid(trial, found, "effective_rank", "How many directions are in use?", wide=False),
        ]
    return [figure for figure in made if figure is not None]


def depth_axis(sites: Sequence[SitePoint]) -> Axis:
    """Embedding, the blocks, and the output set apart on the right."""
    blocks = sum(site.site == "block" for site in sites)
    step = next((s for s in (1, 2, 5, 10, 20, 50) if blocks / s <= 7), 100)
    ticks = {"embedding": "emb.", "output": "out"}
    return Axis(
        tuple(map(site_label, sites)),
        tuple(ticks.get(site.site, "" if site.index % step else str(site.index)) for site in sites),
        "block", sum(site.site == "output" for site in sites), max(1, round(blocks * 0.07)),
    )  # fmt: skip


def _deepest(sites: Sequence[SitePoint]) -> Shade | None:
    places = [i for i, site in enumerate(sites) if site.site == "block"]
    if len(places) < 2:
        return None
    return Shade(places[len(places) // 2], places[-1], "deepest half: what the table reads")


def _overlaid(trial: Trial, found: Lines, key: str, title: str, *, wide: bool) -> Figure | None:
    named, rank = looks(trial), key == "effective_rank"
    series = tuple(
        drawn(named.get(name, BEFORE), [getattr(site, key) for site in sites], 1 if rank else 3)
        for name, sites in reversed(list(found.items()))  # the legend turns them round again
    )
    values = [v for s in series for v in s.values if v is not None]
    if not values:
        return None
    sites, span = found["before"], (min(0.0, *values) - 0.02, max(values) + 0.05)
    chart = Chart(
        f"chart-{key.replace('_', '-')}", depth_axis(sites), "directions" if rank else "cosine", series,
        y_range=None if rank else span, shade=_deepest(sites) if wide else None,
        height=440 if wide else 340, width=1000 if wide else 520,
    )  # fmt: skip
    return Figure(chart, title, typeset(_depth_words(trial, key)), wide=wide)


def _depth_words(trial: Trial, key: str) -> str:
    digits = DIGITS[key]
    before, control = reading(trial.before, key).value, mean(trial.control, key)
    words = f"Over the deepest half, {TITLES[key].removeprefix('deep ')}: {number(before, digits)} before, "
    words += f"{number(control, digits)} in the control."
    moved = [(arm.spec.name, arm.effect.metrics.get(key, NOTHING)) for arm in trial.arms if arm.effect]
    known = [(name, of) for name, of in moved if of.value is not None]
    if not known:
        return words
    far = max(known, key=lambda pair: abs(pair[1].value or 0.0))
    words += f" Furthest from it is {far[0]}: {difference(far[1], digits)}."
    return words + (" An arm’s line is the mean over its seeds." if key == "mean_cosine" else "")


def _effects(trial: Trial, sites: Sequence[SitePoint]) -> Figure | None:
    """Arm − control at every site, without bands: eight of them would hide each other."""
    named, least = looks(trial), trial.plan.training.min_effect
    series = []
    for arm in reversed(trial.arms):
        at = {(e.stack, e.site, e.index): e.metrics for e in (arm.effect.sites if arm.effect else ())}
        of = [at.get((s.stack, s.site, s.index), {}).get("mean_cosine", NOTHING) for s in sites]
        if any(e.value is not None for e in of):
            series.append(drawn(named[arm.spec.name], [e.value for e in of], 3))
    values = [v for s in series for v in s.values if v is not None]
    if not values:
        return None
    chart = Chart(
        "chart-effects", depth_axis(sites), "arm − control", tuple(series),
        y_range=padded([*values, -2 * least, 2 * least]), edges=((0.0, "control"),), zone=(-least, least),
        shade=_deepest(sites), height=420,
    )  # fmt: skip
    words = "Arm − control in mean cosine, paired by seed and text. Below 0 an arm is more spread than the control."
    return Figure(chart, "What each arm did, layer by layer", words)
