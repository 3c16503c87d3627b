"""A gate on the terminal and in a CI log: a block of lines per result, failures first, within 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.report.escape import for_log
from condense.report.gate.words import MARKS, NAMES, conclusion, expected, found, lines, tally
from condense.report.text import corpus_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from condense.gate.run import Gate, Outcome, Result

_COLOURS: dict[Outcome, str] = {"fail": "red", "warn": "magenta", "inconclusive": "magenta", "pass": "green"}
_PLAIN: dict[Outcome, str] = {"fail": "x", "warn": "!", "inconclusive": "?", "not-run": "-", "pass": "+"}
_LABEL = 10


def show_gate(gate: Gate, console: Console) -> None:
    """Print a gate: what was held against what, every result, the count and the outcome."""
    from rich.text import Text

    plain = not console.encoding.lower().replace("-", "").startswith("utf")
    against = f" against {gate.baseline}" if gate.baseline else ""
    console.print(Text(for_log(f"check {gate.run}{against}"), style="bold"))
    console.print(Text(for_log(f"{gate.model}: {corpus_line(gate.subject.corpus)}".replace("×", "x"))))
    for note in gate.notes:
        console.print(Text(for_log(f"note: {note}")))
    console.print()
    for result in gate.results:
        _show(result, console, plain)
    word = conclusion(gate)
    colour = "red" if gate.failed else "green" if gate.outcome == "passed" else "magenta"
    console.print(Text(f"{word}: ", style=f"bold {colour}").append(tally(gate), style="not bold default"))


def _show(result: Result, console: Console, plain: bool) -> None:
    from rich.text import Text

    outcome = result.outcome
    mark = (_PLAIN if plain else MARKS)[outcome]
    style = f"bold {_COLOURS.get(outcome, '')}".strip()
    head = Text(f"{mark} {NAMES[outcome]} ", style=style)
    head.append(result.assertion.target.name, style="bold default")
    if outcome == "pass":
        _show_passed(head, result, console)
        return
    console.print(head)
    for label, text in lines(result):
        line = Text(f"  {label:<{_LABEL}}", style="dim").append(for_log(text), style="not dim")
        if label == "next":  # never broken, so that it can be copied out of a log
            line.stylize("bold cyan", 2 + _LABEL)
            console.print(line, soft_wrap=True)
        else:
            console.print(_hanging(line, console))
    console.print()


def _show_passed(head: Text, result: Result, console: Console) -> None:
    """One line, or two where one is too short."""
    head.append(f" {expected(result)}", style="not bold default")
    said = found(result) + (f" at {result.found.where}" if result.assertion.target.scope == "any-block" else "")
    if head.cell_len + len(said) + 2 <= console.width:
        console.print(head.append(f": {said}", style="not bold default"))
        return
    console.print(head)
    console.print(f"  {'found':<{_LABEL}}{said}")


def _hanging(line: Text, console: Console) -> Text:
    """The line broken at the width, its later lines under the first one's text."""
    from rich.text import Text

    indent = 2 + _LABEL
    label, rest = line[:indent], line[indent:]
    parts = rest.wrap(console, max(20, console.width - indent))
    return Text("\n").join([label + parts[0], *(Text(" " * indent) + part for part in parts[1:])])
