"""`condense atlas`: the models that a diagnosis is held beside; `condense atlas add RUN.json`: one's own among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.cli.console import console, say
from condense.cli.groups import command
from condense.errors import UsageError
from condense.report.console import new_table
from condense.report.console import say as print_lines
from condense.report.escape import for_terminal
from condense.report.text import model_name, number, parameter_count, percent, plural

if TYPE_CHECKING:
    from rich.console import Console

    from condense.records.atlas import AtlasModel

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[add RUN.json …]", help="Nothing to list; add: put diagnoses into your own atlas."),
]


@command
def atlas(words: Words = None) -> None:
    """List the models that a diagnosis measured alike is held beside, or add one of your own."""
    action, *runs = words or ["list"]
    if action == "list" and not runs:
        _list(console())
    elif action == "add" and runs:
        for run in runs:
            _add(Path(run))
    else:
        raise UsageError(f"condense atlas does not know {' '.join(words or ())!r}", "condense atlas [add RUN.json …]")


def _add(path: Path) -> None:
    from condense.comparison.atlas import add
    from condense.records.diagnosis import Diagnosis

    run = Diagnosis.from_json(path)
    say(f"wrote {add(run, model_name(run.model.id))}")


def _list(out: Console) -> None:
    """Show every model; what cannot be read is said on stderr."""
    from condense.comparison.atlas import own_folder, read_atlas

    models, problems = read_atlas()
    for problem in problems:
        say(f"not read: {problem}")
    groups: dict[str, list[AtlasModel]] = {}
    for model in models:
        protocol = str(model.protocol.get("hash", ""))[:8]
        texts = model.corpus
        measured = f"{texts.texts} windows × {texts.length} tokens of {texts.source}, {model.model.dtype}"
        groups.setdefault(f"{measured}; protocol {protocol}", []).append(model)
    for measured, members in groups.items():
        print_lines(out, measured, style="bold")
        table = new_table(out, ("model", "size", "blocks", "cosine", "±", "rank"), names=40)
        for member in members:
            mean, rank = member.deep["mean_cosine"], member.deep["effective_rank"]
            half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
            table.add_row(
                for_terminal(member.name),
                parameter_count(member.model.parameters),
                str(member.model.blocks),
                number(mean.value, 2),
                number(half, 2),
                percent(rank.null_ratio),
            )
        out.print(table)
        for member in members:
            origin = "; ".join(part for part in (member.source, member.licence) if part)
            print_lines(out, f"{member.name}: {origin or 'origin not told'}")
        print_lines(out, "")
    print_lines(
        out, f"{plural(len(models), 'model')}; means over the deepest half of the blocks; % of random directions."
    )
    print_lines(out, f"Your own: {own_folder() or 'no home folder'} (CONDENSE_ATLAS); condense atlas add RUN.json")
