"""Checks a run: each assertion passes, warns, fails, is inconclusive, or did not run with a reason. Pure Python.

A number passes when its whole interval is within the bound, and violates it when the whole interval is outside; in
between, or without an interval, it is inconclusive. A word of the verdict passes where it is within the bound in 95 %
of the resamples of the documents, and violates it in 5 % or less. The policy decides which of these end a build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from condense.comparison.comparability import Conditions, circumstances, differing_settings
from condense.errors import UsageError
from condense.gate.assertions import ORDERED, Assertion, Bound, Target, default_gate
from condense.gate.readings import (
    MORE_TEXT,
    Names,
    Reading,
    absolute,
    change,
    key_of,
    more_text_needed,
    next_command,
    refuse_missing,
)
from condense.intervals import NO_DOCUMENTS, coverage_note
from condense.records.diagnosis import MATRICES, WEIGHTS_ONLY, CorpusInfo, Diagnosis, ModelInfo, Verdict
from condense.records.treatment import Treatment

Outcome = Literal["fail", "warn", "inconclusive", "not-run", "pass"]
OUTCOMES: tuple[Outcome, ...] = ("fail", "warn", "inconclusive", "not-run", "pass")
"""Worst first; the order in which results are reported."""
FAILED, UNDECIDED = 1, 5
"""Exit codes beside 0."""
LIKELY = 0.95
"""Share of the resamples in which a word has to keep to its bound to pass; with the rest, it is a violation."""


@dataclass(frozen=True)
class Policy:
    """What fails a build, besides a violation at level error.

    informational: nothing; strict: whatever did not pass; inconclusive, not_run: whether what the text leaves open, or
    what could not be measured, counts as a failure at level error. `ignore`: assertions that did not run do not count.
    """

    informational: bool = False
    strict: bool = False
    inconclusive: Literal["warn", "fail"] = "warn"
    not_run: Literal["fail", "warn", "ignore"] = "warn"


@dataclass(frozen=True)
class Result:
    """The result of one assertion: the outcome, the number or word and its site, the reason, and the next command.

    limit: the bound in the metric's own unit, percent resolved; words: the measured one, then other possible ones.
    """

    assertion: Assertion
    outcome: Outcome
    found: Reading
    limit: float | None = None
    words: tuple[str, ...] = ()
    reason: str = ""
    next: str = ""


class Subject(Protocol):
    """The subject of a gate, as far as it is shown: a diagnosis, or the first model of a comparison."""

    @property
    def condense(self) -> str:
        """The version that measured it."""

    @property
    def model(self) -> ModelInfo:
        """Which checkpoint."""

    @property
    def corpus(self) -> CorpusInfo:
        """Which texts."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How it was measured."""

    @property
    def verdict(self) -> Verdict:
        """Its verdict."""


@dataclass(frozen=True)
class Gate:
    """All results of a gate, worst first, and whether the build passes."""

    model: str
    subject: Subject
    run: str
    results: tuple[Result, ...]
    policy: Policy = field(default_factory=Policy)
    baseline: str = ""
    notes: tuple[str, ...] = ()

    def blocks(self, result: Result) -> bool:
        """True if this result ends the build under the gate's policy."""
        if self.policy.informational or result.outcome == "pass":
            return False
        if result.outcome == "fail" or self.policy.strict:
            return True
        counts_as = {"inconclusive": self.policy.inconclusive, "not-run": self.policy.not_run}.get(result.outcome)
        return counts_as == "fail" and result.assertion.level == "error"

    def ignores(self, result: Result) -> bool:
        """True if this result does not count: the assertion did not run, and the policy ignores that."""
        return result.outcome == "not-run" and self.policy.not_run == "ignore" and not self.policy.strict

    @property
    def failed(self) -> bool:
        """True if the build fails: exit code 1."""
        return any(self.blocks(result) for result in self.results)

    @property
    def undecided(self) -> bool:
        """True if something could fail and nothing of it was decided: exit code 5, so that no accident is green."""
        if self.policy.informational or self.failed:
            return False
        errors = [result for result in self.results if result.assertion.level == "error" and not self.ignores(result)]
        return bool(errors) and all(result.outcome in ("inconclusive", "not-run") for result in errors)

    @property
    def outcome(self) -> Literal["failed", "undecided", "passed with warnings", "passed"]:
        """The gate in words."""
        if self.failed:
            return "failed"
        if self.undecided:
            return "undecided"
        clean = all(result.outcome == "pass" or self.ignores(result) for result in self.results)
        return "passed" if clean else "passed with warnings"

    @property
    def exit_code(self) -> int:
        """0 passed, warnings allowed; 1 failed; 5 undecided."""
        return FAILED if self.failed else UNDECIDED if self.undecided else 0

    def count(self, outcome: Outcome) -> int:
        """How many results have this outcome."""
        return sum(result.outcome == outcome for result in self.results)


