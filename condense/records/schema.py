"""Records to JSON Schema: what a saved run holds, derived from the dataclasses that `serial` reads and writes.

A document that the schema accepts is one that `serial.decode` reads: a field without a default is required,
one with a default may be missing, unknown keys are allowed. Standard library only.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, str] = {bool: "boolean", float: "number", int: "integer", str: "string", types.NoneType: "null"}


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
        return _reference(kind, records)
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
