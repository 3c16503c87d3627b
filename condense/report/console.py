"""What every report on the terminal is made of: tables, bars, and the panel of the findings. 80 columns are enough.

In less, a table leaves out whole columns and says which. Paths and commands are never broken by a line end of ours:
what is no terminal gets lines as they are, and a terminal breaks a longer one itself.

Colours are the terminal's own sixteen, so that they hold on light and dark grounds, and nothing depends on colour
alone. Everything from outside goes through `for_terminal` and `Text`, never through markup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from condense.report.escape import for_terminal
from condense.report.tables import Cell
from condense.report.text import SEVERITIES, sentence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from condense.records.base import Finding

BAR = 16
MOST_CELLS = 10_000  # wider than any table
NARROWEST = 14  # of a column whose words may be broken
COLOURS = {"severe": "red", "warning": "magenta", "good": "green", "info": ""}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def speaks_unicode(console: Console) -> bool:
    """Whether the terminal's encoding has more than ASCII."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def bar(value: float | None, plain: bool = False, width: int = BAR) -> str:
    """A bar of `width` cells for a value in [0, 1]; eighths of a cell, or # where the terminal has no Unicode."""
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
        print_line(console, text(line, style))


def print_line(console: Console, line: Text) -> None:
    """Print a line, on a terminal broken between words; one with a word that is longer than that is left as it is."""
    longest = max((len(word) for word in line.plain.split()), default=0)
    console.print(line, soft_wrap=not console.is_terminal or longest > console.width)


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


def show_table(console: Console, table: Table, spare: Sequence[int] = ()) -> None:
    """Print a table without the columns that there is no room for, and say which; no digit is cut.

    spare: the columns that are left out first, in order; then it is the last of the others. The first stays.
    """
    from rich.measure import Measurement

    wide = console.options.update(max_width=MOST_CELLS)
    columns = table.columns
    folded = {index: column.max_width for index, column in enumerate(columns) if column.overflow == "fold"}
    for index, column in enumerate(columns):
        if index in folded:
            column.max_width = max(column.min_width or 0, NARROWEST)
        elif column.no_wrap:
            cells = (column.header, *column.cells)
            column.min_width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
    others = [index for index in reversed(range(1, len(columns))) if index not in spare]
    leaving, left_out = [*spare, *others], list[int]()
    while len(leaving) > 1 and console.measure(table, options=wide).minimum > console.width:
        left_out.append(leaving.pop(0))
        table.columns = [column for index, column in enumerate(columns) if index not in left_out]
        for index, column in enumerate(table.columns):
            column._index = index  # by which Rich knows the first and the last, whose outer padding is none
    for index, most in folded.items():
        columns[index].max_width = most
    console.print(table)
    heads = [" ".join(str(columns[index].header).split()) for index in sorted(left_out)]
    if heads:
        say(console, f"no room in {console.width} columns for: {', '.join(heads)}", style="dim")


@contextlib.contextmanager
def room_for(console: Console, least: int) -> Iterator[None]:
    """Within, what is no terminal is at least so wide, so that nothing in a frame or a column is broken."""
    before = console.width
    if not console.is_terminal:
        console.width = max(before, least)
    yield
    console.width = before


def show_panel(
    console: Console,
    title: str,
    colour: str,
    findings: Sequence[Finding],
    *,
    head: str = "",
    facts: str = "",
    notes: Iterable[str] = (),
) -> None:
    """Print the findings in a frame, the main one whole, the others by title and numbers; then the next command.

    head: what stands before the main finding's title; facts: a line under it; notes: lines at the end of the frame.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    first, *others = findings
    lines = [text(f"{head}{first.title}", "bold")]
    lines += [text(facts), Text()] if facts else []
    lines += [text(sentence(first.seen)), text(sentence(first.why))]
    for finding in others:
        line = Text("\n").append(f"{SEVERITIES[finding.severity]} {for_terminal(finding.title)}: ", style="bold")
        lines.append(line.append(for_terminal(f"{finding.seen.rstrip('.')}.")))
    lines += [text(note) if index else text(f"\n{note}") for index, note in enumerate(notes)]
    frame = Panel(
        Group(*lines),
        title=text(title, f"bold {colour}".strip()),
        border_style=colour or "none",
        title_align="left",
        padding=(0, 1),
    )
    longest = max(len(word) for line in lines for word in line.plain.split() or [""])
    with room_for(console, longest + 4):
        console.print(frame)
    if first.next:
        command = Text("next: ", style="bold").append(for_terminal(first.next), style="bold cyan")
        console.print(command, soft_wrap=True)
