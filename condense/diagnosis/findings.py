"""The findings of a diagnosis: numbers and sites, why they matter, the next command, a source. Pure Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from condense.diagnosis.blocks import idle_finding
from condense.diagnosis.sinks import sink_finding
from condense.diagnosis.verdict import (
    BANDS,
    BILLION,
    COLLAPSE,
    COMMON,
    CONTEXT,
    LIU,
    NO_LABELS,
    NOT,
    ROGUE,
    SINK,
    UNDEFINED,
    Bands,
    Facts,
    Labels,
    borderline_of,
    frequencies_of,
    is_common,
    labels_of,
)
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import Verdict

Severity = Literal["severe", "warning", "info", "good"]
CONVENTION = "convention of condense"
NOT_COVERED = (
    "What the interval does not cover: the kind of text and the window length. SmolLM2-135M over blocks 16 to 29: 0.54 "
    "on Python source, 0.60 on the probe text, 0.62 on Python's help topics (512 tokens); on the probe text 0.63 at 64 "
    "tokens and 0.58 at 1,024, so that the length alone moves it across the edge at 0.60."
)


def judge(facts: Facts, bands: Bands = BANDS) -> Verdict:
    """Labels, how stable they are, and findings from the facts; the rules are in docs/metrics.md."""
    reason = facts.too_few_tokens
    labels = NO_LABELS if reason else labels_of(facts.inputs, bands)
    frequencies = {} if reason else frequencies_of(facts.draws, bands)
    if labels.attribution == UNDEFINED and reason is None:
        reason = "the mean cosine is undefined"
    verdict = Verdict(
        level=labels.level,
        cone=labels.cone,
        rank=labels.rank,
        attribution=labels.attribution,
        borderline=borderline_of(labels, frequencies),
        bands=asdict(bands),
        findings=(),
        frequencies=frequencies,
        inputs=asdict(facts.inputs),
        pairs="distinct" if facts.repeats else "all",
        twin=None if facts.twin is None else facts.twin.word,
        reason=reason,
        not_covered=NOT_COVERED,
    )
    return replace(verdict, findings=tuple(_findings(facts, labels, verdict, bands)))


def _findings(facts: Facts, labels: Labels, verdict: Verdict, bands: Bands) -> list[Finding]:
    undefined = labels.attribution == UNDEFINED
    made = [
        _no_verdict(facts, verdict.reason or "") if undefined else _attribution_finding(facts, labels, bands),
        _repetition_finding(facts) if facts.repeats else None,
        sink_finding(facts, labels, bands),
        idle_finding(facts),
        _rank_finding(facts, labels),
        _not_read(facts) if facts.cannot_read else None,
        _twin_finding(facts),
        _borderline_finding(facts, verdict) if verdict.borderline else None,
        _documents_finding(facts),
        _contrastive_finding(facts) if facts.contrastive else None,
        _large_finding(facts) if facts.parameters > BILLION else None,
        _quality_finding(facts, labels),
    ]
    return [finding for finding in made if finding is not None]


# --- the attribution --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Words:
    """Text of an attribution's finding: `{cone}` in the title is the cone's word; `then` chooses the next command."""

    title: str
    why: str
    source: str
    severity: Severity = "warning"
    then: Callable[[Facts], str] = Facts.closer_look


_WORDS = {
    SINK: _Words(
        title="Not condensed: only the attention sink makes it look so",
        why="A few positions, usually the first, carry huge states that the model uses as a place to attend to. Tools "
        "that keep them report a cone or a collapsed rank; the other tokens are spread.",
        source="Sun et al. 2024, arXiv:2402.17762; arXiv:2510.06477",
        severity="info",
        then=lambda facts: facts.command("analyze", "--html report.html"),
    ),
    ROGUE: _Words(
        title="It looks condensed ({cone} cone), but a few rogue dimensions make it so",
        why="Three coordinates with a large common offset dominate every cosine; behind them the tokens point in "
        "different directions. Such dimensions often carry task knowledge, so this is an explanation, not a defect, "
        "and a dispersion loss may merely rescale them.",
        source="Timkey & van Schijndel 2021, arXiv:2109.04404; Rudman et al. 2023, arXiv:2310.17715",
    ),
    COMMON: _Words(
        title="Condensed along one common direction ({cone} cone)",
        why="Tokens of different texts share the direction too, so it carries no information about either. This is "
        "what dispersion loss removes; whether that helps the model is another question, for a control arm to answer.",
        source=f"{LIU}; Ethayarajh 2019, arXiv:1909.00512",
        then=Facts.treatment,
    ),
    CONTEXT: _Words(
        title="Condensed ({cone} cone): tokens of one text are alike, texts differ",
        why="Each text condenses towards a direction of its own: the tokens of a context are hard to distinguish, "
        "though the texts are not.",
        source=LIU,
        then=Facts.treatment,
    ),
    COLLAPSE: _Words(
        title="Rank collapse without a cone",
        why="Directions are not alike, yet few of them are used. Dispersion loss pushes directions apart and does not "
        "target this.",
        source="Roy & Vetterli 2007; Godey et al. 2024, arXiv:2404.07648",
    ),
    NOT: _Words(
        title="Not condensed ({cone} cone)",
        why="The token states of a text keep their directions apart; there is little for a dispersion loss to remove.",
        source=LIU,
        severity="good",
        then=lambda facts: facts.command("analyze", "--json baseline.json"),
    ),
}
_ONE_DOCUMENT = _Words(
    title="Condensed ({cone} cone): tokens of one text are alike; other documents were not measured",
    why="With one document it is not known whether other texts share the direction: measure several.",
    source=LIU,
    then=lambda facts: facts.command("analyze", "--text folder-of-documents/"),
)
_MODERATE = _Words(
    title="A moderate cone",
    why="The tokens of a text are alike to a degree that is below what condense calls condensed. The edge is a "
    "convention, and text and window length move the number across it.",
    source=LIU,
    severity="info",
)
_MODERATE_COMMON = replace(
    _MODERATE,
    title="A moderate cone along one common direction",
    why="Tokens of different texts share most of the direction, which is what dispersion loss removes. It is below "
    "what condense calls condensed by degree, not by kind: the edge is a convention, and text and window length move "
    "the number across it.",
)


def _attribution_finding(facts: Facts, labels: Labels, bands: Bands) -> Finding:
    words = _WORDS[labels.attribution]
    if labels.attribution == NOT and labels.cone == "moderate":
        words = _MODERATE_COMMON if is_common(facts.inputs, bands) else _MODERATE
    elif labels.attribution == CONTEXT and facts.inputs.cross_text_cosine is None:
        words = _ONE_DOCUMENT
    return Finding(
        id=labels.attribution.replace(" ", "-"),
        severity="severe" if labels.level == "severe" else words.severity,
        title=words.title.format(cone=labels.cone),
        seen=_main_evidence(facts),
        why=words.why,
        next=words.then(facts),
        source=words.source,
    )


def _no_verdict(facts: Facts, reason: str) -> Finding:
    few = facts.too_few_tokens is not None
    return Finding(
        id="undefined",
        severity="warning",
        title="No verdict: " + ("too few kinds of token" if few else "the mean cosine is undefined"),
        seen=reason,
        why="Cosines of a handful of tokens describe the text, not of the model: the numbers are printed, no word is."
        if few
        else "Fewer than two tokens of a text are left beside the sinks, so there is nothing to judge.",
        next=facts.command("analyze", "--text your-text.txt"),
        source=CONVENTION,
    )


def _main_evidence(facts: Facts) -> str:
    """The numbers behind the main finding, for any attribution."""
    inputs = facts.inputs
    pairs = "two different tokens of a text" if facts.repeats else "two tokens of a text"
    mean = facts.deep.get("mean_cosine_distinct" if facts.repeats else "mean_cosine", Estimate(inputs.mean_cosine))
    scope = {1: " over other windows of this document", 2: " over 2 documents only"}.get(facts.text.documents, "")
    parts = [f"over the deepest half of the blocks {pairs} have a mean cosine of {_with_interval(mean, scope)}"]
    if inputs.mean_cosine_without_top_dimensions is not None:
        dimensions = ", ".join(map(str, facts.top_dimensions))
        words = f"{inputs.mean_cosine_without_top_dimensions:.2f} without each text's three strongest dimensions"
        parts.append(f"{words} (mostly {dimensions})" if dimensions else words)
    if inputs.cross_text_cosine is not None:
        parts.append(f"{inputs.cross_text_cosine:.2f} between tokens of different documents")
    else:
        parts.append("one document, so nothing is known of a direction common to several")
    rank = facts.deep.get("effective_rank")
    if rank is not None and rank.value is not None and rank.null is not None:
        parts.append(f"effective rank {rank.value:.0f} of the {rank.null:.0f} that random directions would have")
    return "; ".join(parts)


def _with_interval(estimate: Estimate, scope: str = "") -> str:
    """A value with its interval and, for few documents, what the interval covers."""
    if estimate.value is None:
        return "no value"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} (95 % interval{scope} {estimate.low:.2f} to {estimate.high:.2f})"


# --- other findings -----------------------------------------------------------------------------


def _repetition_finding(facts: Facts) -> Finding:
    every, distinct = facts.value("mean_cosine") or 0.0, facts.value("mean_cosine_distinct") or 0.0
    return Finding(
        id="repetition",
        severity="warning",
        title="The text repeats itself",
        seen=f"deep mean cosine {every:.2f} over all pairs, {distinct:.2f} over pairs of different tokens; "
        f"{facts.text.same_pairs:.0%} of the pairs of a window are one token, and the median window has "
        f"{facts.text.distinct:g} distinct ones",
        why="A token is like itself, whatever the model does. The verdict is on pairs of different tokens, and the "
        "rank is held against random directions that repeat as the tokens do.",
        next=facts.command("analyze", "--text other-text.txt"),
        source=CONVENTION,
    )


def _rank_finding(facts: Facts, labels: Labels) -> Finding | None:
    estimate = facts.deep.get("effective_rank")
    if labels.rank not in ("reduced", "low") or labels.attribution == COLLAPSE or estimate is None:
        return None
    return Finding(
        id=f"rank-{labels.rank}",
        severity="warning",
        title=f"The effective rank is {labels.rank}",
        seen=f"{estimate.value:.0f} directions, {facts.inputs.rank_null_ratio or 0:.0%} of what random directions of "
        "this shape have",
        why="Fewer directions than the width allows are in use, once the common direction is taken away. Rank also "
        "falls late in ordinary training, so compare with the random twin and an earlier checkpoint.",
        next=facts.closer_look(),
        source="Roy & Vetterli 2007; Li et al. 2025, arXiv:2509.23024",
    )


def _not_read(facts: Facts) -> Finding:
    loss = 0.0 if facts.quality is None or facts.quality.loss.value is None else facts.quality.loss.value
    bits = None if facts.quality is None else facts.quality.bits_per_byte.value
    return Finding(
        id="text-not-read",
        severity="warning",
        title="The model does not predict this text",
        seen=f"loss {loss:.2f} nats per token"
        + ("" if bits is None else f" ({bits:.2f} bits per byte)")
        + f", where counting the text's own tokens needs {facts.text.counting_loss or 0:.2f}; "
        f"{facts.text.distinct:g} distinct tokens in the median window",
        why="Its states on a text that it cannot read say little about the model in use, and nothing about whether to "
        "treat it.",
        next=facts.command("analyze", "--text your-text.txt"),
        source=CONVENTION,
    )


def _twin_finding(facts: Facts) -> Finding | None:
    twin = facts.twin
    if twin is None or twin.difference.value is None:
        return None
    low, high = twin.difference.low, twin.difference.high
    interval = "" if low is None or high is None else f" (95 % interval {low:+.2f} to {high:+.2f})"
    titles = {
        "more": "More condensed than the same model with random weights",
        "less": "Less condensed than the same model with random weights",
        "not distinguishable": "Not distinguishable from the same model with random weights",
    }
    whys = {
        "more": "It became so in training, which by itself is no defect.",
        "less": "Random weights are condensed already; training has spread the states.",
        "not distinguishable": "How condensed it is, initialisation alone may account for.",
    }
    own = twin.mean + twin.difference.value
    return Finding(
        id="random-twin",
        severity="info",
        title=titles[twin.word],
        seen=f"deep mean cosine {own:.2f} here, {twin.mean:.2f} with random weights ({twin.count} initialisations, "
        f"{twin.lowest:.2f} to {twin.highest:.2f}); difference {twin.difference.value:+.2f}{interval}, the model "
        "itself counted as one draw",
        why=whys[twin.word],
        next=facts.closer_look(),
        source="random initialisation as reference: docs/metrics.md",
    )


# --- uncertainty and advice ---------------------------------------------------------------------------


def _borderline_finding(facts: Facts, verdict: Verdict) -> Finding:
    return Finding(
        id="borderline",
        severity="info",
        title="With other documents the word could be another one",
        seen="; ".join(f"{axis}: {verdict.share(axis)} of resamples" for axis in verdict.borderline),
        why="The documents were drawn again 1,000 times; fewer than 95 % give the word that is printed. More documents "
        "narrow it.",
        next=facts.command("analyze", f"--num-texts {4 * facts.text.windows}"),
        source=CONVENTION,
    )


def _documents_finding(facts: Facts) -> Finding | None:
    if facts.text.documents >= 3:
        return None
    titles = {0: "It is not known which windows are of one document", 1: "All windows are of one document"}
    whys = {
        0: "Windows of one document are alike, so no interval can be taken.",
        1: "The intervals cover other windows of this document, not other documents, and nothing can be said of a "
        "direction that documents share.",
        2: "Intervals from two documents are wide, as they should be.",
    }
    return Finding(
        id="few-documents",
        severity="warning",
        title=titles.get(facts.text.documents, "Only 2 documents were measured"),
        seen=f"{facts.text.windows} windows from {facts.text.documents or 'an unknown number of'} "
        + ("document" if facts.text.documents == 1 else "documents"),
        why=whys[facts.text.documents],
        next=facts.command("analyze", "--text folder-of-documents/"),
        source=CONVENTION,
    )


def _contrastive_finding(facts: Facts) -> Finding:
    return Finding(
        id="contrastive",
        severity="info",
        title="Already trained with a contrastive objective",
        seen="sentence-transformers layout",
        why="Contrastive training spreads what it needs to; a dispersion loss on top may undo it. Do not treat.",
        next=facts.command("analyze", "--json baseline.json"),
        source="Wang & Isola 2020, arXiv:2005.10242",
    )


def _large_finding(facts: Facts) -> Finding:
    return Finding(
        id="large-model",
        severity="info",
        title="Above one billion parameters the published gain shrinks",
        seen=f"{facts.parameters / BILLION:.1f} billion parameters",
        why="Condensation, and a gain from dispersing, were reported for small models; larger ones resist.",
        next=facts.closer_look(),
        source=LIU,
    )


def _quality_finding(facts: Facts, labels: Labels) -> Finding:
    quality = facts.quality
    bits = None if quality is None else quality.bits_per_byte.value
    loss = None if quality is None else quality.loss.value
    seen = "no measure of quality on this text"
    if bits is not None:
        seen = f"{bits:.3f} bits per byte on the same windows"
    elif loss is not None and quality is not None:
        seen = f"{quality.label} {loss:.2f} on the same windows"
    return Finding(
        id="geometry-is-not-quality",
        severity="info",
        title="Geometry is not quality",
        seen=f"{seen}; {_depth_trend(facts)}",
        why="Across model families geometry barely ranks models (rho about 0.2), the bands are a convention, and a "
        "rising curve is a trend, not a severity: random weights score +1. Treat only with a control arm.",
        next=facts.closer_look() if labels.level in ("ok", "watch", "undefined") else facts.treatment(),
        source="Rudman & Eickhoff 2024, arXiv:2305.19358; Machina & Mercer 2024",
    )


def _depth_trend(facts: Facts) -> str:
    rho = facts.trend.spearman.rho
    if rho is None:
        return "no trend over depth can be computed"
    return f"mean cosine against depth: Spearman rho {rho:+.2f}, Kendall tau {facts.trend.kendall.tau:+.2f}"
