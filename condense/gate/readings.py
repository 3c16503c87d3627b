"""The numbers that an assertion is checked on, of a run or its change against a baseline; the next command.

numpy is loaded where an interval has to be taken: for changes, and for the blocks of `any-block`, which are judged
side by side and share the .05 between them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from condense.errors import UsageError
from condense.gate.assertions import RATIOS, Target
from condense.intervals import ALPHA, coverage_note, jackknife, over_documents
from condense.records.base import Again, Estimate
from condense.records.diagnosis import MATRICES, Diagnosis, SiteReading
from condense.records.treatment import Treatment

if TYPE_CHECKING:
    from condense.gate.run import Result


@dataclass(frozen=True)
class Reading:
    """A number at one site, with its interval; the reason where it is undefined or has none.

    The interval's level is 95 %, and 1 − .05/blocks for each block of `any-block`. For a change, `value` is
    run − baseline, `current` and `reference` are the two.
    """

    where: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    current: float | None = None
    reference: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _LocatedEstimate:
    """A target's number at one site: `key` identifies the site in the run and in the baseline."""

    key: int
    where: str
    estimate: Estimate
    site: SiteReading | None = None


def key_of(target: Target) -> str:
    """The number that a target is of, whose definition has a version: a rank's share of its null is the rank."""
    key = target.metric.removesuffix(".null_ratio")
    if target.scope in MATRICES:
        return f"matrix.{key}"
    return f"pooled.{key.partition('.')[2]}" if target.scope == "pooled" else key


def refuse_missing(run: Diagnosis, target: Target) -> None:
    """UsageError for a target that the model cannot have, whatever was measured: a misspelt one must not pass."""
    if missing := _missing_reason(run, target):
        count = len(_stack_blocks(run, target))
        hint = f"its blocks are block.1 to block.{count}, or block.-1 to block.-{count}" if target.index else ""
        raise UsageError(f"there is no {target.name}: {missing}", hint or "see the targets in docs/ci.md")


def absolute(run: Diagnosis, target: Target) -> tuple[Reading, ...]:
    """The target's number at every site that it names: one, or all blocks for `any-block`."""
    if missing := _missing_reason(run, target):
        return (Reading("", reason=missing),)
    readings = []
    for located in _located_estimates(run, target):
        own = _at_level(run, target, located.estimate) if target.scope == "any-block" else located.estimate
        own = _share_of_null(own) if target.metric in RATIOS else own
        readings.append(_reading_of_estimate(located.where, own, own.value, None, run))
    return tuple(readings)


def _reading_of_estimate(
    where: str, own: Estimate, current: float | None, reference: float | None, run: Diagnosis
) -> Reading:
    """A reading of an estimate; a number without an interval has the reason."""
    reason = None
    if own.value is None:
        reason = own.reason or "undefined in this run"
    elif own.low is None or own.high is None:
        reason = own.reason or coverage_note(run.corpus.documents) or "there is no interval"
    return Reading(where, own.value, own.low, own.high, current, reference, reason)


def _at_level(run: Diagnosis, target: Target, own: Estimate) -> Estimate:
    """A number of one block with the interval that it has when all blocks are judged side by side."""
    if own.value is None or (own.per_text is None and own.deleted is None):
        return replace(own, low=None, high=None)
    documents = run.corpus.documents
    if own.per_text is None:
        spread = jackknife(own.value, own.deleted or (), documents)
    else:
        spread = over_documents(own.per_text, documents)
    low, high = spread.bounds(_alpha(run, target))
    return replace(own, low=low, high=high, reason=spread.reason)


def _alpha(run: Diagnosis, target: Target) -> float:
    return ALPHA / max(1, len(_stack_blocks(run, target))) if target.scope == "any-block" else ALPHA


def change(run: Diagnosis, baseline: Diagnosis, target: Target) -> tuple[Reading, ...]:
    """Run − baseline of the target's number at every site that it names, paired by text where that is possible."""
    if missing := _missing_reason(run, target):
        return (Reading("", reason=missing),)
    if missing := _missing_reason(baseline, target):
        return (Reading("", reason=f"in the baseline, {missing}"),)
    if reason := _undefined_before(run, baseline, target):
        return (Reading("", reason=reason),)
    others = {located.key: located for located in _located_estimates(baseline, target)}
    readings = []
    for located in _located_estimates(run, target):
        other = others.get(located.key)
        if other is None:
            readings.append(
                Reading(located.where, current=located.estimate.value, reason="the baseline has no such block")
            )
            continue
        change = _difference_to_baseline(run, baseline, target, located, other)
        readings.append(_reading_of_estimate(located.where, change, located.estimate.value, other.estimate.value, run))
    return tuple(readings)


