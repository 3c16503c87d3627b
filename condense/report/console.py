"""What every report on the terminal is made of: tables, bars, and the panel of the findings. 80 columns are enough.

Colours are the terminal's own sixteen, so that they hold on light and dark grounds, and nothing is said by colour
alone. Everything from outside goes through `for_terminal` and `Text`, never through markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from condense.report.escape import for_terminal
from condense.report.tables import Cell
from condense.report.text import SEVERITIES, sentence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from condense.records.base import Finding

BAR = 16
COLOURS = {"severe": "red", "warning": "magenta", "good": "green", "info": ""}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def speaks_unicode(console: Console) -> bool:
    """Whether the terminal's encoding has more than ASCII."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def bar(value: float | None, plain: bool = False, width: int = BAR) -> str:
    """A bar of `width` cells for a value in [0, 1]; eighths of a cell, or # where Unicode is not spoken."""
    filled = max(0.0, min(1.0, value or 0.0)) * width
    if plain:
        return "#" * round(filled)
    whole = int(filled)
    rest = _EIGHTHS[int((filled - whole) * 8)] if whole < width else ""
    return ("█" * whole + rest).rstrip()


def text(words: str, style: str = "") -> Text:
    """Text from outside, made harmless."""
    from rich.text import Text

    return Text(for_terminal(words), style=style)


def say(console: Console, *lines: str, style: str = "") -> None:
    """Print lines of text."""
    for line in lines:
        console.print(text(line, style))


def cell_text(cell: Cell, *, one_line: bool = False) -> Text:
    """A cell: bold where strong, its interval and notes dim below, or behind it on one line."""
    made = text(cell.text + cell.mark, "bold" if cell.strong else "")
    if one_line:
        return made.append(f" [{cell.low}, {cell.high}]" if cell.low else "", style="not bold")
    for line in cell.below:
        made.append(f"\n{for_terminal(line)}", style="not bold dim")
    return made


def new_table(
    console: Console, heads: Sequence[str], *, title: str = "", left: int = 1, names: int | None = None
) -> Table:
    """A table of these heads: the first `left` columns to the left, numbers to the right and never broken.

    names: the most cells that the first column may take; it is broken there, not cut.
    """
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.table import Table

    made = Table(
        box=SIMPLE_HEAD if speaks_unicode(console) else ASCII,
        pad_edge=False,
        padding=(0, 1),
        title=text(title) if title else None,
        title_justify="left",
        title_style="",
    )
    for index, head in enumerate(heads):
        if index == 0 and names is not None:
            made.add_column(text(head), overflow="fold", max_width=names)
        else:
            justify: Literal["left", "right"] = "left" if index < left else "right"
            made.add_column(text(head), justify=justify, no_wrap=index > 0, min_width=0 if index else 6)
    return made


def panel(
    title: str, colour: str, findings: Sequence[Finding], *, head: str = "", facts: str = "", notes: Iterable[str] = ()
) -> RenderableType:
    """The findings in a frame: the main one whole, the others by title and numbers, the next command last.

    head: what stands before the main finding's title; facts: a line under it; notes: lines before the command.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    first, *others = findings
    lines: list[RenderableType] = [text(f"{head}{first.title}", "bold")]
    lines += [text(facts), Text()] if facts else []
    lines += [text(sentence(first.seen)), text(sentence(first.why))]
    for finding in others:
        line = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
        lines.append(line.append(for_terminal(f"{finding.seen.rstrip('.')}.")))
    lines += [Text(), *map(text, notes)] if first.next or notes else []
    if first.next:
        lines.append(Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan"))
    return Panel(
        Group(*lines),
        title=text(title, f"bold {colour}".strip()),
        border_style=colour or "none",
        title_align="left",
        padding=(0, 1),
    )
