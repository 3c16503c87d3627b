"""The command to run next, where a gate's assertion did not pass. Pure Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from condense.gate.assertions import Assertion
from condense.metrics import MIN_TEXTS
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment
from condense.treatment.verdict import Again


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
