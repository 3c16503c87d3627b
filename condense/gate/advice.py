"""The command that would tell more, or help, for each result of a gate. Pure Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condense.records.base import Again
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment

if TYPE_CHECKING:
    from condense.gate.run import Result

MORE_TEXT = "; more text is needed, not more windows of the same"
"""What is said where every document was measured already."""
_PROBE_DOCUMENTS = 32


@dataclass(frozen=True)
class Names:
    """What the files are called, for the commands that are advised; a baseline without a file has none."""

    run: str = "run.json"
    baseline: str = ""


def next_command(run: Diagnosis | Treatment, base: Diagnosis | None, result: Result, names: Names) -> str:
    """The command that would tell more, or help; "" where there is nothing to do.

    More text for an open result, the comparison for a change, else what the verdict advises where it found
    something, else the report. What is measured again is measured alike: a baseline with the run.
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
