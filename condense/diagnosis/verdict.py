"""What the numbers say, in words: three axes, never one number. Pure Python, no tensors.

Cone (how narrow), rank (how many directions are left), attribution (why it looks that way). The bands
are a convention, for no validated threshold is published; they are data here and can be overridden.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from condense.metrics import MIN_TEXTS
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import Objective, Trend, Verdict

Level = Literal["severe", "condensed", "watch", "ok", "undefined"]
Cone = Literal["low", "moderate", "high", "severe", "undefined"]
Rank = Literal["intact", "reduced", "low", "undefined"]
Severity = Literal["severe", "warning", "info", "good"]

SINK = "attention-sink artefact"
ROGUE = "rogue dimensions"
COMMON = "common direction"
CONTEXT = "context-specific condensation"
COLLAPSE = "rank collapse without a cone"
NOT = "not condensed"
UNDEFINED = "undefined"

LIU = "Liu et al. 2026, arXiv:2602.00217"
BILLION = 1_000_000_000


@dataclass(frozen=True)
class Bands:
    """Where one word ends and the next begins. A convention; every report says so."""

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
class Facts:
    """What a verdict is drawn from: the depth summary of one stack and the curves over its sites.

    `labels` names the sites in depth order, the `output` last; `curves` holds each metric at them.
    """

    model: str
    parameters: int
    contrastive: bool
    objective: Objective
    texts: int
    stack: str
    deep: Mapping[str, Estimate]
    trend: Trend
    labels: Sequence[str]
    curves: Mapping[str, Sequence[float | None]]
    top_dimensions: Sequence[int] = ()
    twin: Mapping[str, Estimate] | None = None

    def value(self, key: str) -> float | None:
        """The deep value of a metric."""
        estimate = self.deep.get(key)
        return estimate.value if estimate is not None else None

    def command(self, verb: str, rest: str = "") -> str:
        """A command line on this model that can be pasted into a shell."""
        return f"condense {verb} {shlex.quote(self.model)} {rest}".strip()

    def treatment(self) -> str:
        """The treatment to try; a model that was trained to be spread is looked at instead."""
        return (
            self.closer_look()
            if self.contrastive
            else self.command("treat", "--text train.txt --coefficient 0.1 -o treated/")
        )

    def closer_look(self) -> str:
        """The next measurement that would tell more: the random twin, or the user's own text after it."""
        return self.command("analyze", "--random-twin" if self.twin is None else "--text your-text.txt")


def judge(facts: Facts, bands: Bands = BANDS) -> Verdict:
    """Level, cone, rank, attribution and findings from the facts; the rules are in docs/metrics.md."""
    cone, rank = cone_of(facts, bands), rank_of(facts, bands)
    attribution = attribute(facts, cone, rank, bands)
    borderline = _straddles(facts, bands)
    level = _level(cone, rank, attribution, borderline)
    findings = (
        _main_finding(facts, cone, rank, attribution, bands),
        *_sink_finding(facts, cone, bands),
        *_rank_finding(facts, rank, attribution),
        *_twin_finding(facts),
        *_borderline_finding(facts, borderline),
        *_advice(facts, level),
    )
    return Verdict(level, cone, rank, attribution, borderline, asdict(bands), findings)


def cone_of(facts: Facts, bands: Bands) -> Cone:
    """Axis A: the band of the deep mean cosine."""
    value = facts.value("mean_cosine")
    if value is None:
        return "undefined"
    if value >= bands.cone_severe:
        return "severe"
    if value >= bands.cone_high:
        return "high"
    return "moderate" if value >= bands.cone_moderate else "low"


def rank_of(facts: Facts, bands: Bands) -> Rank:
    """Axis B: the band of the deep effective rank over its Gaussian null."""
    estimate = facts.deep.get("effective_rank")
    ratio = estimate.null_ratio if estimate is not None else None
    if ratio is None:
        return "undefined"
    if ratio > bands.rank_reduced:
        return "intact"
    return "reduced" if ratio >= bands.rank_low else "low"


