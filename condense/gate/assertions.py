"""The assertions of a gate: `deep.mean_cosine <= 0.8` and the like, from a settings file or a flag. Pure Python.

An assertion is a target (which number, where), a bound and a level. The grammar of a target is
`[encoder.|decoder.]scope.metric`; without a stack the main one is meant (the last: the decoder where there is one).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from condense.diagnosis.verdict import COLLAPSE, COMMON, CONTEXT, NOT, ROGUE, SINK
from condense.errors import UsageError
from condense.metrics import LENS, MATRIX, METRICS, POOLED, POOLINGS, QUALITY
from condense.records.diagnosis import MATRICES
from condense.records.treatment import VerdictId

Level = Literal["warn", "error"]
BoundKind = Literal["max", "min", "max_increase", "max_decrease", "is", "not"]

STACKS = ("encoder", "decoder")
SITES = ("deep", "any-block", "block", "embedding", "output")
SCOPES = (*SITES, "quality", "pooled", *MATRICES, "verdict", "same")
SAME = ("word", "from_block", "kl", "top1")
"""What a comparison of live models says of each member against the first."""
POOLED_NUMBERS = tuple(f"{pooling}.{key}" for pooling in POOLINGS for key in POOLED)
POOLED_RATIOS = tuple(f"{pooling}.effective_rank.null_ratio" for pooling in POOLINGS)
RATIOS = ("effective_rank.null_ratio", "entropy_rank.null_ratio", *POOLED_RATIOS)
"""Ranks as a share of their Gaussian null, the number that the verdict's rank axis reads."""

ORDERED: dict[str, tuple[str, ...]] = {
    "level": ("ok", "watch", "condensed", "severe"),
    "cone": ("low", "moderate", "high", "severe"),
    "rank": ("low", "reduced", "intact"),
    "word": ("identical", "equivalent", "not shown to be equivalent", "different"),
}
"""The words, of a verdict or of a comparison, that have an order, smallest first: `max` and `min` mean something."""

WORDS: dict[str, tuple[str, ...]] = {
    **ORDERED,
    "attribution": (SINK, ROGUE, COMMON, CONTEXT, COLLAPSE, NOT),
    "id": get_args(VerdictId),
}
KINDS: tuple[str, ...] = get_args(BoundKind)
_INLINE = re.compile(
    r"(?:(?P<level>[a-z]+)\s*:\s*)?(?P<target>[^\s<>=!:]+)\s*(?P<sign><=|>=|==|!=|<|>)\s*(?P<limit>[^<>=].*)"
)
_RELATIVE = re.compile(r"baseline(?:\s*(?P<sign>[+-])\s*(?P<size>.+))?")


@dataclass(frozen=True)
class Target:
    """The number of an assertion: a metric at a scope of a stack; `index` counts blocks from 1, from −1 backwards."""

    scope: str
    metric: str
    index: int | None = None
    stack: str | None = None

    @property
    def is_word(self) -> bool:
        """Whether it is a word and no number."""
        return self.scope == "verdict" or (self.scope, self.metric) == ("same", "word")

    @property
    def name(self) -> str:
        """The target as it is written, `decoder.block.12.mean_cosine`."""
        scope = self.scope if self.index is None else f"{self.scope}.{self.index}"
        return ".".join(part for part in (self.stack, scope, self.metric) if part)


@dataclass(frozen=True)
class Bound:
    """One limit: a number for a number, words for a word.

    percent: the limit is a share of the baseline's value; strict: the limit itself is out.
    """

    kind: BoundKind
    limit: float = 0.0
    words: tuple[str, ...] = ()
    percent: bool = False
    strict: bool = False

    @property
    def relative(self) -> bool:
        """True if the bound is on the change against a baseline."""
        return self.kind in ("max_increase", "max_decrease")

    @property
    def upper(self) -> bool:
        """True if too much is wrong, False if too little is."""
        return self.kind in ("max", "max_increase")


@dataclass(frozen=True)
class Assertion:
    """One assertion of a gate; `level`: whether a violation is a failure (`error`) or a warning (`warn`)."""

    target: Target
    bound: Bound
    level: Level = "error"


