"""A gate as Markdown, for a step summary or a comment: the outcome first, what passed folded, under 1 MiB."""

from __future__ import annotations

from collections.abc import Sequence

from condense.gate.run import Gate, Result
from condense.report.escape import for_code, for_markdown
from condense.report.gate.words import MARKS, NAMES, conclusion, expected, found, tally
from condense.report.text import corpus_line

LIMIT = 900_000
"""Bytes; a GitHub step summary may hold 1 MiB, and other steps' text is not in it."""

_HEAD = ("", "number", "expected", "found", "where")


def gate_markdown(gate: Gate, limit: int = LIMIT) -> str:
    """The gate in at most `limit` bytes: heading of the third level, table of what did not pass, the rest folded."""
    against = f" against `{for_code(gate.baseline)}`" if gate.baseline else ""
    top = [
        f"### condense check: {conclusion(gate)}",
        "",
        f"{tally(gate)}: `{for_code(gate.model)}` (`{for_code(gate.run)}`){against}",
        "",
        *(f"- {for_markdown(note)}" for note in gate.notes),
        *([""] if gate.notes else []),
    ]
    passed = [result for result in gate.results if result.outcome == "pass"]
    others = [result for result in gate.results if result.outcome != "pass"]
    end = _measured(gate)
    left = limit - _size([*top, *end])
    shown = _table(others, left * 2 // 3)
    steps = _steps(others, (left - _size(shown)) // 2)
    folded = _folded(f"{len(passed)} passed", _table(passed, left - _size([*shown, *steps]) - 200)) if passed else []
    return "\n".join([*top, *shown, *steps, *folded, *end]) + "\n"


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _table(results: Sequence[Result], limit: int) -> list[str]:
    if not results:
        return []
    head = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    return [*head, *_within([_row(result) for result in results], limit - _size(head)), ""]


def _row(result: Result) -> str:
    where = "" if result.words else result.found.where
    said = found(result) if result.outcome != "not-run" else result.reason
    if result.outcome == "inconclusive":
        said = f"{said}: {result.reason}"
    name = f"{MARKS[result.outcome]} {NAMES[result.outcome]}"
    cells = [name, f"`{for_code(result.assertion.target.name)}`", *map(for_markdown, (expected(result), said, where))]
    return f"| {' | '.join(cells)} |"


def _steps(results: Sequence[Result], limit: int) -> list[str]:
    commands = dict.fromkeys(f"- `{for_code(result.next)}`" for result in results if result.next)
    return ["Next:", "", *_within(list(commands), limit), ""] if commands else []


def _within(lines: Sequence[str], limit: int) -> list[str]:
    """As many lines as fit, and how many were left out."""
    kept: list[str] = []
    used = 200
    for line in lines:
        used += len(line.encode()) + 1
        if used > limit:
            return [*kept, f"… and {len(lines) - len(kept)} more"]
        kept.append(line)
    return kept


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "</details>", ""]


def _measured(gate: Gate) -> list[str]:
    run = gate.subject
    lines = [
        f"- model: `{for_code(run.model.id)}`, {for_markdown(run.model.architecture)}, {run.model.dtype}",
        f"- weights: `{for_code(run.model.weights_sha256 or 'unknown')}`",
        f"- text: {for_markdown(corpus_line(run.corpus))}",
        f"- protocol: `{for_code(str(run.protocol.get('hash', '')))}`",
        f"- verdict: {run.verdict.level}, cone {run.verdict.cone}, rank {run.verdict.rank}, "
        f"{for_markdown(run.verdict.attribution)}",
        "",
        "Intervals are 95 % over texts. Bands are a convention; geometry is not quality.",
        "",
    ]
    return _folded("What was measured", lines)
