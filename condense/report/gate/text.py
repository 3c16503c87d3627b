"""A gate in words: Markdown, terminal, JUnit XML and annotations; what did not pass before what did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from condense.gate.assertions import Assertion
from condense.gate.run import OUTCOMES, Gate, Outcome, Result
from condense.records.base import Estimate
from condense.report.console import print_line, speaks_unicode
from condense.report.escape import (
    for_annotation,
    for_annotation_property,
    for_code,
    for_comment,
    for_log,
    for_markdown,
    for_xml,
)
from condense.report.tables import markdown_rows
from condense.report.text import DASH, corpus_line, difference, estimate, folded, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


NAMES: dict[Outcome, str] = {
    "fail": "FAIL",
    "warn": "WARN",
    "inconclusive": "INCONCLUSIVE",
    "not-run": "NOT RUN",
    "pass": "PASS",
}
MARKS: dict[Outcome, str] = {"fail": "✖", "warn": "▲", "inconclusive": "◆", "not-run": "○", "pass": "●"}
_PLAIN: dict[Outcome, str] = {"fail": "x", "warn": "!", "inconclusive": "?", "not-run": "-", "pass": "+"}
_COLOURS: dict[Outcome, str] = {"fail": "red", "warn": "magenta", "inconclusive": "magenta", "pass": "green"}
_COUNTED: dict[Outcome, str] = {"fail": "failed", "warn": "warned", "not-run": "not run", "pass": "passed"}
_SIGNS = {"max": "<=", "min": ">=", "max_increase": "increase <=", "max_decrease": "decrease <="}

# --- words ---------------------------------------------------------------------------------------------


def expected(result: Result) -> str:
    """The bound: `<= 0.8`, `increase <= 1 % (0.0103)`, `is not condensed-further`."""
    text, bound = bound_words(result.assertion), result.assertion.bound
    if not bound.percent or result.limit is None:
        return text
    size = -result.limit if bound.kind == "max_decrease" else result.limit
    return f"{text} ({number(size, _digits(result.found.current))})"


def bound_words(assertion: Assertion) -> str:
    """The bound as it was asked for, whatever was found."""
    bound = assertion.bound
    if bound.words:
        listed = " or ".join(bound.words)
        return {"is": f"is {listed}", "not": f"is not {listed}"}.get(bound.kind, f"{_SIGNS.get(bound.kind)} {listed}")
    sign = _SIGNS[bound.kind]
    return f"{sign.rstrip('=') if bound.strict else sign} {bound.limit:g}{' %' if bound.percent else ''}"


def found(result: Result) -> str:
    """What was found, with its interval; for a change both values too."""
    reading = result.found
    quantity, digits = Estimate(reading.value, reading.low, reading.high), _digits(reading.current)
    if result.words:
        word, *others = result.words
        said = word + (f" (within the interval also {' or '.join(others)})" if others else "")
        return said if reading.value is None else f"{said}: {reading.where} {estimate(quantity, digits)}"
    if reading.value is None:
        return DASH
    bare = "" if reading.low is not None else " (no interval)"
    if not result.assertion.bound.relative:
        return estimate(quantity, digits) + bare
    change = difference(quantity, digits) + bare
    return f"{change}, from {number(reading.reference, digits)} to {number(reading.current, digits)}"


def _digits(value: float | None) -> int:
    size = abs(value or 0.0)
    return 1 if size >= 100 else 2 if size >= 10 else 4


def tally(gate: Gate) -> str:
    """`1 failed, 2 passed`: how many results of each kind there are, worst first."""
    counts = [(gate.count(outcome), _COUNTED.get(outcome, outcome)) for outcome in OUTCOMES]
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing was asked"


def conclusion(gate: Gate) -> str:
    """The last word: the gate's outcome, and the policy where it decides."""
    policy = gate.policy
    if policy.informational and gate.count("fail"):
        return "passed, for it is informational and ends no build"
    if gate.failed and not gate.count("fail"):
        return "failed, for --strict counts whatever did not pass" if policy.strict else "failed, being inconclusive"
    return gate.outcome


def details(result: Result) -> list[tuple[str, str]]:
    """The rest of a result as (label, text): expected, found, where, why, next."""
    pairs = (
        ("expected", expected(result)),
        ("found", "" if result.outcome == "not-run" else found(result)),
        ("where", "" if result.words else result.found.where),
        ("why", result.reason),
        ("next", result.next),
    )
    return [(label, text) for label, text in pairs if text]


# --- Markdown ------------------------------------------------------------------------------------------