def subject_of(run: Diagnosis | Treatment) -> Diagnosis:
    """The diagnosis that a gate reads: of a treatment, its treated arm on the validation text."""
    return run if isinstance(run, Diagnosis) else run.arms["treated"].validation


def own_baseline(run: Diagnosis | Treatment) -> Diagnosis | None:
    """The baseline contained in a treatment: the model before it, unless that had random weights."""
    if isinstance(run, Diagnosis) or "before" not in run.arms:
        return None
    before = run.arms["before"].validation
    return None if before.model.source_format == "random" else before


def evaluate(
    run: Diagnosis | Treatment,
    assertions: Sequence[Assertion] | None = None,
    baseline: Diagnosis | None = None,
    *,
    policy: Policy | None = None,
    names: Names | None = None,
    force: bool = False,
) -> Gate:
    """Check assertions (None: the default gate) on a run and a baseline, if there is one.

    baseline: None takes the model before the treatment, for a treatment. UsageError if the baseline was not
    measured alike (`force` goes on and notes it), or for a target that the model does not have.
    """
    subject, names = subject_of(run), names or Names()
    base = baseline or own_baseline(run)
    if base is not None and baseline is None:
        names = replace(names, baseline="the model before the treatment")
    if assertions is None:
        scored = subject.quality.bits_per_byte.value is not None or subject.quality.loss.value is None
        quality = "bits_per_byte" if scored else "loss"
        assertions = default_gate(base is not None, quality, isinstance(run, Treatment))
    for assertion in assertions:
        if subject.sites:  # without, everything but the matrices is not run
            refuse_missing(subject, assertion.target)
    notes = _gate_notes(subject, base, assertions, force)
    results = [_assertion_result(run, subject, base, assertion, names) for assertion in dict.fromkeys(assertions)]
    ordered = tuple(sorted(results, key=lambda result: OUTCOMES.index(result.outcome)))
    return Gate(subject.model.id, subject, names.run, ordered, policy or Policy(), names.baseline, notes)


def _gate_notes(
    subject: Diagnosis, base: Diagnosis | None, assertions: Sequence[Assertion], force: bool
) -> tuple[str, ...]:
    note = coverage_note(subject.corpus.documents) if subject.sites else ""
    notes = [f"intervals: {note}"] if note and note != NO_DOCUMENTS else []
    if not any(assertion.level == "error" for assertion in assertions):
        notes.append("nothing here can fail: no assertion is at level error")
    if base is None:
        return tuple(notes)
    refuse_unlike(subject, base, assertions, force=force)
    if unlike := unlike_settings(subject, base, assertions):
        notes.append(f"compared by force although {'; '.join(unlike)}")
    if subject.corpus.windows_sha256 != base.corpus.windows_sha256:
        notes.append("other windows than the baseline's: intervals are unpaired, so wider")
    if moved := circumstances(subject, base):
        notes.append(f"measured under other circumstances: {'; '.join(moved)}")
    own, other = subject.model.weights_sha256, base.model.weights_sha256
    if own is not None and own == other:
        notes.append("the baseline has the same weights")
    return (*notes, f"measured by condense {subject.condense}, the baseline by condense {base.condense}")


