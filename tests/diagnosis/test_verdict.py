"""Every rule of the verdict, on clouds that are what their name says and on plain numbers at the boundaries."""

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.findings import judge
from condense.diagnosis.forward import spectral_positions
from condense.diagnosis.sinks import sink_anatomy
from condense.diagnosis.summary import DepthSummary, SiteTally, trend
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
    Inputs,
    Text,
    Twin,
    borderline_of,
    frequencies_of,
    labels_of,
)
from condense.metrics import METRICS
from condense.models.layers import Site
from condense.records.base import Estimate
from condense.records.diagnosis import Kendall, Quality, SinkAnatomy, Spearman, Trend, Verdict
from tests.clouds import cloud

N, D, TEXTS, BLOCKS = 65, 128, 10, 2
TREND = Trend(Spearman(1.0, 0.0), Kendall(1.0, 0.0))


# --- on constructed clouds --------------------------------------------------------------------------


def tallied(
    texts: Sequence[Tensor], documents: Sequence[int], tokens: Sequence[Tensor] | None = None
) -> list[SiteTally]:
    """Tallies of a model whose blocks all hand on these clouds; position 0 does not count."""
    names = ["embedding", *["block"] * BLOCKS, "output"]
    sites = [Site(name, "decoder", min(i, BLOCKS), BLOCKS) for i, name in enumerate(names)]  # type: ignore[arg-type]
    keep = torch.ones(N, dtype=torch.bool)
    keep[0] = False
    tallies = [SiteTally(site, documents) for site in sites]
    for index, x in enumerate(texts):
        ids = None if tokens is None else tokens[index]
        shared = None if tokens is None or ids is None else torch.unique(torch.stack(list(tokens))).unsqueeze(1) == ids
        measured = geometry.measure(x, keep, spectral_positions(keep, 64, 0, index), ids, shared).settled()
        for tally in tallies:
            tally.add(measured)
    return tallies


def judged(texts: Sequence[Tensor], tokens: Sequence[Tensor] | None = None, **more: Any) -> Verdict:
    """The verdict on such a model, each text a document."""
    tallies = tallied(texts, range(len(texts)), tokens)
    depth, inner = DepthSummary(tallies, range(len(texts))), tallies[:-1]
    keep = torch.ones(len(texts), N, dtype=torch.bool)
    keep[:, 0] = False
    return judge(
        Facts(
            model="tiny",
            parameters=10,
            contrastive=False,
            objective="causal",
            text=Text(len(texts), len(texts), N, 64.0, 0.01),
            inputs=depth.inputs(),
            draws=depth.draws(),
            repeats=depth.repeats_itself,
            deep=depth.estimates,
            trend=trend(tallies),
            labels=[tally.site.label for tally in inner],
            curves={key: [tally.estimates[key].value for tally in inner] for key in METRICS},
            top_dimensions=depth.dimensions(),
            sinks=sink_anatomy(tallies, keep, lambda window, position: f"token {position}"),
        ),
        **more,
    )


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
    draws: Sequence[float] = (),
    sinks: Sequence[float | None] = (1.0, 1.0, 1.0),
    text: Text | None = None,
    **more: Any,
) -> Facts:
    """Facts with the given deep numbers; what is not given is unremarkable. The null rank is 200.

    draws: what the mean cosine is in the resamples.
    """
    rank = None if ratio is None else 200 * ratio
    inputs = Inputs(mean, ratio, mean if without is None else without, cross, mean_sink, rank, rank_sink)
    deep = {
        "mean_cosine": Estimate(mean),
        "effective_rank": Estimate(rank, null=200.0, null_ratio=ratio),
        "mean_cosine_distinct": Estimate(mean),
    }
    curves = {
        "sink_ratio": sinks,
        "effective_rank": (190.0, 188.0, 185.0),
        "effective_rank_with_sink": (190.0, 180.0, 20.0),
    }
    basic = Facts(
        model="m",
        parameters=1000,
        contrastive=False,
        objective="causal",
        text=text or Text(windows=32, documents=32, length=512, distinct=250.0, same_pairs=0.01),
        inputs=inputs,
        draws=[replace(inputs, mean_cosine=value) for value in draws],
        repeats=False,
        deep=deep,
        trend=TREND,
        labels=["embedding", "block 1", "block 2"],
        curves=curves,
    )
    return replace(basic, **more)