LIMIT = 900_000
"""Bytes; a GitHub step summary may hold 1 MiB, and other steps' text is not in it."""
_HEAD = ("", "number", "expected", "found", "where")


def gate_markdown(gate: Gate, limit: int = LIMIT) -> str:
    """The gate in at most `limit` bytes: heading of the third level, table of what did not pass, the rest folded."""
    against = f" against `{for_code(gate.baseline)}`" if gate.baseline else ""
    top = [
        f"<!-- condense {for_comment(gate.subject.condense)} -->",
        f"### condense check: {conclusion(gate)}",
        "",
        f"{tally(gate)}: `{for_code(gate.model)}` (`{for_code(gate.run)}`){against}",
        "",
        *(f"- {for_markdown(note)}" for note in gate.notes),
        *([""] if gate.notes else []),
    ]
    passed = [result for result in gate.results if result.outcome == "pass"]
    others = [result for result in gate.results if result.outcome != "pass"]
    end = folded("What was measured", _subject(gate))
    left = limit - _encoded_size([*top, *end])
    shown = _results(others, left * 2 // 3)
    steps = _next_steps(others, (left - _encoded_size(shown)) // 2)
    rest = _results(passed, left - _encoded_size([*shown, *steps]) - 200)
    fold = folded(f"{len(passed)} passed", rest) if passed else []
    return "\n".join([*top, *shown, *steps, *fold, *end]) + "\n"


def _encoded_size(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _results(results: Sequence[Result], limit: int) -> list[str]:
    if not results:
        return []
    head, rule, *rows = markdown_rows(_HEAD, map(_result_row, results))
    return [head, rule, *_within(rows, limit - _encoded_size([head, rule])), ""]


def _result_row(result: Result) -> Iterable[str]:
    where = "" if result.words else result.found.where
    said = found(result) if result.outcome != "not-run" else result.reason
    if result.outcome == "inconclusive":
        said = f"{said}: {result.reason}"
    name = f"{MARKS[result.outcome]} {NAMES[result.outcome]}"
    target = f"`{for_code(result.assertion.target.name)}`"
    return (name, target, *map(for_markdown, (expected(result), said, where)))


def _next_steps(results: Sequence[Result], limit: int) -> list[str]:
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


def _subject(gate: Gate) -> list[str]:
    run = gate.subject
    return [
        f"- model: `{for_code(run.model.id)}`, {for_markdown(run.model.architecture)}, {for_markdown(run.model.dtype)}",
        f"- weights: `{for_code(run.model.weights_sha256 or 'unknown')}`",
        f"- text: {for_markdown(corpus_line(run.corpus))}",
        f"- protocol: `{for_code(str(run.protocol.get('hash', '')))}`",
        f"- verdict: {run.verdict.level}, cone {run.verdict.cone}, rank {run.verdict.rank}, "
        f"{for_markdown(run.verdict.attribution)}",
        "",
        "Intervals are 95 % over documents. Bands are a convention; geometry is not quality.",
    ]


# --- terminal and CI log: a block of lines per result, failures first ------------------------------------

_LABEL = 10


def show_gate(gate: Gate, console: Console) -> None:
    """Print a gate: what was held against what, every result, the count and the outcome."""
    from rich.text import Text

    against = f" against {gate.baseline}" if gate.baseline else ""
    print_line(console, Text(for_log(f"check {gate.run}{against}"), style="bold"))
    print_line(console, Text(for_log(f"{gate.model}: {corpus_line(gate.subject.corpus)}".replace("×", "x"))))
    for note in gate.notes:
        print_line(console, Text(for_log(f"note: {note}")))
    console.print()
    for result in gate.results:
        _show_result(result, console, MARKS if speaks_unicode(console) else _PLAIN)
    colour = "red" if gate.failed else "green" if gate.outcome == "passed" else "magenta"
    console.print(Text(f"{conclusion(gate)}: ", style=f"bold {colour}").append(tally(gate), style="not bold default"))


def _show_result(result: Result, console: Console, marks: dict[Outcome, str]) -> None:
    from rich.text import Text

    outcome = result.outcome
    head = Text(f"{marks[outcome]} {NAMES[outcome]} ", style=f"bold {_COLOURS.get(outcome, '')}".strip())
    head.append(result.assertion.target.name, style="bold default")
    if outcome == "pass":
        _show_passed(head, result, console)
        return
    print_line(console, head)
    for label, words in details(result):
        line = Text(f"  {label:<{_LABEL}}", style="dim").append(for_log(words), style="not dim")
        if label == "next":  # never broken, so that it can be copied
            line.stylize("bold cyan", 2 + _LABEL)
            console.print(line, soft_wrap=True)
        else:
            print_line(console, _hanging(line, console))
    console.print()


def _show_passed(head: Text, result: Result, console: Console) -> None:
    """One line, or two where one is too short."""
    from rich.text import Text

    head.append(f" {expected(result)}", style="not bold default")
    said = found(result) + (f" at {result.found.where}" if result.assertion.target.scope == "any-block" else "")
    if head.cell_len + len(said) + 2 <= console.width:
        print_line(console, head.append(f": {said}", style="not bold default"))
        return
    print_line(console, head)
    print_line(console, _hanging(Text(f"  {'found':<{_LABEL}}{said}"), console))


def _hanging(line: Text, console: Console) -> Text:
    """The line broken at a terminal's width, its later lines under the first one's text."""
    from rich.text import Text

    if not console.is_terminal:
        return line
    indent = 2 + _LABEL
    label, rest = line[:indent], line[indent:]
    parts = rest.wrap(console, max(20, console.width - indent))
    return Text("\n").join([label + parts[0], *(Text(" " * indent) + part for part in parts[1:])])


# --- for a CI server -------------------------------------------------------------------------------------


MOST_ANNOTATIONS = 10
"""GitHub shows ten annotations of a kind for a step and drops the rest."""


def gate_junit(gate: Gate) -> str:
    """The gate as one suite, by the schema of Jenkins' xUnit plugin (junit-10.xsd), which GitLab and others take too.

    A warning or an open result is skipped. An undecided gate has a case of its own, an error: a reader that counts
    cases would show it as passed.
    """
    blocking = sum(gate.blocks(result) for result in gate.results)
    skipped = len(gate.results) - blocking - gate.count("pass")
    open_gate = int(gate.undecided)
    counts = {
        "tests": str(len(gate.results) + open_gate),
        "failures": str(blocking),
        "errors": str(open_gate),
        "time": "0",
    }
    root = ElementTree.Element("testsuites", {"name": "condense", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "condense check", **counts, "skipped": str(skipped)})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _junit_properties(gate).items():
        if value:
            ElementTree.SubElement(properties, "property", {"name": name, "value": for_xml(value)})
    for result in gate.results:
        _junit_case(suite, gate, result)
    if gate.undecided:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "condense", "name": "gate", "time": "0"})
        message = "undecided: nothing that could fail was decided"
        ElementTree.SubElement(case, "error", {"message": message, "type": "undecided"}).text = message
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_properties(gate: Gate) -> dict[str, str]:
    return {
        "model": gate.model,
        "run": gate.run,
        "baseline": gate.baseline,
        "outcome": gate.outcome,
        "weights_sha256": gate.subject.model.weights_sha256 or "",
        "protocol": str(gate.subject.protocol.get("hash", "")),
        "corpus": gate.subject.corpus.sha256,
        "notes": "; ".join(gate.notes),
    }


def _junit_case(suite: ElementTree.Element, gate: Gate, result: Result) -> None:
    target = result.assertion.target
    name = for_xml(f"{target.name} {bound_words(result.assertion)}")
    classname = ".".join(part for part in ("condense", target.stack, target.scope) if part)
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": name, "time": "0"})
    lines = details(result)
    text = for_xml("\n".join(f"{label}: {words}" for label, words in lines))
    if result.outcome == "pass":
        ElementTree.SubElement(case, "system-out").text = text
        return
    kind = "failure" if gate.blocks(result) else "skipped"
    words = "; ".join(words for label, words in lines if label != "next")
    message = for_xml(f"{NAMES[result.outcome]}: {words}")
    attributes = {"message": message, "type": result.outcome} if kind == "failure" else {"message": message}
    ElementTree.SubElement(case, kind, attributes).text = text


def gate_annotations(gate: Gate) -> list[str]:
    """`::error …` for what ends the build, `::warning …` for what else did not pass, the worst first."""
    reported = [result for result in gate.results if result.outcome != "pass"]
    reported.sort(key=lambda result: not gate.blocks(result))
    return [_annotation(gate, result) for result in reported[:MOST_ANNOTATIONS]]


def _annotation(gate: Gate, result: Result) -> str:
    kind = "error" if gate.blocks(result) else "warning"
    title = for_annotation_property(f"condense: {result.assertion.target.name} {NAMES[result.outcome]}")
    message = for_annotation("\n".join(f"{label}: {text}" for label, text in details(result)))
    return f"::{kind} title={title}::{message}"
