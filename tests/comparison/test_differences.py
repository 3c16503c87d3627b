"""Differences of two measurements against plain numpy, and what they come to in a verdict of a treatment."""

from dataclasses import replace

import numpy as np
import pytest

from condense.comparison.differences import difference, size_of
from condense.records.base import Estimate
from condense.records.plans import Plan
from condense.records.treatment import Arm, Effect
from condense.treatment.verdict import assess, quality_held, verdict_of
from condense.trials.verdict import what_opened


@pytest.fixture(scope="module")
def run(diagnosed):
    return diagnosed("llama")


def moved(run, shift, key="mean_cosine", noise=0.0, seed=0):
    """The run with `shift` (and noise per text) added to one metric at every site and to its deep value."""
    texts = run.corpus.texts
    noises = np.random.default_rng(seed).normal(0, noise, texts) if noise else np.zeros(texts)

    def add(estimate):
        per_text = tuple(v + shift + e for v, e in zip(estimate.per_text, noises, strict=True))
        return replace(estimate, value=float(np.mean(per_text)), per_text=per_text)

    sites = tuple(replace(s, metrics={**s.metrics, key: add(s.metrics[key])}) for s in run.sites)
    deep = {**run.deep, key: replace(run.deep[key], value=run.deep[key].value + shift + float(noises.mean()))}
    return replace(run, sites=sites, deep=deep)


def test_a_measurement_does_not_differ_from_itself(run):
    effect = difference(run, run, "control")
    assert effect.paired
    for estimate in [*effect.deep.values(), *effect.quality.values()]:
        if estimate.value is not None:
            assert estimate.value == 0
        if estimate.low is not None:
            assert (estimate.low, estimate.high) == (0, 0)


def test_a_constant_shift_has_no_width_when_paired(run):
    effect = difference(moved(run, -0.05), run, "control")
    assert effect.deep["mean_cosine"].value == pytest.approx(-0.05)
    assert effect.deep["mean_cosine"].low == pytest.approx(-0.05)
    assert effect.sites[2].metrics["mean_cosine"].high == pytest.approx(-0.05)
    assert effect.deep["effective_rank"].value == 0


def test_unpaired_intervals_are_wider(run):
    other = replace(run, corpus=replace(run.corpus, windows_sha256="0" * 64))
    new = moved(run, -0.05, noise=0.01)
    paired, unpaired = difference(new, run, "control"), difference(new, other, "control")
    assert paired.paired and not unpaired.paired
    width = [e.deep["mean_cosine"].high - e.deep["mean_cosine"].low for e in (paired, unpaired)]
    assert width[0] < width[1]


def test_the_deep_difference_is_a_difference_of_medians_of_means(run):
    new = moved(run, -0.02, noise=0.03, seed=3)
    effect = difference(new, run, "control")
    blocks = [s for s in new.sites if s.site == "block"][len([s for s in run.sites if s.site == "block"]) // 2 :]
    old = [s for s in run.sites if s.site == "block"][-len(blocks) :]
    a = np.array([s.metrics["mean_cosine"].per_text for s in blocks]).T
    b = np.array([s.metrics["mean_cosine"].per_text for s in old]).T
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size=1000) / len(a)
    draws = np.median(weights @ a, axis=1) - np.median(weights @ b, axis=1)
    assert effect.deep["mean_cosine"].low == pytest.approx(np.quantile(draws, 0.025))
    assert effect.deep["mean_cosine"].high == pytest.approx(np.quantile(draws, 0.975))


def test_bits_per_byte_differ_as_ratios_of_sums(run):
    quality = run.quality
    worse = tuple(v * 1.1 for v in quality.bits_per_byte.per_text)
    total = sum(v * s for v, s in zip(worse, quality.predicted_bytes, strict=True)) / sum(quality.predicted_bytes)
    bits = replace(quality.bits_per_byte, value=total, per_text=worse)
    effect = difference(replace(run, quality=replace(quality, bits_per_byte=bits)), run, "control")
    change = effect.quality["bits_per_byte"]
    assert change.value == pytest.approx(0.1 * quality.bits_per_byte.value)
    assert change.low < change.value < change.high


