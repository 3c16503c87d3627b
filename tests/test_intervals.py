"""Intervals against independent arithmetic, by simulation, on repeat, and where numbers are missing."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.special
import scipy.stats

from condense.intervals import (
    NO_DOCUMENTS,
    ONE_DOCUMENT,
    ONE_WINDOW,
    Spread,
    _quantile,
    coverage_note,
    difference,
    document_weights,
    holm,
    jackknife,
    over_documents,
    over_seeds,
    power,
    ratio_over_documents,
    resampling_weights,
    seeds_needed,
    smallest_detectable,
    stretch,
    weighted_means,
)

UNEVEN = {2: [5, 2], 4: [11, 9, 7, 5], 8: [1, 2, 3, 4, 4, 5, 6, 7], 32: [1, 2, 3, 4] * 8}


def documents_of(count: int, *, even: bool) -> list[int]:
    """The document of every window: 32 windows shared out evenly, or unevenly."""
    sizes = [32 // count] * count if even else UNEVEN[count]
    return [document for document, size in enumerate(sizes) for _ in range(size)]


# --- over documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [2, 3, 8, 32, 100])
def test_one_window_a_document_is_students_interval(windows: int) -> None:
    values = np.random.default_rng(windows).normal(3, 2, windows)
    expected = scipy.stats.t.interval(0.95, windows - 1, values.mean(), scipy.stats.sem(values))
    spread = over_documents(values, range(windows))
    assert spread.value == pytest.approx(values.mean()) and spread.bounds() == pytest.approx(expected)
    assert spread.p_value() == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("count", [2, 4, 8, 32])
def test_the_variance_is_cluster_robust(count: int, even: bool) -> None:
    documents = documents_of(count, even=even)
    values = np.random.default_rng(count).normal(1, 1, len(documents))
    total, shares = 0.0, []
    for document in range(count):
        own = [v - values.mean() for v, d in zip(values, documents, strict=True) if d == document]
        shares.append(len(own) / len(values))
        total += (sum(own) / math.sqrt(1 - shares[-1])) ** 2
    freedom = max(1.0, 1 / sum(share**2 for share in shares) - 1)
    assert over_documents(values, documents).parts == (pytest.approx((total / len(values) ** 2, freedom)),)


def test_equal_documents_are_the_interval_over_their_means() -> None:
    values = np.random.default_rng(0).normal(0, 1, (8, 4))
    expected = over_documents(values.mean(1), range(8))
    spread = over_documents(values.ravel(), np.repeat(range(8), 4).tolist())
    assert spread.parts[0] == pytest.approx(expected.parts[0])


def test_the_order_and_the_numbers_of_documents_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    documents = documents_of(8, even=False)
    values, order = rng.normal(0, 1, 32), rng.permutation(32)
    renamed = [100 - documents[i] for i in order]
    assert over_documents(values[order], renamed).bounds() == pytest.approx(over_documents(values, documents).bounds())


def test_what_is_undefined_is_left_out_of_every_count() -> None:
    spread = over_documents([1.0, None, 3.0, float("nan"), 2.0, float("inf")], [0, 0, 1, 1, 2, 2])
    assert spread.bounds() == pytest.approx(over_documents([1.0, 3.0, 2.0], [0, 1, 2]).bounds())


def test_one_document_is_taken_over_its_windows() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    assert over_documents(values, [7] * 4).bounds() == pytest.approx(over_documents(values, range(4)).bounds())
    assert coverage_note([7] * 4) == ONE_DOCUMENT


@pytest.mark.parametrize(
    ("values", "documents", "reason"),
    [
        ([1.0], [0], ONE_WINDOW),
        ([1.0, 2.0], None, NO_DOCUMENTS),
        ([1.0, 2.0], (), NO_DOCUMENTS),
        ([1.0, 2.0, None], [0, 0, 1], "one document only"),
        ([1.0, None, None], [0, 0, 1], "one window only"),
        ([2.0, 2.0, None], [0, 0, 1], "one document only"),
    ],
)
def test_no_interval_says_why(values: list[float | None], documents: Sequence[int] | None, reason: str) -> None:
    spread = over_documents(values, documents)
    assert spread.value is not None and spread.bounds() == (None, None) and spread.p_value() is None
    assert reason in (spread.reason or "")


def test_a_number_that_no_window_defines() -> None:
    spread = over_documents([None, float("nan")], [0, 1])
    assert spread.value is None and spread.reason and spread.bounds() == (None, None)
    assert over_documents([], []).value is None


def test_documents_of_other_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 windows"):
        over_documents([1.0, 2.0, 3.0], [0, 1])


def test_equal_values_have_an_interval_of_no_width() -> None:
    spread = over_documents([0.1] * 3, [0, 0, 1])
    assert spread.bounds() == (0.1, 0.1) and spread.p_value() == 0
    assert over_documents([0.0] * 3, [0, 1, 2]).p_value() == 1


def test_what_is_said_beside_an_interval() -> None:
    assert coverage_note([0, 1, 2]) == "" and coverage_note([0, 0, 1]) == "2 documents only"
    assert coverage_note([0]) == ONE_WINDOW and coverage_note(None) == coverage_note(()) == NO_DOCUMENTS


def test_a_ratio_is_linearised() -> None:
    rng = np.random.default_rng(4)
    documents = documents_of(8, even=False)
    x = rng.uniform(1, 3, 32)
    y = 2 * x + rng.normal(0, 0.3, 32)
    spread = ratio_over_documents(y, x, documents)
    ratio = y.sum() / x.sum()
    assert spread.value == pytest.approx(ratio)
    expected = over_documents(ratio + (y - ratio * x) / x.mean(), documents)  # its pseudo-values
    assert spread.parts[0] == pytest.approx(expected.parts[0])
    assert ratio_over_documents(3 * x, x, documents).bounds() == pytest.approx((3, 3))
    assert ratio_over_documents([1.0], [0.0], [0]).value is None


def test_the_jackknife_of_a_mean_is_its_variance() -> None:
    values = np.random.default_rng(1).normal(0, 1, 12)
    deleted = [np.delete(values, i).mean() for i in range(12)]
    assert jackknife(float(values.mean()), deleted, range(12)).parts[0] == pytest.approx(
        over_documents(values, range(12)).parts[0]
    )
    assert jackknife(1.0, [None, None], [0, 1]).parts == () and jackknife(1.0, [1.0] * 3, None).reason == NO_DOCUMENTS
    assert jackknife(None, [], [0]).value is None


# --- differences, seeds, many tests -----------------------------------------------------------------


def test_a_difference_is_welchs() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 1, 9), rng.normal(0, 3, 14)
    spread = difference(over_documents(a, range(9)), over_documents(b, range(14)))
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval()
    assert spread.bounds() == pytest.approx((interval.low, interval.high))
    assert spread.p_value() == pytest.approx(welch.pvalue)


def test_a_difference_of_constants_and_of_the_unknown() -> None:
    one, two = over_documents([1.0] * 3, range(3)), over_documents([2.0] * 3, range(3))
    assert difference(one, two).bounds() == (-1, -1)
    assert difference(one, Spread(None, (), "no head")).reason == "no head"
    assert difference(one, Spread(1.0, (), "saved without")).bounds() == (None, None)


def test_seeds_are_replicates() -> None:
    table = np.random.default_rng(6).normal(0, 1, (3, 32))
    documents = documents_of(8, even=True)
    spread = over_seeds(table, documents)
    documents_part = over_documents(table.mean(0), documents).parts[0]
    assert spread.parts == ((pytest.approx(table.mean(1).var(ddof=1) / 3), 2.0), documents_part)
    t_seeds, t_documents = scipy.stats.t.ppf(0.975, 2), scipy.stats.t.ppf(0.975, 7)
    half = math.sqrt(t_seeds**2 * spread.parts[0][0] + t_documents**2 * documents_part[0])
    assert spread.bounds() == pytest.approx((table.mean() - half, table.mean() + half))
    low, high = spread.bounds(spread.p_value() or 0)
    assert min(abs(low or 0), abs(high or 0)) == pytest.approx(0, abs=1e-9)
    assert over_seeds(table[:1], documents) == over_documents(table[0], documents)


def test_seeds_of_a_ratio_and_with_windows_that_one_of_them_lacks() -> None:
    rng = np.random.default_rng(7)
    table, sizes = rng.normal(5, 1, (3, 6)), rng.uniform(1, 2, 6)
    spread = over_seeds(table, range(6), sizes)
    assert spread.value == pytest.approx((table.sum(1) / sizes.sum()).mean())
    assert spread.parts[0][0] == pytest.approx((table.sum(1) / sizes.sum()).var(ddof=1) / 3)
    table[1, 2] = np.nan
    kept = [0, 1, 3, 4, 5]
    assert over_seeds(table, range(6)).bounds() == pytest.approx(over_seeds(table[:, kept], kept).bounds())


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([None, 0.01]) == [None, pytest.approx(0.02)] and holm([]) == []


# --- power ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [((1.0, 2.0),), ((1.0, 2.0), (0.5, 7.0)), ((0.2, 4.0), (0.3, 3.0), (0.1, 9.0))])
def test_power_is_how_often_zero_is_excluded(parts: tuple[tuple[float, float], ...]) -> None:
    rng, effect = np.random.default_rng(0), smallest_detectable(parts)
    assert power(effect, parts) == pytest.approx(0.8, abs=1e-3)
    shown = 0
    for _ in range(2000):
        value = effect + rng.normal() * sum(v for v, _ in parts) ** 0.5
        spread = Spread(value, tuple((v * rng.chisquare(f) / f, f) for v, f in parts))
        low, high = spread.bounds()
        shown += not (low or 0) <= 0 <= (high or 0)
    assert shown / 2000 == pytest.approx(0.8, abs=0.03)


def test_power_of_one_t_test_is_the_textbooks() -> None:
    """Ten seeds, a paired t test on an effect of one standard deviation: noncentral t."""
    freedom, quantile = 9, scipy.stats.t.ppf(0.975, 9)
    expected = 1 - scipy.stats.nct.cdf(quantile, freedom, 10**0.5) + scipy.stats.nct.cdf(-quantile, freedom, 10**0.5)
    assert power(1.0, [(1 / 10, 9.0)]) == pytest.approx(expected, abs=0.005)
    assert power(0.0, [(0.0, 3.0)]) == 0 and power(0.1, [(0.0, 3.0)]) == 1 and smallest_detectable([(0.0, 3.0)]) == 0


def test_seeds_needed() -> None:
    count = seeds_needed(1.0, 1.0)
    assert count == 10  # as a table of paired t tests says
    assert power(1.0, [(1 / 9, 8.0)]) < 0.8 <= power(1.0, [(1 / 10, 9.0)])
    assert seeds_needed(1.0, 1e-9) == 2
    assert seeds_needed(1.0, 1.0, (0.5, 7.0)) is None  # more text, not more seeds
    assert (seeds_needed(1.0, 1.0, (0.05, 7.0)) or 0) > count
    assert seeds_needed(0.0, 1.0) is None


# --- resampling, for labels -------------------------------------------------------------------------


def test_documents_are_drawn_whole() -> None:
    weights = document_weights([0, 0, 1, 2, 2, 2], seed=1, resamples=50)
    assert (
        weights.shape == (50, 6) and (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    )
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    windows = document_weights([4, 4, 4], seed=1, resamples=50)  # one document: its windows are drawn
    assert (windows.sum(1) == 3).all() and not (windows[:, 0] == windows[:, 1]).all()


def test_the_stretch() -> None:
    assert stretch(range(8)) == pytest.approx(
        (8 / 7) ** 0.5 * scipy.stats.t.ppf(0.975, 7) / scipy.stats.norm.ppf(0.975)
    )
    assert stretch([3] * 8) == pytest.approx(stretch(range(8)))
    assert stretch([0, 0, 0, 1]) == pytest.approx(2**0.5 * scipy.stats.t.ppf(0.975, 1) / scipy.stats.norm.ppf(0.975))
    assert stretch([0]) == 0


def test_weights_are_resamples() -> None:
    weights = resampling_weights(7, seed=1, resamples=50)
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and (weights >= 0).all()
    assert (resampling_weights(7, seed=2, resamples=50) != weights).any()


def test_weighted_means() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 4.0]])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    np.testing.assert_array_equal(weighted_means(values, weights), [[2, 4], [1, np.nan], [np.nan, 4]])


def test_an_interval_ends_where_the_number_does() -> None:
    spread = Spread(0.98, ((0.01, 4.0),))
    assert spread.clipped(-1, 1) == (pytest.approx(0.98 - scipy.stats.t.ppf(0.975, 4) * 0.1), 1.0)
    assert Spread(0.1, ((0.01, 4.0),)).clipped(0)[0] == 0.0
    assert spread.clipped() == spread.bounds() and Spread(1.0, ()).clipped(0, 1) == (None, None)
    assert Spread(1.1, ((0.0, 4.0),)).clipped(0, 1) == (1.1, 1.1)  # never without its own value


@pytest.mark.parametrize("freedom", [0.3, 1, 1.5, 2, 2.37, 4.9, 9, 30, 99, 101, 333.3, 1e4, 1e6, 3e7, math.inf])
def test_the_quantile_is_scipys(freedom: float) -> None:
    for alpha in (0.99, 0.5, 0.1, 0.05, 0.05 / 30, 1e-4, 1e-9):
        expected = -scipy.special.stdtrit(freedom, alpha / 2)
        assert _quantile(alpha, freedom) == pytest.approx(expected, rel=1e-8)
    assert _quantile(0.05, math.inf) == pytest.approx(1.959963984540054, rel=1e-14)
    assert _quantile(1e-300, freedom) > 30, "where scipy says infinite: the p of two parts is looked for from there"
    assert 0 <= _quantile(1 - 1e-12, freedom) < 1e-11


@pytest.mark.parametrize("freedom", [1.0, 1.5, 2.0, 9.0])
@pytest.mark.parametrize("value", [1e-9, 0.3, 5.0, 1e6, 1e100])
def test_a_p_of_two_parts_is_found_whatever_the_freedom(freedom: float, value: float) -> None:
    spread = Spread(value, ((1.0, freedom), (0.25, 3.0)))
    p = spread.p_value()
    assert p is not None and 0 <= p <= 1
    if 1e-250 < p < 1 - 1e-9:
        assert spread.half_width(p) == pytest.approx(value, rel=1e-6)
