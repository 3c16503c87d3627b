"""How a treatment trained and what became of the token cloud, as charts with words. Records in, charts out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condense.records.treatment import Treatment
from condense.report.charts import POINTS, Axis, Chart, Series
from condense.report.depth import padded
from condense.report.parts import Figure, Look, look
from condense.report.text import number, percent, typeset

MOST_STEPS = 150
FEW_STEPS = 40


@dataclass(frozen=True)
class Panels:
    """Small charts side by side over the same axes, with a name and a note under each."""

    charts: tuple[Chart, ...]
    names: tuple[tuple[str, str], ...]
    title: str
    takeaway: str


# --- while it trained ----------------------------------------------------------------------------------


def training_figures(treatment: Treatment) -> list[Figure]:
    """Cross-entropy, penalty, mean cosine and gradient norm over the steps, as far as they were logged."""
    curves = {name: arm.curve for name, arm in treatment.arms.items() if arm.curve.step}
    steps = sorted({step for curve in curves.values() for step in curve.step})
    if not steps:
        return []
    made = []
    for key, title, unit, say in _TRAINING:
        logged = {
            name: dict(zip(curve.step, getattr(curve, key), strict=False))
            for name, curve in curves.items()
            if key != "penalty" or name != "control"
        }
        series = tuple(
            _logged(look(name), [values.get(step) for step in steps]) for name, values in logged.items()
        )  # fmt: skip
        if not any(v is not None for s in series for v in s.values):
            continue
        clip = treatment.plan.max_grad_norm if key == "gradient_norm" else None
        made.append(Figure(_curves(key, unit, steps, series, clip), title, typeset(say(treatment, logged)), wide=False))
    return made


def _curves(key: str, unit: str, steps: Sequence[int], series: tuple[Series, ...], clip: float | None) -> Chart:
    values = [v for s in series for v in s.values if v is not None]
    edges = ((clip, "clip"),) if clip is not None and clip <= 1.2 * max(values) else ()
    axis = Axis(title="step", at=tuple(thinned(list(map(float, steps)))), span=(0.0, 1.025 * max(steps[-1], 1)))
    floor = [0.0] if key == "gradient_norm" else []
    return Chart(
        f"chart-training-{key.replace('_', '-')}", axis, unit, series, y_range=padded([*values, *floor]), edges=edges,
        height=310, width=520,
    )  # fmt: skip


def _logged(style: Look, values: Sequence[float | None]) -> Series:
    thin = thinned(values)
    symbol = style.symbol if len(thin) <= FEW_STEPS else "none"
    return Series(style.words, thin, style.ink, dash=style.dash, symbol=symbol)


def thinned(values: Sequence[float | None], most: int = MOST_STEPS) -> list[Any]:
    """Means of neighbouring steps, so many that at most `most` are left."""
    size = -(-len(values) // most)
    groups = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [sum(group) / len(group) if group else None for group in groups]


Logged = Mapping[str, Mapping[int, float | None]]


def _last(values: Mapping[int, float | None]) -> float | None:
    """Mean over the last tenth of what was logged."""
    known = [value for _, value in sorted(values.items()) if value is not None]
    tail = known[-max(1, len(known) // 10) :]
    return sum(tail) / len(tail) if tail else None


def _ends(logged: Logged, digits: int) -> str:
    """Where each arm came from and where it ended."""
    parts = []
    for name, values in logged.items():
        first = next((v for _, v in sorted(values.items()) if v is not None), None)
        parts.append(f"{name} from {number(first, digits)} to {number(_last(values), digits)}")
    return "; ".join(parts)


def _ce_words(treatment: Treatment, logged: Logged) -> str:
    words = f"From the first step to the mean of the last tenth: {_ends(logged, 3)}."
    if {"control", "treated"} <= set(logged):
        ends = [_last(logged[name]) for name in ("treated", "control")]
        gap = None if None in ends else (ends[0] or 0.0) - (ends[1] or 0.0)
        words += f" By then treated − control is {gap:+.3f} nats per token." if gap is not None else ""
    return words


def _penalty_words(treatment: Treatment, logged: Logged) -> str:
    ratio = treatment.arms["treated"].penalty_to_ce
    words = f"Coefficient × {treatment.plan.loss} loss: {_ends(logged, 3)}. Lower is more spread."
    return words + (f" Its size is {100 * ratio:.2g} % of cross-entropy on average." if ratio is not None else "")


def _live_words(treatment: Treatment, logged: Logged) -> str:
    return f"On the training batches, over the treated layers: {_ends(logged, 2)}."


def _norm_words(treatment: Treatment, logged: Logged) -> str:
    clip, parts = treatment.plan.max_grad_norm, []
    for name, values in logged.items():
        known = sorted(v for v in values.values() if v is not None)
        over = sum(v > clip for v in known) / len(known) if known else None
        parts.append(f"{name} {number(known[len(known) // 2] if known else None, 2)} ({percent(over)} above)")
    return f"Median before clipping at {clip:g}: {', '.join(parts)}."


_TRAINING: tuple[tuple[str, str, str, Callable[[Treatment, Logged], str]], ...] = (
    ("ce_loss", "Cross-entropy", "nats per token", _ce_words),
    ("penalty", "The penalty", "coefficient × loss", _penalty_words),
    ("mean_cosine", "Mean cosine, live", "cosine", _live_words),
    ("gradient_norm", "Gradient norm", "length", _norm_words),
)


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
    charts = tuple(
        Chart(
            f"chart-cloud-{rank}", Axis(title=f"first axis{shares[0]}", at=tuple(p[0] for p in cloud), span=across),
            f"second axis{shares[1]}", (Series(look(name).words, [p[1] for p in cloud], look(name).ink, dash=POINTS,
                                               symbol=look(name).symbol, width=2.5),),
            y_range=up, equal=True, width=340, height=round(276 * tall) + 60,
        )
        for rank, (name, cloud) in enumerate(clouds.items())
    )  # fmt: skip
    spreads = {name: _spread(cloud) for name, cloud in clouds.items()}
    names = tuple((look(name).words, f"spread {number(spread, 2)}") for name, spread in spreads.items())
    return [Panels(charts, names, "The same tokens, before and after", _cloud_words(treatment, spreads))]


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
