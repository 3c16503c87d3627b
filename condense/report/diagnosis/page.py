"""A diagnosis as one HTML file: verdict first, charts, the layer table, provenance, glossary.

Records in, text out. The file makes no request: plotly.js lies gzipped inside and is inflated by the
browser; without it (or without JavaScript) static drawings and the tables remain. The same record gives
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condense.metrics import METRICS, QUALITY
from condense.records.base import Estimate, PlotlyJs
from condense.records.diagnosis import Diagnosis, SiteReading
from condense.report.depth import StackView, stack_views
from condense.report.diagnosis.figures import NOTHING, figures
from condense.report.glossary import GLOSSARY
from condense.report.html import render
from condense.report.tables import Cell, Column, Table
from condense.report.text import number, percent, subject

if TYPE_CHECKING:
    pass

AXES = {
    "cone": "How narrow is the cone of token directions?",
    "rank": "How many directions are in use?",
    "attribution": "What makes it so?",
}
LEVEL_WORDS = {
    "ok": "OK", "watch": "Watch", "condensed": "Condensed", "severe": "Severe", "undefined": "No verdict",
}  # fmt: skip
_COLUMNS = (
    ("mean_cosine", "mean", "Cosine", 3), ("cosine_std", "spread", "Cosine", 3), ("cosine_q05", "5 %", "Cosine", 2),
    ("cosine_q50", "50 %", "Cosine", 2), ("cosine_q95", "95 %", "Cosine", 2),
    ("mean_cosine_without_top_dimensions", "without top 3", "Cosine", 3),
    ("cross_text_cosine", "cross-text", "Cosine", 3),
    ("effective_rank", "effective", "Rank", 1), ("entropy_rank", "entropy", "Rank", 1),
    ("participation_ratio", "participation", "Rank", 1),
    ("relative_variance", "relative", "Variance", 3), ("total_variance", "per dim.", "Variance", 2),
    ("median_norm", "median norm", "Length", 1), ("sink_ratio", "sink ratio", "Length", 1),
    ("mean_cosine_with_sink", "cosine", "Sink kept", 3), ("effective_rank_with_sink", "rank", "Sink kept", 1),
)  # fmt: skip
_TWIN = (("mean_cosine", "cosine", 3), ("effective_rank", "rank", 1), ("relative_variance", "rel. variance", 3))


def diagnosis_page(diagnosis: Diagnosis, *, plotlyjs: PlotlyJs = "inline") -> str:
    """The report of a diagnosis as one HTML page.

    `inline` (≤ 2.3 MB) carries plotly.js gzipped, `cdn` loads it from cdn.plot.ly (the only choice that
    makes a request), `none` has static drawings only. ValueError for any other word.
    """
    stacks: list[dict[str, Any]] = []
    for index, view in enumerate(stack_views(diagnosis)):
        drawn = figures(view, f"chart-{index}")
        stacks.append({"view": view, "axes": axes(view), "figures": drawn, "table": layer_table(view)})
    charts = [figure.chart for stack in stacks for figure in stack["figures"]]
    return render(
        "diagnosis.html.j2", charts, plotlyjs, version=diagnosis.condense, diagnosis=diagnosis, stacks=stacks,
        title=title(diagnosis), subject=subject(diagnosis), axis_names=AXES, quality=quality(diagnosis),
        provenance=provenance(diagnosis), glossary=GLOSSARY, level_words=LEVEL_WORDS,
    )  # fmt: skip


@dataclass(frozen=True)
class Band:
    """One word of a scale and where it begins and ends, in percent of the scale."""

    word: str
    start: float
    stop: float


@dataclass(frozen=True)
class AxisCard:
    """One axis of the verdict: its word, its number, where that lies among the bands."""

    key: str
    word: str
    value: str
    unit: str
    interval: str
    mark: float | None = None
    low: float | None = None
    high: float | None = None
    twin: float | None = None
    twin_text: str = ""
    bands: tuple[Band, ...] = ()
    edges: tuple[tuple[str, float], ...] = ()
    rows: tuple[tuple[str, str, float, bool], ...] = ()


def title(diagnosis: Diagnosis) -> str:
    """The model's id; of a long path only its last part (the whole stands below and in the provenance)."""
    name = diagnosis.model.id
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if len(name) > 48 and last else name


