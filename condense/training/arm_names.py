"""The grammar of `--arms`: `name[:loss][@layers][+schedule][=coefficient]`, by commas. Standard library only.

    dispersion                          the published loss on all blocks, at every one of `--coefficients`
    dispersion:mean_cosine@late=0.3     another loss, the deepest half, one coefficient
    dispersion@3+7+-1                   numbered blocks: joined by +, because commas separate arms
    dispersion+linear:0.25=1            the coefficient falls to 0 at a quarter of the steps
    dispersion+constant=1               it does not, whatever `--coefficient-schedule` says
    cosreg=1                            takes a coefficient, nothing else
    embedding-dropout                   takes nothing

The control is always there, once and first, named or not. What each remedy takes is in condense/training/remedies.py.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import cast, get_args
from urllib.parse import quote

from condense.errors import UsageError
from condense.records.plans import CONTROL, ArmSpec, LossName, Plan
from condense.records.schedules import shortest_number, shortest_schedule
from condense.training.remedies import REMEDIES, Remedy

LOSSES: tuple[str, ...] = get_args(LossName)
RANGES = ("all", "late", "early", "last")
GRAMMAR = (
    "write name[:loss][@layers][+schedule][=coefficient], arms separated by commas, block numbers joined by +: @3+7+-1"
)
# By its marks, in their order; a mark that comes twice or too early stays in the part before it and is refused there.
_PARTS = re.compile(
    r"(?P<name>[^:@=+]*)(?::(?P<loss>[^@=+]*))?(?:@(?P<layers>[^=]*?))?(?:\+(?P<schedule>\s*[A-Za-z][^=]*))?"
    r"(?:=(?P<coefficient>.*))?",
    re.DOTALL,
)


def parse_arms(text: str, coefficients: tuple[float, ...] = ()) -> tuple[ArmSpec, ...]:
    """The arms that `--arms` names, the control first; those that take a coefficient once for each of `coefficients`.

    An arm with a coefficient of its own (`=`) keeps that one alone; UsageError where all have one and `coefficients`
    are given, which no arm would use. Without either an arm takes its remedy's own. UsageError, with the nearest name
    there is, for an unknown name, loss or choice of layers, for a part that the arm does not take, and for an arm that
    comes twice.
    """
    for coefficient in coefficients:
        _check_coefficient(coefficient, "--coefficients")
    parts = [(part.strip(), _parse_part(part.strip(), coefficients)) for part in text.split(",")]
    specs = [spec for _, made in parts for spec in made]
    if coefficients and all(spec.coefficient is None for spec in specs):
        taking = ", ".join(remedy.name for remedy in REMEDIES.values() if remedy.coefficient is not None)
        raise UsageError("--coefficients is given, but no arm takes one", f"in --arms these take one: {taking}")
    if coefficients and all("=" in part or made[0].coefficient is None for part, made in parts):
        named = ", ".join(part for part, made in parts if made[0].coefficient is not None)
        hint = f"write {named.partition('=')[0]} without = in --arms, or leave --coefficients out"
        raise UsageError(f"--coefficients is given, but each arm has a coefficient of its own: {named}", hint)
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise UsageError(f"the arm {spec.name} comes twice", "name each arm once; see --arms and --coefficients")
        seen.add(spec.name)
    return (CONTROL, *(spec for spec in specs if spec != CONTROL))


def slug(spec: ArmSpec) -> str:
    """A folder name for an arm: no two arms of this grammar share one, and nothing in it leads elsewhere.

    `dispersion-mean_cosine@3+-1=0.1`: no colon, which Windows does not allow; whatever else is unusual is quoted.
    """
    named = _shortest_name(spec.remedy, spec.loss, spec.layers, spec.coefficient, spec.schedule)
    return quote(named.replace(":", "-"), safe="@=+")


def _parse_part(text: str, coefficients: tuple[float, ...]) -> list[ArmSpec]:
    """The arms of one part between commas: one, or one for each coefficient."""
    parts = _PARTS.fullmatch(text)
    if parts is None:
        raise UsageError(f"no schedule behind + in --arms: {text!r}", "for example dispersion+linear:0.25=1")
    if not parts["name"].strip():
        raise UsageError(f"an arm without a name in --arms: {text!r}", GRAMMAR)
    remedy = REMEDIES[_match_word(parts["name"].strip().lower().replace("_", "-"), tuple(REMEDIES), "arm")]
    for part in ("loss", "layers", "schedule", "coefficient"):
        if parts[part] is not None and part not in remedy.takes:
            raise UsageError(f"{remedy.name} takes no {part}: {text}", _accepted_parts(remedy))
    if remedy.coefficient is None:
        return [ArmSpec(remedy.name, remedy.name)]
    loss, layers, own = parts["loss"], parts["layers"], parts["coefficient"]
    chosen_loss = chosen_layers = None
    if "loss" in remedy.takes:
        word = Plan.loss if loss is None else loss.strip().lower().replace("-", "_")
        chosen_loss = cast(LossName, _match_word(word, LOSSES, "loss"))
    if "layers" in remedy.takes:
        chosen_layers = remedy.layers if layers is None else _parse_layers(layers)
    schedule = None if parts["schedule"] is None else _parse_schedule(parts["schedule"], text)
    doses = (_parse_coefficient(own, text),) if own is not None else coefficients or (remedy.coefficient,)
    return [
        ArmSpec(
            _shortest_name(remedy.name, chosen_loss, chosen_layers, dose, schedule),
            remedy.name,
            chosen_loss,
            chosen_layers,
            dose,
            schedule,
        )
        for dose in doses
    ]


def _parse_schedule(text: str, arm: str) -> str:
    """A schedule in its shortest form; `constant` too, which is not the plan's where that falls."""
    try:
        return shortest_schedule(text)
    except ValueError as error:
        raise UsageError(f"the schedule of {arm}: {error}", "for example dispersion+linear:0.25=1") from None