def attribute(facts: Facts, cone: Cone, rank: Rank, bands: Bands) -> str:
    """Axis C: the first rule that holds."""
    mean = facts.value("mean_cosine")
    if mean is None or cone == "undefined":
        return UNDEFINED
    if cone == "low" and rank != "low" and (_sink_cosine(facts, bands) or sink_hides_rank(facts, bands)):
        return SINK
    without = facts.value("mean_cosine_without_top_dimensions")
    if cone != "low" and without is not None and mean > 0 and 1 - without / mean >= bands.rogue_share:
        return ROGUE
    if cone in ("high", "severe"):
        cross = facts.value("cross_text_cosine")
        return COMMON if cross is not None and mean > 0 and cross / mean >= bands.common_share else CONTEXT
    return COLLAPSE if rank == "low" else NOT


def _sink_cosine(facts: Facts, bands: Bands) -> bool:
    value = facts.value("mean_cosine_with_sink")
    return value is not None and value >= bands.sink_cosine


def sink_hides_rank(facts: Facts, bands: Bands) -> bool:
    """True if keeping the sink would take the effective rank below half of the honest one."""
    naive, honest = facts.value("effective_rank_with_sink"), facts.value("effective_rank")
    return naive is not None and honest is not None and naive < bands.sink_rank_factor * honest


def _level(cone: Cone, rank: Rank, attribution: str, borderline: bool) -> Level:
    if attribution == UNDEFINED:
        return "undefined"
    if attribution in (COMMON, CONTEXT):
        return "severe" if cone == "severe" else "condensed"
    if attribution == COLLAPSE:
        return "condensed"
    return "watch" if attribution in (SINK, ROGUE) or rank == "reduced" or borderline else "ok"


def _straddles(facts: Facts, bands: Bands) -> bool:
    """True if an interval holds a band edge of axis A or B."""
    mean, rank = facts.deep.get("mean_cosine"), facts.deep.get("effective_rank")
    cone_edges = (bands.cone_moderate, bands.cone_high, bands.cone_severe)
    inside = mean is not None and any(_holds(mean.low, edge, mean.high) for edge in cone_edges)
    if rank is None or not rank.null:
        return inside
    edges = (bands.rank_low * rank.null, bands.rank_reduced * rank.null)
    return inside or any(_holds(rank.low, edge, rank.high) for edge in edges)


def _holds(low: float | None, edge: float, high: float | None) -> bool:
    return low is not None and high is not None and low < edge < high


# --- the findings -----------------------------------------------------------------------------------


def _main_finding(facts: Facts, cone: Cone, rank: Rank, attribution: str, bands: Bands) -> Finding:
    makers = {
        SINK: _sink_artefact, ROGUE: _rogue, COMMON: _common, CONTEXT: _context, COLLAPSE: _collapse, NOT: _not,
    }  # fmt: skip
    if attribution not in makers:
        return Finding(
            "undefined", "warning", "No verdict: the mean cosine is undefined",
            "no site of the deepest half gave a mean cosine", "there is nothing to judge",
            facts.command("analyze", "--num-texts 32"), LIU,
        )  # fmt: skip
    title, severity, why, command, source = makers[attribution](facts, cone)
    name = attribution.replace(" ", "-")
    return Finding(name, severity, title, _seen(facts), why, command, source)


def _seen(facts: Facts) -> str:
    """The numbers behind the main finding, for any attribution."""
    without, cross = facts.value("mean_cosine_without_top_dimensions"), facts.value("cross_text_cosine")
    mean = _number(facts, "mean_cosine")
    parts = [f"over the deepest half of the blocks two tokens of a text have a mean cosine of {mean}"]
    if without is not None:
        dims = ", ".join(map(str, facts.top_dimensions))
        parts.append(
            f"{without:.2f} without each text's three strongest dimensions" + (f" (mostly {dims})" if dims else "")
        )
    if cross is not None:
        parts.append(f"{cross:.2f} between tokens of different texts")
    rank = facts.deep.get("effective_rank")
    if rank is not None and rank.value is not None and rank.null_ratio is not None:
        parts.append(f"effective rank {rank.value:.0f} of the {rank.null:.0f} that random directions would have")
    return "; ".join(parts)


def _number(facts: Facts, key: str) -> str:
    estimate = facts.deep[key]
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} (95 % interval {estimate.low:.2f} to {estimate.high:.2f})"


_Parts = tuple[str, Severity, str, str, str]


