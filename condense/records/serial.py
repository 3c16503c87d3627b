"""Records to JSON and back, driven by the dataclasses themselves; files written whole or not at all.

Standard library only. A float that is not finite is refused (`allow_nan=False`): an undefined number is
None with a reason beside it, decided where it is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from condense.errors import UnavailableError
from condense.files import is_special

_LARGEST = 2**64  # of whole numbers: what is larger was not written by condense, and no float may hold it
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, str] = {bool: "boolean", float: "number", int: "integer", str: "string", types.NoneType: "null"}


T = TypeVar("T")


def encode(value: object) -> Any:
    """Turn a record into JSON values; fields left at a default of None are omitted."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if getattr(value, "is_absent", False):
            return None
        fields = dataclasses.fields(value)
        pairs = ((field, getattr(value, field.name)) for field in fields)
        return {f.name: encode(v) for f, v in pairs if not (v is None and f.default is None)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, data: Any, where: str = "") -> Any:
    """Turn JSON values into a record of type `kind`; ValueError names the place that does not fit."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is Literal:
        if data not in args:
            raise ValueError(f"{where or 'value'} is {data!r}, not one of {', '.join(map(str, args))}")
        return data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, data, where)
    if origin is tuple:
        _expect(isinstance(data, list), where, "a list")
        if args[0] in (int, float, float | None) and set(map(type, data)) <= {int if args[0] is int else float}:
            finite = max(map(abs, data), default=0) < _LARGEST if args[0] is int else all(map(math.isfinite, data))
            _expect(finite, where, "a list of finite numbers")
            return tuple(data)  # values per text and counts: most of a file, and nothing more to look into
        return tuple(decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _expect(isinstance(data, dict), where, "an object")
        return {key: decode(args[1], item, f"{where}.{key}") for key, item in data.items()}
    return _decode_plain(kind, data, where)


def _decode_plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        _expect(isinstance(data, int | float) and not isinstance(data, bool), where, "a number")
        _expect(isinstance(data, float) or abs(data) < _LARGEST, where, "a number of this size")
        _expect(math.isfinite(data), where, "a finite number")
        return float(data)
    if kind is int:
        _expect(isinstance(data, int) and not isinstance(data, bool), where, "a whole number")
        _expect(abs(data) < _LARGEST, where, "a number of this size")
    elif kind in (str, bool):
        _expect(isinstance(data, kind), where, "a string" if kind is str else "true or false")
    else:
        raise TypeError(f"no JSON form for {kind!r}")
    return data


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    if len(kinds) == 1:
        return decode(kinds[0], data, where)
    for kind in kinds:
        if isinstance(kind, type) and type(data) is kind:
            return data
    raise ValueError(f"{where or 'value'} has the wrong type ({type(data).__name__})")


def _decode_record(kind: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object")
    data = kind.older(data) if hasattr(kind, "older") else data
    values = {}
    for name, hint, required in _fields(kind):
        path = f"{where}.{name}" if where else name
        if name in data:
            values[name] = decode(hint, data[name], path)
        elif required:
            raise ValueError(f"{path} is missing")
    return kind(**values)


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it must be there, of every field; resolving the hints is most of a read, so once."""
    hints, missing = get_type_hints(kind), dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is missing and f.default_factory is missing) for f in dataclasses.fields(kind)
    )