@pytest.mark.parametrize(
    ("value", "low", "high", "size"),
    [
        (-0.02, -0.03, -0.011, "fall"),
        (-0.009, -0.0095, -0.0085, "none"),
        (-0.02, -0.03, 0.001, "unclear"),
        (0.02, 0.011, 0.03, "rise"),
        (0.0, -0.01, 0.01, "none"),
        (0.0, -0.02, 0.01, "unclear"),
        (-0.009, -0.012, -0.006, "unclear"),
        (None, None, None, "unclear"),
    ],
)
def test_measurable_is_an_interval_off_zero_and_a_least_size(value, low, high, size):
    assert size_of(Estimate(value, low, high), 0.01) == size


def arms_of(run, *names):
    return {name: Arm(run, run) for name in names}


def effect_of(cosine, bits, without=(0, 0, 0), against="control"):
    none = Estimate(0.0, 0.0, 0.0)
    deep = {"mean_cosine": Estimate(*cosine), "mean_cosine_without_top_dimensions": Estimate(*without)}
    quality = {"bits_per_byte": Estimate(*bits), "loss": none}
    return Effect(against, True, {**deep, "effective_rank": none}, quality, ())


FALL, STILL, WIDE, RISE = (-0.05, -0.06, -0.04), (0.0, -0.005, 0.005), (-0.02, -0.05, 0.01), (0.05, 0.04, 0.06)


@pytest.mark.parametrize(
    ("cosine", "bits_share", "expected"),
    [
        (FALL, (0, -0.001, 0.004), "dispersed"),
        (FALL, (0.01, 0.004, 0.006), "dispersed-at-a-cost"),
        (STILL, (0, 0, 0), "no-measurable-effect"),
        (WIDE, (0, 0, 0), "inconclusive"),
        (RISE, (0, 0, 0), "condensed-further"),
    ],
)
def test_verdicts(run, cosine, bits_share, expected):
    arms = arms_of(run, "before", "control", "treated")
    base = run.quality.bits_per_byte.value
    effect = effect_of(cosine, tuple(base * share for share in bits_share))
    outcome = assess(Plan(), "model", arms, effect)
    assert outcome.id == expected
    assert outcome.quality_held == (bits_share[2] <= 0.005)
    for finding in outcome.findings:
        assert (
            finding.title and finding.seen and finding.why and finding.next.startswith("condense ") and finding.source
        )


def test_without_control_or_texts_nothing_is_claimed(run):
    effect = effect_of(FALL, (0, 0, 0), against="before")
    assert verdict_of(Plan(), arms_of(run, "before", "treated"), effect, True) == "inconclusive"
    few = replace(run, corpus=replace(run.corpus, texts=7))
    arms = arms_of(few, "before", "control", "treated")
    assert verdict_of(Plan(), arms, effect_of(FALL, (0, 0, 0)), True) == "inconclusive"


@pytest.mark.parametrize(
    ("cosine", "without", "opened"),
    [
        (FALL, (0.0, -0.005, 0.005), "three dimensions rescaled"),
        (FALL, (-0.045, -0.05, -0.04), "cone opened"),
        (FALL, (-0.015, -0.018, -0.012), "both"),
        (STILL, (0, 0, 0), "neither"),
    ],
)
def test_what_opened(cosine, without, opened):
    assert what_opened(Plan.min_effect, effect_of(cosine, (0, 0, 0), without).deep) == opened


def test_masked_models_are_judged_on_their_loss(diagnosed):
    run = diagnosed("bert")
    effect = difference(run, run, "control")
    assert effect.quality["bits_per_byte"].value is None
    assert quality_held(Plan(), arms_of(run, "before", "control", "treated"), effect) is True


def test_advice_names_large_and_contrastive_models(run):
    big = replace(run, model=replace(run.model, parameters=2_000_000_000, contrastive=True))
    outcome = assess(Plan(), "model", arms_of(big, "before", "control", "treated"), effect_of(STILL, (0, 0, 0)))
    assert {"large-model", "contrastive"} <= {finding.id for finding in outcome.findings}


def test_a_faint_penalty_is_said(run):
    arms = arms_of(run, "before", "control", "treated")
    arms["treated"] = replace(arms["treated"], penalty_to_ce=2e-4)
    found = {f.id: f for f in assess(Plan(), "model", arms, effect_of(STILL, (0, 0, 0))).findings}
    assert "2.0e-04" in found["penalty-ratio"].seen and "--coefficient 1" in found["penalty-ratio"].next
