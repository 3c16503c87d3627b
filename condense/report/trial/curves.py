"""How the arms of a trial trained, as charts with words. Records in, charts out."""

from __future__ import annotations

from condense.records.trial import Trial, curve
from condense.report.charts import Axis, Chart
from condense.report.depth import padded
from condense.report.parts import Figure
from condense.report.text import number, typeset
from condense.report.treatment.curves import thinned
from condense.report.trial.looks import drawn, looks
from condense.training.remedies import remedy_of

MOST_STEPS = 75
_DRAWN = (("ce_loss", "Cross-entropy", "nats per token"), ("mean_cosine", "Mean cosine, live", "cosine"))


def training_figures(trial: Trial) -> list[Figure]:
    """Cross-entropy and live mean cosine of every arm over the steps, mean over its seeds."""
    curves = {arm.spec.name: curve(arm) for arm in trial.arms}
    made = []
    for key, title, unit in _DRAWN:
        logged = {
            name: dict(zip(one.step, getattr(one, key), strict=False))
            for name, one in curves.items()
            if any(value is not None for value in getattr(one, key))
        }
        if logged:
            made.append(_training(trial, key, title, unit, logged))
    return made


def _training(
    trial: Trial, key: str, title: str, unit: str, logged: dict[str, dict[int, float | None]]
) -> Figure:  # fmt: skip
    named, steps = looks(trial), sorted({step for values in logged.values() for step in values})
    series = []
    for name, values in reversed(list(logged.items())):  # the legend turns them round again
        thin = thinned([values.get(step) for step in steps], MOST_STEPS)
        series.append(drawn(named[name], thin))
    known = [v for s in series for v in s.values if v is not None]
    axis = Axis(
        title="step", at=tuple(thinned(list(map(float, steps)), MOST_STEPS)), span=(0.0, 1.025 * max(steps[-1], 1))
    )
    chart = Chart(f"chart-training-{key.replace('_', '-')}", axis, unit, tuple(series), y_range=padded(known),
                  height=380, width=1000)  # fmt: skip
    last = steps[-1]
    ends = [f"{name} {number(values.get(last), 3)}" for name, values in logged.items()]
    words = f"At step {last}, mean over seeds: {', '.join(ends)}."
    if key == "ce_loss" and any(remedy_of(arm.spec).other_tokens for arm in trial.arms):
        words += " Nats per token are not comparable where the vocabulary differs; the table reads bits per byte."
    return Figure(chart, title, typeset(words))
