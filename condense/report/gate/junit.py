"""A gate as JUnit XML: a test case per assertion. What does not end the build is `skipped`, with its message."""

from __future__ import annotations

from xml.etree import ElementTree

from condense.gate.run import Gate, Result
from condense.report.escape import for_xml
from condense.report.gate.words import NAMES, bound_words, lines


def gate_junit(gate: Gate) -> str:
    """The gate as one suite that GitLab, Jenkins and GitHub readers take; a warning or an open result is skipped."""
    blocking = sum(gate.blocks(result) for result in gate.results)
    skipped = len(gate.results) - blocking - gate.count("pass")
    counts = {"tests": str(len(gate.results)), "failures": str(blocking), "errors": "0", "skipped": str(skipped)}
    root = ElementTree.Element("testsuites", {"name": "condense", **counts, "time": "0"})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "condense check", **counts, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(gate):
        ElementTree.SubElement(properties, "property", {"name": name, "value": for_xml(value)})
    for result in gate.results:
        _case(suite, gate, result)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(gate: Gate) -> list[tuple[str, str]]:
    pairs = [
        ("model", gate.model), ("run", gate.run), ("baseline", gate.baseline), ("outcome", gate.outcome),
        ("weights_sha256", gate.subject.model.weights_sha256 or ""),
        ("protocol", str(gate.subject.protocol.get("hash", ""))), ("corpus", gate.subject.corpus.sha256),
        ("notes", "; ".join(gate.notes)),
    ]  # fmt: skip
    return [(name, value) for name, value in pairs if value]


def _case(suite: ElementTree.Element, gate: Gate, result: Result) -> None:
    target = result.assertion.target
    name = for_xml(f"{target.name} {bound_words(result.assertion)}")
    classname = ".".join(part for part in ("condense", target.stack, target.scope) if part)
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": name, "time": "0"})
    text = for_xml("\n".join(f"{label}: {words}" for label, words in lines(result)))
    if result.outcome == "pass":
        ElementTree.SubElement(case, "system-out").text = text
        return
    kind = "failure" if gate.blocks(result) else "skipped"
    message = for_xml(
        f"{NAMES[result.outcome]}: {'; '.join(words for label, words in lines(result) if label != 'next')}"
    )
    attributes = {"message": message, "type": result.outcome} if kind == "failure" else {"message": message}
    ElementTree.SubElement(case, kind, attributes).text = text
