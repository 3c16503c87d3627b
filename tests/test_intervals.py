"""Intervals over texts against scipy, on repeat, and where numbers are missing."""

import numpy as np
import pytest
import scipy.stats

from condense.intervals import bootstrap_interval, mean_interval, resampling_weights, weighted_means


def ratio(means: np.ndarray) -> np.ndarray:
    return means[:, 0] / means[:, 1]


@pytest.mark.parametrize("texts", [2, 3, 8, 32, 100])
def test_mean_interval_is_students(texts: int) -> None:
    values = np.random.default_rng(texts).normal(3, 2, texts)
    expected = scipy.stats.t.interval(0.95, texts - 1, values.mean(), scipy.stats.sem(values))
    mean, low, high = mean_interval(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(expected)


def test_mean_interval_leaves_out_what_is_undefined() -> None:
    assert mean_interval([1.0, None, 3.0, float("nan"), float("inf")]) == pytest.approx(mean_interval([1.0, 3.0]))


def test_mean_interval_of_too_few() -> None:
    assert mean_interval([]) == mean_interval([None, float("nan")]) == (None, None, None)
    assert mean_interval([2.5, None]) == (2.5, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_weights_are_resamples() -> None:
    weights = resampling_weights(7, seed=1, resamples=50)
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and (weights >= 0).all()


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(0).normal(5, 1, (20, 2))
    first = bootstrap_interval(values, ratio, seed=3)
    assert first == bootstrap_interval(values.copy(), ratio, seed=3)
    assert first != bootstrap_interval(values, ratio, seed=4)


def test_bootstrap_is_a_percentile_interval_of_resampled_composites() -> None:
    values = np.random.default_rng(0).normal(5, 1, (20, 2))
    weights = resampling_weights(20, 3, 200)
    composites = []
    for row in weights.astype(int):
        chosen = np.repeat(values, row, axis=0)
        composites.append(chosen[:, 0].mean() / chosen[:, 1].mean())
    assert bootstrap_interval(values, ratio, 3, 200) == pytest.approx(tuple(np.quantile(composites, [0.025, 0.975])))


def test_bootstrap_covers() -> None:
    """Of many samples of 40 texts, about 95 % of the intervals hold the true mean (percentile: a little less)."""
    rng, hits = np.random.default_rng(12), 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.normal(1, 1, (40, 1)), lambda m: m[:, 0], trial, 300)
        assert low is not None and high is not None
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_agrees_with_students_interval_on_a_mean() -> None:
    values = np.random.default_rng(5).normal(0, 1, (200, 1))
    _, low, high = mean_interval(values[:, 0].tolist())
    assert bootstrap_interval(values, lambda m: m[:, 0], 0) == pytest.approx((low, high), abs=0.03)


def test_bootstrap_leaves_out_what_is_undefined() -> None:
    values = np.array([[1.0], [np.nan], [3.0], [2.0]])
    low, high = bootstrap_interval(values, lambda m: m[:, 0], 0)
    assert low is not None and high is not None and 1 <= low <= high <= 3
    assert bootstrap_interval(np.full((5, 1), np.nan), lambda m: m[:, 0], 0) == (None, None)
    assert bootstrap_interval(np.ones((1, 1)), lambda m: m[:, 0], 0) == (None, None)


def test_weighted_means() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 4.0]])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    np.testing.assert_array_equal(weighted_means(values, weights), [[2, 4], [1, np.nan], [np.nan, 4]])
