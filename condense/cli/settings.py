"""Settings: default < condense.toml < CONDENSE_<SECTION>__<KEY> < flag; and `condense init`, which writes a file."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from condense.cli.console import say
from condense.cli.groups import command
from condense.errors import UsageError
from condense.files import is_special, sha256, write_text
from condense.records.options import Flag

PREFIX = "CONDENSE_"
PATHS = frozenset(
    {
        "accept",
        "baseline",
        "csv",
        "html",
        "include_path",
        "json",
        "junit",
        "md",
        "output",
        "text",
        "tune_text",
        "other_text",
        "then_text",
    }
)
"""The parameters that name a file or a folder: relative ones in a settings file are meant beside it."""
Commands = Mapping[str, Mapping[str, Flag]]
"""For each command its flags by parameter."""


@dataclass(frozen=True)
class SettingsFile:
    """A settings file, or none (no path); `found` where nobody named it: it came with the working directory."""

    path: Path | None
    found: bool = False

    def sections(self) -> dict[str, Any]:
        """Its tables ({} without a file); UsageError for what cannot be read or is no table."""
        if self.path is None:
            return {}
        data = _parsed(self.path)
        return _tool_table(self.path, data) or {} if self.path.name == "pyproject.toml" else data

    def beside(self, value: Any) -> Any:
        """A relative path of the file as seen from the working directory; what is no relative path as it is."""
        folder = self.path.parent if self.path else Path()
        if folder == Path() or not isinstance(value, str) or value in ("", "-") or value.startswith("~"):
            return value
        return str(folder / value)


def find_file(named: Path | None) -> SettingsFile:
    """The settings file: the one named, else condense.toml, else a pyproject.toml with [tool.condense], here."""
    if named is not None:
        if not named.exists():
            raise UsageError(f"no such settings file: {named}")
        return SettingsFile(named)
    for path in (Path("condense.toml"), Path("pyproject.toml")):
        if path.is_file() and (path.name == "condense.toml" or _tool_table(path, _parsed(path)) is not None):
            return SettingsFile(path, found=True)
    return SettingsFile(None)


def _tool_table(path: Path, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """[tool.condense] of a pyproject.toml; None where there is none."""
    tools = data.get("tool", {})
    table = tools.get("condense") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"tool.condense in {path} is not a table")
    return table


def _parsed(path: Path) -> dict[str, Any]:
    if is_special(path):
        raise UsageError(f"{path} is a pipe or a device, not a settings file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one; so is a number of 5,000 digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{path} is not valid TOML: {reason}") from None


def defaults(
    commands: Commands, file: SettingsFile, environment: Mapping[str, str] = os.environ
) -> dict[str, dict[str, Any]]:
    """Defaults per command and parameter, from a file's sections and the environment.

    Relative paths of a file are meant beside it. UsageError for an unknown section or key, naming the nearest known
    one, and for a key that the flag says a file may not set: none sets what is dangerous or secret, and one that was
    found here only what changes numbers.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in commands}
    keys = {name: _keys(flags) for name, flags in commands.items()}
    for section, table in file.sections().items():
        if section not in commands:
            raise _unknown(f"section [{section}] in {file.path}", section, commands)
        if not isinstance(table, dict):
            raise UsageError(f"[{section}] in {file.path} is not a table")
        for key, value in table.items():
            if section == "check" and isinstance(value, dict):
                continue  # tables of assertions, read by the gate itself
            name = _known(key.replace("-", "_"), keys[section], f"[{section}]")
            _refuse(name, value, commands[section][name], file)
            value = file.beside(value) if name in PATHS else value
            values[section][name] = _one_or_many(value, commands[section][name])
    for variable, text in environment.items():
        section, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        if variable.startswith(PREFIX) and separator and section in commands:
            name = _known(key, keys[section], variable)
            _refuse(name, text, commands[section][name], SettingsFile(None))
            values[section][name] = _one_or_many(text, commands[section][name])
    return values