def quality(loss: float) -> Quality:
    return Quality(Estimate(loss), Estimate(None), Estimate(1.5))


def anatomy(**given: Any) -> SinkAnatomy:
    usual = SinkAnatomy(
        stack="decoder",
        windows=30,
        per_window=1.0,
        dropped=0,
        positions=(0,),
        tokens=("The",),
        channels=(7, 3),
        ratio=500.0,
        at="block 2",
        up="block 1",
        down=None,
    )
    return replace(usual, **given)


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
        ({"mean": 0.34, "draws": (0.30, 0.38)}, "ok"),  # a borderline word is no level
        ({"mean": 0.45}, "ok"),
        ({"mean": 0.1}, "ok"),
        ({"mean": None}, "undefined"),
    ],
)
def test_level(given: dict[str, Any], level: str) -> None:
    assert judge(facts(**given)).level == level


def test_a_word_that_the_resamples_do_not_give_is_borderline() -> None:
    verdict = judge(facts(0.58, cross=0.55, draws=[0.58] * 62 + [0.65] * 38))
    assert verdict.frequencies["cone"] == {"moderate": 0.62, "high": 0.38}
    assert verdict.frequencies["attribution"] == {NOT: 0.62, COMMON: 0.38}
    assert verdict.frequencies["rank"] == {"intact": 1.0}
    assert verdict.borderline == ("cone", "attribution", "level") and verdict.level == "ok"
    (finding,) = [f for f in verdict.findings if f.id == "borderline"]
    assert "attribution: not condensed in 62 %, common direction in 38 % of resamples" in finding.seen


@pytest.mark.parametrize(("others", "borderline"), [(0, False), (5, False), (6, True), (100, True)])
def test_borderline_is_below_95_percent(others: int, borderline: bool) -> None:
    verdict = judge(facts(0.33, draws=[0.33] * (100 - others) + [0.36] * others))
    assert ("cone" in verdict.borderline) == ("borderline" in ids(verdict)) == borderline


def test_without_draws_nothing_is_said_of_stability() -> None:
    verdict = judge(facts(0.349))
    assert verdict.frequencies == {} and verdict.borderline == () and verdict.share("cone") == ""
    assert frequencies_of([]) == {} and borderline_of(labels_of(facts().inputs), {}) == ()


# --- label frequencies, against brute force -----------------------------------------------------------


class BruteForce:
    """The documents drawn again, every number of every draw summed over its own windows and pairs of windows."""

    def __init__(self, texts: Sequence[Tensor], documents: Sequence[int]) -> None:
        self.documents = documents
        keep = torch.ones(N, dtype=torch.bool)
        keep[0] = False
        spectral = [spectral_positions(keep, 64, 0, i) for i in range(len(texts))]
        self.values = [geometry.measure(x, keep, s).settled().values for x, s in zip(texts, spectral, strict=True)]
        units = [torch.nn.functional.normalize(x[1:].double(), dim=1) for x in texts]
        self.cosines = [[float((a @ b.T).mean()) for b in units] for a in units]
        self.null = geometry.gaussian_null("effective_rank", 64, D)

    def inputs(self, times: Sequence[int]) -> list[float | None]:
        """The seven inputs of the rules where each document is taken so many times."""
        copies = [i for i, document in enumerate(self.documents) for _ in range(times[document])]

        def mean(key: str) -> float:
            return sum(self.values[i][key] for i in copies) / len(copies)

        others = [(i, j) for i in copies for j in copies if self.documents[i] != self.documents[j]]
        cross = sum(self.cosines[i][j] for i, j in others) / len(others) if others else None
        rank = mean("effective_rank")
        without, naive = mean("mean_cosine_without_top_dimensions"), mean("mean_cosine_with_sink")
        return [mean("mean_cosine"), rank / self.null, without, cross, naive, rank, mean("effective_rank_with_sink")]

    def frequencies(self, seed: int) -> dict[str, Counter[str]]:
        """How many of 1,000 draws give each word."""
        count, sizes = len(set(self.documents)), np.bincount(self.documents) / len(self.documents)
        freedom = max(1.0, 1 / (sizes**2).sum() - 1)
        factor = (count / (count - 1)) ** 0.5 * scipy.stats.t.ppf(0.975, freedom) / scipy.stats.norm.ppf(0.975)
        estimate = self.inputs([1] * count)
        counts: dict[str, Counter[str]] = {axis: Counter() for axis in ("cone", "rank", "attribution", "level")}
        for times in np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000).tolist():
            pairs = zip(estimate, self.inputs(times), strict=True)
            labels = labels_of(Inputs(*(x + factor * ((x if y is None else y) - x) for x, y in pairs)))  # type: ignore[operator]
            for axis, words in counts.items():
                words[getattr(labels, axis)] += 1
        return counts