def _sink_artefact(facts: Facts, cone: Cone) -> _Parts:
    return (
        "Not condensed: only the attention sink makes it look so",
        "info",
        "One token, usually the first, carries a huge state that the model uses as a place to attend to. Tools that "
        "keep it report a cone or a collapsed rank; the other tokens are spread.",
        facts.command("analyze", "--html report.html"),
        "Sun et al. 2024, arXiv:2402.17762; arXiv:2510.06477",
    )


def _rogue(facts: Facts, cone: Cone) -> _Parts:
    return (
        f"It looks condensed ({cone} cone), but a few rogue dimensions make it so",
        "warning",
        "Three coordinates with a large common offset dominate every cosine; behind them the tokens point in different "
        "directions. Such dimensions often carry task knowledge, so this is an explanation, not a defect, and a "
        "dispersion loss may merely rescale them.",
        facts.closer_look(),
        "Timkey & van Schijndel 2021, arXiv:2109.04404; Rudman et al. 2023, arXiv:2310.17715",
    )


def _common(facts: Facts, cone: Cone) -> _Parts:
    return (
        f"Condensed along one common direction ({cone} cone)",
        "severe" if cone == "severe" else "warning",
        "Tokens of different texts share the direction too, so it carries no information about either. This is what "
        "dispersion loss removes; whether that helps the model is a separate question that a control arm answers.",
        facts.treatment(),
        f"{LIU}; Ethayarajh 2019, arXiv:1909.00512",
    )


def _context(facts: Facts, cone: Cone) -> _Parts:
    return (
        f"Really condensed ({cone} cone): tokens of one text are alike, texts differ",
        "severe" if cone == "severe" else "warning",
        "Each text collapses towards a direction of its own: the tokens of a context are hard to tell apart, though "
        "the texts are not.",
        facts.treatment(),
        LIU,
    )


def _collapse(facts: Facts, cone: Cone) -> _Parts:
    return (
        "Rank collapse without a cone",
        "warning",
        "Directions are not alike, yet few of them are used. Dispersion loss pushes directions apart and does not "
        "target this.",
        facts.closer_look(),
        "Roy & Vetterli 2007; Godey et al. 2024, arXiv:2404.07648",
    )


def _not(facts: Facts, cone: Cone) -> _Parts:
    return (
        f"Not condensed ({cone} cone)",
        "good",
        "The token states of a text keep their directions apart; there is nothing for a dispersion loss to remove.",
        facts.command("analyze", "--json baseline.json"),
        LIU,
    )


def _sink_finding(facts: Facts, cone: Cone, bands: Bands) -> list[Finding]:
    ratios = [(v, i) for i, v in enumerate(facts.curves.get("sink_ratio", ())) if v is not None]
    peak, place = max(ratios, default=(0.0, 0))
    # a cone alone takes the uncentred rank below the centred one, so the rank tells of a sink only without a cone
    if peak <= bands.sink_ratio and not (cone == "low" and sink_hides_rank(facts, bands)):
        return []
    naive, honest = facts.curves.get("effective_rank_with_sink", ()), facts.curves.get("effective_rank", ())
    seen = f"the longest state is {peak:.0f} times the median at {facts.labels[place]}"
    drop = _largest_drop(naive[: len(naive) - (list(facts.labels[-1:]) == ["output"])])
    if drop is not None and honest:
        a, b = naive[drop - 1], naive[drop]
        c, d = honest[drop - 1], honest[drop]
        if None not in (a, b, c, d):
            seen += (
                f"; from {facts.labels[drop - 1]} to {facts.labels[drop]} a naive effective rank that keeps it falls "
                f"from {a:.0f} to {b:.0f}, the honest one goes from {c:.0f} to {d:.0f}"
            )
    return [
        Finding(
            "attention-sink",
            "info",
            "One token carries massive activations (an attention sink)",
            seen,
            "Any number that keeps this token describes the token, not the text. condense leaves position 0 and "
            "special tokens out of every primary number and prints the naive ones beside them (_with_sink).",
            facts.command("analyze", "--csv layers.csv"),
            "Sun et al. 2024, arXiv:2402.17762; Xiao et al. 2024, arXiv:2309.17453",
        )  # fmt: skip
    ]