def axes(view: StackView) -> list[AxisCard]:
    """The three axes of a stack's verdict."""
    return [_cone(view), _rank(view), _attribution(view)]


def _cone(view: StackView) -> AxisCard:
    deep, bands = view.deep.get("mean_cosine", NOTHING), view.verdict.bands
    edges = [bands[k] for k in ("cone_moderate", "cone_high", "cone_severe") if k in bands]
    twin = view.twin_deep.get("mean_cosine", NOTHING).value
    return AxisCard(
        "cone", view.verdict.cone, number(deep.value, 2), "mean cosine", _interval(deep, 2), _place(deep.value),
        _place(deep.low), _place(deep.high), _place(twin), number(twin, 2),
        _bands(("low", "moderate", "high", "severe"), edges), _edges(edges),
    )  # fmt: skip


def _rank(view: StackView) -> AxisCard:
    deep, bands = view.deep.get("effective_rank", NOTHING), view.verdict.bands
    edges = [bands[k] for k in ("rank_low", "rank_reduced") if k in bands]
    null = deep.null or 0.0
    ends = [None if v is None or not null else v / null for v in (deep.low, deep.high)]
    twin = view.twin_deep.get("effective_rank", NOTHING).null_ratio
    interval = f"{number(deep.value, 0)} of {number(null, 0)} directions" if deep.value is not None and null else ""
    if interval and deep.low is not None:
        interval = (
            f"{number(deep.value, 0)} ({number(deep.low, 0)} to {number(deep.high, 0)}) of {number(null, 0)} directions"
        )
    return AxisCard(
        "rank", view.verdict.rank, percent(deep.null_ratio), "of random directions", interval, _place(deep.null_ratio),
        _place(ends[0]), _place(ends[1]), _place(twin), percent(twin),
        _bands(("low", "reduced", "intact"), edges), _edges(edges),
    )  # fmt: skip


def _attribution(view: StackView) -> AxisCard:
    named = (
        ("mean_cosine", "as measured", True),
        ("mean_cosine_without_top_dimensions", "without the top 3 dimensions", False),
        ("cross_text_cosine", "between different texts", False),
        ("mean_cosine_with_sink", "with the sink token kept", False),
    )
    rows = []
    for key, words, first in named:
        value = view.deep.get(key, NOTHING).value
        rows.append((words, number(value, 2), _place(value) or 0.0, first))
    return AxisCard("attribution", view.verdict.attribution, "", "", "", rows=tuple(rows))


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"95 % interval {number(estimate.low, digits)} to {number(estimate.high, digits)}"


def _place(value: float | None) -> float | None:
    """A value between 0 and 1 in percent of the scale."""
    return None if value is None else round(100 * min(1.0, max(0.0, value)), 2)


def _bands(words: tuple[str, ...], edges: list[float]) -> tuple[Band, ...]:
    ends = [0.0, *edges, 1.0]
    if len(ends) != len(words) + 1:
        return ()
    return tuple(Band(word, 100 * a, 100 * b) for word, a, b in zip(words, ends[:-1], ends[1:], strict=True))


def _edges(edges: list[float]) -> tuple[tuple[str, float], ...]:
    return tuple((f"{edge:.2f}".lstrip("0"), 100 * edge) for edge in edges)


