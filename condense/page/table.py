"""The layer table as CSV: one row per site, a column per metric with its interval."""

from __future__ import annotations

import csv
import io
from typing import Any

from condense.page.escape import for_csv
from condense.records import Diagnosis


def layers_csv(diagnosis: Diagnosis) -> str:
    """One row per site of a diagnosis, columns as `Diagnosis.to_frame`; undefined numbers are empty."""
    return rows_csv(diagnosis.rows())


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
