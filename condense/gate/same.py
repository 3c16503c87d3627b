"""Assertions on whether models are the same, from a comparison of live models, over all of its members."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from condense.errors import UsageError
from condense.gate.assertions import ORDERED, Assertion, Bound, Target
from condense.gate.readings import Names, Reading
from condense.gate.run import OUTCOMES, Gate, Policy, Result, judged, keeps_word, violation
from condense.intervals import coverage_note, over_documents
from condense.records.base import Estimate
from condense.records.comparison import Comparison, Member, Same
from condense.records.diagnosis import CorpusInfo, ModelInfo, Verdict

NOT_READ = "the two were not read side by side: compare the models themselves, not saved runs"
DEFAULT = (Assertion(Target("same", "word"), Bound("max", words=("equivalent",))),)
"""What is asked of a comparison where nobody asked: every member is identical or equivalent to the first."""


@dataclass(frozen=True)
class Reference:
    """The first of a comparison, as the subject of a gate."""

    condense: str
    model: ModelInfo
    corpus: CorpusInfo
    protocol: Mapping[str, Any]
    verdict: Verdict


def evaluate_comparison(
    comparison: Comparison,
    assertions: Sequence[Assertion] | None = None,
    *,
    policy: Policy | None = None,
    names: Names | None = None,
) -> Gate:
    """Check assertions on `same.*` for every member (None: identical or equivalent to the first).

    Of several members the worst counts, one that could not be measured among them, and intervals are at .05 over their
    number. UsageError for other targets, and for runs over their steps.
    """
    names, first = names or Names(), comparison.reference
    if comparison.overlay is not None:
        raise UsageError(
            "runs over their steps are not read token by token", "compare two of their checkpoints, and check that"
        )
    assertions = DEFAULT if assertions is None else assertions
    for assertion in assertions:
        if assertion.target.scope != "same":
            raise UsageError(
                f"{assertion.target.name} is not read of a comparison",
                "targets: same.word, same.kl, same.top1, same.from_block; the runs in members/ have the others",
            )
    results = [_worst_member_result(comparison, assertion, names) for assertion in dict.fromkeys(assertions)]
    ordered = tuple(sorted(results, key=lambda result: OUTCOMES.index(result.outcome)))
    note = coverage_note(first.corpus.documents)
    notes = [f"intervals: {note}"] if note else []
    if not any(assertion.level == "error" for assertion in assertions):
        notes.append("nothing here can fail: no assertion is at level error")
    subject = Reference(comparison.condense, first.model, first.corpus, comparison.protocol, first.verdict)
    return Gate(first.model.id, subject, names.run, ordered, policy or Policy(), "", tuple(notes))


def _worst_member_result(comparison: Comparison, assertion: Assertion, names: Names) -> Result:
    results = [_member_result(comparison, member, assertion) for member in comparison.members[1:]]
    results += [
        Result(assertion, "not-run", Reading(failure.name), reason=f"could not be measured: {failure.reason}")
        for failure in comparison.failures
    ]
    worst = min(results, key=lambda result: OUTCOMES.index(result.outcome))
    return replace(worst, next=_next_compare(comparison, worst, names))


def _next_compare(comparison: Comparison, result: Result, names: Names) -> str:
    models = " ".join(shlex.quote(member.source) for member in comparison.members)
    if result.outcome == "inconclusive":
        return f"condense compare {models} --num-texts {4 * comparison.reference.corpus.texts}"
    if result.outcome == "not-run":
        return f"condense compare {models}" if not models.endswith(".json") else ""
    return "" if result.outcome == "pass" else f"condense report {shlex.quote(names.run)}"


def _member_result(comparison: Comparison, member: Member, assertion: Assertion) -> Result:
    same, where = member.same, f"{member.name} against {comparison.reference.name}"
    if same is None or same.word == "not compared":
        reason = (same.reason if same else None) or NOT_READ
        return Result(assertion, "not-run", Reading(where), reason=reason)
    if assertion.target.metric == "word":
        return _same_word_result(same, assertion, where)
    if assertion.target.metric == "from_block":
        first = float(member.blocks + 1 if same.from_block is None else same.from_block)
        return judged(Reading(where, first, first, first, first), assertion)
    own = same.kl if assertion.target.metric == "kl" else same.top1
    return judged(_reading_of_member(own, same, comparison, where), assertion)


def _reading_of_member(own: Estimate, same: Same, comparison: Comparison, where: str) -> Reading:
    """The number with its interval, at the level of all that are compared where there are several."""
    low, high = own.low, own.high
    if own.per_text is not None and low is not None and len(comparison.members) > 2:
        low, high = over_documents(own.per_text, comparison.reference.corpus.documents).clipped(0.0, alpha=same.alpha)
    reason = own.reason if low is None else None
    return Reading(where, own.value, low, high, own.value, reason=reason)


def _same_word_result(same: Same, assertion: Assertion, where: str) -> Result:
    reading = Reading(where)
    if keeps_word(same.word, assertion):
        return Result(assertion, "pass", reading, words=(same.word,))
    if same.word == ORDERED["word"][2]:
        reason = "the interval of the KL reaches over what is tolerated, or there is none"
        return Result(assertion, "inconclusive", reading, words=(same.word,), reason=reason)
    site = f"from {same.from_site} on" if same.from_site else ""
    return Result(assertion, violation(assertion), reading, words=(same.word,), reason=f"{where}: {site}")
