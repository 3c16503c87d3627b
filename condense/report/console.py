"""A diagnosis on the terminal: verdict, layer table with a bar per site, next command. 80 columns are enough.

Colours are the terminal's own sixteen, so that they hold on light and dark grounds, and nothing is said
by colour alone. Everything from outside goes through `for_terminal` and `Text`, never through markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


if TYPE_CHECKING:
    from rich.console import Console

_BAR = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def _speaks_unicode(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def bar(value: float | None, plain: bool = False, width: int = _BAR) -> str:
    """A bar of `width` cells for a value in [0, 1]; eighths of a cell, or # where Unicode is not spoken."""
    filled = max(0.0, min(1.0, value or 0.0)) * width
    if plain:
        return "#" * round(filled)
    whole = int(filled)
    rest = _EIGHTHS[int((filled - whole) * 8)] if whole < width else ""
    return ("█" * whole + rest).rstrip()