def _expect(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{where or 'value'} is not {what}")


def dumps(value: object) -> str:
    """Write a record as JSON text; the same record gives the same bytes."""
    return json.dumps(encode(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def loads(text: str, name: str = "the text") -> Any:
    """Parse JSON; UnavailableError where it is none, or names the key whose number is NaN or infinite."""
    strange: list[str] = []

    def constant(word: str) -> float:
        strange.append(word)
        return float(word)

    try:
        data = json.loads(text, parse_constant=constant)
        where = _not_finite(data, "") if strange else None
    except (ValueError, RecursionError):
        raise UnavailableError(f"{name} is not JSON", "is it a file that condense wrote?") from None
    if strange:
        raise UnavailableError(f"{name}: {where} is {strange[0]}, not a number")
    return data


def _not_finite(data: Any, where: str) -> str | None:
    """The first key whose number is not finite."""
    if isinstance(data, float):
        return None if math.isfinite(data) else where or "value"
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(data, dict):
        items = ((f"{where}.{key}" if where else key, value) for key, value in data.items())
    elif isinstance(data, list):
        items = ((f"{where}[{index}]", value) for index, value in enumerate(data))
    return next((path for key, value in items if (path := _not_finite(value, key))), None)


def read_json(path: Path) -> dict[str, Any]:
    """Read a saved run of any schema; UnavailableError where the file is missing, broken or not one."""
    return parse_json(read_file(path), path)


def read_file(path: Path) -> str:
    """The text of a saved run, which a pipe of the shell gives only once; UnavailableError if it cannot be read."""
    if is_special(path):
        raise UnavailableError(f"{path} is a pipe or a device, not a file")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnavailableError(f"no such run file: {path}", "run condense analyze MODEL --json FILE") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UnavailableError(f"{path} is not JSON", "is it a file that condense wrote?") from None


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """A saved run of any schema from the text of a file; UnavailableError where it is broken or none."""
    data = loads(text, str(path))
    if not isinstance(data, dict) or not isinstance(data.get("schema"), str):
        raise UnavailableError(f"{path} is not a saved condense run (it has no schema)")
    return data


def other_schema(schema: object, *known: str) -> UnavailableError:
    """The error for a saved run of a schema that is not read, which says so where a newer condense wrote it."""
    name, _, version = str(schema).partition("/")
    for expected in known:
        kind, _, own = expected.partition("/")
        if name == kind and version.isdecimal() and int(version) > int(own):
            line = f"schema is {schema!r}, newer than {expected!r}, the newest that this condense reads"
            return UnavailableError(line, "upgrade condense-lm")
    return UnavailableError(f"schema is {schema!r}, expected {' or '.join(map(repr, known))}")


def schema_of(kind: type) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a record type, each nested record once under `$defs`.

    kind: a dataclass of plain values, Literal, Optional, tuple, Mapping and further dataclasses; it may hold
    itself. ValueError if it is not a dataclass, TypeError for a field that has no JSON form.
    """
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{kind!r} is not a dataclass")
    records: dict[str, Any] = {}
    root = _schema(kind, records)
    return {"$schema": DIALECT, **root, "$defs": dict(sorted(records.items()))}


def _schema(kind: Any, records: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type hint; records found on the way are added to `records`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(part, records) for part in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": _schema(args[0], records)}
    if isinstance(origin, type) and issubclass(origin, Mapping) and args[0] is str:
        return {"type": "object", "additionalProperties": _schema(args[1], records)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        reference = _reference(kind, records)
        return {"anyOf": [reference, {"type": "null"}]} if hasattr(kind, "is_absent") else reference
    raise TypeError(f"no JSON form for {kind!r}")


def _reference(kind: type, records: dict[str, Any]) -> dict[str, Any]:
    """A reference to a record, which is described on its first use."""
    name = kind.__name__
    if name not in records:
        records[name] = {}  # holds the place, for the record may contain itself
        records[name] = _record(kind, records)
    return {"$ref": f"#/$defs/{name}"}


def _record(kind: Any, records: dict[str, Any]) -> dict[str, Any]:
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    missing = dataclasses.MISSING
    return {
        "description": inspect.cleandoc(kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {field.name: _schema(hints[field.name], records) for field in fields},
        "required": [f.name for f in fields if f.default is missing and f.default_factory is missing],
    }


def refuse_other_lengths(data: Any, windows: int, where: str = "") -> None:
    """ValueError for values per text that are not one per window; those of the lens are of the first windows only."""
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if key == "per_text" and isinstance(value, list) and len(value) != windows:
            raise ValueError(f"{where.lstrip('.')} has {len(value)} values for {windows} windows")
        elif isinstance(value, Mapping | list) and not str(key).startswith("lens."):
            refuse_other_lengths(value, windows, f"{where}.{key}")
