"""Differences of measurements against plain numpy: over documents, over seeds, paired and not; and their words."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from condense.comparison.differences import ONE_SEED, Pairing, difference, effect_of
from condense.comparison.verdict import WITHOUT_TOP, cone_word, open_because, quality_word, what_opened
from condense.intervals import NO_DOCUMENTS, ONE_DOCUMENT
from condense.records.base import Estimate
from condense.records.treatment import Word
from tests.moved import in_documents, moved

DOCUMENTS = (0, 0, 0, 1, 1, 2, 2, 3)


@pytest.fixture(scope="module")
def run(diagnosed):
    return in_documents(moved(diagnosed("llama"), 0.0), DOCUMENTS)


def by_documents(values, documents, weights=None):
    """Variance of a mean (or of a ratio's numerator residuals over the weights' sum) and its degrees of freedom."""
    values, documents = np.asarray(values), np.asarray(documents)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights)
    residuals = values - values.sum() / weights.sum() * weights
    shares = np.array([(documents == g).mean() for g in np.unique(documents)])
    sums = np.array([residuals[documents == g].sum() for g in np.unique(documents)])
    return (sums**2 / (1 - shares)).sum() / weights.sum() ** 2, max(1.0, 1 / (shares**2).sum() - 1)


def half_width(*parts, alpha=0.05):
    return sum(scipy.stats.t.ppf(1 - alpha / 2, nu) ** 2 * v for v, nu in parts) ** 0.5


# --- one pair ------------------------------------------------------------------------------------------


def test_a_measurement_does_not_differ_from_itself(run):
    effect = difference(run, run, "control")
    assert effect.paired
    for estimate in [*effect.deep.values(), *effect.quality.values()]:
        if estimate.value is not None:
            assert estimate.value == 0
        if estimate.low is not None:
            assert (estimate.low, estimate.high) == (0, 0)
    assert {word.word for word in effect.words.values()} == {"smaller than what counts", "held"}


def test_a_constant_shift_has_no_width_when_paired(run):
    effect = difference(moved(run, -0.05), run, "control")
    assert effect.deep["mean_cosine"].value == pytest.approx(-0.05)
    assert effect.deep["mean_cosine"].low == pytest.approx(-0.05)
    assert effect.sites[2].metrics["mean_cosine"].high == pytest.approx(-0.05)
    assert effect.deep["effective_rank"].value == 0


def test_the_interval_is_that_of_the_differences_over_documents(run):
    new = moved(run, -0.02, noise=0.03, seed=3)
    found = difference(new, run, "control").deep["mean_cosine"]
    changes = np.array(new.deep["mean_cosine"].per_text) - np.array(run.deep["mean_cosine"].per_text)
    half = half_width(by_documents(changes, DOCUMENTS))
    assert found.value == pytest.approx(changes.mean())
    assert (found.low, found.high) == pytest.approx((changes.mean() - half, changes.mean() + half))
    naive = scipy.stats.t.ppf(0.975, 7) * changes.std(ddof=1) / 8**0.5
    assert found.high - found.low != pytest.approx(2 * naive, rel=0.01), "windows of one document are not independent"


def deleted_of(run, values, without):
    """The run with these numbers as its deep cross-text cosine and its values without each document."""
    of = replace(run.deep["cross_text_cosine"], value=values, deleted=tuple(without))
    return replace(run, deep={**run.deep, "cross_text_cosine": of})


def test_a_number_over_pairs_of_documents_differs_by_a_jackknife(run):
    documents = (0, 0, 1, 1, 2, 2, 3, 3)
    base, rng = in_documents(run, documents), np.random.default_rng(5)
    old, new = rng.normal(0.5, 0.02, 4), rng.normal(0.45, 0.02, 4)
    a, b = deleted_of(base, 0.51, old), deleted_of(base, 0.44, new)
    found = difference(b, a, "control").deep["cross_text_cosine"]

    def jackknifed(values):
        return 3 / 4 * ((values - values.mean()) ** 2).sum()

    half = half_width((jackknifed(new - old), 3))
    assert found.value == pytest.approx(-0.07)
    assert (found.low, found.high) == pytest.approx((-0.07 - half, -0.07 + half))
    unpaired = replace(a, corpus=replace(a.corpus, windows_sha256="0" * 64))
    apart = difference(b, unpaired, "control").deep["cross_text_cosine"]
    va, vb = jackknifed(old), jackknifed(new)
    half = half_width((va + vb, (va + vb) ** 2 / (va**2 / 3 + vb**2 / 3)))
    assert (apart.low, apart.high) == pytest.approx((-0.07 - half, -0.07 + half))
    others = deleted_of(base, 0.40, new + 0.01)
    seeds = Pairing.of({0: b, 1: others}, {0: a, 1: a}).deep("cross_text_cosine")
    assert seeds.parts[0] == (pytest.approx(np.var([-0.07, -0.11], ddof=1) / 2), 1.0)
    assert seeds.parts[1] == (pytest.approx(jackknifed(new + 0.005 - old)), 3.0)
    older = replace(a, deep={**a.deep, "cross_text_cosine": Estimate(0.5)})
    missing = difference(b, older, "control").deep["cross_text_cosine"]
    assert missing.value == pytest.approx(-0.06) and missing.low is None and "pooled" in missing.reason


def test_measured_runs_keep_what_that_jackknife_needs(diagnosed):
    a, b = diagnosed("llama"), diagnosed("qwen2")
    for of in (a.deep["cross_text_cosine"], a.sites[1].metrics["cross_text_cosine"]):
        count, known = len(set(a.corpus.documents)), np.array(of.deleted)
        assert len(known) == count
        variance = (count - 1) / count * ((known - known.mean()) ** 2).sum()
        freedom = 1 / sum((a.corpus.documents.count(d) / 8) ** 2 for d in set(a.corpus.documents)) - 1
        half = scipy.stats.t.ppf(0.975, freedom) * variance**0.5
        assert (of.low, of.high) == pytest.approx((of.value - half, min(1, of.value + half)))
    change = difference(b, a, "first").deep["cross_text_cosine"]
    assert change.low is not None and change.low <= change.value <= change.high


def test_unpaired_variances_are_added(run):
    other = replace(run, corpus=replace(run.corpus, windows_sha256="0" * 64))
    new = moved(run, -0.05, noise=0.01)
    paired, unpaired = difference(new, run, "control"), difference(new, other, "control")
    assert paired.paired and not unpaired.paired
    found = unpaired.deep["mean_cosine"]
    (va, na), (vb, nb) = (by_documents(r.deep["mean_cosine"].per_text, DOCUMENTS) for r in (new, other))
    half = half_width((va + vb, (va + vb) ** 2 / (va**2 / na + vb**2 / nb)))
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert found.high - found.low > paired.deep["mean_cosine"].high - paired.deep["mean_cosine"].low


def test_bits_per_byte_are_weighted_by_bytes(run):
    new = moved(run, 0.0, bits=np.linspace(-0.1, 0.4, 8))
    found = difference(new, run, "control").quality["bits_per_byte"]
    sizes = np.array(run.quality.predicted_bytes, dtype=float)
    changes = np.linspace(-0.1, 0.4, 8) * sizes
    half = half_width(by_documents(changes, DOCUMENTS, sizes))
    assert found.value == pytest.approx(changes.sum() / sizes.sum())
    assert (found.high - found.low) / 2 == pytest.approx(half)


def test_perplexity_has_the_interval_of_its_linearised_loss(run):
    new = moved(run, 0.0, bits=np.linspace(-0.1, 0.4, 8))
    loss = new.quality.loss
    new = replace(new, quality=replace(new.quality, perplexity=Estimate(float(np.exp(loss.value)))))
    spread = Pairing.of({0: new}, {0: run}).quality("perplexity")
    a, b = (np.exp(r.quality.loss.value) * np.array(r.quality.loss.per_text) for r in (new, run))
    assert spread.value == pytest.approx(new.quality.perplexity.value - run.quality.perplexity.value)
    assert spread.half_width() == pytest.approx(half_width(by_documents(a - b, DOCUMENTS)))


@pytest.mark.parametrize("paired", [True, False])
def test_values_of_a_b_and_their_difference_add_up(run, paired):
    """Also where windows are undefined on one side, and where documents weigh differently."""
    new = moved(run, np.linspace(-0.2, 0.1, 8), noise=0.05, bits=np.linspace(0, 1, 8))
    holes = tuple(None if i in (0, 5) else v for i, v in enumerate(new.deep["mean_cosine"].per_text))
    known = [v for v in holes if v is not None]
    new = replace(new, deep={**new.deep, "mean_cosine": Estimate(float(np.mean(known)), per_text=holes)})
    old = run if paired else replace(run, corpus=replace(run.corpus, windows_sha256="0" * 64))
    effect = difference(new, old, "control")
    for key, change in effect.deep.items():
        if change.value is not None:
            assert change.value == pytest.approx(new.deep[key].value - old.deep[key].value, abs=1e-12)
            assert change.low is None or change.low <= change.value <= change.high
    for key, change in effect.quality.items():
        a, b = getattr(new.quality, key).value, getattr(old.quality, key).value
        assert change.value == pytest.approx(a - b, abs=1e-12)
    assert effect.deep["mean_cosine"].low is not None


def test_a_window_that_is_undefined_in_both_is_left_out(run):
    def without(of, first):
        keep = tuple(None if i < first else v for i, v in enumerate(of.per_text))
        return Estimate(float(np.mean([v for v in keep if v is not None])), per_text=keep)

    new = moved(run, -0.02, noise=0.03, seed=1)
    pair = [replace(r, deep={**r.deep, "mean_cosine": without(r.deep["mean_cosine"], 3)}) for r in (new, run)]
    found = difference(*pair, "control").deep["mean_cosine"]
    changes = np.array(new.deep["mean_cosine"].per_text)[3:] - np.array(run.deep["mean_cosine"].per_text)[3:]
    assert (found.high - found.low) / 2 == pytest.approx(half_width(by_documents(changes, DOCUMENTS[3:])))


def test_without_documents_there_is_a_value_and_no_interval(run):
    old = in_documents(run, ())
    effect = difference(in_documents(moved(run, -0.05, noise=0.01), ()), old, "control")
    found = effect.deep["mean_cosine"]
    assert found.value == pytest.approx(-0.05, abs=0.02) and found.low is None and found.reason == NO_DOCUMENTS
    assert effect.words["mean_cosine"].word == "inconclusive" and effect.words["quality"].word == "not shown to be held"


def test_one_document_is_said(run):
    one = in_documents(run, (0,) * 8)
    effect = difference(moved(one, -0.05, noise=0.01), one, "control")
    assert effect.covers == ONE_DOCUMENT and effect.deep["mean_cosine"].low is not None


def test_a_metric_that_an_older_run_lacks(run):
    older = replace(run, deep={key: of for key, of in run.deep.items() if key != "cosine_std"})
    change = difference(run, older, "control").deep["cosine_std"]
    assert change.value is None and "did not have it" in change.reason


# --- seeds ---------------------------------------------------------------------------------------------


def test_seeds_are_replicates(run):
    new = {n: moved(run, -0.03 + 0.01 * n, noise=0.02, seed=n) for n in range(3)}
    old = {n: moved(run, 0.002 * n, noise=0.01, seed=10 + n) for n in range(3)}
    effect = effect_of(new, old, "control")
    table = np.array(
        [np.subtract(new[n].deep["mean_cosine"].per_text, old[n].deep["mean_cosine"].per_text) for n in range(3)]
    )
    means = table.mean(axis=1)
    parts = (means.var(ddof=1) / 3, 2), by_documents(table.mean(axis=0), DOCUMENTS)
    found = effect.deep["mean_cosine"]
    assert found.value == pytest.approx(means.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half_width(*parts))
    assert effect.spread["mean_cosine"] == pytest.approx(means.std(ddof=1))
    assert effect.seeds == 3 and effect.covers == "3 seeds; 4 documents"
    strict = effect_of(new, old, "control", compared=4).words["mean_cosine"]
    assert strict.alpha == pytest.approx(0.0125)
    assert (strict.high - strict.low) / 2 == pytest.approx(half_width(*parts, alpha=0.0125))


def test_unpaired_seeds_add_the_documents_of_both(run):
    new = {n: moved(run, -0.03 + 0.01 * n, noise=0.02, seed=n) for n in range(3)}
    old = {n: moved(run, 0.002 * n, noise=0.01, seed=10 + n) for n in range(3)}
    other = {n: replace(of, corpus=replace(of.corpus, windows_sha256="0" * 64)) for n, of in old.items()}
    found = effect_of(new, other, "control").deep["mean_cosine"]
    values = [new[n].deep["mean_cosine"].value - old[n].deep["mean_cosine"].value for n in range(3)]
    sides = [np.mean([of.deep["mean_cosine"].per_text for of in arm.values()], axis=0) for arm in (new, old)]
    parts = (np.var(values, ddof=1) / 3, 2), *(by_documents(side, DOCUMENTS) for side in sides)
    assert (found.high - found.low) / 2 == pytest.approx(half_width(*parts))


def test_one_seed_is_this_pair_of_runs(run):
    effect = effect_of({7: moved(run, -0.05, noise=0.01)}, {7: run, 8: run}, "control")
    assert effect.seeds == 1 and effect.covers.startswith(ONE_SEED) and effect.power == {}
    assert effect.spread["mean_cosine"] is None
    with pytest.raises(ValueError, match="seed"):
        effect_of({1: run}, {2: run}, "control")


def test_power_is_that_of_the_spread(run):
    new = {n: moved(run, -0.03 + 0.02 * n, noise=0.001, seed=n) for n in range(3)}
    power = effect_of(new, dict.fromkeys(range(3), run), "control").power["mean_cosine"]
    assert power.seed_sd == pytest.approx(0.02, rel=0.05) and power.wanted == 0.01
    assert power.shown > 0.02 and power.seeds_needed > 20
    noisy = [0.0, 0.5, -0.5, 0.3, -0.3, 0.2, 0.4, -0.6]
    text = {n: moved(run, noisy, noise=0.0001, seed=n) for n in range(3)}
    power = effect_of(text, dict.fromkeys(range(3), run), "control").power["mean_cosine"]
    assert power.seeds_needed is None and power.reason == "more validation text, not more seeds"


# --- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (-0.02, -0.03, -0.011, "more spread"),
        (-0.009, -0.0095, -0.0085, "smaller than what counts"),
        (-0.02, -0.03, 0.001, "inconclusive"),
        (0.02, 0.011, 0.03, "more condensed"),
        (0.0, -0.0099, 0.0099, "smaller than what counts"),
        (0.0, -0.01, 0.0099, "inconclusive"),
        (0.0, -0.02, 0.01, "inconclusive"),
        (-0.009, -0.012, -0.006, "inconclusive"),
        (0.0105, 0.0012, 0.0198, "more condensed"),
        (-0.05, -0.05, -0.05, "more spread"),
        (0.0, 0.0, 0.0, "smaller than what counts"),
        (-0.05, None, None, "inconclusive"),
        (None, None, None, "inconclusive"),
    ],
)
def test_a_word_needs_an_interval_off_zero_and_a_size_that_counts(value, low, high, word):
    assert cone_word(Estimate(value, low, high), (low, high), 0.01) == word


def test_a_word_needs_the_stricter_interval_too():
    change = Estimate(-0.02, -0.03, -0.01)
    assert cone_word(change, (-0.035, -0.005), 0.01) == "more spread"
    assert cone_word(change, (-0.045, 0.005), 0.01) == "inconclusive"
    assert quality_word(change, (-0.045, 0.005), 0.01) == "held", "improved needs the stricter one, held the 95 %"
    small = Estimate(0.001, -0.005, 0.007)
    assert cone_word(small, (-0.02, 0.03), 0.01) == "smaller than what counts"


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (-0.02, -0.03, -0.01, "improved"),
        (-0.005, -0.006, -0.004, "held"),
        (0.001, -0.008, 0.010, "held"),
        (0.001, -0.008, 0.011, "not shown to be held"),
        (0.02, 0.01, 0.03, "worse"),
        (0.0105, 0.0005, 0.02, "worse"),
        (0.009, 0.004, 0.014, "not shown to be held"),
        (-0.02, -0.05, 0.01, "held"),
        (0.0, None, None, "not shown to be held"),
        (None, None, None, "not measured"),
    ],
)
def test_quality(value, low, high, word):
    assert quality_word(Estimate(value, low, high), (low, high), 0.01) == word
    assert quality_word(Estimate(value, low, high), (low, high), None) == "not measured"


@pytest.mark.parametrize(
    ("whole", "rest", "opened"),
    [
        ((-0.05, "more spread"), (0.0, "smaller than what counts"), "three dimensions rescaled"),
        ((-0.05, "more spread"), (0.05, "more condensed"), "three dimensions rescaled"),
        ((-0.05, "more spread"), (-0.045, "more spread"), "cone opened"),
        ((-0.05, "more spread"), (-0.015, "more spread"), "both"),
        ((-0.05, "more spread"), (-0.015, "inconclusive"), "not clear"),
        ((0.0, "smaller than what counts"), (0.0, "smaller than what counts"), "neither"),
        ((0.0, "smaller than what counts"), (-0.05, "more spread"), "cone opened"),
        ((0.0, "inconclusive"), (0.0, "smaller than what counts"), "not clear"),
    ],
)
def test_what_opened(whole, rest, opened):
    words = {"mean_cosine": Word(whole[1], "mean_cosine"), WITHOUT_TOP: Word(rest[1], WITHOUT_TOP)}
    changes = {"mean_cosine": Estimate(whole[0]), WITHOUT_TOP: Estimate(rest[0])}
    assert what_opened(words, changes) == opened


@pytest.mark.parametrize(
    ("change", "alpha", "said"),
    [
        (Estimate(0.005, -0.002, 0.012), 0.05, "holds 0 and reaches beyond ±0.01"),
        (Estimate(0.0095, 0.0012, 0.0178), 0.05, "excludes 0 and reaches beyond ±0.01"),
        (Estimate(0.02, 0.001, 0.039), 0.0125, "4 differences are judged side by side"),
        (Estimate(0.02, reason="one window"), 0.05, "no interval: one window"),
    ],
)
def test_why_a_difference_is_open(change, alpha, said):
    assert said in open_because(change, Word("inconclusive", "mean_cosine", 0.01, alpha=alpha))


def test_words_of_blocks_share_the_level(run):
    new = moved(run, -0.02, noise=0.006, seed=2)
    effect = difference(new, run, "first")
    blocks = [site for site in effect.sites if site.site == "block"]
    assert len(blocks) == 3 and all(set(site.words) == {"mean_cosine", WITHOUT_TOP} for site in blocks)
    spread = Pairing.of({0: new}, {0: run}).deep("mean_cosine")
    change = blocks[0].metrics["mean_cosine"]
    assert blocks[0].words["mean_cosine"] == cone_word(change, spread.bounds(0.05 / 3), 0.01)
    assert all(not site.words for site in effect.sites if site.site != "block")


def test_masked_models_are_judged_on_their_loss(diagnosed):
    run = diagnosed("bert")
    effect = difference(run, run, "control")
    assert effect.quality["bits_per_byte"].value is None
    assert (effect.words["quality"].word, effect.words["quality"].key) == ("held", "loss")
