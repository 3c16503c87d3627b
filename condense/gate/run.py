"""Does a run keep to what is asked of it? pass, warn, fail, inconclusive, or not run with its reason. Pure Python.

A number passes when its whole interval keeps to the bound, and violates it when the whole interval does not; in
between, or without an interval, it is inconclusive. The policy decides which of these end a build.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from condense.comparison.comparability import circumstances, differing_settings
from condense.errors import UsageError
from condense.gate.assertions import ORDERED, Assertion, Bound, Target, default_gate
from condense.gate.readings import Reading, absolute, change, possible_words
from condense.intervals import NO_DOCUMENTS, coverage_note
from condense.metrics import MIN_TEXTS
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment
from condense.rerun import Again

Outcome = Literal["fail", "warn", "inconclusive", "not-run", "pass"]
OUTCOMES: tuple[Outcome, ...] = ("fail", "warn", "inconclusive", "not-run", "pass")
"""Worst first; the order in which results are told."""


@dataclass(frozen=True)
class Policy:
    """What ends a build. `strict`: whatever did not pass; `inconclusive`: what the texts leave open; or nothing."""

    informational: bool = False
    strict: bool = False
    inconclusive: Literal["warn", "fail"] = "warn"


@dataclass(frozen=True)
class Result:
    """What came of one assertion: the outcome, what was found and where, why it is open, and what to do next.

    limit: the bound in the metric's own unit, percent resolved; words: found first, then what stays possible.
    """

    assertion: Assertion
    outcome: Outcome
    found: Reading
    limit: float | None = None
    words: tuple[str, ...] = ()
    reason: str = ""
    next: str = ""


@dataclass(frozen=True)
class Gate:
    """Everything a gate found, worst first, and whether the build may go on."""

    model: str
    subject: Diagnosis
    run: str
    results: tuple[Result, ...]
    policy: Policy = field(default_factory=Policy)
    baseline: str = ""
    notes: tuple[str, ...] = ()

    def blocks(self, result: Result) -> bool:
        """True if this result ends the build under the gate's policy."""
        if self.policy.informational or result.outcome == "pass":
            return False
        open_error = result.outcome == "inconclusive" and result.assertion.level == "error"
        return result.outcome == "fail" or self.policy.strict or (open_error and self.policy.inconclusive == "fail")

    @property
    def failed(self) -> bool:
        """True if the build must not go on: exit code 1."""
        return any(self.blocks(result) for result in self.results)

    @property
    def outcome(self) -> Literal["failed", "passed with warnings", "passed"]:
        """The gate in words."""
        if self.failed:
            return "failed"
        return "passed" if all(result.outcome == "pass" for result in self.results) else "passed with warnings"

    def count(self, outcome: Outcome) -> int:
        """How many results have this outcome."""
        return sum(result.outcome == outcome for result in self.results)


def subject_of(run: Diagnosis | Treatment) -> Diagnosis:
    """The diagnosis that a gate reads: of a treatment, its treated arm on the validation text."""
    return run if isinstance(run, Diagnosis) else run.arms["treated"].validation


def own_baseline(run: Diagnosis | Treatment) -> Diagnosis | None:
    """The baseline a treatment brings along: the model before it, unless that had random weights."""
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
    """Hold a run against assertions (None: the default gate) and a baseline, if there is one.

    baseline: None takes the model before the treatment, for a treatment. UsageError if the baseline was not
    measured alike (`force` goes on and notes it).
    """
    subject, names = subject_of(run), names or Names()
    base = baseline or own_baseline(run)
    notes = _notes(subject, base, force)
    if base is not None and baseline is None:
        names = replace(names, baseline="the model before the treatment")
    if assertions is None:
        scored = subject.quality.bits_per_byte.value is not None or subject.quality.loss.value is None
        quality = "bits_per_byte" if scored else "loss"
        assertions = default_gate(base is not None, quality, isinstance(run, Treatment))
    results = [_result(run, subject, base, assertion, names) for assertion in dict.fromkeys(assertions)]
    ordered = tuple(sorted(results, key=lambda result: OUTCOMES.index(result.outcome)))
    return Gate(subject.model.id, subject, names.run, ordered, policy or Policy(), names.baseline, notes)


