"""A diagnosis as one HTML file: verdict first, charts, the layer table, provenance, glossary. Records in, text out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from condense.comparison.atlas import standing
from condense.metrics import MATRIX, METRICS, QUALITY
from condense.records.base import Estimate, PlotlyJs
from condense.records.diagnosis import Diagnosis, SiteReading, Verdict
from condense.report.depth import StackView, stack_views
from condense.report.diagnosis.figures import figures, left_out_figures
from condense.report.diagnosis.matrices import CAUTION, matrix_figures, matrix_table
from condense.report.diagnosis.text import left_out_rows, pooled_table
from condense.report.glossary import glossary
from condense.report.html import render
from condense.report.parts import Answer, Bars, Card, Groups, Head, bands, bar_width, interval_words, without_windows
from condense.report.parts import provenance as groups_of
from condense.report.tables import EMPTY, Cell, Column, Table, plain_cell, shown, sort_key, value_cell
from condense.report.text import (
    DASH,
    LEVEL_WORDS,
    NOTHING,
    TWIN_WORDS,
    WITHOUT_TOP,
    listed,
    model_name,
    number,
    percent,
    quality_of,
    subject,
)

TWIN_METRICS = ("mean_cosine", "effective_rank", "relative_variance")
CAVEAT = (
    "The bands are a convention: no validated threshold is published. Geometry is not quality: a condensed model can "
    "be good, a spread one poor."
)


def diagnosis_page(diagnosis: Diagnosis, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a diagnosis as one HTML page.

    `inline` (≤ 2.3 MB) carries plotly.js gzipped, `cdn` loads it from cdn.plot.ly (the only choice that makes a
    request), `none` has static drawings only. ValueError for any other word.
    """
    views = stack_views(diagnosis)
    several = len(views) > 1
    stacks: list[dict[str, Any]] = [
        {
            "view": view,
            "answer": answer(view, several=several) if diagnosis.sites else weights_answer(diagnosis),
            "figures": figures(view, f"chart-{index}", None if index else standing(diagnosis)),
            "left_out": left_out_rows(diagnosis, view),
            "left_out_figures": left_out_figures(view, f"chart-{index}", tokens=index == 0),
            "table": layer_table(view, several=several),
        }
        for index, view in enumerate(views)
    ]
    spectra = matrix_figures(diagnosis)
    return render(
        head(diagnosis),
        [*(figure for stack in stacks for figure in (*stack["figures"], *stack["left_out_figures"])), *spectra],
        plotlyjs,
        command=diagnosis.command,
        provenance=provenance(diagnosis),
        glossary=glossary("Embedding matrices", list(MATRIX.values())) if diagnosis.matrices else glossary(),
        stacks=stacks,
        several=several,
        quality=quality(diagnosis),
        pooled=pooled_table(diagnosis),
        matrices=matrix_table(diagnosis),
        spectra=spectra,
        caution=CAUTION,
        measured=bool(diagnosis.sites),
        windows=diagnosis.corpus.windows,
    )


def head(diagnosis: Diagnosis) -> Head:
    """The top of the page."""
    own = ("matrices", "Embedding and unembedding")
    sections = (
        ("verdict", "Verdict"),
        ("findings", "Findings"),
        ("quality", "Quality"),
        ("depth-0", "Over depth"),
        ("tokens-0", "Tokens and sinks"),
        ("layers-0", "Every layer"),
        *((own,) if diagnosis.matrices else ()),
    )
    if not diagnosis.sites:
        sections = (("verdict", "What was found"), own)
    return Head(
        kind="diagnosis",
        about="diagnosis of embedding geometry",
        title=model_name(diagnosis.model.id),
        name=diagnosis.model.id,
        lines=(subject(diagnosis),),
        created=diagnosis.created,
        version=diagnosis.condense,
        sections=sections,
    )


# --- the verdict and its three axes --------------------------------------------------------------------


