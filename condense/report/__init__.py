"""Turns a record into text: terminal, HTML, Markdown, CSV, JUnit.

May import everything but treatment, trials and cli; nothing imports it but cli and, by name when
called, records.base.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condense.records.base import PlotlyJs, Saved


def to_html(record: Saved, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The record's report as one HTML page; its kind is read from its schema."""
    page: str = _function(record, "page", "page")(record, plotlyjs=plotlyjs)
    return page


def to_markdown(record: Saved) -> str:
    """The record's report as Markdown; its kind is read from its schema."""
    text: str = _function(record, "text", "markdown")(record)
    return text


def _function(record: Saved, module: str, form: str) -> Any:
    """`KIND_page` or `KIND_markdown`, of report.KIND itself or of its module; KIND is in the schema condense.KIND/1."""
    kind = record.SCHEMA.removeprefix("condense.").partition("/")[0]
    package = importlib.import_module(f"condense.report.{kind}")
    if hasattr(package, "__path__"):
        package = importlib.import_module(f"condense.report.{kind}.{module}")
    return getattr(package, f"{kind}_{form}")
