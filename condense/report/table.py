"""A run's table as CSV; every run gives its own rows."""

from __future__ import annotations

import csv
import io
from typing import Any

from condense.report.escape import for_csv


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