def answer(view: StackView, *, several: bool = False) -> Answer:
    """The verdict on a stack, which is named where there are several."""
    verdict = view.verdict
    return Answer(
        level=verdict.level,
        icon=verdict.level,
        word=LEVEL_WORDS[verdict.level],
        finding=verdict.findings[0] if verdict.findings else None,
        cards=(_cone_card(view), _rank_card(view), _attribution(view)),
        caveat=f"{verdict.not_covered} {CAVEAT}".strip(),
        ladder=tuple(LEVEL_WORDS[level] for level in ("ok", "watch", "condensed", "severe")),
        joint="→",
        tag=f"borderline: {listed(verdict.borderline)}" if verdict.borderline else "",
        aside="; ".join(part for part in (f"the {view.name}" if several else "", verdict.reason or "") if part),
        numbers=False,
    )


def weights_answer(diagnosis: Diagnosis) -> Answer:
    """What stands at the top where nothing was run on a text."""
    found, reason = diagnosis.verdict.findings[0], diagnosis.verdict.reason or ""
    return Answer("none", "info", "Weights only", found, (), "Geometry is not quality.", aside=reason)


def _edges(view: StackView, *names: str) -> list[float]:
    return [view.verdict.bands[name] for name in names if name in view.verdict.bands]


def _cone_card(view: StackView) -> Card:
    distinct = view.verdict.pairs == "distinct"
    key = "mean_cosine_distinct" if distinct else "mean_cosine"
    deep, twin = view.deep.get(key, NOTHING), view.twin_deep.get(key, NOTHING).value
    edges = _edges(view, "cone_moderate", "cone_high", "cone_severe")
    return Card(
        "cone",
        "How narrow is the cone of token directions?",
        view.verdict.cone,
        value=number(deep.value, 2),
        unit="mean cosine of different tokens" if distinct else "mean cosine",
        interval=interval_words(deep, 2, signs=False) if deep.low is not None else "",
        strip=bands(deep, ("low", "moderate", "high", "severe"), edges, twin),
        also="" if twin is None else twin_words(view.verdict, number(twin, 2)),
        resampled=view.verdict.share("cone"),
    )


def _rank_card(view: StackView) -> Card:
    rank, twin = view.deep.get("effective_rank", NOTHING), view.twin_deep.get("effective_rank", NOTHING).null_ratio
    null = rank.null or 0.0
    ratio, value = rank.null_ratio or 0.0, rank.value or 0.0
    low, high = (None if end is None or not null else ratio + (end - value) / null for end in (rank.low, rank.high))
    words = ""
    if rank.value is not None and null:
        ends = f" ({number(rank.low, 0)} to {number(rank.high, 0)})" if rank.low is not None else ""
        words = f"{number(rank.value, 0)}{ends} of {number(null, 0)} directions"
    return Card(
        "rank",
        "How many directions are in use?",
        view.verdict.rank,
        value=percent(rank.null_ratio),
        unit="of random directions",
        interval=words,
        strip=bands(
            Estimate(rank.null_ratio, low, high),
            ("low", "reduced", "intact"),
            _edges(view, "rank_low", "rank_reduced"),
            twin,
        ),
        also="" if twin is None else f"random twin: {percent(twin)}",
        resampled=view.verdict.share("rank"),
    )


def _attribution(view: StackView) -> Card:
    named = {
        "mean_cosine": "as measured",
        WITHOUT_TOP: "without the top 3 dimensions",
        "cross_text_cosine": "between different texts",
        "mean_cosine_with_sink": "with the sink token kept",
    }
    rows = []
    for key, words in named.items():
        value = view.deep.get(key, NOTHING).value
        rows.append((words, number(value, 2), bar_width(value), "accent" if key == "mean_cosine" else "b3"))
    group = Bars("", tuple(rows), "mean cosine over the deepest half of the blocks")
    words, share = view.verdict.attribution, view.verdict.share("attribution")
    return Card("attribution", "What makes it so?", words, bars=(group,), resampled=share)


def twin_words(verdict: Verdict, value: str) -> str:
    """What the random twin has, and whether the model is more or less condensed than it."""
    return f"random twin: {value}" + (f"; the model is {TWIN_WORDS[verdict.twin]}" if verdict.twin else "")