def quality(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """Loss, perplexity and bits per byte: name, number, unit, interval, meaning or the reason of its absence."""
    rows = []
    for key, digits in (("loss", 2), ("perplexity", 1), ("bits_per_byte", 2)):
        of: Estimate = getattr(diagnosis.quality, key)
        metric = QUALITY[key]
        rows.append(
            {
                "title": diagnosis.quality.label if key == "loss" else metric.title,
                "value": "" if of.value is None else number(of.value, digits),
                "unit": metric.unit, "interval": _interval(of, digits), "meaning": metric.meaning,
                "reason": of.reason or "not measured",
            }
        )  # fmt: skip
    return rows


def provenance(diagnosis: Diagnosis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to repeat or to doubt the measurement: groups of (name, value)."""
    from dataclasses import asdict

    corpus = {k: v for k, v in asdict(diagnosis.corpus).items() if k != "windows"}
    run = {
        "command": diagnosis.command,
        "created": diagnosis.created,
        "condense": diagnosis.condense,
        "schema": diagnosis.schema,
    }
    groups: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Run", run), ("Model", asdict(diagnosis.model)), ("Corpus", corpus), ("Protocol", diagnosis.protocol),
        ("Environment", diagnosis.environment), ("Timing", diagnosis.timing),
    )  # fmt: skip
    return [
        (name, [(k.replace("_", " "), written(v)) for k, v in values.items() if v not in (None, (), [])])
        for name, values in groups
    ]


def written(value: Any) -> str:
    """A value of a record as the provenance shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, tuple | list):
        return ", ".join(map(written, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {written(item)}" for key, item in value.items())
    return str(value)


def layer_table(view: StackView) -> Table:
    """One row per site with every number that a chart shows."""
    columns = [Column(head, group, METRICS[key].title) for key, head, group, _ in _COLUMNS]
    columns.append(Column("top 3", "Dimensions", "the dimensions that make most of the mean cosine, and their shares"))
    twin = {site.label: site for site in view.twin}
    if twin:
        columns += [Column(head, "Random twin", f"{METRICS[key].title} of the random twin") for key, head, _ in _TWIN]
    published = any(True for _ in view.paper.mean_cosine)
    if published:
        columns.append(Column("cosine", "As published", "mean over all n² pairs, diagonal and position 0 kept"))
    rows = []
    for place, site in enumerate(view.sites):
        cells = [_cell(site, key, digits) for key, _, _, digits in _COLUMNS]
        cells.append(_dimensions(site))
        if twin:
            cells += [_plain(_of(twin.get(site.label), key), digits) for key, _, digits in _TWIN]
        if published:
            cells.append(_plain(_published(view, place), 3))
        rows.append((site.label, tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def _cell(site: SiteReading, key: str, digits: int) -> Cell:
    estimate = site.metrics.get(key, NOTHING)
    if estimate.value is None:
        return Cell("–", estimate.reason or "")
    note = ""
    if key == "mean_cosine" and estimate.low is not None and estimate.high is not None:
        note = f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"
    elif estimate.null_ratio is not None:
        note = percent(estimate.null_ratio)
    bar = round(100 * min(1.0, max(0.0, estimate.value)), 1) if key == "mean_cosine" else None
    return Cell(number(estimate.value, digits), note, f"{estimate.value:.6g}" if note or bar is not None else "", bar)


def _plain(value: float | None, digits: int) -> Cell:
    return Cell("–") if value is None else Cell(number(value, digits))


def _of(site: SiteReading | None, key: str) -> float | None:
    return None if site is None else site.metrics.get(key, NOTHING).value


def _dimensions(site: SiteReading) -> Cell:
    shares = [
        f"{top.dimension} ({percent(top.share)})" if top.share is not None else str(top.dimension)
        for top in site.top_dimensions
    ]
    first = site.top_dimensions[0] if site.top_dimensions else None
    share = f"{first.share:.6g}" if first is not None and first.share is not None else ""
    return Cell(", ".join(shares) or "–", sort=share)


def _published(view: StackView, place: int) -> float | None:
    """Hidden states 0..L−1 stand at embedding..block L−1; the last one is normed, so it stands at the output."""
    values, site = view.paper.mean_cosine, view.sites[place]
    index = place
    if site.site == "output":
        index = len(values) - 1
    elif place >= len(values) - 1:
        return None
    return values[index] if 0 <= index < len(values) else None
