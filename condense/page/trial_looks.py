"""How the arms of a trial are drawn: the colour says the remedy, dash and mark say which of its arms."""

from __future__ import annotations

from itertools import count

from condense.page.treatment_figures import Look
from condense.trials import Trial

BEFORE = Look("before", "quiet", "dot", "square")
CONTROL = Look("control", "warm", "longdash", "diamond")
_INKS = {
    "dispersion": ("accent", "navy", "sky"), "embedding-dropout": ("plum",), "noisy-embedding": ("leaf",),
    "active-forgetting": ("rose",), "larger-vocab": ("teal",), "cosreg": ("moss",),
}  # fmt: skip
_DASHES = ("solid", "dash", "dashdot", "longdash", "dot")
_SYMBOLS = ("circle", "square", "triangle", "diamond")
_LINES, _MARKS = len(_DASHES), len(_SYMBOLS)


def looks(trial: Trial) -> dict[str, Look]:
    """The look of every arm by its name; no two are the same up to twenty arms, even without colour."""
    found, place = {}, count()
    of_remedy: dict[str, int] = {}
    for arm in trial.arms:
        name, remedy = arm.spec.name, arm.spec.remedy
        if remedy == "control":
            found[name] = CONTROL._replace(words=name)
            continue
        at, inks = next(place), _INKS[remedy]
        own = of_remedy[remedy] = of_remedy.get(remedy, -1) + 1
        found[name] = Look(name, inks[own % len(inks)], _DASHES[at % _LINES], _SYMBOLS[at % _MARKS])
    return found