def _one_or_many(value: Any, flag: Flag) -> Any:
    """A value of a flag that may be repeated as a list of one."""
    return [value] if isinstance(value, str) and flag.kind == list[str] | None else value


def _keys(flags: Mapping[str, Flag]) -> dict[str, str]:
    """The keys that set the parameters of a command: the names of its flags."""
    return {
        name.partition("/")[0][2:].replace("-", "_"): parameter
        for parameter, flag in flags.items()
        for name in flag.names or (flag.name_of(parameter),)
        if name.startswith("--")
    }


def _known(name: str, keys: Mapping[str, str], where: str) -> str:
    if name in keys:
        return keys[name]
    raise _unknown(f"key {name!r} in {where}", name, keys)


def _unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    near = difflib.get_close_matches(name, list(known), n=1)
    return UsageError(f"unknown {what}", f"did you mean {near[0]}?" if near else "see condense --help")


def _refuse(parameter: str, value: object, flag: Flag, file: SettingsFile) -> None:
    """UsageError for a key that may not stand where it stands."""
    name = flag.name_of(parameter)
    key = name[2:].replace("-", "_")
    if flag.settings == "never":
        instead = f" or in {flag.environment}" if flag.environment else ""
        raise UsageError(
            f"{key} is only taken as a flag{instead}, never from a file or CONDENSE_ variables", f"pass {name}"
        )
    if not file.found:
        return
    if flag.settings == "named":
        raise UsageError(
            f"{key} is set in {file.path}, which was found here: such a file may only change numbers",
            f"pass {name}, or name the file: condense --config {file.path}",
        )
    if flag.settings == "inside" and not _is_inside(value):
        raise UsageError(
            f"{key} in {file.path} is {value!r}: a file that was found here may only name files of this folder",
            f"pass {name}, or name the file: condense --config {file.path}",
        )


def _is_inside(value: object) -> bool:
    """Whether a setting is a relative path to something in the working directory, links and all that is in it."""
    if not isinstance(value, str) or value == "-" or value.startswith("~") or Path(value).is_absolute():
        return False
    here = Path.cwd().resolve()
    try:
        path = (here / value).resolve()
        parts = [path, *path.rglob("*")] if path.is_relative_to(here) and path.is_dir() else [path]
        return all(part.resolve().is_relative_to(here) for part in parts)
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, links in a circle
        return False


# --- condense init ---------------------------------------------------------------------------------------

TEMPLATES = {Path("condense.toml"): "condense.toml", Path(".github/workflows/condense.yml"): "workflow.yml"}
"""What `condense init` writes, and the template in the package's data that it is written from."""


@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The repository.", show_default=False)] = Path("."),
    force: Annotated[bool, Flag("Replace the files of an earlier init that were not edited since.")] = False,
) -> None:
    """Write a commented condense.toml and .github/workflows/condense.yml."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", "name the folder of a repository")
    taken = [folder / name for name in TEMPLATES if os.path.lexists(folder / name)]
    if taken and not force:
        names = " and ".join(str(path) for path in taken)
        raise UsageError(f"{names} exists already", "nothing was written; --force replaces what was not edited")
    for path in taken:
        if not _is_unedited(path):
            raise UsageError(
                f"{path} was not written by condense init, or was edited since", "nothing was written; move it away"
            )
    for name, source in TEMPLATES.items():
        text = template(source)
        write_text(folder / name, f"{_first_line(text)}\n{text}")
        say(f"wrote {folder / name}")
    say("next: put the model and the address of condense into the workflow, then condense check RUN.json")


def _first_line(text: str) -> str:
    """A comment by which a file is known to be unedited: the sha256 of all that follows."""
    return f"# condense init, sha256 of the lines below: {sha256(text)}"


def _is_unedited(path: Path) -> bool:
    """Whether a file is as `condense init` wrote it, this version's or another's."""
    if path.is_symlink() or is_special(path):
        return False
    try:
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return False
    return first == _first_line(text)


def template(name: str) -> str:
    """The text of a template that ships with condense."""
    return (resources.files("condense") / "data" / "init" / name).read_text(encoding="utf-8")