def _undefined_before(run: Diagnosis, baseline: Diagnosis, target: Target) -> str:
    """Why a number of the baseline may not be the same number: its release noted no definition of it, or had none."""
    for name, side in (("the run", run), ("the baseline", baseline)):
        versions = side.protocol.get("versions")
        if not versions:
            return f"{name}, measured by condense {side.condense}, does not say by which definitions"
        if key_of(target) not in versions:
            return f"{name}, measured by condense {side.condense}, has no {key_of(target)}"
    return ""


def _missing_reason(run: Diagnosis, target: Target) -> str | None:
    """Why a run cannot have the target at all."""
    if target.scope in MATRICES:
        return None if target.scope in run.matrices else f"{run.model.id} has no {target.scope}, or it was not measured"
    if target.stack and target.stack not in {site.stack for site in run.sites}:
        return f"the model has no {target.stack} stack"
    if target.scope in ("quality", "pooled", "verdict", "same") or _target_sites(run, target):
        return None
    return f"the model has {len(_stack_blocks(run, target))} blocks" if target.index else f"there is no {target.scope}"


def _located_estimates(run: Diagnosis, target: Target) -> list[_LocatedEstimate]:
    if target.scope == "quality":
        estimate: Estimate = getattr(run.quality, target.metric)
        return [_LocatedEstimate(0, "on the same windows", estimate)]
    if target.scope in MATRICES:
        own = run.matrices[target.scope].metrics[target.metric.removesuffix(".null_ratio")]
        return [_LocatedEstimate(0, "all rows", own)]
    if target.scope == "pooled":
        return [_LocatedEstimate(0, "one vector per text", _pooled_number(run, target))]
    key, sites = key_of(target), _target_sites(run, target)
    prefix = f"{target.stack} " if target.stack else ""
    if target.scope == "deep":
        span = f"{sites[0].index} to {sites[-1].index}" if len(sites) > 1 else f"{sites[0].index}"
        return [_LocatedEstimate(0, f"{prefix}mean of blocks {span}", _number_of(run.deep_of(target.stack), key))]
    numbered = target.scope == "any-block"
    return [
        _LocatedEstimate(s.index if numbered else 0, prefix + s.label, _number_of(s.metrics, key), s) for s in sites
    ]


def _number_of(numbers: Mapping[str, Estimate], key: str) -> Estimate:
    """A number of a site; of the logit lens only where it was asked for."""
    return numbers.get(key, Estimate(None, reason="not measured: condense analyze MODEL --lens"))


def _pooled_number(run: Diagnosis, target: Target) -> Estimate:
    """A number of the pooled view; undefined in a run of an older condense."""
    pooling, _, key = target.metric.removesuffix(".null_ratio").partition(".")
    reason = f"condense {run.condense}, which measured this run, did not have it"
    return run.pooled.get(pooling, {}).get(key, Estimate(None, reason=reason))


def _stack_blocks(run: Diagnosis, target: Target) -> list[SiteReading]:
    stack = target.stack or run.main_stack
    return [site for site in run.sites if site.stack == stack and site.site == "block"]


