"""Error rates of the inference, by simulation: coverage of every interval, and how often noise alone gets a word.

The formulas are written here once more over whole arrays of simulated runs, so that tens of thousands take seconds;
tests hold them to what condense computes, run by run.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats

from condense.comparison.differences import difference_of, estimate_of, mean_of
from condense.comparison.verdict import cone_word, quality_word
from condense.diagnosis.twin import compare_with_twins
from condense.intervals import (
    Spread,
    difference,
    document_weights,
    jackknife,
    over_documents,
    over_seeds,
    ratio_over_documents,
    stretch,
)
from condense.records.base import Estimate

SIZES = {
    "4 even": [8] * 4,
    "4 uneven": [11, 9, 7, 5],
    "8 even": [4] * 8,
    "8 uneven": [1, 2, 3, 4, 4, 5, 6, 7],
    "32 even": [1] * 32,
    "32 uneven": [1, 2, 3, 4] * 8,
}
CORRELATION = 0.28  # of the deep mean cosine of SmolLM2 within a document
Array = np.ndarray
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
NORMAL: Draw = lambda rng, shape: rng.normal(size=shape)  # noqa: E731
SKEWED: Draw = lambda rng, shape: rng.exponential(size=shape) - 1  # noqa: E731


@dataclass
class Many:
    """Estimates of many simulated runs: values (R,), and the parts of their variances, each (R,) with its freedom."""

    values: Array
    parts: list[tuple[Array, float]]

    def half(self, alpha: float = 0.05) -> Array:
        """Half widths of the 1 − alpha intervals, (R,)."""
        squares = [scipy.stats.t.ppf(1 - alpha / 2, freedom) ** 2 * variance for variance, freedom in self.parts]
        return np.sqrt(np.sum(squares, axis=0))

    def covers(self, truth: float) -> Array:
        """Which intervals hold the truth, (R,)."""
        return np.abs(self.values - truth) <= self.half()


def documents_of(sizes: Sequence[int]) -> Array:
    return np.repeat(np.arange(len(sizes)), sizes)


def freedom_of(sizes: Sequence[int]) -> float:
    return max(1.0, float(1 / ((np.array(sizes) / sum(sizes)) ** 2).sum() - 1))


def sums(values: Array, sizes: Sequence[int]) -> Array:
    """Sums over the windows of each document: (..., N) to (..., G)."""
    return np.add.reduceat(values, np.cumsum([0, *sizes[:-1]]), axis=-1)


def ratios(y: Array, x: Array, sizes: Sequence[int]) -> Many:
    """Σy/Σx over the last axis with its variance over documents."""
    total = x.sum(-1)
    value = y.sum(-1) / total
    errors = sums(y - value[..., None] * x, sizes)
    variance = (errors**2 / (1 - np.array(sizes) / sum(sizes))).sum(-1) / total**2
    return Many(value, [(variance, freedom_of(sizes))])


def correlated(rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw) -> Array:
    """Values (R, N) of mean 0 and variance 1, those of one document correlated by `CORRELATION`."""
    shared = draw(rng, (runs, len(sizes)))[:, documents_of(sizes)]
    return CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * draw(rng, (runs, sum(sizes)))


# --- every estimator, over many runs and run by run ----------------------------------------------------


def mean_many(rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw) -> tuple[Many, Callable]:
    values = correlated(rng, runs, sizes, draw)
    documents = documents_of(sizes).tolist()
    return ratios(values, np.ones_like(values), sizes), lambda i: over_documents(values[i], documents)


def ratio_many(rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw) -> tuple[Many, Callable]:
    """Bits over bytes: 1 bit a byte, windows of different lengths."""
    lengths = rng.uniform(1500, 2500, (runs, sum(sizes)))
    bits = lengths * (1 + 0.2 * correlated(rng, runs, sizes, draw))
    documents = documents_of(sizes).tolist()
    return ratios(bits, lengths, sizes), lambda i: ratio_over_documents(bits[i], lengths[i], documents)


def cross_many(rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw) -> tuple[Many, Callable]:
    """The cross-text cosine of documents whose mean directions scatter about one of squared length .49."""
    count, rows = len(sizes), 500.0 * np.array(sizes)
    means = 0.15 * draw(rng, (runs, count, 24))
    means[..., 0] += 0.7
    directions = means * rows[:, None]
    products = directions @ directions.transpose(0, 2, 1)
    pairs = np.outer(rows, rows) * (1 - np.eye(count))
    products *= 1 - np.eye(count)
    value = products.sum((1, 2)) / pairs.sum()
    deleted = (value[:, None] * pairs.sum() - 2 * products.sum(2)) / (pairs.sum() - 2 * pairs.sum(1))
    scatter = ((deleted - deleted.mean(1, keepdims=True)) ** 2).sum(1)
    documents = documents_of(sizes).tolist()
    made = Many(value, [((count - 1) / count * scatter, freedom_of(sizes))])
    return made, lambda i: jackknife(float(value[i]), deleted[i].tolist(), documents)


def seeds_many(
    rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw, seeds: int = 3
) -> tuple[Many, Callable]:
    """Seeds whose mean varies as much as the mean over documents does."""
    windows, shares = sum(sizes), np.array(sizes) / sum(sizes)
    size = (CORRELATION * (shares**2).sum() + (1 - CORRELATION) / windows) ** 0.5
    table = correlated(rng, runs, sizes, draw)[:, None] + seeds**0.5 * size * draw(rng, (runs, seeds, 1))
    averaged = ratios(table.mean(1), np.ones((runs, windows)), sizes)
    of_seeds = (table.mean(2).var(1, ddof=1) / seeds, seeds - 1.0)
    documents = documents_of(sizes).tolist()
    return Many(averaged.values, [of_seeds, *averaged.parts]), lambda i: over_seeds(table[i], documents)


def unpaired_many(rng: np.random.Generator, runs: int, sizes: Sequence[int], draw: Draw) -> tuple[Many, Callable]:
    (one, own), (two, other) = (mean_many(rng, runs, sizes, draw) for _ in range(2))
    (v, nu), (w, _) = one.parts[0], two.parts[0]
    freedom = (v + w) ** 2 / (v**2 + w**2) * nu
    width = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(v + w)
    made = Many(one.values - two.values, [((width / scipy.stats.t.ppf(0.975, nu)) ** 2, nu)])
    return made, lambda i: difference(own(i), other(i))


ESTIMATORS = {
    "mean": mean_many,
    "ratio": ratio_many,
    "cross": cross_many,
    "unpaired": unpaired_many,
    "3 seeds": seeds_many,
    "5 seeds": functools.partial(seeds_many, seeds=5),
    "10 seeds": functools.partial(seeds_many, seeds=10),
}
TRUTH = {"cross": 0.49, "ratio": 1.0}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("design", ["4 uneven", "8 even", "32 uneven"])
def test_the_arrays_say_what_condense_says(name: str, design: str) -> None:
    many, one = ESTIMATORS[name](np.random.default_rng(7), 12, SIZES[design], SKEWED)
    halves = many.half()
    for index in range(12):
        spread: Spread = one(index)
        assert (spread.value, spread.half_width()) == pytest.approx((many.values[index], halves[index]), rel=1e-9)


def coverage(name: str, design: str, draw: Draw, runs: int, seed: int) -> float:
    """Share of so many intervals that hold the truth."""
    rng, hits, left = np.random.default_rng(seed), 0, runs
    while left:
        part = min(left, 4000)
        many, _ = ESTIMATORS[name](rng, part, SIZES[design], draw)
        hits, left = hits + int(many.covers(TRUTH.get(name, 0.0)).sum()), left - part
    return hits / runs


@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_cover(name: str) -> None:
    """2,000 runs of every design: the bounds of the slow test, widened by three standard errors."""
    shares = {design: coverage(name, design, NORMAL, 2000, 12) for design in SIZES}
    assert 0.92 <= np.mean(list(shares.values())) <= 0.99 and min(shares.values()) >= 0.90, shares


@pytest.mark.slow
@pytest.mark.parametrize("design", SIZES)
@pytest.mark.parametrize("draw", [NORMAL, SKEWED], ids=["normal", "skewed"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_cover_in_every_design(name: str, draw: Draw, design: str) -> None:
    share = coverage(name, design, draw, 40_000, 99)
    print(f"coverage {name} {'normal' if draw is NORMAL else 'skewed'} {design}: {share:.4f}")
    assert 0.92 <= share <= 0.99


# --- how often noise gets a word -----------------------------------------------------------------------

ARMS, EIGHT = 4, SIZES["8 even"]
MOVED = ("more spread", "more condensed", "improved", "worse")
# Standard deviations between runs of one arm, and of a run's windows: seeds decide, both alike, documents decide.
NOISE = {"seeds": (0.03, 0.01), "both": (0.01, 0.03), "documents": (0.002, 0.08)}


def trials(count: int, seeds: int, noise: str, seed: int) -> Array:
    """Values (R, 1 + ARMS, S, N) of trials without any effect, the control first; the truth of every window is .6."""
    rng, (between, within) = np.random.default_rng(seed), NOISE[noise]
    text = 0.6 + 0.036 * correlated(rng, count, EIGHT, NORMAL)[:, None, None]
    shape = (count, 1 + ARMS, seeds)
    own = np.stack([correlated(rng, count, EIGHT, NORMAL) for _ in range((1 + ARMS) * seeds)], 1)
    return text + between * rng.normal(size=(*shape, 1)) + within * own.reshape(*shape, -1)


def false_words(values: Array, alpha: float, least: float) -> Array:
    """Which trials have any arm that is clearly apart from the control and by at least `least`: (R,)."""
    differences = values[:, 1:] - values[:, :1]
    seeds = values.shape[2]
    averaged = differences.mean(2)
    over = ratios(averaged, np.ones_like(averaged), EIGHT)
    many = Many(over.values, [(differences.mean(3).var(2, ddof=1) / seeds, seeds - 1.0), *over.parts])
    clear: Array = (np.abs(many.values) > many.half(alpha)) & (np.abs(many.values) >= least)
    return clear.any(1)


@pytest.mark.parametrize("noise", ["seeds", "both"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_noise_hardly_ever_gets_a_word(seeds: int, noise: str) -> None:
    """200 trials of four arms without any effect, in mean cosine and in quality: words as condense gives them."""
    documents = tuple(documents_of(EIGHT).tolist())
    values = trials(200, seeds, noise, seed=0)
    hits = {"cone": 0, "quality": 0}
    for one in values:
        runs = [[mean_of(Estimate(float(run.mean()), per_text=tuple(run)), documents) for run in arm] for arm in one]
        tolerated = 0.005 * float(one[0].mean())
        words: dict[str, list[str]] = {"cone": [], "quality": []}
        for arm in runs[1:]:
            spread = difference_of(list(zip(arm, runs[0], strict=True)), paired=True)
            change, bounds = estimate_of(spread), spread.bounds(0.05 / ARMS)
            words["cone"].append(cone_word(change, bounds, 0.01))
            words["quality"].append(quality_word(change, bounds, tolerated))
        for key, own in words.items():
            hits[key] += any(word in MOVED for word in own)
    assert max(hits.values()) <= 14, hits  # 7 %
    assert hits["cone"] == false_words(values, 0.05 / ARMS, 0.01).sum()


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_hardly_ever_gets_a_word_in_many_trials(seeds: int, noise: str) -> None:
    """20,000 trials: the level shared out over the arms holds; without that, noise would get its words."""
    strict, loose = [], []
    for part in range(20):
        values = trials(1000, seeds, noise, seed=100 * seeds + part)
        strict.append(false_words(values, 0.05 / ARMS, 0.003).mean())
        loose.append(false_words(values, 0.05, 0.003).mean())
    print(f"words from noise, {noise} vary, {seeds} seeds: {np.mean(strict):.4f}; at .05 an arm {np.mean(loose):.4f}")
    assert np.mean(strict) <= 0.055
    assert noise != "seeds" or np.mean(loose) >= 0.1


# --- how often a word on the edge looks certain --------------------------------------------------------


def certain(count: int, draws: int, *, stretched: bool = True) -> float:
    """Share of draws of `count` documents in which a band's edge, where the truth is, is on one side in ≥ 95 %.

    Fresh resamples for every 200 draws.
    """
    rng, sure = np.random.default_rng(count), 0
    factor = stretch(list(range(count))) if stretched else 1.0
    for part in range(0, draws, 200):
        values = rng.normal(size=(count, 200))
        deviations = document_weights(list(range(count)), part, 1000) @ values / count - values.mean(0)
        above = (values.mean(0) + factor * deviations > 0).mean(0)
        sure += int((above >= 0.95).sum())
    return sure / draws


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_a_word_on_the_edge_seldom_looks_certain(count: int) -> None:
    assert certain(count, 2000) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 32])
def test_a_word_on_the_edge_seldom_looks_certain_in_many_draws(count: int) -> None:
    shares = certain(count, 20_000), certain(count, 20_000, stretched=False)
    print(f"certain on the edge, {count} documents: {shares[0]:.4f}; without the stretch {shares[1]:.4f}")
    assert shares[0] <= 0.055


# --- how often an untrained model is told from its kind --------------------------------------------------


def told_from_its_kind(draws: int, between: float, within: float, *, itself: bool = True) -> float:
    """Share of untrained models that are called more or less condensed than three initialisations of their kind.

    itself: whether the model counts as one draw too, as it does in condense.
    """
    rng = np.random.default_rng(3)
    text = 0.036 * correlated(rng, draws, EIGHT, NORMAL)[:, None]
    own = np.stack([correlated(rng, draws, EIGHT, NORMAL) for _ in range(4)], 1)
    values = 0.85 + text + between * rng.normal(size=(draws, 4, 1)) + within * own
    differences = values[:, 0] - values[:, 1:].mean(1)
    over = ratios(differences, np.ones_like(differences), EIGHT)
    spread = values[:, 1:].mean(2).var(1, ddof=1) * (1 + 1 / 3 if itself else 1 / 3)
    many = Many(over.values, [*over.parts, (spread, 2.0)])
    return float(((np.abs(many.values) > many.half()) & (np.abs(many.values) >= 0.01)).mean())


def test_the_twins_interval_is_condenses() -> None:
    rng, documents = np.random.default_rng(0), documents_of(EIGHT).tolist()
    windows = rng.normal(0.8, 0.02, (4, 32)) + rng.normal(0, 0.02, (4, 1))
    own, *twins = (Estimate(float(row.mean()), per_text=tuple(row)) for row in windows)
    made = compare_with_twins(own, twins, documents)
    differences = windows[0] - windows[1:].mean(0)
    over = ratios(differences[None], np.ones((1, 32)), EIGHT)
    many = Many(over.values, [*over.parts, (windows[1:].mean(1).var(ddof=1)[None] * 4 / 3, 2.0)])
    assert made is not None and made.difference.value == pytest.approx(many.values[0])
    assert (made.difference.high or 0) - (made.difference.value or 0) == pytest.approx(many.half()[0])


@pytest.mark.slow
@pytest.mark.parametrize(("between", "within"), [(0.03, 0.01), (0.03, 0.08), (0.01, 0.03)])
def test_an_untrained_model_is_seldom_told_from_its_kind(between: float, within: float) -> None:
    share = told_from_its_kind(20_000, between, within)
    loose = told_from_its_kind(20_000, between, within, itself=False)
    print(f"told from its kind, SD {between} and {within}: {share:.4f}; were it no draw itself {loose:.4f}")
    assert share <= 0.055
