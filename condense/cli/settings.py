"""Settings: default < condense.toml < CONDENSE_<SECTION>__<KEY> < flag; and `condense init`, which writes a file."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from condense.cli.console import say
from condense.cli.groups import command
from condense.errors import UsageError
from condense.files import write_text
from condense.records.options import Flag

PREFIX = "CONDENSE_"
FLAGS_ONLY = ("trust_remote_code", "allow_pickle", "token")


def find_file(named: Path | None) -> Path | None:
    """The settings file: the one named, else condense.toml, else a pyproject.toml with [tool.condense], here."""
    if named is not None:
        if not named.exists():
            raise UsageError(f"no such settings file: {named}")
        return named
    if Path("condense.toml").exists():
        return Path("condense.toml")
    project = Path("pyproject.toml")
    return project if project.exists() and "condense" in _parsed(project).get("tool", {}) else None


def read_file(path: Path | None) -> dict[str, Any]:
    """The sections of a settings file ({} without one)."""
    if path is None:
        return {}
    data = _parsed(path)
    if path.name == "pyproject.toml":
        data = data.get("tool", {}).get("condense", {})
    return data


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def defaults(
    commands: Mapping[str, Mapping[str, str]], file: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, dict[str, Any]]:
    """Defaults per command and parameter, from a file's sections and the environment.

    commands: for each command its keys (`max_length`) and the parameters they set. UsageError names an
    unknown key and the nearest known one.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    for section, keys in commands.items():
        table = file.get(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"[{section}] in the settings file is not a table")
        for key, value in table.items():
            name = _asked(key.replace("-", "_"))
            if section == "check" and isinstance(value, dict):
                continue  # tables of assertions, read by the gate itself
            found[section][_known(name, keys, f"[{section}]")] = value
    for variable, text in environment.items():
        section, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        if variable.startswith(PREFIX) and separator and section in commands:
            found[section][_known(_asked(key), commands[section], variable)] = text
    return found


def _asked(name: str) -> str:
    """A key, unless it is one that must be typed: what is dangerous is not taken from surroundings."""
    if name in FLAGS_ONLY:
        raise UsageError(
            f"{name} is only taken as a flag, never from a file or the environment", f"pass --{name.replace('_', '-')}"
        )
    return name


def _known(name: str, keys: Mapping[str, str], where: str) -> str:
    if name in keys:
        return keys[name]
    near = difflib.get_close_matches(name, list(keys), n=1)
    raise UsageError(f"unknown key {name!r} in {where}", f"did you mean {near[0]}?" if near else "see condense --help")


# --- condense init ---------------------------------------------------------------------------------------

TEMPLATES = {Path("condense.toml"): "condense.toml", Path(".github/workflows/condense.yml"): "workflow.yml"}
"""What `condense init` writes, and the template in the package's data that it is written from."""


@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The repository.", show_default=False)] = Path("."),
    force: Annotated[bool, Flag("Write over files that exist.")] = False,
) -> None:
    """Write a commented condense.toml and .github/workflows/condense.yml."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", "name the folder of a repository")
    taken = [str(folder / name) for name in TEMPLATES if (folder / name).exists()]
    if taken and not force:
        raise UsageError(f"{' and '.join(taken)} exists already", "nothing was written; --force replaces it")
    for name, source in TEMPLATES.items():
        write_text(folder / name, template(source))
        say(f"wrote {folder / name}")
    say("next: put the model and the address of condense into the workflow, then condense check RUN.json")


def template(name: str) -> str:
    """The text of a template that ships with condense."""
    return (resources.files("condense") / "data" / "init" / name).read_text(encoding="utf-8")
