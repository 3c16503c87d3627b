"""A gate as GitHub workflow commands: annotations on the run's page, ten at most, the worst first."""

from __future__ import annotations

from condense.gate.run import Gate, Result
from condense.report.escape import for_annotation, for_annotation_property
from condense.report.gate.words import NAMES, lines

MOST = 10
"""GitHub shows ten of a kind for a step and drops the rest."""


def gate_annotations(gate: Gate) -> list[str]:
    """`::error …` for what ends the build, `::warning …` for what else did not pass."""
    told = [result for result in gate.results if result.outcome != "pass"]
    told.sort(key=lambda result: not gate.blocks(result))
    return [_command(gate, result) for result in told[:MOST]]


def _command(gate: Gate, result: Result) -> str:
    kind = "error" if gate.blocks(result) else "warning"
    title = for_annotation_property(f"condense: {result.assertion.target.name} {NAMES[result.outcome]}")
    message = for_annotation("\n".join(f"{label}: {text}" for label, text in lines(result)))
    return f"::{kind} title={title}::{message}"