def _largest_drop(curve: Sequence[float | None]) -> int | None:
    """Index of the site where a curve falls by the largest factor, if any falls by half."""
    best, factor = None, 2.0
    for index in range(1, len(curve)):
        before, after = curve[index - 1], curve[index]
        if before and after and before / after >= factor:
            best, factor = index, before / after
    return best


def _rank_finding(facts: Facts, rank: Rank, attribution: str) -> list[Finding]:
    if rank not in ("reduced", "low") or attribution == COLLAPSE:
        return []
    estimate = facts.deep["effective_rank"]
    return [
        Finding(
            f"rank-{rank}",
            "warning",
            f"The effective rank is {rank}",
            f"{estimate.value:.0f} directions, {estimate.null_ratio:.0%} of what random directions of this shape have",
            "Fewer directions than the width allows are in use, once the common direction is taken away. Rank also "
            "falls late in ordinary training, so compare with the random twin and an earlier checkpoint.",
            facts.closer_look(),
            "Roy & Vetterli 2007; Li et al. 2025, arXiv:2509.23024",
        )  # fmt: skip
    ]


def _twin_finding(facts: Facts) -> list[Finding]:
    own, twin = facts.value("mean_cosine"), facts.twin["mean_cosine"].value if facts.twin else None
    if own is None or twin is None:
        return []
    more = own > twin
    return [
        Finding(
            "random-twin",
            "info",
            f"{'More' if more else 'Less'} condensed than the same model with random weights",
            f"deep mean cosine {own:.2f} here, {twin:.2f} with random weights",
            "It became so in training, which by itself is no defect."
            if more
            else "Random weights are condensed already; training has spread the states.",
            facts.closer_look(),
            "random initialisation as reference: docs/metrics.md",
        )  # fmt: skip
    ]


def _borderline_finding(facts: Facts, borderline: bool) -> list[Finding]:
    findings = []
    if borderline:
        findings.append(
            Finding(
                "borderline",
                "info",
                "The interval straddles the edge of a band",
                _seen(facts),
                "With these texts the word could be the neighbouring one. More texts narrow the interval.",
                facts.command("analyze", f"--num-texts {4 * facts.texts}"),
                "convention of condense",
            )  # fmt: skip
        )
    if facts.texts < MIN_TEXTS:
        findings.append(
            Finding(
                "few-texts",
                "warning",
                f"Only {facts.texts} texts were measured",
                f"{facts.texts} windows",
                f"Below {MIN_TEXTS} texts an interval says little, and every gate on it is inconclusive.",
                facts.command("analyze", "--num-texts 32"),
                "convention of condense",
            )  # fmt: skip
        )
    return findings


def _advice(facts: Facts, level: Level) -> list[Finding]:
    advice = []
    if facts.contrastive:
        advice.append(
            Finding(
                "contrastive",
                "info",
                "Already trained with a contrastive objective",
                "sentence-transformers layout",
                "Contrastive training spreads what it needs to; a dispersion loss on top may undo it. Do not treat.",
                facts.command("analyze", "--json baseline.json"),
                "Wang & Isola 2020, arXiv:2005.10242",
            )  # fmt: skip
        )
    if facts.parameters > BILLION:
        advice.append(
            Finding(
                "large-model",
                "info",
                "Above one billion parameters the published gain shrinks",
                f"{facts.parameters / BILLION:.1f} billion parameters",
                "Condensation, and a gain from dispersing, were reported for small models; larger ones resist.",
                facts.closer_look(),
                LIU,
            )  # fmt: skip
        )
    advice.append(
        Finding(
            "geometry-is-not-quality",
            "info",
            "Geometry is not quality",
            _trend_words(facts),
            "Across model families geometry barely ranks models (rho about 0.2), the bands are a convention, and a "
            "rising curve is a trend, not a severity: random weights score +1. Treat only with a control arm.",
            facts.closer_look() if level in ("ok", "watch") else facts.treatment(),
            "Rudman & Eickhoff 2024, arXiv:2305.19358; Machina & Mercer 2024",
        )  # fmt: skip
    )
    return advice


def _trend_words(facts: Facts) -> str:
    rho = facts.trend.spearman.rho
    if rho is None:
        return "no trend over depth can be computed"
    return f"mean cosine against depth: Spearman rho {rho:+.2f}, Kendall tau {facts.trend.kendall.tau:+.2f}"
