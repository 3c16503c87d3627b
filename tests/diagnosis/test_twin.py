"""A model against random initialisations of its kind: three answers, and how often the wrong one by chance."""

import numpy as np
import pytest
import scipy.stats

from condense.diagnosis.twin import compare_with_twins
from condense.records.base import Estimate


def estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), per_text=tuple(values.tolist()))


def simulated(rng: np.random.Generator, shift: float = 0.0, count: int = 3, documents: int = 16) -> str:
    """The answer where the model is one more draw of the initialisations, moved by `shift`."""
    text = rng.normal(0.5, 0.05, documents)  # a document moves all models alike
    own, *twins = (estimate(text + rng.normal(0, 0.04) + rng.normal(0, 0.02, documents)) for _ in range(1 + count))
    own = estimate(np.array(own.per_text) + shift)
    twin = compare_with_twins(own, twins, range(documents))
    assert twin is not None
    return twin.word


@pytest.mark.parametrize("count", [3, 5])
def test_an_untrained_model_is_rarely_told_from_its_twins(count: int) -> None:
    """Without the model's own draw, 1 + 1/K, it would be in 16 to 32 % of cases."""
    rng = np.random.default_rng(count)
    words = [simulated(rng, count=count) for _ in range(500)]
    assert sum(word != "not distinguishable" for word in words) / 500 <= 0.07


@pytest.mark.parametrize(("shift", "word"), [(0.6, "more"), (-0.6, "less")])
def test_a_trained_model_is(shift: float, word: str) -> None:
    rng = np.random.default_rng(1)
    assert [simulated(rng, shift) for _ in range(50)].count(word) >= 48


def test_the_variance_has_the_draw_of_the_model_in_it() -> None:
    rng = np.random.default_rng(2)
    own, *twins = (rng.normal(0.5, 0.05, 8) + level for level in (0.0, 0.1, -0.05, 0.02))
    twin = compare_with_twins(estimate(own), [estimate(values) for values in twins], range(8))
    differences = own - np.mean(twins, axis=0)
    over_documents = scipy.stats.t.ppf(0.975, 7) ** 2 * differences.var(ddof=1) / 8
    initial = np.var([values.mean() for values in twins], ddof=1) * (1 + 1 / 3)
    half = (over_documents + scipy.stats.t.ppf(0.975, 2) ** 2 * initial) ** 0.5
    assert twin is not None and twin.count == 3
    assert twin.difference.value == pytest.approx(differences.mean())
    assert (twin.difference.low, twin.difference.high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half)
    )
    assert (twin.lowest, twin.highest) == pytest.approx((min(v.mean() for v in twins), max(v.mean() for v in twins)))


def test_a_difference_below_the_smallest_effect_is_no_answer() -> None:
    own, twins = estimate(np.full(6, 0.505)), [estimate(np.full(6, 0.5))] * 3
    twin = compare_with_twins(own, twins, range(6))
    assert twin is not None and twin.word == "not distinguishable" and twin.difference.low == pytest.approx(0.005)
    clear = compare_with_twins(estimate(np.full(6, 0.52)), twins, range(6))
    assert clear is not None and clear.word == "more"


def test_what_cannot_be_compared() -> None:
    own, twins = estimate(np.full(6, 0.5)), [estimate(np.full(6, 0.5))] * 3
    assert compare_with_twins(Estimate(None), twins, range(6)) is None
    assert compare_with_twins(own, [*twins, Estimate(None)], range(6)) is None
    unknown = compare_with_twins(estimate(np.full(6, 0.9)), twins, ())
    assert unknown is not None and unknown.word == "not distinguishable" and unknown.difference.low is None
