"""How a gate's results are put into words, the same on every surface. Records in, text out."""

from __future__ import annotations

from condense.gate.assertions import Assertion
from condense.gate.run import OUTCOMES, Gate, Outcome, Result
from condense.records.base import Estimate
from condense.report.text import DASH, estimate, number, signed

NAMES: dict[Outcome, str] = {
    "fail": "FAIL", "warn": "WARN", "inconclusive": "INCONCLUSIVE", "not-run": "NOT RUN", "pass": "PASS",
}  # fmt: skip
MARKS: dict[Outcome, str] = {"fail": "✖", "warn": "▲", "inconclusive": "◆", "not-run": "○", "pass": "●"}
_COUNTED: dict[Outcome, str] = {
    "fail": "failed", "warn": "warned", "inconclusive": "inconclusive", "not-run": "not run", "pass": "passed",
}  # fmt: skip
_SIGNS = {"max": "<=", "min": ">=", "max_increase": "increase <=", "max_decrease": "decrease <="}


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
    of, digits = Estimate(reading.value, reading.low, reading.high), _digits(reading.current)
    if result.words:
        word, *others = result.words
        said = word + (f" (within the interval also {' or '.join(others)})" if others else "")
        return said if reading.value is None else f"{said}: {reading.where} {estimate(of, digits)}"
    if reading.value is None:
        return DASH
    if not result.assertion.bound.relative:
        return estimate(of, digits) + ("" if reading.low is not None else " (no interval)")
    change = signed(of, digits) + ("" if reading.low is not None else " (no interval)")
    return f"{change}, from {number(reading.reference, digits)} to {number(reading.current, digits)}"


def _digits(value: float | None) -> int:
    size = abs(value or 0.0)
    return 1 if size >= 100 else 2 if size >= 10 else 4


def tally(gate: Gate) -> str:
    """`1 failed, 2 passed`: how many results of each kind there are, worst first."""
    counts = [(gate.count(outcome), _COUNTED[outcome]) for outcome in OUTCOMES]
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing was asked"


def conclusion(gate: Gate) -> str:
    """The last word: the gate's outcome, and the policy where it decides."""
    policy = gate.policy
    if policy.informational and gate.count("fail"):
        return "passed, for it is informational and ends no build"
    if gate.failed and not gate.count("fail"):
        return "failed, for --strict counts whatever did not pass" if policy.strict else "failed, being inconclusive"
    return gate.outcome


def lines(result: Result) -> list[tuple[str, str]]:
    """The rest of a result as (label, text): expected, found, where, why, next."""
    pairs = [
        ("expected", expected(result)), ("found", "" if result.outcome == "not-run" else found(result)),
        ("where", "" if result.words else result.found.where), ("why", result.reason), ("next", result.next),
    ]  # fmt: skip
    return [(label, text) for label, text in pairs if text]
