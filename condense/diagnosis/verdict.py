"""The rules of the verdict: three axes, never one number. Pure Python, no tensors; the words are in `findings`.

Cone (how narrow), rank (how many directions are left), attribution (the cause). The bands
are a convention, for no validated threshold is published; they are data here and can be overridden.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from condense.records.base import Estimate
from condense.records.diagnosis import Objective, Quality, SinkAnatomy, Trend

Level = Literal["severe", "condensed", "watch", "ok", "undefined"]
Cone = Literal["low", "moderate", "high", "severe", "undefined"]
Rank = Literal["intact", "reduced", "low", "undefined"]
TwinWord = Literal["more", "less", "not distinguishable"]

SINK = "attention-sink artefact"
ROGUE = "rogue dimensions"
COMMON = "common direction"
CONTEXT = "context-specific condensation"
COLLAPSE = "rank collapse without a cone"
NOT = "not condensed"
UNDEFINED = "undefined"

LIU = "Liu et al. 2026, arXiv:2602.00217"
BILLION = 1_000_000_000

AXES = ("cone", "rank", "attribution", "level")
STABLE = 0.95
"""A word that fewer than this share of the resamples give is borderline."""
REPETITION = 0.02
"""Where the mean cosine exceeds that of distinct tokens by more, the text repeats itself and distinct pairs decide."""
LEAST_DISTINCT = 32
"""Below so many distinct tokens in the median window (and half the vocabulary) nothing is judged."""


@dataclass(frozen=True)
class Bands:
    """The thresholds between words. A convention; every report states that."""

    cone_moderate: float = 0.35
    cone_high: float = 0.60
    cone_severe: float = 0.80
    rank_low: float = 0.25
    rank_reduced: float = 0.50
    rogue_share: float = 0.50
    common_share: float = 0.80
    sink_ratio: float = 100.0
    sink_cosine: float = 0.60
    sink_rank_factor: float = 0.50


BANDS = Bands()


@dataclass(frozen=True)
class Inputs:
    """The numbers that the rules read, all means over the deepest half of the blocks.

    Where the text repeats itself the cosines are over pairs of different tokens.
    """

    mean_cosine: float | None
    rank_null_ratio: float | None
    mean_cosine_without_top_dimensions: float | None
    cross_text_cosine: float | None
    mean_cosine_with_sink: float | None
    effective_rank: float | None
    effective_rank_with_sink: float | None


@dataclass(frozen=True)
class Labels:
    """The words of the three axes and the level that follows from them."""

    cone: Cone
    rank: Rank
    attribution: str
    level: Level


NO_LABELS = Labels("undefined", "undefined", UNDEFINED, "undefined")


@dataclass(frozen=True)
class Twin:
    """The deep mean cosine against `count` random initialisations: model − mean of them, and its word."""

    word: TwinWord
    difference: Estimate
    mean: float
    lowest: float
    highest: float
    count: int


@dataclass(frozen=True)
class Text:
    """The properties of the windows that the verdict depends on.

    `distinct` tokens in the median window, out of a `vocabulary` of so many; `same_pairs` the mean share of pairs that
    are one token; `counting_loss`: nats per token of a model that only counts the tokens it has read.
    """

    windows: int
    documents: int
    length: int
    distinct: float
    same_pairs: float
    vocabulary: int | None = None
    counting_loss: float | None = None


@dataclass(frozen=True)
class Facts:
    """What a verdict is drawn from: the depth summary of one stack and the curves over its sites.

    `draws` are the inputs on resamples of the documents (empty where these are not known); `labels` names the sites in
    depth order, the `output` last; `curves` holds each metric at them.
    """

    model: str
    parameters: int
    contrastive: bool
    objective: Objective
    text: Text
    inputs: Inputs
    draws: Sequence[Inputs]
    repeats: bool
    deep: Mapping[str, Estimate]
    trend: Trend
    labels: Sequence[str]
    curves: Mapping[str, Sequence[float | None]]
    top_dimensions: Sequence[int] = ()
    sinks: SinkAnatomy | None = None
    quality: Quality | None = None
    twin: Twin | None = None

    def value(self, key: str) -> float | None:
        """The deep value of a metric."""
        estimate = self.deep.get(key)
        return estimate.value if estimate is not None else None

    def command(self, verb: str, rest: str = "") -> str:
        """A command line on this model that can be pasted into a shell."""
        return f"condense {verb} {shlex.quote(self.model)} {rest}".strip()

    def treatment(self) -> str:
        """The treatment to try; where treating makes no sense (see `cannot_read`, `contrastive`), a measurement."""
        if self.contrastive or self.cannot_read:
            return self.closer_look()
        return self.command("treat", "--text train.txt --coefficient 0.1 -o treated/")

    def closer_look(self) -> str:
        """The next measurement that would decide more: the random twin, or the user's own text after it."""
        return self.command("analyze", "--random-twin" if self.twin is None else "--text your-text.txt")

    @property
    def too_few_tokens(self) -> str | None:
        """Why there is no verdict: too few distinct tokens in the median window; None where there are enough."""
        half = LEAST_DISTINCT if self.text.vocabulary is None else self.text.vocabulary / 2
        if self.text.distinct >= min(LEAST_DISTINCT, half):
            return None
        return f"{self.text.distinct:g} distinct tokens in the median window: fewer than {min(LEAST_DISTINCT, half):g}"

    @property
    def cannot_read(self) -> bool:
        """Whether the model predicts these texts no better than counting their tokens does."""
        loss = None if self.quality is None else self.quality.loss.value
        return loss is not None and self.text.counting_loss is not None and loss >= self.text.counting_loss