@pytest.mark.parametrize(
    "documents", [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 2], [0, 1, 0, 1, 0, 1]], ids=["own", "uneven", "two"]
)
def test_frequencies_are_those_of_brute_force(documents: list[int]) -> None:
    cones = (0.8, 1.55, 1.0, 1.65, 1.1, 1.5)
    texts = [torch.from_numpy(cloud(s, N, D, cone=cone)) for s, cone in enumerate(cones)]
    depth = DepthSummary(tallied(texts, documents), documents, seed=3)
    expected = BruteForce(texts, documents).frequencies(seed=3)
    frequencies = frequencies_of(depth.draws())
    assert max(expected["cone"].values()) < 980  # the test would say little of a certain word
    for axis, words in expected.items():
        assert frequencies[axis] == {word: pytest.approx(n / 1000, abs=0.002) for word, n in words.items()}, axis


def test_one_document_draws_its_windows_and_knows_no_other_text() -> None:
    texts = [torch.from_numpy(cloud(s, N, D, cone=1.25)) for s in range(6)]
    depth = DepthSummary(tallied(texts, [0] * 6), [0] * 6)
    assert depth.inputs().cross_text_cosine is None and len(depth.draws()) == 1000
    assert len({inputs.mean_cosine for inputs in depth.draws()}) > 100
    assert DepthSummary(tallied(texts, ()), ()).draws() == []


# --- text that repeats itself -------------------------------------------------------------------------


def repeated(kinds: int, noise: float = 0.05) -> tuple[list[Tensor], list[Tensor]]:
    """Isotropic embeddings of `kinds` tokens, at random places, with a little noise: ten texts and their tokens."""
    rng = torch.Generator().manual_seed(5)
    table = torch.randn(kinds, D, generator=rng)
    tokens = [torch.randint(0, kinds, (N,), generator=rng) for _ in range(TEXTS)]
    return [table[t] + noise * torch.randn(N, D, generator=rng) for t in tokens], tokens


@pytest.mark.parametrize("kinds", [3, 8, 20])
def test_isotropic_embeddings_that_repeat_are_not_condensed(kinds: int) -> None:
    texts, tokens = repeated(kinds)
    verdict = judged(texts, tokens)
    assert (verdict.cone, verdict.rank, verdict.attribution) == ("low", "intact", NOT)
    assert verdict.pairs == "distinct" and "repetition" in ids(verdict)
    assert judged(texts).rank != "intact" or kinds > 8  # taken for different tokens they are a collapsed rank