def _notes(subject: Diagnosis, base: Diagnosis | None, force: bool) -> tuple[str, ...]:
    note = coverage_note(subject.corpus.documents)
    notes = [f"intervals: {note}"] if note and note != NO_DOCUMENTS else []
    if base is None:
        return tuple(notes)
    if unlike := differing_settings(subject, base):
        if not force:
            said = "; ".join(unlike)
            raise UsageError(
                f"the runs cannot be compared: {said}", "measure both alike; condense check --force compares anyway"
            )
        notes.append(f"compared by force although {'; '.join(unlike)}")
    if subject.corpus.windows_sha256 != base.corpus.windows_sha256:
        notes.append("other windows than the baseline's: intervals are unpaired, so wider")
    if moved := circumstances(subject, base):
        notes.append(f"measured under other circumstances: {'; '.join(moved)}")
    own, other = subject.model.weights_sha256, base.model.weights_sha256
    if own is not None and own == other:
        notes.append("the baseline has the same weights")
    return tuple(notes)


def _result(
    run: Diagnosis | Treatment, subject: Diagnosis, base: Diagnosis | None, assertion: Assertion, names: Names
) -> Result:
    if assertion.target.scope == "verdict":
        result = _word_result(run, subject, assertion)
    elif assertion.bound.relative and base is None:
        result = Result(assertion, "not-run", Reading(""), reason="there is no baseline")
    else:
        result = _number_result(subject, base, assertion)
    return replace(result, next=next_command(run, subject, assertion, result.outcome, names))


# --- numbers ----------------------------------------------------------------------------------------


def _number_result(subject: Diagnosis, base: Diagnosis | None, assertion: Assertion) -> Result:
    """The worst of the places that the target names; the widest miss among equals."""
    if assertion.bound.relative and base is not None:
        readings = change(subject, base, assertion.target)
    else:
        readings = absolute(subject, assertion.target)
    results = [_judged(reading, assertion) for reading in readings]
    return min(results, key=lambda result: (OUTCOMES.index(result.outcome), -_excess(result)))


def _excess(result: Result) -> float:
    """How far the value is beyond the limit; negative within it."""
    if result.found.value is None or result.limit is None:
        return 0.0
    beyond = result.found.value - result.limit
    return beyond if result.assertion.bound.upper else -beyond


def _judged(reading: Reading, assertion: Assertion) -> Result:
    if reading.value is None:
        return Result(assertion, "not-run", reading, reason=reading.reason or "undefined")
    limit = _limit(assertion.bound, reading)
    if limit is None:
        return Result(assertion, "not-run", reading, reason="the baseline is 0, and nothing is a share of it")
    if reading.low is None or reading.high is None:
        outcome: Outcome = "not-run" if reading.reason == NO_DOCUMENTS else "inconclusive"
        return Result(assertion, outcome, reading, limit, reason=reading.reason or "there is no interval")
    ends = {_keeps(end, limit, assertion.bound) for end in (reading.low, reading.high)}
    if ends == {True}:
        return Result(assertion, "pass", reading, limit)
    if ends == {False}:
        return Result(assertion, _violation(assertion), reading, limit)
    return Result(assertion, "inconclusive", reading, limit, reason="the interval reaches over the bound")


def _limit(bound: Bound, reading: Reading) -> float | None:
    """The bound in the metric's unit, on the value (max, min) or on the change; None for a share of nothing."""
    size = bound.limit
    if bound.percent:
        if not reading.reference:
            return None
        size = size / 100 * abs(reading.reference)
    return -size if bound.kind == "max_decrease" else size


