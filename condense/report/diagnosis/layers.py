"""The layer table as cells ready to be printed: what is shown, what it is sorted by."""

from __future__ import annotations

from dataclasses import dataclass

from condense.metrics import METRICS
from condense.records.diagnosis import SiteReading
from condense.report.diagnosis.figures import NOTHING, StackView
from condense.report.text import number, percent

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
