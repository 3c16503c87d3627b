"""Effects over seeds against plain numpy; how often noise gets a word; ties; ranks."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from condense.comparison.differences import difference
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, Quality
from condense.records.plans import Plan
from condense.records.trial import Pair
from condense.trials.effects import OTHER_TOKENS, arm_effect, compare_pairs, rank_arms, reference_of
from condense.trials.verdict import arm_verdict
from tests.moved import in_documents, moved

PLAN = Plan()


@pytest.fixture(scope="module")
def run(diagnosed):
    return in_documents(moved(diagnosed("llama"), 0.0), (0, 0, 1, 1, 2, 2, 3, 3))


def seeds(run, shifts, noise=0.0, first=0, bits=0.0):
    return {
        number: moved(run, shift, noise=noise, seed=first + number, bits=bits) for number, shift in enumerate(shifts)
    }


def test_one_seed_is_the_difference_of_the_pair(run):
    arm, control = seeds(run, [-0.03], noise=0.01), seeds(run, [0.0], noise=0.005, first=5)
    found, plain = arm_effect(arm, control, PLAN), difference(arm[0], control[0], "control")
    assert found.metrics["mean_cosine"] == plain.deep["mean_cosine"]
    assert found.metrics["bits_per_byte"] == plain.quality["bits_per_byte"]
    assert found.spread["mean_cosine"] is None and found.unpaired == ""
    assert {word.word for word in found.words.values()} == {"inconclusive"}, "one seed has no word in a trial"


def test_seeds_and_documents_both_widen(run):
    arm = seeds(run, [-0.03, -0.05, -0.01], noise=0.02)
    control = seeds(run, [0.0, 0.01, 0.0], noise=0.01, first=7)
    found = arm_effect(arm, control, PLAN)
    of = found.metrics["mean_cosine"]
    singles = [arm[n].deep["mean_cosine"].value - control[n].deep["mean_cosine"].value for n in range(3)]
    pairs = [(arm[n].deep["mean_cosine"].per_text, control[n].deep["mean_cosine"].per_text) for n in range(3)]
    mean = np.mean([np.subtract(*pair) for pair in pairs], axis=0)
    by_document = (mean - mean.mean()).reshape(4, 2).sum(axis=1)
    v_doc = (by_document**2 / 0.75).sum() / 64
    t = scipy.stats.t.ppf(0.975, [2, 3])
    half = (t[0] ** 2 * np.var(singles, ddof=1) / 3 + t[1] ** 2 * v_doc) ** 0.5
    assert of.value == pytest.approx(np.mean(singles))
    assert (of.low, of.high) == pytest.approx((of.value - half, of.value + half))
    assert found.spread["mean_cosine"] == pytest.approx(np.std(singles, ddof=1))
    assert [seed.metrics["mean_cosine"].value for seed in found.by_seed] == pytest.approx(singles)


def test_only_seeds_that_both_have_count(run):
    arm = {1: moved(run, -0.02), 2: moved(run, -0.04)}
    control = {0: run, 1: run}
    found = arm_effect(arm, control, PLAN)
    assert [of.seed for of in found.by_seed] == [1] and found.metrics["mean_cosine"].value == pytest.approx(-0.02)
    assert arm_effect({5: run}, control, PLAN) is None


def test_another_tokenizer_is_unpaired_but_for_its_bytes(run):
    other = {
        n: replace(of, corpus=replace(of.corpus, windows_sha256="0" * 64, documents=(0,) * 5 + (1,) * 3))
        for n, of in seeds(run, [-0.03] * 3, bits=-0.1).items()
    }
    control = seeds(run, [0.0, 0.0, 0.0])
    found = arm_effect(other, control, PLAN, same_bytes=True)
    assert found.unpaired == OTHER_TOKENS
    paired = arm_effect(seeds(run, [-0.03] * 3), control, PLAN)
    width = [of.metrics["mean_cosine"].high - of.metrics["mean_cosine"].low for of in (found, paired)]
    assert width[0] > 10 * width[1]
    assert found.metrics["loss"].value is None and "bits per byte" in found.metrics["loss"].reason
    bits = found.metrics["bits_per_byte"]
    assert bits.high < 0, "a constant change on the same bytes is certain"
    assert found.words["quality"].word == "improved" and found.words["quality"].key == "bits_per_byte"


# --- how often noise gets a word -----------------------------------------------------------------------


def measured(run: Diagnosis, values: np.ndarray) -> Diagnosis:
    """A run that has these values per window, as its mean cosine and as its bits per byte."""
    of = Estimate(float(values.mean()), per_text=tuple(values.tolist()))
    bytes_ = tuple([100] * len(values))
    quality = Quality(Estimate(None), Estimate(None), replace(of), predicted_bytes=bytes_)
    return replace(run, deep={"mean_cosine": of}, quality=quality, sites=(replace(run.sites[-1], metrics={}),))


def noise_trials(run: Diagnosis, count: int, seeds: int, plan: Plan, seed: int = 0) -> dict[str, float]:
    """How often any of four arms of a trial without effects gets a word, by mean cosine and by bits per byte.

    32 windows of 8 documents whose values correlate by .28 within a document; runs of one arm differ by more than the
    smallest effect that counts.
    """
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(8), 4)
    base = in_documents(run, documents.tolist())
    base = replace(base, corpus=replace(base.corpus, texts=32))
    spoken = {"cone": 0, "quality": 0}
    for _ in range(count):
        text = 0.6 + 0.02 * rng.normal(size=8)[documents] + 0.03 * rng.normal(size=32)

        def arm(text=text):
            noise = 0.01 * (
                0.28**0.5 * rng.normal(size=(seeds, 8))[:, documents] + 0.72**0.5 * rng.normal(size=(seeds, 32))
            )
            values = text + 0.03 * rng.normal(size=(seeds, 1)) + noise
            return {number: measured(base, row) for number, row in enumerate(values)}

        control = arm()
        effects = [arm_effect(arm(), control, plan, compared=4) for _ in range(4)]
        verdicts = [arm_verdict(effect)[0] for effect in effects]
        words = [effect.words["quality"].word for effect in effects]
        spoken["cone"] += any(v in ("dispersed", "dispersed-at-a-cost", "condensed-further") for v in verdicts)
        spoken["quality"] += any(word in ("improved", "worse") for word in words)
    return {key: hits / count for key, hits in spoken.items()}


def test_noise_hardly_ever_gets_a_word(run):
    """Four arms without any effect, as a trial reads them; many more trials are in tests/test_simulations.py."""
    for measure, rate in noise_trials(run, 60, 3, PLAN).items():
        assert rate <= 0.07, (measure, rate)


def test_the_interval_covers_what_other_seeds_and_documents_give(run):
    """Coverage of the difference over 300 trials of 3 seeds: .92 or more, where documents alone cover a third."""
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(8), 4)
    base = in_documents(run, documents.tolist())
    base = replace(base, corpus=replace(base.corpus, texts=32))
    covered = []
    for _ in range(300):
        noise = 0.03 * (0.28**0.5 * rng.normal(size=8)[documents] + 0.72**0.5 * rng.normal(size=32))
        values = -0.05 + 0.02 * rng.normal(size=(3, 1)) + noise + 0.005 * rng.normal(size=(3, 32))
        arm = {number: measured(base, row) for number, row in enumerate(values)}
        of = arm_effect(arm, dict.fromkeys(range(3), measured(base, np.zeros(32))), PLAN).metrics["mean_cosine"]
        covered.append(of.low <= -0.05 <= of.high)
    assert 0.92 <= np.mean(covered) <= 1.0


# --- pairs and ranks -----------------------------------------------------------------------------------


def test_pairs_are_clear_from_five_seeds_on(run):
    arms = {
        "base": seeds(run, [0.0, 0.001, -0.001, 0.002, 0.0], noise=0.001),
        "near": seeds(run, [-0.004] * 5, noise=0.001, first=20),
        "far": seeds(run, [-0.02, -0.021, -0.019, -0.022, -0.018], noise=0.001, first=40),
    }
    least = reference_of(arms["base"], PLAN)
    pairs = {(p.first, p.second): p for p in compare_pairs(arms, least)}
    assert pairs["base", "far"].clear["mean_cosine"] and pairs["near", "far"].clear["mean_cosine"]
    assert pairs["base", "far"].differences["mean_cosine"].value == pytest.approx(0.02, abs=2e-3)
    near = pairs["base", "near"]
    assert near.p["mean_cosine"] < 0.05 and not near.clear["mean_cosine"], "significant, yet less than what counts"
    few = {name: dict(list(own.items())[:4]) for name, own in arms.items()}
    assert not any(pair.clear["mean_cosine"] for pair in compare_pairs(few, least)), "four seeds rank nothing"
    one = {name: dict(list(own.items())[:1]) for name, own in arms.items()}
    assert all(pair.p == {"mean_cosine": None, "bits_per_byte": None} for pair in compare_pairs(one, least))


def test_p_values_are_adjusted_over_all_pairs(run):
    rng = np.random.default_rng(0)
    arms = {name: seeds(run, rng.normal(0, 0.01, 5), noise=0.001, first=10 * n) for n, name in enumerate("abcd")}
    pairs = compare_pairs(arms, reference_of(arms["a"], PLAN))
    adjusted = sorted(pair.p["mean_cosine"] for pair in pairs)
    alone = sorted(
        compare_pairs({p.first: arms[p.first], p.second: arms[p.second]}, {})[0].p["mean_cosine"] for p in pairs
    )
    assert adjusted[0] == pytest.approx(min(1.0, 6 * alone[0])) and all(
        a >= b for a, b in zip(adjusted, alone, strict=True)
    )


def pair(first, second, value, clear):
    return Pair(first, second, {"mean_cosine": Estimate(value)}, {"mean_cosine": clear})


def test_arms_that_are_not_separated_tie():
    pairs = [pair("a", "b", -0.1, True), pair("a", "c", -0.2, True), pair("b", "c", -0.01, False)]
    ranks = rank_arms(["a", "b", "c"], pairs, "mean_cosine")
    assert (ranks["a"].place, ranks["a"].tied_with) == (1, ())
    assert (ranks["b"].place, ranks["b"].tied_with) == (2, ("c",))
    assert (ranks["c"].place, ranks["c"].tied_with) == (2, ("b",))


def test_an_arm_without_a_value_has_no_place():
    """It stood first, untied: so did every arm of a masked model by bits per byte."""
    pairs = [pair("a", "b", None, False), pair("a", "c", None, False), pair("b", "c", None, False)]
    assert rank_arms(["a", "b", "c"], pairs, "mean_cosine") == {}
    ranks = rank_arms(["a", "b", "c"], [*pairs[:1], pair("a", "c", 0.2, True), *pairs[2:]], "mean_cosine")
    assert {name: rank.place for name, rank in ranks.items()} == {"a": 2, "c": 1}


def test_arms_that_were_not_compared_with_each_other_tie():
    pairs = [pair("a", "b", None, False), pair("a", "c", -0.2, True), pair("b", "c", -0.1, True)]
    ranks = rank_arms(["a", "b", "c"], pairs, "mean_cosine")
    assert ranks["a"].tied_with == ("b",) and ranks["c"].place == 3


def test_ties_need_not_be_transitive():
    pairs = [pair("a", "b", -0.1, False), pair("b", "c", -0.1, False), pair("a", "c", -0.2, True)]
    ranks = rank_arms(["a", "b", "c"], pairs, "mean_cosine")
    assert {name: rank.place for name, rank in ranks.items()} == {"a": 1, "b": 1, "c": 2}
    assert ranks["b"].tied_with == ("a", "c")
