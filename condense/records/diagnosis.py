"""The values that flow: what `analyze` returns, what is saved, what every page is drawn from.

Frozen and standard library only, so that `report`, `check` and `compare` never load a model library.
The field names are the JSON keys (see docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from condense.errors import UnavailableError
from condense.records.serial import decode, dumps, encode

if TYPE_CHECKING:
    import pandas

Site = Literal["embedding", "block", "output"]
PlotlyJs = Literal["inline", "cdn", "none"]
Objective = Literal["causal", "masked", "seq2seq", "none"]
DIAGNOSIS_SCHEMA = "condense.diagnosis/1"


class Saved:
    """A run as it is saved: `SCHEMA` names its kind and version; the same record gives the same bytes.

    The children are frozen dataclasses with a field `schema`.
    """

    SCHEMA: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as saved."""
        values: dict[str, Any] = encode(self)
        return values

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the JSON text and write it to `path` when one is given."""
        return saved(dumps(self), path)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a run of this kind from a file, JSON text or parsed JSON; UnavailableError if it is not one."""
        data = parsed(source)
        if data.get("schema") != cls.SCHEMA:
            raise UnavailableError(f"schema is {data.get('schema')!r}, expected {cls.SCHEMA!r}")
        try:
            run: Self = decode(cls, data)
        except ValueError as error:
            raise UnavailableError(f"not a valid {cls.SCHEMA}: {error}") from None
        return run

    def to_frame(self) -> pandas.DataFrame:
        """The run's table as a data frame; see `rows`."""
        import pandas

        return pandas.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The run's table as plain rows, which is what its CSV holds."""
        raise NotImplementedError

    def to_html(self, path: str | Path | None = None, *, plotlyjs: PlotlyJs = "inline") -> str:
        """Return the report as one HTML page and write it to `path` when one is given."""
        raise NotImplementedError

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown and write it to `path` when one is given."""
        raise NotImplementedError


@dataclass(frozen=True)
class Estimate:
    """A number over texts: mean (or composite) with a 95 % interval; None with a reason if undefined.

    `per_text` keeps the value of every text in window order, so that two saved runs can be compared
    pair by pair. `null` is the value for Gaussian rows of the same shape, `null_ratio` = value / null.
    """

    value: float | None
    low: float | None = field(default_factory=lambda: None)
    high: float | None = field(default_factory=lambda: None)
    per_text: tuple[float | None, ...] | None = None
    null: float | None = None
    null_ratio: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class TopDimension:
    """A coordinate of the residual stream and the part of the mean cosine that it alone makes."""

    dimension: int
    contribution: float
    share: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of the cosines of all pairs i<j of every text, in equal bins on [−1, 1]."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class SiteReading:
    """All metrics at one site: `embedding`, a `block` (pre-norm), or the `output` (after the final norm)."""

    site: Site
    stack: str
    index: int
    depth: float
    metrics: Mapping[str, Estimate]
    top_dimensions: tuple[TopDimension, ...]
    histogram: Histogram

    @property
    def label(self) -> str:
        """Short name of the site: `embedding`, `block 7`, `output`."""
        return f"block {self.index}" if self.site == "block" else self.site


@dataclass(frozen=True)
class Spearman:
    """Spearman's rank correlation with depth and its two-sided p-value."""

    rho: float | None
    p: float | None


@dataclass(frozen=True)
class Kendall:
    """Kendall's tau-b with depth and its two-sided p-value."""

    tau: float | None
    p: float | None


@dataclass(frozen=True)
class Trend:
    """Does the mean cosine rise with depth? A trend, never a severity: random weights score +1."""

    spearman: Spearman
    kendall: Kendall


@dataclass(frozen=True)
class Paper:
    """The published quantities: all n² pairs, diagonal and position 0 kept, hidden_states 0..L."""

    mean_cosine: tuple[float, ...]
    spearman: Spearman
    kendall: Kendall


@dataclass(frozen=True)
class Finding:
    """One thing that was seen: the numbers, why it matters, the exact next command, a source."""

    id: str
    severity: Literal["severe", "warning", "info", "good"]
    title: str
    seen: str
    why: str
    next: str
    source: str


@dataclass(frozen=True)
class Verdict:
    """Three axes, never one number: the cone, the rank, and what they are attributed to."""

    level: Literal["severe", "condensed", "watch", "ok", "undefined"]
    cone: Literal["low", "moderate", "high", "severe", "undefined"]
    rank: Literal["intact", "reduced", "low", "undefined"]
    attribution: str
    borderline: bool
    bands: Mapping[str, float]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class StackSummary:
    """Depth summary and verdict of one stack of an encoder–decoder model."""

    deep: Mapping[str, Estimate]
    trend: Trend
    paper: Paper
    verdict: Verdict