def labels_of(inputs: Inputs, bands: Bands = BANDS) -> Labels:
    """Cone, rank, attribution and level from the numbers; the rules are in docs/metrics.md."""
    cone, rank = cone_of(inputs.mean_cosine, bands), rank_of(inputs.rank_null_ratio, bands)
    attribution = attribute(inputs, cone, rank, bands)
    return Labels(cone, rank, attribution, level_of(cone, rank, attribution))


def cone_of(value: float | None, bands: Bands) -> Cone:
    """Axis A: the band of the deep mean cosine."""
    if value is None:
        return "undefined"
    if value >= bands.cone_severe:
        return "severe"
    if value >= bands.cone_high:
        return "high"
    return "moderate" if value >= bands.cone_moderate else "low"


def rank_of(ratio: float | None, bands: Bands) -> Rank:
    """Axis B: the band of the deep effective rank over its Gaussian null."""
    if ratio is None:
        return "undefined"
    if ratio > bands.rank_reduced:
        return "intact"
    return "reduced" if ratio >= bands.rank_low else "low"


def attribute(inputs: Inputs, cone: Cone, rank: Rank, bands: Bands) -> str:
    """Axis C: the first rule that holds."""
    mean = inputs.mean_cosine
    if mean is None or cone == "undefined":
        return UNDEFINED
    with_sink = inputs.mean_cosine_with_sink
    seen_as_cone = with_sink is not None and with_sink >= bands.sink_cosine
    if cone == "low" and rank != "low" and (seen_as_cone or sink_hides_rank(inputs, bands)):
        return SINK
    if cone != "low" and is_rogue(inputs, bands):
        return ROGUE
    if cone in ("high", "severe"):
        return COMMON if is_common(inputs, bands) else CONTEXT
    return COLLAPSE if rank == "low" else NOT


def is_rogue(inputs: Inputs, bands: Bands) -> bool:
    """Whether half of the cone is in each text's three strongest dimensions."""
    mean, without = inputs.mean_cosine, inputs.mean_cosine_without_top_dimensions
    return mean is not None and without is not None and mean > 0 and 1 - without / mean >= bands.rogue_share


def is_common(inputs: Inputs, bands: Bands) -> bool:
    """Whether tokens of different documents share most of the direction; False where there is one document."""
    mean, cross = inputs.mean_cosine, inputs.cross_text_cosine
    return mean is not None and cross is not None and mean > 0 and cross / mean >= bands.common_share


def sink_hides_rank(inputs: Inputs, bands: Bands) -> bool:
    """Whether keeping the sink would take the effective rank below half of the one without it."""
    naive, own = inputs.effective_rank_with_sink, inputs.effective_rank
    return naive is not None and own is not None and naive < bands.sink_rank_factor * own


def level_of(cone: Cone, rank: Rank, attribution: str) -> Level:
    """The level that follows from the axes; whether a word is borderline has no effect."""
    if attribution == UNDEFINED:
        return "undefined"
    if attribution in (COMMON, CONTEXT):
        return "severe" if cone == "severe" else "condensed"
    if attribution == COLLAPSE:
        return "condensed"
    return "watch" if attribution in (SINK, ROGUE) or rank == "reduced" else "ok"


def frequencies_of(draws: Sequence[Inputs], bands: Bands = BANDS) -> dict[str, dict[str, float]]:
    """For each axis, the share of the draws that give each word, most frequent first; empty without draws."""
    if not draws:
        return {}
    drawn = [labels_of(inputs, bands) for inputs in draws]
    counts = {axis: Counter(getattr(labels, axis) for labels in drawn) for axis in AXES}
    return {axis: {w: n / len(drawn) for w, n in words.most_common()} for axis, words in counts.items()}


def borderline_of(labels: Labels, frequencies: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The axes whose word fewer than 95 % of the resamples give."""
    return tuple(axis for axis, words in frequencies.items() if words.get(getattr(labels, axis), 0.0) < STABLE)
