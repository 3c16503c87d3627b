"""The values that flow: what `analyze` returns, what is saved, what every page is drawn from.

Frozen and standard library only, so that `report`, `check` and `compare` never load a model library.
The field names are the JSON keys (see docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from condense.metrics import MATRIX, METRICS
from condense.records.base import Estimate, Finding, Saved
from condense.records.serial import refuse_other_lengths

Site = Literal["embedding", "block", "output"]
Objective = Literal["causal", "masked", "seq2seq", "none"]
DIAGNOSIS_SCHEMA = "condense.diagnosis/1"


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
class SinkAnatomy:
    """Sinks of one stack: positions whose states are more than 20 times the median of the tokens that count.

    `windows` have one, `per_window` positions of each in the median; `dropped` of all are neither position 0 nor
    special tokens. The most common `positions`, `tokens` (empty under --no-text) and `channels` (coordinates that
    carry them) come first. The longest is `ratio` times the median, `at` that site; half of the windows have one from
    site `up` on, until before site `down` (null: to the last block).
    """

    stack: str
    windows: int
    per_window: float
    dropped: int
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    channels: tuple[int, ...]
    ratio: float
    at: str
    up: str
    down: str | None


@dataclass(frozen=True)
class TokenCounts:
    """How much each window repeats itself: its distinct tokens, and the share of its pairs that are one token."""

    distinct: tuple[int, ...]
    same_pairs: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """Three axes, never one number: the cone, the rank, and what they are attributed to.

    `inputs` are the numbers that the rules read, over `pairs` of all or of distinct tokens. `frequencies`: for each of
    cone, rank, attribution and level, the share of the resamples of the documents that give each word (empty where
    they could not be drawn); `borderline` names those whose word is given by fewer than 95 %. `twin`: more or less
    condensed than with random weights. `reason` says why the axes are undefined. `not_covered` is what no interval
    covers.
    """

    level: Literal["severe", "condensed", "watch", "ok", "undefined"]
    cone: Literal["low", "moderate", "high", "severe", "undefined"]
    rank: Literal["intact", "reduced", "low", "undefined"]
    attribution: str
    borderline: tuple[str, ...]
    bands: Mapping[str, float]
    findings: tuple[Finding, ...]
    frequencies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inputs: Mapping[str, float | None] = field(default_factory=dict)
    pairs: Literal["all", "distinct"] = "all"
    twin: Literal["more", "less", "not distinguishable"] | None = None
    reason: str | None = None
    not_covered: str = ""

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A verdict saved when `borderline` was one answer for all labels, which holds for none of them."""
        return {**data, "borderline": []} if isinstance(data.get("borderline"), bool) else data

    def share(self, axis: str) -> str:
        """How often the resamples give each word of an axis: "common direction in 62 %, rogue dimensions in 38 %"."""
        ordered = sorted(self.frequencies.get(axis, {}).items(), key=lambda pair: -pair[1])
        return ", ".join(f"{word} in {round(100 * share)} %" for word, share in ordered if share >= 0.005)


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
    """Which checkpoint was measured, in a form that can be checked again; `weights_bytes` is the size of its files."""

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
    weights_bytes: int | None = None


@dataclass(frozen=True)
class CorpusInfo:
    """Which texts were measured: the source, its hash, the hash of the token ids, the windows' names.

    `documents` numbers the document of each window, the unit of inference (empty in runs saved before it was kept);
    `dropped` counts repeated documents that were left out; `bos` says whether windows begin with a special token of
    the tokenizer; `notes`: remarks on the texts.
    """

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
    documents: tuple[int, ...] = ()
    dropped: int = 0
    bos: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_absent(self) -> bool:
        """Whether there is no text at all, which is null in JSON."""
        return self.texts == 0

    def without_names(self) -> CorpusInfo:
        """The same without the source's path and with numbers for the names of windows."""
        return replace(self, source="not told", windows=tuple(f"text {index}" for index in range(len(self.windows))))


NO_CORPUS = CorpusInfo("no text", "", "", 0, 0, 0, 0, 0, ())
"""What a diagnosis of the weights alone has for its texts."""
WEIGHTS_ONLY = "measured with --weights-only: nothing was run on a text"
MATRICES = ("embedding-matrix", "unembedding-matrix")


@dataclass(frozen=True)
class MatrixReading:
    """The rows of an embedding or unembedding matrix; both have one reading where they are `tied`.

    metrics: the keys of `condense.metrics.MATRIX` without their prefix, each of the whole matrix: bounds are the value.
    zero, duplicate, initial: rows that were never trained, by how that shows (initial is null where the config does not
    say how rows are drawn). spectrum: variances of the centred unit rows along their principal directions, over their
    mean, at evenly spaced ranks; spectrum_null: of Gaussian rows.
    """

    rows: int
    width: int
    tied: bool
    metrics: Mapping[str, Estimate]
    zero: int
    duplicate: int
    initial: int | None
    spectrum: tuple[float, ...]
    spectrum_null: tuple[float, ...]

    def __post_init__(self) -> None:
        """Give a reading that lacks a number an undefined one."""
        keys = (key.removeprefix("matrix.") for key in MATRIX)
        lacking = {key: Estimate(None, reason="it was not measured") for key in keys if key not in self.metrics}
        object.__setattr__(self, "metrics", {**self.metrics, **lacking})


