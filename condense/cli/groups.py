"""From option groups to flags: what makes a Typer command of a function that takes groups.

A command's parameter of a group type (`records.options`, `records.plans`) becomes one flag per field that has a `Flag`;
`Annotated[Plan, Without("control")]` leaves fields out, `Only("seeds")` keeps the named ones. A parameter annotated
with a `Flag` of its own is a flag too. A name is one flag however often it is asked for: the parameter of the command
comes first, then the first group with a flag for it, and every group that has the field gets the value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from rich.markup import escape
from typer.core import TyperCommand

from condense.cli.console import MANNER, reported
from condense.errors import UsageError
from condense.records.options import Flag, ModelOptions, Option, Options, flag_of, options_of

Made = TypeVar("Made", bound=Options)


class Without:
    """The fields of a group that a command leaves at their defaults."""

    def __init__(self, *names: str) -> None:
        """Name them."""
        self.names = names

    def takes(self, field: str) -> bool:
        """Whether the command has a flag for a field."""
        return field not in self.names


class Only(Without):
    """The only fields of a group that a command has flags for."""

    def takes(self, field: str) -> bool:
        """Whether the command has a flag for a field."""
        return field in self.names


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The command that Typer registers: flags in, groups to the function, failures as one line and an exit code.

    `flags_of` gives its flags, for what reads settings.
    """
    groups: dict[str, tuple[type[Options], Without]] = {}
    flags: dict[str, Option] = {}
    shown: dict[str, inspect.Parameter] = {}
    own = inspect.signature(function, eval_str=True).parameters
    for name, parameter in own.items():
        kind, flag = flag_of(parameter.annotation)
        if flag is not None:
            default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
            flags[name] = Option(kind, default, flag)
    for name, parameter in own.items():
        group, choice = _group_of(parameter.annotation)
        if group is not None:
            groups[name] = group, choice
            asked = {field: option for field, option in options_of(group).items() if choice.takes(field)}
            new = {field: option for field, option in asked.items() if option.flag and field not in flags}
            flags |= new
            shown |= {field: flag_parameter(field, option) for field, option in new.items()}
        elif name in flags:
            shown[name] = flag_parameter(name, flags[name])
        else:
            shown[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        with reported():
            secret = [name for name, option in flags.items() if option.flag and option.flag.secret]
            MANNER.secrets = tuple(values[name].strip() for name in secret if values[name])
            read = {name: value_of(name, flags[name], value) for name, value in values.items() if name in flags}
            given = {name: value for name, value in values.items() if name in own and name not in flags}
            given |= {name: value for name, value in read.items() if name in own}
            for name, (group, choice) in groups.items():
                given[name] = group(**_fields(group, choice, read, own))
            with _closed_hub(given.values()):
                function(**given)

    run.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.flags = {name: option.flag for name, option in flags.items()}  # type: ignore[attr-defined]
    return run


@contextlib.contextmanager
def _closed_hub(values: Iterable[Any]) -> Iterator[None]:
    """Where a model is opened, the hub is asked for what the user named and for nothing that a file names."""
    options = next((value for value in values if isinstance(value, ModelOptions)), None)
    if options is None or importlib.util.find_spec("huggingface_hub") is None:  # a light install has no hub client
        yield
        return
    from condense.models import hub

    with hub.closed(options.offline):
        yield


class Command(TyperCommand):
    """A command whose flags may stand without the value that they take: `--ray` and `--ray HOST:PORT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As super, with the value that a flag has alone put behind it where no word there is meant for it."""
        flags = flags_of(self.callback) if self.callback else {}
        bare = {flag.name_of(name): flag.bare for name, flag in flags.items() if flag.bare}
        given: list[str] = []
        ends = args.index("--") if "--" in args else len(args)
        for index, word in enumerate(args):
            given.append(word)
            alone, pattern = bare.get(word, ("", "")) if index < ends else ("", "")
            if alone and not re.fullmatch(pattern, "".join(args[index + 1 : index + 2])):
                given.append(alone)
        return super().parse_args(ctx, given)


def flags_of(run: Callable[..., None]) -> Mapping[str, Flag]:
    """The flags of a command by parameter."""
    flags: Mapping[str, Flag] = getattr(run, "flags", {})
    return flags


def _group_of(annotation: Any) -> tuple[type[Options] | None, Without]:
    """The group of a parameter and which of its fields are taken; None where it is no group."""
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        return None, Without()
    choice: Without = next((part for part in more if isinstance(part, Without)), Without())
    unknown = set(choice.names) - set(options_of(kind))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind, choice


def _fields(
    group: type[Options], choice: Without, values: Mapping[str, Any], own: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The values that a group gets: of its own flags, and of the command's parameters of the same name."""
    return {
        field: values[field] for field in options_of(group) if field in values and (field in own or choice.takes(field))
    }


def flag_parameter(name: str, option: Option) -> inspect.Parameter:
    """The Typer option of a field."""
    flag = option.flag or Flag("")
    default = flag.unread if flag.read else option.default
    kind = flag.kind if flag.read else _text_of(option.kind)
    names = flag.names or (flag.name_of(name),)
    info = typer.Option(
        *names,
        help=escape(flag.help),  # [@layers] is no markup
        metavar=flag.metavar,
        min=flag.at_least,
        envvar=flag.environment,
        show_default=kind is not bool or "/" in names[0],
        rich_help_panel=flag.panel,
    )
    required = default is dataclasses.MISSING
    value = inspect.Parameter.empty if required else str(default) if isinstance(default, Path) else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[kind, info])


def value_of(name: str, option: Option, value: Any) -> Any:
    """A field's value from its flag's; UsageError for one that the flag does not allow."""
    flag = option.flag or Flag("")
    read = flag.read(value) if flag.read else value
    if flag.environment is None:  # a variable that is set to nothing is as good as none
        flag.check(name, value)
    if flag.read:
        return read
    return Path(value) if isinstance(value, str) and _text_of(option.kind) is not option.kind else value


def _text_of(kind: Any) -> Any:
    """The type of a flag: a path is taken as text, so that an empty one can be refused."""
    parts = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return kind if Path not in parts else str if len(parts) == 1 else str | None


def group_from_settings(context: typer.Context, name: str, group: type[Made]) -> Made:
    """A group as the settings file and the environment make it for the command `name`, without any flag."""
    root: Any = context.find_root()
    settings = (root.default_map or {}).get(name, {})
    values = {}
    for parameter in root.command.commands[name].params:
        if parameter.name not in settings:
            continue
        value = settings[parameter.name]
        try:
            values[parameter.name] = parameter.process_value(context, value)
        except typer.BadParameter as error:
            raise UsageError(f"{parameter.opts[0]} in the settings of {name}: {error.message}") from None
    options = options_of(group)
    return group(**{field: value_of(field, options[field], value) for field, value in values.items()})
