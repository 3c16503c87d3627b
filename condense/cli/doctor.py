"""`condense doctor`: what is installed, where things are kept, and what would not work and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense.cli import settings
from condense.cli.console import console, say
from condense.cli.demo import demo_file
from condense.cli.groups import command
from condense.cli.outputs import check_file
from condense.errors import CondenseError, UnavailableError
from condense.files import size_in_words, write_text
from condense.records.options import Flag
from condense.records.serial import dumps
from condense.report.console import MOST_CELLS, room_for
from condense.report.escape import for_terminal
from condense.report.text import DASH, SEVERITIES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from condense.doctor import Folder, Installation, Problem


MISSING = 3
Record = Flag("Write what was found here instead of showing it.", metavar="FILE")


@command
def doctor(context: typer.Context, json: Annotated[Path | None, Record] = None) -> None:
    """Show what is installed, where things are kept, what would not work, and how to fix it."""
    from condense.doctor import examine

    if json is not None:
        check_file(json)
    file, wrong = _settings(context)
    demo = _demo()
    installation = examine(file, (*wrong, *demo), demo=not demo)
    if json is None:
        show_installation(installation, console())
    else:
        write_text(json, dumps(installation))
        say(f"wrote {json}")
    if not installation.works:
        raise typer.Exit(MISSING)


def _settings(context: typer.Context) -> tuple[str, tuple[Problem, ...]]:
    """The settings file in words, and what is wrong with it or with the variables of the environment."""
    from condense.doctor import Problem

    above: Any = context.parent
    named: Path | None = above.params["config"]
    told = "none here"
    try:
        file = settings.find_file(named)
        told = str(file.path or told)
        settings.defaults(context.obj, file)
    except CondenseError as error:
        return f"{told}, not valid", (Problem("every command", str(error), error.hint or "correct the file", True),)
    return told, ()


def _demo() -> tuple[Problem, ...]:
    from condense.doctor import Problem

    try:
        demo_file()
    except UnavailableError as error:
        return (Problem("condense demo", str(error), error.hint),)
    return ()


# --- shown on the terminal -------------------------------------------------------------------------------


def show_installation(found: Installation, console: Console) -> None:
    """Print an installation: versions, devices, disk space, the hub, and the problems last, the required ones first."""
    from rich.text import Text

    console.print(Text(f"condense {found.condense}", style="bold").append(
        for_terminal(f"  Python {found.python}, {found.platform}"), style="not bold"
    ))  # fmt: skip
    console.print()
    console.print(Text("required", style="bold"))
    needed = [f"{p.name} {p.version or DASH}" for p in found.packages if not p.purpose]
    console.print(Text(for_terminal(", ".join(needed))))
    for title, rows in (
        ("optional", [(p.name, p.version or DASH, p.purpose) for p in found.packages if p.purpose]),
        ("machine", _machine(found)),
        ("hub and settings", _hub(found)),
    ):
        console.print()
        console.print(Text(title, style="bold"))
        with room_for(console, MOST_CELLS):
            console.print(_aligned_rows(rows))
    console.print()
    _show_problems(found, console)


def _aligned_rows(rows: list[tuple[str, str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=16)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_row(*(Text(for_terminal(cell)) for cell in row))
    return table


def _machine(found: Installation) -> list[tuple[str, str, str]]:
    rows = []
    for device in found.devices:
        own = f", {size_in_words(device.memory)}" if device.memory else ""
        how = "in hardware" if device.bfloat16 else "slower than float32"
        rows.append((device.name, f"{device.title}{own}", f"bfloat16 {how}"))
    if not any(device.name.startswith(("cuda", "mps")) for device in found.devices):
        rows.append(("GPU", "none", "treat trains on the CPU in float32"))
    rows.append(("memory", size_in_words(found.memory), f"{size_in_words(found.memory_available)} available"))
    rows += [(folder.name, folder.path, _space(folder)) for folder in found.folders]
    return rows + [
        ("converted .gguf", f"{copy.source} in {copy.path}", size_in_words(copy.size)) for copy in found.copies
    ]


def _space(folder: Folder) -> str:
    held = "" if folder.name == "here" else f"{'' if folder.counted else 'over '}{size_in_words(folder.size)} used, "
    return f"{held}{size_in_words(folder.free)} free{'' if folder.writable else ', not writable'}"


def _hub(found: Installation) -> list[tuple[str, str, str]]:
    offline = ", ".join(f"{key}={value}" for key, value in found.offline.items())
    return [
        ("token", found.token if found.token == "none" else f"there is one ({found.token})", ""),
        ("offline", offline or "no", ""),
        ("demo model", "installed" if found.demo else "not installed", ""),
        ("settings file", found.settings, ""),
    ]


def _show_problems(found: Installation, console: Console) -> None:
    from rich.text import Text

    if found.problems:
        console.print(Text("would not work", style="bold"))
    for problem in sorted(found.problems, key=lambda problem: not problem.required):
        mark, colour = (SEVERITIES["severe"], "red") if problem.required else (SEVERITIES["info"], "")
        console.print(Text(f"{mark} ", style=colour).append(for_terminal(f"{problem.what}: {problem.why}")))
        console.print(Text("    ").append(for_terminal(problem.fix), style="bold cyan"), soft_wrap=True)
    if found.problems:
        console.print()
    missing = sum(problem.required for problem in found.problems)
    if missing:
        first = f"{missing} thing{'s' * (missing != 1)} to fix before anything works"
        console.print(Text(f"{SEVERITIES['severe']} {first}.", style="bold red"))
    else:
        console.print(Text(f"{SEVERITIES['good']} All that condense needs is there.", style="bold green"))