@dataclass(frozen=True)
class Diagnosis(Saved):
    """What `analyze` found: a reading per site, the depth summary, quality, and a verdict in words.

    Of the weights alone (`--weights-only`): no corpus, no sites, `matrices` and an undefined verdict.
    """

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
    tokens: TokenCounts | None = None
    sinks: tuple[SinkAnatomy, ...] = ()
    matrices: Mapping[str, MatrixReading] = field(default_factory=dict)
    pooled: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A run that does not say which windows are of one document, without its intervals: they were too narrow."""
        corpus = data.get("corpus")
        if corpus is None and "corpus" in data:
            return {**data, "corpus": {**vars(NO_CORPUS), "windows": [], "documents": [], "notes": []}}
        known = isinstance(corpus, Mapping) and corpus.get("documents")
        measured = ("quality", "sites", "deep", "stacks")
        if known and isinstance(known, list):
            refuse_other_lengths({key: data.get(key) for key in measured}, len(known))
        return data if known else {**data, **{key: _without_bounds(data[key]) for key in measured if key in data}}

    def __post_init__(self) -> None:
        """Give a run of an older version the metrics that it lacks, as undefined ones with the reason."""
        by = self.condense
        sites = tuple(replace(site, metrics=with_every_metric(site.metrics, by)) for site in self.sites)
        stacks = {name: replace(stack, deep=with_every_metric(stack.deep, by)) for name, stack in self.stacks.items()}
        for name, value in {"deep": with_every_metric(self.deep, by), "sites": sites, "stacks": stacks}.items():
            if value != getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def main_stack(self) -> str:
        """The stack that `deep`, `trend` and `verdict` are of: the last one, the decoder where there are two."""
        return self.sites[-1].stack if self.sites else ""

    def deep_of(self, stack: str | None = None) -> Mapping[str, Estimate]:
        """The depth summary of a stack, of the main one without a name; KeyError if there is no such stack."""
        return self.deep if stack in (None, self.main_stack) else self.stacks[str(stack)].deep

    def verdict_of(self, stack: str | None = None) -> Verdict:
        """The verdict on a stack, on the main one without a name; KeyError if there is no such stack."""
        return self.verdict if stack in (None, self.main_stack) else self.stacks[str(stack)].verdict

    def rows(self) -> list[dict[str, Any]]:
        """Return the layer table as plain rows: site, stack, index, depth, each metric with its interval.

        The matrices are columns of the embedding and the output; of the weights alone each is a row.
        """
        rows = [_site_row(site) for site in self.sites]
        output = next((row for row in rows if row["site"] == "output"), {})
        output |= _pooled_columns(self.pooled)
        for name, reading in self.matrices.items():
            columns = {f"{name}.{key}": value for key, value in _matrix_columns(reading).items()}
            place = "embedding" if name == MATRICES[0] else "output"
            own = next((row for row in reversed(rows) if row["site"] == place), None)
            if own is None:  # of the weights alone
                own = {"site": name, "stack": "", "index": "", "depth": ""}
                rows.append(own)
            own |= columns
        return rows


def with_every_metric(own: Mapping[str, Estimate], version: str) -> Mapping[str, Estimate]:
    """`own` with an undefined estimate for each metric that it lacks; version: the condense that measured it."""
    lacking = Estimate(None, reason=f"condense {version}, which measured this run, did not have it")
    return {**own, **{key: lacking for key in METRICS if key not in own}}


def _without_bounds(data: Any) -> Any:
    """JSON values in which no estimate has bounds."""
    if isinstance(data, Mapping):
        bounded = "value" in data and "low" in data
        return {k: None if bounded and k in ("low", "high") else _without_bounds(v) for k, v in data.items()}
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        return [_without_bounds(item) for item in data]
    return data


def _pooled_columns(pooled: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """The pooled numbers as columns of the output that they were read at: `pooled.mean.cosine` and its bounds."""
    row: dict[str, Any] = {}
    for name, numbers in pooled.items():
        for key, estimate in numbers.items():
            column = f"pooled.{name}.{key}"
            row[column] = estimate.value
            if estimate.low is not None:
                row[f"{column}_low"], row[f"{column}_high"] = estimate.low, estimate.high
            if estimate.null_ratio is not None:
                row[f"{column}_null_ratio"] = estimate.null_ratio
    return row


def _matrix_columns(reading: MatrixReading) -> dict[str, Any]:
    row: dict[str, Any] = {"tied": reading.tied, "rows": reading.rows}
    for key, estimate in reading.metrics.items():
        row[key] = estimate.value
        if estimate.null_ratio is not None:
            row[f"{key}_null_ratio"] = estimate.null_ratio
    return row


def _site_row(site: SiteReading) -> dict[str, Any]:
    row: dict[str, Any] = {"site": site.site, "stack": site.stack, "index": site.index, "depth": site.depth}
    for key, estimate in site.metrics.items():
        row[key] = estimate.value
        if estimate.low is not None:
            row[f"{key}_low"], row[f"{key}_high"] = estimate.low, estimate.high
        if estimate.null_ratio is not None:
            row[f"{key}_null_ratio"] = estimate.null_ratio
    for rank, top in enumerate(site.top_dimensions, 1):
        row[f"top_dimension_{rank}"], row[f"top_dimension_{rank}_share"] = top.dimension, top.share
    return row
