"""`condense init`: a commented settings file and a CI workflow to start from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from condense.cli.running import reported, say
from condense.errors import UsageError
from condense.files import write_text

FILES = {Path("condense.toml"): "condense.toml", Path(".github/workflows/condense.yml"): "workflow.yml"}
"""What is written, and the template in the package's data that it is written from."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The repository.", show_default=False)] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Write over files that exist.", show_default=False)] = False,
) -> None:
    """Write a commented condense.toml and .github/workflows/condense.yml."""
    with reported():
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, not a folder", "name the folder of a repository")
        taken = [str(folder / name) for name in FILES if (folder / name).exists()]
        if taken and not force:
            raise UsageError(f"{' and '.join(taken)} exists already", "nothing was written; --force replaces it")
        for name, source in FILES.items():
            write_text(folder / name, template(source))
            say(f"wrote {folder / name}")
        say("next: put the model and the address of condense into the workflow, then condense check RUN.json")


def template(name: str) -> str:
    """The text of a template that ships with condense."""
    return (resources.files("condense") / "data" / "init" / name).read_text(encoding="utf-8")
