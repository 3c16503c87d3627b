"""A treatment as one HTML file: verdict first, the arms beside each other, effect, training, provenance.

Records in, text out; the shell, the styles and the guarantees are those of `condense.report.html`.
"""

from __future__ import annotations

from condense.records.base import PlotlyJs
from condense.records.treatment import Treatment
from condense.report.charts import Chart
from condense.report.diagnosis.page import LEVEL_WORDS
from condense.report.html import render
from condense.report.tasks import CAUTION
from condense.report.text import subject
from condense.report.treatment.cards import cards
from condense.report.treatment.curves import cloud_panels, training_figures
from condense.report.treatment.facts import (
    ICONS,
    LEVELS,
    OUTCOMES,
    TREATMENT_GLOSSARY,
    arm_tables,
    name_of,
    overhead,
    provenance,
    shown,
    strips,
    tasks_table,
    treated_with,
)
from condense.report.treatment.figures import depth_figures
from condense.report.treatment.layers import table_note, treatment_table


def treatment_page(treatment: Treatment, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a treatment as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    depth, training, clouds = depth_figures(treatment), training_figures(treatment), cloud_panels(treatment)
    charts: list[Chart] = [figure.chart for figure in (*depth, *training)]
    charts += [chart for panels in clouds for chart in panels.charts]
    return render(
        "treatment.html.j2", charts, plotlyjs, version=treatment.condense, treatment=treatment,
        title=name_of(treatment), subject=subject(treatment.arms["before"].validation),
        treated_with=treated_with(treatment), findings=shown(treatment.verdict.findings), cards=cards(treatment),
        outcomes=OUTCOMES, icon=ICONS[treatment.verdict.id], level=LEVELS.get(treatment.verdict.id, "none"),
        arm_levels={name: LEVEL_WORDS[arm.validation.verdict.level] for name, arm in treatment.arms.items()},
        tables=arm_tables(treatment), strips=strips(treatment), depth=depth, training=training, clouds=clouds,
        overhead=overhead(treatment), table=treatment_table(treatment), treatment_note=table_note(treatment),
        provenance=provenance(treatment), tasks=tasks_table(treatment), caution=CAUTION, glossary=TREATMENT_GLOSSARY,
    )  # fmt: skip
