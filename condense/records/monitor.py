"""A training run as a monitor wrote it: one head, then one line per measurement. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from condense.errors import UnavailableError
from condense.records.base import Saved
from condense.records.serial import decode

MONITOR_SCHEMA = "condense.monitor/1"


@dataclass(frozen=True)
class Measurement:
    """The probe at one step: `deep` by key, `blocks` by key over 1..L (None where not measured), numbers beside."""

    step: int
    deep: Mapping[str, float]
    blocks: Mapping[str, tuple[float | None, ...]]
    beside: Mapping[str, float | None]
    measured: int
    errors: int
    seconds: float
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class MonitorRun(Saved):
    """What `condense.Monitor` wrote while a model trained; `from_lines` reads its JSONL file."""

    SCHEMA: ClassVar[str] = MONITOR_SCHEMA

    schema: str
    condense: str
    model: str
    blocks: int
    path: str
    texts: int
    tokens: int
    keys: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def from_lines(cls, path: str | Path) -> MonitorRun:
        """Read a monitor's JSONL file; UnavailableError if it is not one. A line still being written is left out."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UnavailableError(f"no such run file: {path}", "condense.Monitor(..., path=FILE) writes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnavailableError(f"cannot read {path}: {error}") from None
        lines = text.split("\n")
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:-1], 1):  # behind the last line break stands nothing, or half a line
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                raise UnavailableError(f"{path}: line {number} is not JSON", "did a monitor write this file?") from None
        if not rows or not isinstance(rows[0], dict) or rows[0].get("schema") != MONITOR_SCHEMA:
            raise UnavailableError(f"{path} is not a monitor's file (its first line has no schema {MONITOR_SCHEMA})")
        try:
            run: MonitorRun = decode(cls, rows[0] | {"measurements": rows[1:]})
        except ValueError as error:
            raise UnavailableError(f"not a valid {MONITOR_SCHEMA}: {error}") from None
        return run

    def rows(self) -> list[dict[str, Any]]:
        """One row per measurement: step, deep numbers, numbers beside."""
        return [
            {"step": one.step, **{f"deep.{k}": v for k, v in one.deep.items()}, **one.beside, "seconds": one.seconds}
            for one in self.measurements
        ]