def refuse_unlike(
    subject: Diagnosis | Conditions, base: Diagnosis, assertions: Sequence[Assertion] | None, *, force: bool = False
) -> None:
    """UsageError where a baseline cannot match, with every setting in which it differs; also before measuring."""
    unlike = unlike_settings(subject, base, assertions)
    if unlike and not force:
        raise UsageError(
            f"the runs cannot be compared: {'; '.join(unlike)}",
            "measure both alike; condense check --force compares anyway",
        )


def unlike_settings(
    subject: Diagnosis | Conditions, base: Diagnosis, assertions: Sequence[Assertion] | None
) -> tuple[str, ...]:
    """The settings in which a run and its baseline differ; of the definitions only those of the numbers asked for.

    () for a baseline of a release that noted no versions of definitions: nothing of it is compared.
    """
    if not base.protocol.get("versions"):
        return ()
    keys = None if assertions is None else {key_of(assertion.target) for assertion in assertions}
    return differing_settings(subject, base, keys)


def _assertion_result(
    run: Diagnosis | Treatment, subject: Diagnosis, base: Diagnosis | None, assertion: Assertion, names: Names
) -> Result:
    if assertion.target.scope == "same":
        result = Result(assertion, "not-run", Reading(""), reason="only a comparison of live models has it")
    elif not subject.sites and assertion.target.scope not in MATRICES:
        result = Result(assertion, "not-run", Reading(""), reason=WEIGHTS_ONLY)
    elif assertion.target.scope == "verdict":
        result = _word_result(run, subject, assertion)
    elif assertion.bound.relative and base is None:
        result = Result(assertion, "not-run", Reading(""), reason="there is no baseline")
    else:
        result = _number_result(subject, base, assertion)
    if result.outcome == "inconclusive" and not isinstance(run, Treatment):
        result = replace(result, reason=f"{result.reason}{MORE_TEXT if more_text_needed(subject) else ''}")
    return replace(result, next=next_command(run, base, result, names))


# --- numbers ----------------------------------------------------------------------------------------


def _number_result(subject: Diagnosis, base: Diagnosis | None, assertion: Assertion) -> Result:
    """The worst of the sites that the target names; the widest miss among equals."""
    if assertion.bound.relative and base is not None:
        readings = change(subject, base, assertion.target)
    else:
        readings = absolute(subject, assertion.target)
    results = [judged(reading, assertion) for reading in readings]
    return min(results, key=lambda result: (OUTCOMES.index(result.outcome), -_excess_over_limit(result)))


def _excess_over_limit(result: Result) -> float:
    """How far the value is beyond the limit; negative within it."""
    if result.found.value is None or result.limit is None:
        return 0.0
    beyond = result.found.value - result.limit
    return beyond if result.assertion.bound.upper else -beyond


def judged(reading: Reading, assertion: Assertion) -> Result:
    """The result for a number with its interval."""
    if reading.value is None:
        return Result(assertion, "not-run", reading, reason=reading.reason or "undefined")
    limit = _resolved_limit(assertion.bound, reading)
    if limit is None:
        return Result(assertion, "not-run", reading, reason="the baseline is 0, and nothing is a share of it")
    if reading.low is None or reading.high is None:
        outcome: Outcome = "not-run" if reading.reason == NO_DOCUMENTS else "inconclusive"
        return Result(assertion, outcome, reading, limit, reason=reading.reason or "there is no interval")
    ends = {_is_within(end, limit, assertion.bound) for end in (reading.low, reading.high)}
    if ends == {True}:
        return Result(assertion, "pass", reading, limit)
    if ends == {False}:
        return Result(assertion, violation(assertion), reading, limit)
    return Result(assertion, "inconclusive", reading, limit, reason="the interval reaches over the bound")