# --- quality and provenance ----------------------------------------------------------------------------


def quality(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """Loss, perplexity and bits per byte: name, number, unit, interval, meaning or the reason of its absence."""
    rows = []
    for key, digits in (("loss", 2), ("perplexity", 1), ("bits_per_byte", 2)):
        quality, metric = quality_of(diagnosis.quality, key), QUALITY[key]
        row = {"title": diagnosis.quality.label if key == "loss" else metric.title, "meaning": metric.meaning}
        row |= {"value": "" if quality.value is None else number(quality.value, digits), "unit": metric.unit}
        row |= {"interval": interval_words(quality, digits, signs=False) if quality.low is not None else ""}
        rows.append(row | {"reason": quality.reason or "not measured"})
    return rows


def provenance(diagnosis: Diagnosis) -> Groups:
    """Everything that is needed to repeat or to doubt the measurement."""
    run = {key: getattr(diagnosis, key) for key in ("command", "created", "condense", "schema")}
    return groups_of(
        {
            "Run": run,
            "Model": asdict(diagnosis.model),
            "Corpus": without_windows(asdict(diagnosis.corpus)),
            "Protocol": diagnosis.protocol,
            "Environment": diagnosis.environment,
            "Timing": diagnosis.timing,
        }
    )


# --- the layer table -----------------------------------------------------------------------------------


def layer_table(view: StackView, *, several: bool = False) -> Table:
    """One row per site with every number that a chart shows, and every metric that tables show."""
    metrics, twin = shown(3), {site.label: site for site in view.twin}
    columns = [Column(metric.head or metric.title, metric.group, metric.title) for metric in metrics]
    columns.append(Column("top 3", "Dimensions", "the dimensions that make most of the mean cosine, and their shares"))
    if twin:
        titles = {key: METRICS[key].title for key in TWIN_METRICS}
        columns += [Column(title, "Random twin", f"{title} of the random twin") for title in titles.values()]
    if view.paper.mean_cosine:
        columns.append(Column("cosine", "As published", "mean over all n² pairs, diagonal and position 0 kept"))
    rows = []
    for index, site in enumerate(view.sites):
        cells = [
            value_cell(estimate, m.digits, bounds=m.key == "mean_cosine", bar=m.key == "mean_cosine")
            for m in metrics
            for estimate in [site.metrics.get(m.key, NOTHING)]
        ]
        cells.append(_dimensions(site))
        if twin:
            other = twin.get(site.label)
            cells += [plain_cell(_twin_value(other, key), METRICS[key].digits) for key in TWIN_METRICS]
        if view.paper.mean_cosine:
            cells.append(plain_cell(_published(view, index), 3))
        rows.append((site.label, tuple(cells)))
    note = "Under a mean its 95 % interval, under a rank its share of the Gaussian null."
    title = f"All sites of the {view.name} in depth order" if several else "All sites in depth order"
    return Table(tuple(columns), tuple(rows), title, note)


def _twin_value(site: SiteReading | None, key: str) -> float | None:
    return None if site is None else site.metrics.get(key, NOTHING).value


def _dimensions(site: SiteReading) -> Cell:
    if not site.top_dimensions:
        return EMPTY
    shares = [f" ({percent(top.share)})" if top.share is not None else "" for top in site.top_dimensions]
    names = [f"{top.dimension}{share}" for top, share in zip(site.top_dimensions, shares, strict=True)]
    first = site.top_dimensions[0].share
    return Cell(", ".join(names) or DASH, sort="" if first is None else sort_key(first))


def _published(view: StackView, index: int) -> float | None:
    """Hidden states 0..L−1 stand at embedding..block L−1; the last one is normed, so it stands at the output."""
    values, site = view.paper.mean_cosine, view.sites[index]
    if site.site == "output":
        index = len(values) - 1
    elif index >= len(values) - 1:
        return None
    return values[index] if 0 <= index < len(values) else None