def test_a_common_direction_under_repetition_is_over_distinct_pairs_everywhere() -> None:
    """The tokens of the documents are the same: without their sums, each is like itself in every other text."""
    texts, tokens = repeated(5)
    shared = 1.6 * torch.from_numpy(cloud(77, 1, D))
    verdict = judged([x + shared for x in texts], tokens)
    cosines, pairs = 0.0, 0
    unit = [torch.nn.functional.normalize((x + shared)[1:].double(), dim=1) for x in texts]
    for i, j in itertools.permutations(range(TEXTS), 2):
        different = tokens[i][1:].unsqueeze(1) != tokens[j][1:]
        cosines += float((unit[i] @ unit[j].T)[different].sum())
        pairs += int(different.sum())
    assert verdict.inputs["cross_text_cosine"] == pytest.approx(cosines / pairs)
    assert verdict.attribution == COMMON and verdict.pairs == "distinct"


@pytest.mark.parametrize(
    ("distinct", "vocabulary", "judged_or_not"),
    [(32, 50_000, True), (31.5, 50_000, False), (3, 50_000, False), (4, 8, True), (3, 8, False), (31, None, False)],
)
def test_too_few_kinds_of_token_are_not_judged(distinct: float, vocabulary: int | None, judged_or_not: bool) -> None:
    text = Text(windows=8, documents=8, length=64, distinct=distinct, same_pairs=0.5, vocabulary=vocabulary)
    verdict = judge(facts(0.9, cross=0.9, draws=[0.9, 0.1], text=text))
    assert (verdict.level != "undefined") == judged_or_not
    if not judged_or_not:
        assert (verdict.cone, verdict.rank, verdict.attribution) == ("undefined", "undefined", UNDEFINED)
        assert "distinct tokens" in (verdict.reason or "") and verdict.findings[0].id == "undefined"
        assert verdict.frequencies == {} and verdict.borderline == () and verdict.inputs["mean_cosine"] == 0.9


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
    "borderline": {"mean": 0.34, "draws": (0.30, 0.38)},
    "moderate": {"mean": 0.5},
    "moderate common": {"mean": 0.58, "cross": 0.55},
    "one document": {"mean": 0.9, "cross": None, "text": Text(8, 1, 64, 99.0, 0.01)},
    "no documents": {"text": Text(8, 0, 64, 99.0, 0.01)},
    "two documents": {"text": Text(8, 2, 64, 99.0, 0.01)},
    "few tokens": {"text": Text(8, 8, 64, 3.0, 0.5, 480)},
    "repeats": {"repeats": True},
    "not read": {"quality": quality(7.0), "text": Text(8, 8, 64, 99.0, 0.01, 480, 5.0)},
    "quality": {"quality": quality(2.0), "text": Text(8, 8, 64, 99.0, 0.01, 480, 5.0)},
    "advice": {"parameters": 7_000_000_000, "contrastive": True},
    "twin": {"twin": Twin("less", Estimate(-0.44, -0.6, -0.3), 0.54, 0.5, 0.6, 3)},
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
    names = ("not", "rogue", "collapse", "sink", "reduced", "undefined", "moderate", "moderate common", "one document")
    assert not any(treats(name) for name in names)


def test_a_moderate_cone_is_not_called_uncondensed() -> None:
    """.58 and .62 are on two sides of a convention, not of a truth: the same thing is said of both."""
    below, above = judge(facts(0.58, cross=0.57)).findings[0], judge(facts(0.62, cross=0.61)).findings[0]
    assert below.title == "A moderate cone along one common direction" and "common direction" in above.title
    assert "dispersion loss removes" in below.why and "dispersion loss removes" in above.why
    assert judge(facts(0.5)).findings[0].title == "A moderate cone"
    assert judge(facts(0.1)).findings[0].title == "Not condensed (low cone)"


def test_with_one_document_nothing_is_said_of_other_texts() -> None:
    finding = judge(facts(0.9, cross=None)).findings[0]
    assert "texts differ" not in finding.title and "one document" in finding.seen


def test_a_model_that_cannot_read_the_text_is_not_treated_for_it() -> None:
    text = Text(8, 8, 64, 99.0, 0.01, 480, counting_loss=4.0)
    unread = judge(facts(0.9, cross=0.9, text=text, quality=quality(4.2)))
    assert "text-not-read" in ids(unread)
    assert not any(shlex.split(finding.next)[1] == "treat" for finding in unread.findings)
    read = judge(facts(0.9, cross=0.9, text=text, quality=quality(3.9)))
    assert "text-not-read" not in ids(read) and shlex.split(read.findings[0].next)[1] == "treat"