def _resolved_limit(bound: Bound, reading: Reading) -> float | None:
    """The bound in the metric's unit, on the value (max, min) or on the change; None for a share of nothing."""
    size = bound.limit
    if bound.percent:
        if not reading.reference:
            return None
        size = size / 100 * abs(reading.reference)
    return -size if bound.kind == "max_decrease" else size


def _is_within(value: float, limit: float, bound: Bound) -> bool:
    if value == limit:
        return not bound.strict
    return value < limit if bound.upper else value > limit


def violation(assertion: Assertion) -> Outcome:
    """The outcome of a violation of this assertion."""
    return "fail" if assertion.level == "error" else "warn"


# --- words ------------------------------------------------------------------------------------------


def _word_result(run: Diagnosis | Treatment, subject: Diagnosis, assertion: Assertion) -> Result:
    target = assertion.target
    if target.metric == "id":
        return _treatment_result(run, assertion)
    verdict, where = subject.verdict_of(target.stack), _number_behind_word(subject, target)
    word: str = getattr(verdict, target.metric)
    if not subject.corpus.documents:
        return Result(assertion, "not-run", where, words=(word,), reason=NO_DOCUMENTS)
    if word == "undefined":
        reason = verdict.reason or "the verdict is undefined"
        return Result(assertion, "inconclusive", where, words=(word,), reason=reason)
    shares = verdict.frequencies.get(target.metric, {})
    if not shares:
        return Result(assertion, "inconclusive", where, words=(word,), reason="it is not known how stable the word is")
    kept = sum(share for other, share in shares.items() if keeps_word(other, assertion))
    words = (word, *(other for other, share in shares.items() if other != word and share >= 1 - LIKELY))
    if kept >= LIKELY:
        return Result(assertion, "pass", where, words=words)
    if kept <= 1 - LIKELY:
        return Result(assertion, violation(assertion), where, words=words)
    reason = f"it keeps to the bound in {100 * kept:.0f} % of the resamples of the documents"
    return Result(assertion, "inconclusive", where, words=words, reason=reason)


def _number_behind_word(subject: Diagnosis, target: Target) -> Reading:
    """The number that mainly decides a word of the verdict."""
    ranks = target.metric == "rank"
    number = Target("deep", "effective_rank.null_ratio" if ranks else "mean_cosine", stack=target.stack)
    return replace(
        absolute(subject, number)[0], where="deep effective rank over its null" if ranks else "deep mean cosine"
    )


def _treatment_result(run: Diagnosis | Treatment, assertion: Assertion) -> Result:
    if isinstance(run, Diagnosis):
        return Result(assertion, "not-run", Reading(""), reason="only a treatment has this verdict")
    verdict, where = run.verdict.id, Reading("treated against control")
    if run.verdict.covers == NO_DOCUMENTS:
        return Result(assertion, "not-run", where, words=(verdict,), reason=NO_DOCUMENTS)
    if verdict in ("inconclusive", "no-control") and verdict not in assertion.bound.words:
        why = "the treatment has no control arm" if verdict == "no-control" else "the treatment itself was inconclusive"
        return Result(assertion, "inconclusive", where, words=(verdict,), reason=why)
    fits = keeps_word(verdict, assertion)
    return Result(assertion, "pass" if fits else violation(assertion), where, words=(verdict,))


def keeps_word(word: str, assertion: Assertion) -> bool:
    """Whether a word is within the bound."""
    words, kind = assertion.bound.words, assertion.bound.kind
    if kind in ("is", "not"):
        return (word in words) == (kind == "is")
    known = ORDERED[assertion.target.metric]
    if word not in known:
        return False
    rank, edge = known.index(word), known.index(words[0])
    return rank <= edge if kind == "max" else rank >= edge