def default_gate(baseline: bool, quality: str = "bits_per_byte", treatment: bool = False) -> tuple[Assertion, ...]:
    """The default assertions, the same for every run.

    With a baseline: the cone may not narrow by more than 0.02 nor the quality suffer by more than 1 %. Without:
    a severe cone is a warning. A treatment must not have condensed the model further.
    quality: the metric of quality, `bits_per_byte` or `loss`.
    """
    verdict = Assertion(Target("verdict", "id"), Bound("not", words=("condensed-further",)))
    rise = Assertion(Target("deep", "mean_cosine"), Bound("max_increase", 0.02))
    worse = Assertion(Target("quality", quality), Bound("max_increase", 1.0, percent=True))
    severe = Assertion(Target("verdict", "cone"), Bound("max", words=("high",)), "warn")
    return (*((verdict,) if treatment else ()), *((rise, worse) if baseline else (severe,)))


# --- targets ----------------------------------------------------------------------------------------


def parse_target(text: str) -> Target:
    """`deep.mean_cosine`, `encoder.block.3.effective_rank`, `bits_per_byte`; UsageError with the nearest name."""
    parts = text.strip().split(".")
    if text.strip() in QUALITY:  # measured once, so it needs no scope
        return Target("quality", text.strip())
    if text.strip() in METRICS:
        places = ", ".join(f"{scope}.{text.strip()}" for scope in ("deep", "output", "any-block"))
        raise UsageError(f"{text.strip()} is measured at many places", f"name one: {places}, …")
    stack = parts.pop(0) if parts[0] in STACKS else None
    scope = parts.pop(0).replace("_", "-") if parts else ""
    if scope not in SCOPES:
        known = [*SCOPES, *STACKS, *QUALITY, *METRICS]
        raise unknown(f"scope {scope!r} in {text!r}", scope, known, f"scopes: {', '.join(SCOPES)}")
    if stack and scope in ("quality", "pooled", "same", *MATRICES):
        raise UsageError(f"{text!r}: {scope} is the whole model's", "leave the stack out")
    index = _index(parts.pop(0) if parts else "", text) if scope == "block" else None
    metric = ".".join(parts).replace("-", "_")
    names = _metrics_of(scope, stack)
    if metric not in names:
        raise unknown(f"metric {metric!r} in {text!r}", metric, names, f"metrics of {scope}: {', '.join(names)}")
    return Target(scope, metric, index, stack)


def _metrics_of(scope: str, stack: str | None) -> tuple[str, ...]:
    if scope == "quality":
        return tuple(QUALITY)
    if scope == "pooled":
        return (*POOLED_NUMBERS, *POOLED_RATIOS)
    if scope == "verdict":
        return tuple(name for name in WORDS if name != "word" and not (stack and name == "id"))
    if scope == "same":
        return SAME
    if scope in MATRICES:
        return (*(key.partition(".")[2] for key in MATRIX), RATIOS[0])
    return (*METRICS, *LENS, *(ratio for ratio in RATIOS if ratio not in POOLED_RATIOS))


def _index(text: str, whole: str) -> int:
    if not re.fullmatch(r"-?[1-9]\d{0,5}", text):
        raise UsageError(
            f"{whole!r}: block wants a number", "blocks count from 1, or from -1 backwards: block.12, block.-1"
        )
    return int(text)


