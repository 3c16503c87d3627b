"""A comparison as one HTML file: what was found first, members side by side, curves, provenance.

Records in, text out; the shell, the styles and the guarantees are those of `condense.report.html`.
"""

from __future__ import annotations

from condense.records.base import PlotlyJs
from condense.records.comparison import Comparison
from condense.report.charts import Chart
from condense.report.comparison.facts import (
    COMPARISON_GLOSSARY,
    ICONS,
    KINDS,
    cards,
    provenance,
    strips,
    subject,
    title,
)
from condense.report.comparison.figures import called, depth_figures, drawn, left_out
from condense.report.comparison.panels import columns_of, heat_panels, interactive
from condense.report.comparison.sizes import size_figures
from condense.report.comparison.tables import member_table, site_table
from condense.report.comparison.trajectory import course_figures
from condense.report.html import render
from condense.report.treatment.facts import shown


def comparison_page(comparison: Comparison, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a comparison as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    course, size, depth = course_figures(comparison), size_figures(comparison), depth_figures(comparison)
    panels = heat_panels(comparison)
    charts: list[Chart] = [figure.chart for figure in (*course, *size, *depth)]
    charts += [chart for held in panels if interactive(held) for chart in held.charts]
    main = comparison.findings[0]
    return render(
        "comparison.html.j2", charts, plotlyjs, version=comparison.condense, comparison=comparison,
        title=title(comparison), subject=subject(comparison), kind=KINDS[comparison.kind],
        findings=shown(comparison.findings), icon=ICONS[main.severity], cards=cards(comparison),
        strips=strips(comparison), members=member_table(comparison), reference=called(comparison.reference),
        still=not all(map(interactive, panels)),
        course=course, size=size, depth=depth, panels=panels,
        table_note=f"One column per member and metric.{left_out(comparison, drawn(comparison), 'comparison.json')}",
        columns=columns_of(len(panels[0].charts)) if panels else 1, table=site_table(comparison),
        provenance=provenance(comparison), glossary=COMPARISON_GLOSSARY,
    )  # fmt: skip