@dataclass(frozen=True)
class Quality:
    """How well the model predicts the same windows; always beside geometry."""

    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate
    predicted_tokens: tuple[int, ...] = ()
    predicted_bytes: tuple[int, ...] = ()
    label: str = "next-token loss"


@dataclass(frozen=True)
class ModelInfo:
    """Which checkpoint was measured, in a form that can be checked again."""

    id: str
    architecture: str
    objective: Objective
    parameters: int
    hidden_size: int
    blocks: int
    dtype: str
    source_format: str
    revision: str | None = None
    weights_sha256: str | None = None
    vocabulary_size: int | None = None
    contrastive: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CorpusInfo:
    """Which texts were measured: the source, its hash, the hash of the token ids, the windows' names."""

    source: str
    sha256: str
    windows_sha256: str
    texts: int
    skipped: int
    tokens: int
    length: int
    seed: int
    windows: tuple[str, ...]
    requested: int = 0
    version: str | None = None


@dataclass(frozen=True)
class Diagnosis(Saved):
    """What `analyze` found: a reading per site, the depth summary, quality, and a verdict in words."""

    SCHEMA: ClassVar[str] = DIAGNOSIS_SCHEMA

    schema: str
    condense: str
    created: str
    command: str
    model: ModelInfo
    corpus: CorpusInfo
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    timing: Mapping[str, float]
    quality: Quality
    sites: tuple[SiteReading, ...]
    deep: Mapping[str, Estimate]
    trend: Trend
    paper: Paper
    verdict: Verdict
    stacks: Mapping[str, StackSummary] = field(default_factory=dict)
    twin: Diagnosis | None = None

    @property
    def main_stack(self) -> str:
        """The stack that `deep`, `trend` and `verdict` are of: the last one, the decoder where there are two."""
        return self.sites[-1].stack

    def deep_of(self, stack: str | None = None) -> Mapping[str, Estimate]:
        """The depth summary of a stack, of the main one without a name; KeyError if there is no such stack."""
        return self.deep if stack in (None, self.main_stack) else self.stacks[str(stack)].deep

    def verdict_of(self, stack: str | None = None) -> Verdict:
        """The verdict on a stack, on the main one without a name; KeyError if there is no such stack."""
        return self.verdict if stack in (None, self.main_stack) else self.stacks[str(stack)].verdict

    def rows(self) -> list[dict[str, Any]]:
        """Return the layer table as plain rows: site, stack, index, depth, each metric with its interval."""
        return [_row(site) for site in self.sites]

    def to_html(self, path: str | Path | None = None, *, plotlyjs: PlotlyJs = "inline") -> str:
        """Return the report as one HTML page and write it to `path` when one is given."""
        from condense.report.html import diagnosis_page

        return saved(diagnosis_page(self, plotlyjs=plotlyjs), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown and write it to `path` when one is given."""
        from condense.report.diagnosis.markdown import diagnosis_markdown

        return saved(diagnosis_markdown(self), path)


def _row(site: SiteReading) -> dict[str, Any]:
    row: dict[str, Any] = {
        "site": site.site, "stack": site.stack, "index": site.index, "depth": site.depth,
    }  # fmt: skip
    for key, estimate in site.metrics.items():
        row[key] = estimate.value
        if estimate.low is not None:
            row[f"{key}_low"], row[f"{key}_high"] = estimate.low, estimate.high
        if estimate.null_ratio is not None:
            row[f"{key}_null_ratio"] = estimate.null_ratio
    for rank, top in enumerate(site.top_dimensions, 1):
        row[f"top_dimension_{rank}"], row[f"top_dimension_{rank}_share"] = top.dimension, top.share
    return row


def saved(text: str, path: str | Path | None) -> str:
    """Return the text, after writing it to `path` when one is given."""
    from condense.records.serial import write_text

    if path is not None:
        write_text(Path(path), text)
    return text


def parsed(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parsed JSON of a file, of JSON text, or as it is; UnavailableError if it is neither."""
    import json

    from condense.records.serial import read_json

    if isinstance(source, Mapping):
        return source
    if isinstance(source, str) and source.lstrip().startswith("{"):
        try:
            data: dict[str, Any] = json.loads(source)
        except ValueError:
            raise UnavailableError("the text is not JSON") from None
        return data
    return read_json(Path(source))
