"""A trial as one HTML file: the table of the arms first, then curves, each arm's definition, seeds, provenance.

Records in, text out; the shell, the styles and the guarantees are those of `condense.report.html`.
"""

from __future__ import annotations

from condense.records.base import PlotlyJs
from condense.records.trial import Trial
from condense.report.charts import Chart
from condense.report.html import render
from condense.report.text import typeset
from condense.report.treatment.facts import shown
from condense.report.trial.curves import training_figures
from condense.report.trial.doses import dose_figures, tradeoff
from condense.report.trial.facts import arm_facts, glossary, name_of, provenance, subject
from condense.report.trial.figures import depth_figures
from condense.report.trial.forest import forests, pair_rows
from condense.report.trial.looks import BEFORE, looks
from condense.report.trial.rows import TITLES, keys, placed, rankings, rows
from condense.report.trial.tables import seed_table, site_table, task_tables
from condense.report.trial.words import breakable, budget, caveats, headline, recommendation


def trial_page(trial: Trial, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a trial as one HTML page; `plotlyjs` as in `diagnosis_page`."""
    trade, depth, training = tradeoff(trial), depth_figures(trial), training_figures(trial)
    doses = [(dose, dose_figures(trial, dose, rank)) for rank, dose in enumerate(trial.doses)]
    drawn = [*([trade] if trade else []), *(figure for _, figures in doses for figure in figures), *depth, *training]
    charts: list[Chart] = [figure.chart for figure in drawn]
    return render(
        "trial.html.j2", charts, plotlyjs, version=trial.condense, trial=trial, title=name_of(trial),
        subject=subject(trial), budget=budget(trial), headline=typeset(headline(trial)),
        findings=shown(trial.findings), rows=rows(trial), keys=keys(trial), titles=TITLES,
        looks={"before": BEFORE} | looks(trial), caveats=caveats(trial), rankings=rankings(trial), placed=placed,
        forests=forests(trial), pairs=pair_rows(trial), tradeoff=trade, doses=doses, recommendation=recommendation,
        depth=depth, training=training, arms=arm_facts(trial), tasks=task_tables(trial), seeds=seed_table(trial),
        sites=site_table(trial), provenance=provenance(trial), glossary=glossary(), typeset=typeset,
        breakable=breakable,
    )  # fmt: skip
