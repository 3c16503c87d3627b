"""Every rule of the verdict, on clouds that are what their name says and on plain numbers at the boundaries."""

import shlex
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis import summary as tally
from condense.diagnosis.forward import TextReading, spectral_positions
from condense.diagnosis.verdict import (
    BANDS,
    COLLAPSE,
    COMMON,
    CONTEXT,
    NOT,
    ROGUE,
    SINK,
    UNDEFINED,
    Bands,
    Facts,
    judge,
)
from condense.metrics import METRICS
from condense.models.layers import Site
from condense.records.base import Estimate
from condense.records.diagnosis import Kendall, Spearman, Trend, Verdict
from tests.clouds import cloud

N, D, TEXTS, BLOCKS = 65, 128, 10, 2
TREND = Trend(Spearman(1.0, 0.0), Kendall(1.0, 0.0))


# --- on constructed clouds --------------------------------------------------------------------------


def judged(texts: Sequence[Tensor], **more: Any) -> Verdict:
    """The verdict on a model whose blocks all hand on these clouds; position 0 does not count."""
    names = ["embedding", *["block"] * BLOCKS, "output"]
    sites = [Site(name, "decoder", min(i, BLOCKS), BLOCKS) for i, name in enumerate(names)]  # type: ignore[arg-type]
    keep = torch.ones(N, dtype=torch.bool)
    keep[0] = False
    readings = []
    for index, x in enumerate(texts):
        reading = TextReading(index)
        for _ in sites:
            measured = geometry.measure(x, keep, spectral_positions(keep, 64, 0, index))
            for key, gram in measured.grams.items():
                measured.values[key] = geometry.ranks(key, gram)
            reading.sites.append(measured)
        readings.append(reading)
    tallies = tally.tally(sites, readings, 64)
    inner = [place.reading() for place in tallies[:-1]]
    return judge(
        Facts(
            model="tiny", parameters=10, contrastive=False, objective="causal", texts=len(texts), stack="decoder",
            deep=tally.deep(tallies, 0), trend=tally.trend(tallies), labels=[r.label for r in inner],
            curves={key: [r.metrics[key].value for r in inner] for key in METRICS},
            top_dimensions=[t.dimension for t in inner[-1].top_dimensions],
        ),
        **more,
    )  # fmt: skip


def clouds(common: float = 0.0, own: float = 0.0, **more: float) -> list[Tensor]:
    """Clouds of ten texts: a direction they share, a direction of each one's own, rogue, sink."""
    shared = torch.from_numpy(cloud(77, 1, D))
    return [torch.from_numpy(cloud(s, N, D, cone=own, **more)) + common * shared for s in range(TEXTS)]


