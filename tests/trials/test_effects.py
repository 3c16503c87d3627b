"""Effects over seeds against plain numpy; ties; ranks."""

from dataclasses import replace

import numpy as np
import pytest

from condense.comparison.differences import difference
from condense.records.base import Estimate
from condense.records.trial import Pair
from condense.trials.effects import OTHER_TOKENS, arm_effect, compare_pairs, rank_arms


@pytest.fixture(scope="module")
def run(diagnosed):
    return diagnosed("llama")


def moved(run, shift, noise=0.0, seed=0, bits=1.0):
    """The run with `shift` and a noise per text added to the mean cosine everywhere, and its bits scaled."""
    noises = np.random.default_rng(seed).normal(0, noise, run.corpus.texts) if noise else np.zeros(run.corpus.texts)

    def add(of):
        per_text = tuple(v + shift + e for v, e in zip(of.per_text, noises, strict=True))
        return replace(of, value=float(np.mean(per_text)), per_text=per_text)

    sites = tuple(replace(s, metrics={**s.metrics, "mean_cosine": add(s.metrics["mean_cosine"])}) for s in run.sites)
    deep = {**run.deep, "mean_cosine": replace(run.deep["mean_cosine"], value=_deep(sites))}
    of = run.quality.bits_per_byte
    scaled = replace(of, value=of.value * bits, per_text=tuple(v * bits for v in of.per_text))
    return replace(run, sites=sites, deep=deep, quality=replace(run.quality, bits_per_byte=scaled))


def _deep(sites):
    blocks = [s for s in sites if s.site == "block"]
    return float(np.median([s.metrics["mean_cosine"].value for s in blocks if s.index > len(blocks) // 2]))


def seeds(run, shifts, **more):
    return {number: moved(run, shift, seed=number, **more) for number, shift in enumerate(shifts)}


def test_one_seed_is_the_effect_of_a_treatment(run):
    arm, control = seeds(run, [-0.03], noise=0.01), seeds(run, [0.0], noise=0.005)
    found, plain = arm_effect(arm, control), difference(arm[0], control[0], "control")
    assert found.metrics["mean_cosine"] == plain.deep["mean_cosine"]
    assert found.metrics["bits_per_byte"] == plain.quality["bits_per_byte"]
    assert found.spread["mean_cosine"] is None and found.unpaired == ""


def test_seeds_are_averaged_within_each_draw_of_the_texts(run):
    arm, control = seeds(run, [-0.03, -0.05, -0.01], noise=0.02), seeds(run, [0.0, 0.01, 0.0], noise=0.01)
    found = arm_effect(arm, control)
    draws, singles = 0.0, []
    for number in range(3):
        tables = []
        for readings in (arm, control):
            blocks = [s for s in readings[number].sites if s.site == "block"]
            half = [s for s in blocks if s.index > len(blocks) // 2]
            tables.append(np.array([s.metrics["mean_cosine"].per_text for s in half]).T)
        weights = np.random.default_rng(0).multinomial(
            len(tables[0]), np.full(len(tables[0]), 1 / len(tables[0])), 1000
        )
        a, b = (np.median(weights @ table / len(table), axis=1) for table in tables)
        draws = draws + (a - b) / 3
        singles.append(arm[number].deep["mean_cosine"].value - control[number].deep["mean_cosine"].value)
    of = found.metrics["mean_cosine"]
    assert of.value == pytest.approx(np.mean(singles))
    assert (of.low, of.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.spread["mean_cosine"] == pytest.approx(np.std(singles, ddof=1))
    assert [seed.metrics["mean_cosine"].value for seed in found.by_seed] == pytest.approx(singles)


def test_only_seeds_that_both_have_count(run):
    arm = {1: moved(run, -0.02), 2: moved(run, -0.04)}
    control = {0: run, 1: run}
    found = arm_effect(arm, control)
    assert [of.seed for of in found.by_seed] == [1] and found.metrics["mean_cosine"].value == pytest.approx(-0.02)
    assert arm_effect({5: run}, control) is None


def test_another_tokenizer_is_unpaired_but_for_its_bytes(run):
    other = {
        n: replace(of, corpus=replace(of.corpus, windows_sha256="0" * 64))
        for n, of in seeds(run, [-0.03] * 2, bits=0.99).items()
    }
    control = seeds(run, [0.0, 0.0])
    found = arm_effect(other, control, same_bytes=True)
    assert found.unpaired == OTHER_TOKENS
    paired = arm_effect(seeds(run, [-0.03] * 2), control)
    width = [of.metrics["mean_cosine"].high - of.metrics["mean_cosine"].low for of in (found, paired)]
    assert width[0] > 10 * width[1]
    assert found.metrics["loss"].value is None and "bits per byte" in found.metrics["loss"].reason
    bits = found.metrics["bits_per_byte"]
    assert bits.high < 0, "a constant factor on the same bytes is certain"


def test_pairs_are_clear_only_with_three_seeds_that_agree(run):
    base = seeds(run, [0.0] * 3, noise=0.001)
    agree, disagree = seeds(run, [-0.02] * 3), seeds(run, [-0.06, 0.005, -0.05])
    pairs = {(p.first, p.second): p for p in compare_pairs({"control": base, "agree": agree, "disagree": disagree})}
    assert pairs["control", "agree"].clear["mean_cosine"]
    assert pairs["control", "agree"].differences["mean_cosine"].value == pytest.approx(0.02, abs=2e-3)
    unclear = pairs["control", "disagree"]
    assert unclear.differences["mean_cosine"].low > 0 and not unclear.clear["mean_cosine"]
    two = compare_pairs({"a": dict(list(base.items())[:2]), "b": dict(list(agree.items())[:2])})
    assert not two[0].clear["mean_cosine"]


def pair(first, second, value, clear):
    return Pair(first, second, {"mean_cosine": Estimate(value)}, {"mean_cosine": clear})


def test_arms_that_are_not_separated_tie():
    pairs = [pair("a", "b", -0.1, True), pair("a", "c", -0.2, True), pair("b", "c", -0.01, False)]
    ranks = rank_arms(["a", "b", "c"], pairs, "mean_cosine")
    assert (ranks["a"].place, ranks["a"].tied_with) == (1, ())
    assert (ranks["b"].place, ranks["b"].tied_with) == (2, ("c",))
    assert (ranks["c"].place, ranks["c"].tied_with) == (2, ("b",))


def test_ties_need_not_be_transitive():
    pairs = [pair("a", "b", -0.1, False), pair("b", "c", -0.1, False), pair("a", "c", -0.2, True)]
    ranks = rank_arms(["a", "b", "c"], pairs, "mean_cosine")
    assert {name: rank.place for name, rank in ranks.items()} == {"a": 1, "b": 1, "c": 2}
    assert ranks["b"].tied_with == ("a", "c")