def _keeps(value: float, limit: float, bound: Bound) -> bool:
    if value == limit:
        return not bound.strict
    return value < limit if bound.upper else value > limit


def _violation(assertion: Assertion) -> Outcome:
    return "fail" if assertion.level == "error" else "warn"


# --- words ------------------------------------------------------------------------------------------


def _word_result(run: Diagnosis | Treatment, subject: Diagnosis, assertion: Assertion) -> Result:
    target = assertion.target
    if target.metric == "id":
        return _treatment_result(run, assertion)
    if target.stack and target.stack not in {site.stack for site in subject.sites}:
        return Result(assertion, "not-run", Reading(""), reason=f"the model has no {target.stack} stack")
    words, where = possible_words(subject, target), _ground(subject, target)
    if not words:
        return Result(assertion, "not-run", where, reason="the verdict is undefined")
    if subject.corpus.texts < MIN_TEXTS:
        why = f"{subject.corpus.texts} texts; below {MIN_TEXTS} an interval says little"
        return Result(assertion, "inconclusive", where, words=words, reason=why)
    kept = {_fits(word, assertion) for word in words}
    if len(kept) == 2:
        why = "an interval reaches over the edge of a band"
        return Result(assertion, "inconclusive", where, words=words, reason=why)
    return Result(assertion, "pass" if kept == {True} else _violation(assertion), where, words=words)


def _ground(subject: Diagnosis, target: Target) -> Reading:
    """The number that a word of the verdict rests on most."""
    ranks = target.metric == "rank"
    number = Target("deep", "effective_rank.null_ratio" if ranks else "mean_cosine", stack=target.stack)
    return replace(
        absolute(subject, number)[0], where="deep effective rank over its null" if ranks else "deep mean cosine"
    )


def _treatment_result(run: Diagnosis | Treatment, assertion: Assertion) -> Result:
    if isinstance(run, Diagnosis):
        return Result(assertion, "not-run", Reading(""), reason="only a treatment has this verdict")
    found, where = run.verdict.id, Reading("treated against control")
    if run.verdict.covers == NO_DOCUMENTS:
        return Result(assertion, "not-run", where, words=(found,), reason=NO_DOCUMENTS)
    if found in ("inconclusive", "no-control") and found not in assertion.bound.words:
        why = "the treatment has no control arm" if found == "no-control" else "the treatment itself was inconclusive"
        return Result(assertion, "inconclusive", where, words=(found,), reason=why)
    fits = _fits(found, assertion)
    return Result(assertion, "pass" if fits else _violation(assertion), where, words=(found,))


def _fits(word: str, assertion: Assertion) -> bool:
    words, kind = assertion.bound.words, assertion.bound.kind
    if kind in ("is", "not"):
        return (word in words) == (kind == "is")
    known = ORDERED[assertion.target.metric]
    place, edge = known.index(word), known.index(words[0])
    return place <= edge if kind == "max" else place >= edge


@dataclass(frozen=True)
class Names:
    """What the files are called, for the commands that are advised; a baseline without a file has none."""

    run: str = "run.json"
    baseline: str = ""


def next_command(
    run: Diagnosis | Treatment, subject: Diagnosis, assertion: Assertion, outcome: str, names: Names
) -> str:
    """The command that would tell more, or help; "" where there is nothing to do.

    subject: the diagnosis that the gate read. More texts for an open result, the comparison for a change,
    else what the verdict advises where it found something, else the report.
    """
    target, own = assertion.target, shlex.quote(names.run)
    if outcome == "pass":
        return ""
    if outcome == "inconclusive":
        return _more_texts(run, subject)
    if outcome == "not-run":
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


def _more_texts(run: Diagnosis | Treatment, subject: Diagnosis) -> str:
    command = run.command if run.command.startswith(("condense analyze", "condense treat")) else ""
    command = command or f"condense analyze {shlex.quote(subject.model.id)}"
    return Again(command)(num_texts=str(4 * max(subject.corpus.texts, MIN_TEXTS)), output="again/")
