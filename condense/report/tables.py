"""The layer table as cells ready to be printed: what is shown, what it is sorted by."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from condense.report.escape import for_csv


@dataclass(frozen=True)
class Column:
    """A column: its short head, the group it stands in, its full name for whoever does not know it."""

    head: str
    group: str
    full: str


@dataclass(frozen=True)
class Cell:
    """A cell: text, a quieter second text, the value to sort by unless it is the text, a bar in percent."""

    text: str
    note: str = ""
    sort: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """The layer table of one stack."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group, with their number."""
        spans: dict[str, int] = {}
        for column in self.columns:
            spans[column.group] = spans.get(column.group, 0) + 1
        return list(spans.items())


def rows_csv(rows: list[dict[str, Any]]) -> str:
    """Plain rows as CSV text; the columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return for_csv(value) if isinstance(value, str) else value
