"""How the arms of a trial are drawn: the colour says the remedy, dash and mark say which of its arms."""

from __future__ import annotations

from itertools import count

from condense.records.trial import Trial
from condense.report.charts import Series, Values
from condense.report.parts import Look
from condense.training.remedies import remedy_of

BEFORE = Look("before", "quiet", "dot", "square")
CONTROL = Look("control", "warm", "longdash", "diamond")
_DASHES = ("solid", "dash", "dashdot", "longdash", "dot")
_SYMBOLS = ("circle", "square", "triangle", "diamond")
MARKS = 12


def drawn(look: Look, values: Values, digits: int = 3) -> Series:
    """A line of this look, with so few marks that ten of them can be told apart."""
    return Series(look.words, values, look.ink, None, None, look.dash, look.symbol, 1.8, digits, marks=MARKS)


def looks(trial: Trial) -> dict[str, Look]:
    """The look of every arm by its name; no two are the same up to twenty arms, even without colour."""
    found, place = {}, count()
    of_remedy: dict[str, int] = {}
    for arm in trial.arms:
        name, remedy = arm.spec.name, remedy_of(arm.spec)
        if remedy.is_control:
            found[name] = CONTROL._replace(words=name)
            continue
        at, inks = next(place), remedy.inks
        own = of_remedy[remedy.name] = of_remedy.get(remedy.name, -1) + 1
        found[name] = Look(name, inks[own % len(inks)], _DASHES[at % len(_DASHES)], _SYMBOLS[at % len(_SYMBOLS)])
    return found
