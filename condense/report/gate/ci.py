"""A gate for a CI server: JUnit XML with a test case per assertion, and GitHub annotations, ten at most."""

from __future__ import annotations

from xml.etree import ElementTree

from condense.gate.run import Gate, Result
from condense.report.escape import for_annotation, for_annotation_property, for_xml
from condense.report.gate.text import NAMES, bound_words, details

MOST = 10
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
    for name, value in _properties(gate).items():
        if value:
            ElementTree.SubElement(properties, "property", {"name": name, "value": for_xml(value)})
    for result in gate.results:
        _case(suite, gate, result)
    if gate.undecided:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "condense", "name": "gate", "time": "0"})
        message = "undecided: nothing that could fail was decided"
        ElementTree.SubElement(case, "error", {"message": message, "type": "undecided"}).text = message
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(gate: Gate) -> dict[str, str]:
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


def _case(suite: ElementTree.Element, gate: Gate, result: Result) -> None:
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
    return [_command(gate, result) for result in reported[:MOST]]


def _command(gate: Gate, result: Result) -> str:
    kind = "error" if gate.blocks(result) else "warning"
    title = for_annotation_property(f"condense: {result.assertion.target.name} {NAMES[result.outcome]}")
    message = for_annotation("\n".join(f"{label}: {text}" for label, text in details(result)))
    return f"::{kind} title={title}::{message}"