def _target_sites(run: Diagnosis, target: Target) -> list[SiteReading]:
    blocks, stack = _stack_blocks(run, target), target.stack or run.main_stack
    if target.scope == "deep":
        return [site for site in blocks if site.index > len(blocks) // 2]
    if target.scope == "any-block":
        return blocks
    if target.index is not None:
        wanted = target.index if target.index > 0 else len(blocks) + 1 + target.index
        return [site for site in blocks if site.index == wanted]
    return [site for site in run.sites if site.stack == stack and site.site == target.scope]


def _share_of_null(rank: Estimate) -> Estimate:
    """A rank as a share of its null."""
    if rank.null_ratio is None or not rank.null:
        return Estimate(None, reason=rank.reason or "it has no null")
    ratio, value = rank.null_ratio, rank.value or 0.0  # the mean of the windows' own ratios, whose nulls may differ
    low, high = (None if bound is None else ratio + (bound - value) / rank.null for bound in (rank.low, rank.high))
    return Estimate(ratio, low, high)


def _difference_to_baseline(
    run: Diagnosis, baseline: Diagnosis, target: Target, located: _LocatedEstimate, other: _LocatedEstimate
) -> Estimate:
    from condense.comparison.differences import Pairing

    if target.scope in MATRICES:  # not a sample
        known = located.estimate.value is not None and other.estimate.value is not None
        change = (located.estimate.value or 0.0) - (other.estimate.value or 0.0) if known else None
        return Estimate(change, change, change, reason=None if known else "undefined in one of the two")
    pairing = Pairing.of({0: run}, {0: baseline})
    if target.scope == "quality":
        spread = pairing.quality(target.metric)
    elif target.scope == "pooled":
        spread = pairing.between([(located.estimate, other.estimate)])
    elif located.site is None or other.site is None:
        spread = pairing.deep(target.metric, target.stack)
    else:
        spread = pairing.between([(located.estimate, other.estimate)])
    low, high = spread.bounds(_alpha(run, target))
    return Estimate(spread.value, low, high, reason=spread.reason)


# --- the next command -------------------------------------------------------------------------------------


MORE_TEXT = "; more text is needed, not more windows of the same"
"""Printed where every document was measured already."""
_PROBE_DOCUMENTS = 32


@dataclass(frozen=True)
class Names:
    """The names of the files in advised commands; a baseline without a file has none."""

    run: str = "run.json"
    baseline: str = ""


def next_command(run: Diagnosis | Treatment, base: Diagnosis | None, result: Result, names: Names) -> str:
    """The command that would decide more, or help; "" where there is nothing to do.

    More text for an open result, the comparison for a change, else the verdict's next command where it has
    a finding, else the report. A baseline is measured again with the run, under the same settings.
    """
    assertion, own = result.assertion, shlex.quote(names.run)
    target, subject = assertion.target, run if isinstance(run, Diagnosis) else run.arms["treated"].validation
    if result.outcome == "pass":
        return ""
    if result.outcome == "inconclusive":
        return _with_more(run, subject, base if names.baseline.endswith(".json") else None)
    if result.outcome == "not-run":
        lacks = assertion.bound.relative and not names.baseline
        return f"condense check {own} --baseline BASELINE.json" if lacks else ""
    if target.metric == "id" and isinstance(run, Treatment):
        return run.verdict.findings[0].next
    if assertion.bound.relative and names.baseline.endswith(".json"):
        return f"condense compare {shlex.quote(names.baseline)} {own}"
    verdict = subject.verdict_of(target.stack)
    if target.scope == "quality" or isinstance(run, Treatment) or verdict.level == "ok":
        return f"condense report {own}"
    return verdict.findings[0].next


def more_text_needed(subject: Diagnosis) -> bool:
    """True if more windows would come from documents that were measured already, which narrows no interval much."""
    corpus = subject.corpus
    documents = len(set(corpus.documents)) or corpus.texts
    probe_is_used_up = corpus.version is not None and documents >= _PROBE_DOCUMENTS
    return documents < corpus.texts or corpus.texts < corpus.requested or probe_is_used_up


def _with_more(run: Diagnosis | Treatment, subject: Diagnosis, base: Diagnosis | None) -> str:
    """The run once more with more text; its baseline first, where it has a file, or the two could not be compared."""
    most = _PROBE_DOCUMENTS if subject.corpus.version is not None else 4 * subject.corpus.texts
    count = max(4 * subject.corpus.texts, 32)
    changes = {"num_texts": str(count if more_text_needed(subject) else min(count, max(most, 8)))}
    if more_text_needed(subject) and isinstance(run, Diagnosis):
        changes["text"] = "MORE_TEXT.jsonl"
    own = Again(_command_of(run, subject))
    if base is None:
        return own(**changes, output="again/")
    first = Again(_command_of(base, base))(**changes, json="again.json")
    return f"{first} && {own(**changes, output='again/', baseline='again.json')}"


def _command_of(run: Diagnosis | Treatment, subject: Diagnosis) -> str:
    known = run.command.startswith(("condense analyze", "condense treat"))
    return run.command if known else f"condense analyze {shlex.quote(subject.model.id)}"