def _accepted_parts(remedy: Remedy) -> str:
    name, taken = remedy.name, remedy.takes
    if len(taken) > 1:
        return f"{name} takes {', '.join(taken)}"
    return f"{name} takes only a {taken[0]}: {name}=1" if taken else f"write {name} alone"


def _shortest_name(
    remedy: str, loss: str | None, layers: str | None, coefficient: float | None, schedule: str | None
) -> str:
    """The shortest way to write an arm: what is as by default is left out, but for the coefficient."""
    name = remedy
    if loss not in (None, Plan.loss):
        name += f":{loss}"
    if layers not in (None, REMEDIES[remedy].layers):
        name += f"@{str(layers).replace(',', '+')}"
    if schedule is not None:
        name += f"+{schedule}"
    return name if coefficient is None else f"{name}={shortest_number(coefficient)}"


def _match_word(word: str, words: tuple[str, ...], kind: str) -> str:
    if word in words:
        return word
    near = difflib.get_close_matches(word, words, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown {kind} {word!r} in --arms", f"{hint}there is {', '.join(words)}")


def _parse_layers(text: str) -> str:
    """`all`, `late`, `early`, `last`, or block numbers as `Plan.layers` writes them: 3,7,-1."""
    word = text.strip().lower()
    if word.isalpha():
        return _match_word(word, RANGES, "choice of layers")
    matched = re.fullmatch(r"[+-]?\d+(\+[+-]?\d+)*", word, re.ASCII)
    numbers = {int(number) for number in re.findall(r"-?\d+", word)} if matched else set()
    if not numbers or 0 in numbers:
        raise UsageError(
            f"unknown choice of layers {text!r} in --arms",
            f"use {', '.join(RANGES)}, or block numbers joined by + (1 is the first, -1 the last): @3+7+-1",
        )
    # One way to write each choice: from the first block on, then those that are counted from the last.
    return ",".join(str(number) for number in sorted(numbers, key=lambda number: (number < 0, number)))


def _parse_coefficient(text: str, arm: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"the coefficient of {arm} is {text!r}, not a number", GRAMMAR) from None
    _check_coefficient(number, arm)
    return number


def _check_coefficient(number: float, where: str) -> None:
    if not math.isfinite(number) or number == 0:
        raise UsageError(
            f"a coefficient of {where} is {number:g}", "use a finite number other than 0, which would be the control"
        )