def test_beside_geometry_stands_the_quality() -> None:
    (finding,) = [f for f in judge(facts(quality=quality(2.0))).findings if f.id == "geometry-is-not-quality"]
    assert "1.500 bits per byte" in finding.seen


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


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"sinks_found": anatomy()}, "One position of a window carries massive activations (an attention sink)"),
        (
            {"sinks_found": anatomy(per_window=8.0)},
            "8 positions of a window carry massive activations (attention sinks)",
        ),
    ],
)
def test_the_sink_finding_counts(given: dict[str, Any], title: str) -> None:
    verdict = judge(facts(sinks=(1.0, 2.0, 500.0)))
    assert verdict.findings
    known = replace(facts(sinks=(1.0, 2.0, 500.0)), sinks=given["sinks_found"])
    (finding,) = [f for f in judge(known).findings if f.id == "attention-sink"]
    assert finding.title == title
    for part in ("30 of 32 windows", "position 0", "'The'", "coordinates 7, 3", "from block 1 to the last block"):
        assert part in finding.seen


def test_a_dropped_position_is_a_sink_below_100_times_the_median() -> None:
    ordinary, moderate = (1.0, 2.0, 40.0), anatomy(ratio=40.0)
    assert "attention-sink" not in ids(judge(replace(facts(sinks=ordinary), sinks=moderate)))
    verdict = judge(replace(facts(sinks=ordinary), sinks=replace(moderate, dropped=3, positions=(4,), down="block 2")))
    (finding,) = [f for f in verdict.findings if f.id == "attention-sink"]
    assert "an outsized state" in finding.title and "until before block 2" in finding.seen


def test_sinks_that_are_not_at_the_start_are_dropped_and_named() -> None:
    """A cluster of tokens with huge states, none of them first: the cone without them is what it was."""
    texts = clouds(common=1.6)
    sunk = [x.clone() for x in texts]
    for x in sunk:
        x[[9, 30]] *= 150.0
    verdict, plain = judged(sunk), judged(texts)
    assert (verdict.cone, verdict.attribution, verdict.level) == (plain.cone, plain.attribution, plain.level)
    (finding,) = [f for f in verdict.findings if f.id == "attention-sink"]
    assert finding.title.startswith("2 positions") and "position 9, 30 on 'token 9', 'token 30'" in finding.seen


@pytest.mark.parametrize(("documents", "said"), [(0, True), (1, True), (2, True), (3, False)])
def test_few_documents_are_said(documents: int, said: bool) -> None:
    assert ("few-documents" in ids(judge(facts(text=Text(8, documents, 64, 99.0, 0.01))))) == said


def test_a_low_rank_beside_a_cone_is_a_finding() -> None:
    assert "rank-low" in ids(judge(facts(0.7, 0.1, cross=0.7)))
    assert "rank-reduced" in ids(judge(facts(0.7, 0.3, cross=0.7)))
    assert not [i for i in ids(judge(facts(0.1, 0.1))) if i.startswith("rank-") and i != "rank-collapse-without-a-cone"]


@pytest.mark.parametrize("word", ["more", "less", "not distinguishable"])
def test_the_twin_has_three_answers(word: Any) -> None:
    verdict = judge(facts(0.7, twin=Twin(word, Estimate(0.1, -0.2, 0.4), 0.6, 0.5, 0.7, 3)))
    (finding,) = [f for f in verdict.findings if f.id == "random-twin"]
    assert verdict.twin == word and finding.title.lower().startswith(word)
    assert "3 initialisations" in finding.seen and "-0.20 to +0.40" in finding.seen
    assert not any("--random-twin" in finding.next for finding in verdict.findings)  # it has been done
    assert judge(facts()).twin is None and "random-twin" not in ids(judge(facts()))


def test_the_verdict_says_its_bands() -> None:
    assert set(judge(facts()).bands) == set(Bands().__dataclass_fields__)