def unknown(what: str, name: str, known: Iterable[str], otherwise: str) -> UsageError:
    """An error about an unknown name with the nearest known name in its hint, or `otherwise`."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return UsageError(f"unknown {what}", f"did you mean {near[0]}?" if near else otherwise)


# --- settings file ----------------------------------------------------------------------------------


def parse_tables(tables: Mapping[str, Any]) -> tuple[Assertion, ...]:
    """The table `[check.assertions]`: by target either "off" or a table of `level` and bounds."""
    return tuple(assertion for name, table in tables.items() for assertion in _parse_table(name, table))


def _parse_table(name: str, table: Any) -> list[Assertion]:
    target, where = parse_target(name), f'[check.assertions."{name}"]'
    if table == "off":
        return []
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {table!r}", 'use "off" or a table: { level = "warn", max = 0.8 }')
    for key in table:
        if key not in ("level", *KINDS):
            raise unknown(f"key {key!r} in {where}", key, ("level", *KINDS), f"keys: level, {', '.join(KINDS)}")
    level = table.get("level", "error")
    if level not in ("off", "warn", "error"):
        raise UsageError(f"level is {level!r} in {where}", "use off, warn or error")
    bounds = [_bound(target, kind, table[kind], where) for kind in KINDS if kind in table]
    if not bounds:
        raise UsageError(f"{where} has no bound", f"give one of {', '.join(KINDS)}")
    return [] if level == "off" else [Assertion(target, bound, level) for bound in bounds]


def _bound(target: Target, kind: Any, value: Any, where: str, strict: bool = False) -> Bound:
    """A bound that fits its target; UsageError for a number where a word is needed, or the reverse."""
    if target.is_word:
        return Bound(kind, words=_limit_words(target, kind, value, where))
    if kind in ("is", "not"):
        raise UsageError(f"{where}: a measured number is never exactly another", "use max, min or a change")
    percent = isinstance(value, str) and value.strip().endswith("%")
    if percent and kind in ("max", "min"):
        raise UsageError(f"{where}: {kind} = {value!r} has nothing to be a share of", "percent is for changes")
    if kind.startswith("max_") and target.metric in RATIOS:
        raise UsageError(f"{where}: changes are taken of the rank itself", f"use {target.metric.partition('.')[0]}")
    return Bound(kind, _limit_number(value, where), percent=percent, strict=strict)


def _limit_number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value.strip().removesuffix("%")) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: {value!r} is not a number", "write 0.02, or a change in percent: 1 %") from None
    if not math.isfinite(number):
        raise UsageError(f"{where}: {value!r} is not finite", "use a finite number")
    return number


def _limit_words(target: Target, kind: str, value: Any, where: str) -> tuple[str, ...]:
    known, ordered = WORDS[target.metric], target.metric in ORDERED
    if kind.startswith("max_") or (kind in ("max", "min") and not ordered):
        fitting = "max, min, is or not" if ordered else "is or not"
        raise UsageError(f"{where}: {target.name} is a word, {kind} does not fit", f"use {fitting}")
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not words or (kind in ("max", "min") and len(words) != 1):
        raise UsageError(f"{where}: {kind} = {value!r}", f"words: {', '.join(known)}")
    for word in words:
        if word not in known:
            raise unknown(f"word {word!r} in {where}", str(word), known, f"words: {', '.join(known)}")
    return words


# --- flags ------------------------------------------------------------------------------------------


def parse_inline(text: str) -> Assertion:
    """`[warn:] TARGET <= 0.8`, `… <= baseline + 1 %`, `… >= baseline - 5 %`, `verdict.level <= watch`."""
    match = _INLINE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read --assert {text!r}", 'write "deep.mean_cosine <= 0.8" or "… <= baseline + 1 %"')
    if match["level"] not in (None, "warn", "error"):
        raise UsageError(f"level {match['level']!r} in --assert {text!r}", "use warn: or error:, or nothing")
    level: Level = "warn" if match["level"] == "warn" else "error"
    target, limit = parse_target(match["target"]), match["limit"].strip().strip("\"'")
    sign, where = match["sign"], f"--assert {text!r}"
    if target.is_word:
        return Assertion(target, _inline_words(target, sign, limit, where), level)
    if sign in ("==", "!="):
        raise UsageError(f"{where}: a measured number is never exactly another", "use <=, <, >= or >")
    upper, strict = sign in ("<", "<="), sign in ("<", ">")
    change = _RELATIVE.fullmatch(limit)
    if change is None:
        bound = _bound(target, "max" if upper else "min", limit, where, strict)
    else:
        size = change["size"] or "0"
        away = "+" if upper else "-"  # the side on which a change is allowed
        bound = _bound(target, "max_increase" if upper else "max_decrease", size, where, strict)
        if change["sign"] and change["sign"] != away:
            bound = replace(bound, limit=-bound.limit)
    return Assertion(target, bound, level)


def _inline_words(target: Target, sign: str, limit: str, where: str) -> Bound:
    kinds = {"<=": "max", ">=": "min", "==": "is", "!=": "not"}
    if sign not in kinds:
        raise UsageError(f"{where}: {sign} does not fit a word", "use <=, >=, == or !=")
    return _bound(target, kinds[sign], limit, where)