def flat(width: int) -> list[Tensor]:
    """Clouds without a mean in `width` of the dimensions."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0][:width]
    return [torch.from_numpy(cloud(s, N, width)) @ basis for s in range(TEXTS)]


@pytest.mark.parametrize(
    ("texts", "attribution", "cone", "rank", "level"),
    [
        (clouds(), NOT, "low", "intact", "ok"),
        (clouds(common=1.6), COMMON, "high", "intact", "condensed"),
        (clouds(common=4.0), COMMON, "severe", "intact", "severe"),
        (clouds(own=1.6), CONTEXT, "high", "intact", "condensed"),
        (clouds(own=4.0), CONTEXT, "severe", "intact", "severe"),
        (clouds(rogue=15.0), ROGUE, "high", "intact", "watch"),
        (clouds(rogue=60.0), ROGUE, "severe", "intact", "watch"),
        (clouds(sink=1000.0), SINK, "low", "intact", "watch"),
        (flat(8), COLLAPSE, "low", "low", "condensed"),
        (flat(26), NOT, "low", "reduced", "watch"),
        (clouds(common=0.9), NOT, "moderate", "intact", "ok"),
    ],
    ids=["isotropic", "common", "common-severe", "own", "own-severe", "rogue", "rogue-severe", "sink", "flat",
         "reduced", "moderate"],
)  # fmt: skip
def test_clouds(texts: list[Tensor], attribution: str, cone: str, rank: str, level: str) -> None:
    verdict = judged(texts)
    assert (verdict.attribution, verdict.cone, verdict.rank, verdict.level) == (attribution, cone, rank, level)
    assert not verdict.borderline
    assert verdict.findings[0].id == attribution.replace(" ", "-")
    assert ("attention-sink" in ids(verdict)) == (attribution == SINK)


def test_a_sink_beside_a_cone_is_a_finding_and_not_the_attribution() -> None:
    verdict = judged(clouds(common=1.6, sink=1000.0))
    assert verdict.attribution == COMMON and "attention-sink" in ids(verdict)


def test_a_rogue_dimension_is_named() -> None:
    assert "mostly 3" in judged(clouds(rogue=15.0)).findings[0].seen


# --- on plain numbers -------------------------------------------------------------------------------


def ids(verdict: Verdict) -> list[str]:
    return [finding.id for finding in verdict.findings]


def facts(
    mean: float | None = 0.1,
    ratio: float | None = 0.9,
    *,
    without: float | None = None,
    cross: float | None = 0.0,
    mean_sink: float = 0.1,
    rank_sink: float = 180.0,
    interval: tuple[float | None, float | None] = (None, None),
    rank_interval: tuple[float | None, float | None] = (None, None),
    sinks: Sequence[float | None] = (1.0, 1.0, 1.0),
    **more: Any,
) -> Facts:
    """Facts with the given deep numbers; what is not given is unremarkable. The null rank is 200."""
    rank = None if ratio is None else 200 * ratio
    deep = {
        "mean_cosine": Estimate(mean, *interval),
        "effective_rank": Estimate(rank, *rank_interval, null=200.0, null_ratio=ratio),
        "mean_cosine_without_top_dimensions": Estimate(mean if without is None else without),
        "cross_text_cosine": Estimate(cross),
        "mean_cosine_with_sink": Estimate(mean_sink),
        "effective_rank_with_sink": Estimate(rank_sink),
    }
    basic = {"model": "m", "parameters": 1000, "contrastive": False, "objective": "causal", "texts": 32,
             "stack": "decoder", "trend": TREND, "labels": ["embedding", "block 1", "block 2"]}  # fmt: skip
    curves = {
        "sink_ratio": sinks,
        "effective_rank": (190.0, 188.0, 185.0),
        "effective_rank_with_sink": (190.0, 180.0, 20.0),
    }
    return Facts(**{**basic, "deep": deep, "curves": curves, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "cone"),
    [(-0.01, "low"), (0.3499, "low"), (0.35, "moderate"), (0.5999, "moderate"), (0.60, "high"), (0.7999, "high"),
     (0.80, "severe"), (1.0, "severe"), (None, "undefined")],
)  # fmt: skip
def test_cone_bands(mean: float | None, cone: str) -> None:
    assert judge(facts(mean)).cone == cone


@pytest.mark.parametrize(
    ("ratio", "rank"),
    [(1.1, "intact"), (0.5001, "intact"), (0.50, "reduced"), (0.25, "reduced"), (0.2499, "low"), (0.0, "low"),
     (None, "undefined")],
)  # fmt: skip
def test_rank_bands(ratio: float | None, rank: str) -> None:
    assert judge(facts(ratio=ratio)).rank == rank


@pytest.mark.parametrize(
    ("given", "attribution"),
    [
        # 1: A < .35, B not low, and the sink alone looks condensed
        ({"mean": 0.34, "mean_sink": 0.60}, SINK),
        ({"mean": 0.34, "mean_sink": 0.599}, NOT),
        ({"mean": 0.35, "mean_sink": 0.90}, NOT),
        ({"mean": 0.10, "rank_sink": 89.9}, SINK),
        ({"mean": 0.10, "rank_sink": 90.0}, NOT),
        ({"mean": 0.10, "ratio": 0.20, "mean_sink": 0.9}, COLLAPSE),
        ({"mean": 0.10, "ratio": 0.20, "rank_sink": 1.0}, COLLAPSE),
        # 2: half of the cone in three dimensions
        ({"mean": 0.35, "without": 0.175}, ROGUE),
        ({"mean": 0.35, "without": 0.176}, NOT),
        ({"mean": 0.34, "without": 0.0}, NOT),
        ({"mean": 0.90, "without": 0.45, "cross": 0.9}, ROGUE),
        ({"mean": 0.90, "without": -0.1, "ratio": 0.1}, ROGUE),
        ({"mean": 0.50, "without": 0.0, "ratio": 0.1}, ROGUE),  # before rank collapse
        # 3 and 4: high, with a direction in common or not
        ({"mean": 0.60, "cross": 0.48}, COMMON),
        ({"mean": 0.60, "cross": 0.47}, CONTEXT),
        ({"mean": 0.60, "cross": None}, CONTEXT),
        ({"mean": 0.599, "cross": 0.59}, NOT),
        ({"mean": 0.90, "cross": 0.9, "ratio": 0.1}, COMMON),
        # 5: a low rank without a cone
        ({"mean": 0.10, "ratio": 0.249}, COLLAPSE),
        ({"mean": 0.59, "ratio": 0.249}, COLLAPSE),
        ({"mean": 0.10, "ratio": 0.25}, NOT),
        ({"mean": None}, UNDEFINED),
    ],
)
def test_attribution_rules(given: dict[str, Any], attribution: str) -> None:
    assert judge(facts(**given)).attribution == attribution


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({"mean": 0.9, "cross": 0.9}, "severe"),
        ({"mean": 0.9, "cross": 0.1}, "severe"),
        ({"mean": 0.7, "cross": 0.7}, "condensed"),
        ({"mean": 0.7, "cross": 0.1, "ratio": 0.3}, "condensed"),
        ({"mean": 0.1, "ratio": 0.1}, "condensed"),
        ({"mean": 0.1, "mean_sink": 0.9}, "watch"),
        ({"mean": 0.95, "without": 0.0}, "watch"),
        ({"mean": 0.1, "ratio": 0.4}, "watch"),
        ({"mean": 0.34, "interval": (0.30, 0.38)}, "watch"),
        ({"mean": 0.45}, "ok"),
        ({"mean": 0.1}, "ok"),
        ({"mean": None}, "undefined"),
    ],
)
def test_level(given: dict[str, Any], level: str) -> None:
    assert judge(facts(**given)).level == level


@pytest.mark.parametrize(
    ("interval", "rank_interval", "borderline"),
    [
        ((0.30, 0.34), (None, None), False),
        ((0.30, 0.36), (None, None), True),
        ((0.35, 0.40), (None, None), False),
        ((0.59, 0.61), (None, None), True),
        ((0.79, 0.81), (None, None), True),
        ((0.61, 0.79), (None, None), False),
        ((None, None), (90.0, 110.0), True),
        ((None, None), (40.0, 60.0), True),
        ((None, None), (60.0, 90.0), False),
        ((None, None), (None, None), False),
    ],
)
def test_borderline(interval: tuple[Any, Any], rank_interval: tuple[Any, Any], borderline: bool) -> None:
    verdict = judge(facts(0.33, interval=interval, rank_interval=rank_interval))
    assert verdict.borderline == borderline
    assert ("borderline" in ids(verdict)) == borderline


def test_a_band_of_the_config_overrides_the_convention() -> None:
    strict = Bands(cone_moderate=0.05, cone_high=0.10, cone_severe=0.15)
    verdict = judge(facts(0.2, cross=0.2), strict)
    assert (verdict.cone, verdict.attribution, verdict.level) == ("severe", COMMON, "severe")
    assert verdict.bands["cone_severe"] == 0.15
    assert judge(facts(0.2, cross=0.2)).bands["cone_severe"] == BANDS.cone_severe == 0.80
    assert judge(facts(ratio=0.9), Bands(rank_reduced=0.95)).rank == "reduced"
    assert judge(facts(0.0), Bands(cone_moderate=0.0)).attribution == NOT  # and no division by zero


# --- findings ---------------------------------------------------------------------------------------

EVERY = {
    "not": {},
    "common": {"mean": 0.7, "cross": 0.7},
    "context": {"mean": 0.9, "cross": 0.1},
    "rogue": {"mean": 0.9, "without": 0.1, "top_dimensions": [3, 5, 7]},
    "collapse": {"ratio": 0.1},
    "reduced": {"ratio": 0.4},
    "sink": {"mean_sink": 0.9, "sinks": (1.0, 150.0, 3000.0)},
    "undefined": {"mean": None, "ratio": None, "cross": None},
    "borderline": {"mean": 0.34, "interval": (0.30, 0.38), "texts": 4},
    "advice": {"parameters": 7_000_000_000, "contrastive": True},
    "twin": {"twin": {"mean_cosine": Estimate(0.54)}},
    "names": {"model": "it's/a model; rm -rf ~\n$(x)"},
    "sinks unknown": {"sinks": (None, None, None)},
    "no curves": {"curves": {}, "labels": []},
}


@pytest.mark.parametrize("name", EVERY)
def test_every_finding_is_whole_and_its_command_can_be_pasted(name: str) -> None:
    known = facts(**EVERY[name])
    for finding in judge(known).findings:
        for field in ("id", "title", "seen", "why", "next", "source"):
            assert str(getattr(finding, field)).strip(), (finding.id, field)
        assert finding.severity in ("severe", "warning", "info", "good")
        assert finding.title[0].isupper() and "None" not in finding.seen and "nan" not in finding.seen.split()
        words = shlex.split(finding.next)
        assert words[0] == "condense" and words[1] in ("analyze", "treat", "trial", "compare", "check", "report")
        assert known.model in words
    assert len(set(ids(judge(known)))) == len(ids(judge(known)))


def test_the_first_finding_is_the_attribution() -> None:
    for name in ("not", "common", "context", "rogue", "collapse", "undefined"):
        verdict = judge(facts(**EVERY[name]))
        assert verdict.findings[0].id == verdict.attribution.replace(" ", "-")


def test_only_what_dispersion_can_help_is_sent_to_treatment() -> None:
    def treats(name: str) -> bool:
        return judge(facts(**EVERY[name])).findings[0].next.startswith("condense treat")

    assert treats("common") and treats("context")
    assert not any(treats(name) for name in ("not", "rogue", "collapse", "sink", "reduced", "undefined"))


@pytest.mark.parametrize(
    ("parameters", "advised"), [(1_000_000_000, False), (1_000_000_001, True), (135_000_000, False)]
)
def test_above_a_billion_the_gain_shrinks(parameters: int, advised: bool) -> None:
    assert ("large-model" in ids(judge(facts(parameters=parameters)))) == advised


def test_a_contrastive_model_is_not_to_be_treated() -> None:
    assert "contrastive" not in ids(judge(facts()))
    for given in ({}, {"mean": 0.7, "cross": 0.7}, {"mean": 0.9, "cross": 0.1}):
        verdict = judge(facts(**given, contrastive=True))
        assert "contrastive" in ids(verdict)
        assert not any(shlex.split(finding.next)[1] == "treat" for finding in verdict.findings)


def test_geometry_is_not_quality_is_always_said() -> None:
    for given in EVERY.values():
        (finding,) = [f for f in judge(facts(**given)).findings if f.id == "geometry-is-not-quality"]
        assert "control arm" in finding.why and "convention" in finding.why


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"sinks": (1.0, 101.0, 2.0)}, True),
        ({"sinks": (1.0, 100.0, 2.0)}, False),
        ({"rank_sink": 80.0}, True),
        ({"mean": 0.9, "cross": 0.9, "rank_sink": 20.0}, False),  # a cone alone halves the uncentred rank
        ({"mean_sink": 0.9}, False),
        ({"mean": 0.9, "cross": 0.9, "sinks": (1.0, 1.0, 5000.0)}, True),
    ],
)
def test_a_sink_is_always_a_finding_of_its_own(given: dict[str, Any], seen: bool) -> None:
    verdict = judge(facts(**given))
    assert ("attention-sink" in ids(verdict)) == seen


def test_the_sink_finding_tells_where_the_naive_rank_falls() -> None:
    (finding,) = [f for f in judge(facts(sinks=(1.0, 2.0, 500.0))).findings if f.id == "attention-sink"]
    for part in ("500 times", "block 2", "from 180 to 20", "from 188 to 185"):
        assert part in finding.seen


def test_few_texts_are_said() -> None:
    assert "few-texts" in ids(judge(facts(texts=7)))
    assert "few-texts" not in ids(judge(facts(texts=8)))


def test_a_low_rank_beside_a_cone_is_a_finding() -> None:
    assert "rank-low" in ids(judge(facts(0.7, 0.1, cross=0.7)))
    assert "rank-reduced" in ids(judge(facts(0.7, 0.3, cross=0.7)))
    assert not [i for i in ids(judge(facts(0.1, 0.1))) if i.startswith("rank-") and i != "rank-collapse-without-a-cone"]


def test_the_twin_is_compared() -> None:
    def title(own: float, twin: float) -> str:
        verdict = judge(facts(own, twin={"mean_cosine": Estimate(twin)}))
        return next(f.title for f in verdict.findings if f.id == "random-twin")

    assert title(0.7, 0.2).startswith("More condensed") and title(0.1, 0.5).startswith("Less condensed")
    assert "random-twin" not in ids(judge(facts()))
    assert "random-twin" not in ids(judge(facts(twin={"mean_cosine": Estimate(None)})))
    for finding in judge(facts(twin={"mean_cosine": Estimate(0.2)})).findings:
        assert "--random-twin" not in finding.next  # it has been done


def test_the_verdict_says_its_bands() -> None:
    assert set(judge(facts()).bands) == set(Bands().__dataclass_fields__)
