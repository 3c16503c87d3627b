"""Every metric against golden numbers, independent implementations, closed forms, identities and hazards."""

import functools
import itertools
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from condense import geometry
from condense.geometry import spectrum, symmetric
from condense.geometry.rows import quantile
from condense.metrics import METRICS, PER_TEXT, SPECTRAL, UPDATES
from tests.clouds import cloud, states

GOLDEN = json.loads((Path(__file__).parent / "golden" / "geometry.json").read_text())
CASES = GOLDEN["cases"]
CLOUDS = [case["cloud"] for case in CASES]
PURE = [key for key in PER_TEXT if not key.endswith("_with_sink") and key != "mean_cosine_distinct"]
SCALE_FREE = [key for key in PURE if key not in ("total_variance", "median_norm")]
ROTATION_FREE = [key for key in PURE if "top_dimension" not in key]
RANKS = ("effective_rank", "entropy_rank", "effective_rank_with_sink")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['cloud']['seed']}")
every_cloud = pytest.mark.parametrize("recipe", CLOUDS, ids=lambda recipe: f"seed{recipe['seed']}")
every_key = pytest.mark.parametrize("key", PURE)


def pure(key: str, x: Tensor) -> Tensor:
    return getattr(geometry, key)(x)


def measured(x: Tensor, keep: Tensor | None = None, spectral: Tensor | None = None) -> dict[str, float]:
    """Everything `measure` and `ranks` give for one text."""
    spectral = torch.arange(len(x)) if spectral is None and keep is None else spectral
    found = geometry.measure(x, keep, spectral, sink_factor=math.inf).settled()
    above, below = found.extra["dimension_numerator"], found.extra["dimension_denominator"]
    dimension = above / below if below > 0 else math.nan
    return {**found.values, "dimension": dimension, "dimension_share": dimension / x.shape[-1]}


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True)


# --- an independent implementation, in numpy, scipy and scikit-learn --------------------------------


def entropy_exp(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights[weights > 0].sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def over_disjoint_pairs(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of first[i, j]·second[k, l] over all i, j, k, l that are four different rows; diagonals are 0."""
    n = len(first)
    rows = (first.sum(0) * second.sum(0)).sum()
    total = first.sum() * second.sum() - 4 * rows + 2 * (first * second).sum()
    return float(total / (n * (n - 1) * (n - 2) * (n - 3)))


def dimension_of(unit: np.ndarray) -> float:
    """(tr Σ)²/tr(Σ²): squared distances of disjoint pairs over the U-statistic of Chen, Zhang & Zhong 2010."""
    n = len(unit)
    if n < 4:
        return math.nan
    products = unit @ unit.T
    distances = np.diag(products)[:, None] + np.diag(products)[None] - 2 * products
    np.fill_diagonal(products, 0)
    np.fill_diagonal(distances, 0)
    pairs = (products**2).sum() / (n * (n - 1))
    triples = ((products.sum(0) ** 2).sum() - (products**2).sum()) / (n * (n - 1) * (n - 2))
    squared = pairs - 2 * triples + over_disjoint_pairs(products, products)
    return over_disjoint_pairs(distances, distances) / 4 / squared if squared > 1e-12 else math.nan


def oracle(x: np.ndarray) -> dict[str, float]:
    x = x.astype(np.float64)
    n, d = x.shape
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = cosine_similarity(x)[np.triu_indices(n, 1)]
    gram = cosine_similarity(x)
    parts = np.array(
        [(np.outer(unit[:, k], unit[:, k]).sum() - (unit[:, k] ** 2).sum()) / (n * (n - 1)) for k in range(d)]
    )
    top = np.argsort(-parts)[:3]
    rest = x.copy()
    rest[:, top] = 0
    norms = np.linalg.norm(x, axis=1)
    eigenvalues = scipy.linalg.eigvalsh(gram / n)
    mean = pairs.mean()
    return {
        "mean_cosine": mean,
        "cosine_std": pairs.std(),
        **{f"cosine_q{q:02d}": np.quantile(pairs, q / 100) for q in (5, 25, 50, 75, 95)},
        "effective_rank": entropy_exp(scipy.linalg.svdvals(unit - unit.mean(0))[: min(n - 1, d)]),
        "dimension": dimension_of(unit),
        "dimension_share": dimension_of(unit) / d,
        "entropy_rank": entropy_exp(eigenvalues),
        "participation_ratio": 1 / (pairs**2).mean(),
        "relative_variance": 1 - n * (x.mean(0) ** 2).sum() / (x**2).sum(),
        "total_variance": np.trace(np.atleast_2d(np.cov(x, rowvar=False))) / d,
        "median_norm": np.median(norms),
        "sink_ratio": norms.max() / np.median(norms),
        "top_dimension_share": parts[top].sum() / mean if mean >= 0.05 else math.nan,
        "mean_cosine_without_top_dimensions": cosine_similarity(rest)[np.triu_indices(n, 1)].mean(),
    }  # fmt: skip


RANDOM = [(100, 40, 24, 0.0), (101, 37, 64, 0.6), (102, 80, 16, 2.0), (103, 2, 9, 0.3), (104, 25, 4, 1.0)]
every_random = pytest.mark.parametrize(("seed", "n", "d", "cone"), RANDOM)


# --- golden and oracle ------------------------------------------------------------------------------


@every_case
def test_pure_functions_meet_the_golden_numbers(case: dict[str, Any]) -> None:
    x = states(**case["cloud"])
    for key, value in case["geometry"].items():
        if key == "top_dimensions":
            assert geometry.top_dimensions(x).tolist() == value
        else:
            assert float(pure(key, x)) == close(math.nan if value is None else value), key
    assert float(geometry.paper_mean_cosine(x)) == close(case["paper_mean_cosine"])


@every_case
def test_measure_meets_the_golden_numbers(case: dict[str, Any]) -> None:
    x = states(**case["cloud"])
    values, found = measured(x), geometry.measure(x, sink_factor=math.inf)
    for key, value in case["geometry"].items():
        if key == "top_dimensions":
            assert found.contributions.topk(3).indices.tolist() == value
        else:
            assert values[key] == close(math.nan if value is None else value), key
    assert found.extra["paper"] == close(case["paper_mean_cosine"])


@pytest.mark.parametrize("case", GOLDEN["cross_text"])
def test_cross_text_cosine_meets_the_golden_number(case: dict[str, Any]) -> None:
    value = geometry.cross_text_cosine([states(**recipe) for recipe in case["clouds"]])
    assert float(value) == close(case["cross_text_cosine"])


@every_random
def test_pure_functions_meet_the_oracle(seed: int, n: int, d: int, cone: float) -> None:
    x = cloud(seed, n, d, cone=cone)
    for key, value in oracle(x).items():
        assert float(pure(key, torch.from_numpy(x))) == pytest.approx(value, rel=1e-8, abs=1e-9, nan_ok=True), key


@every_random
def test_measure_meets_the_oracle(seed: int, n: int, d: int, cone: float) -> None:
    x = cloud(seed, n, d, cone=cone)
    values = measured(torch.from_numpy(x))
    for key, value in oracle(x).items():
        assert values[key] == pytest.approx(value, rel=1e-5, abs=2e-6, nan_ok=True), key


def test_the_oracle_covers_every_metric() -> None:
    assert set(oracle(cloud(1, 9, 5))) == set(PURE)
    assert set(measured(states(1, 9, 5))) == set(PER_TEXT)
    assert set(METRICS) - set(PER_TEXT) == {"cross_text_cosine", *UPDATES} and set(SPECTRAL) <= set(PURE)


@every_random
def test_variance_is_what_pca_explains(seed: int, n: int, d: int, cone: float) -> None:
    x = cloud(seed, n, d, cone=cone).astype(np.float64)
    explained = PCA().fit(x).explained_variance_.sum()
    assert float(geometry.total_variance(torch.from_numpy(x))) == pytest.approx(explained / d)


def test_with_sink_is_the_naive_number() -> None:
    x = cloud(7, 40, 24, cone=0.5, sink=300.0)
    keep = torch.ones(40, dtype=torch.bool)
    keep[[0, 39]] = False
    values = measured(torch.from_numpy(x), keep, torch.arange(1, 39))
    assert values["mean_cosine_with_sink"] == pytest.approx(oracle(x)["mean_cosine"], rel=1e-5)
    assert values["effective_rank_with_sink"] == pytest.approx(entropy_exp(scipy.linalg.svdvals(x)), rel=1e-4)
    norms = np.linalg.norm(x, axis=1)
    assert values["sink_ratio"] == pytest.approx(norms.max() / np.median(norms[1:39]), rel=1e-6)
    assert values["effective_rank_with_sink"] < 0.5 * values["effective_rank"]


def test_the_rank_with_sink_is_of_the_spectral_rows_and_the_specials_alone() -> None:
    x = cloud(8, 60, 24, cone=0.5, sink=50.0)
    keep = torch.ones(60, dtype=torch.bool)
    keep[[0, 59]] = False
    spectral = torch.tensor([3, 5, 8, 13, 21, 34, 55])
    rows = np.concatenate([x[spectral.numpy()], x[[0, 59]]])
    values = measured(torch.from_numpy(x), keep, spectral)
    assert values["effective_rank_with_sink"] == pytest.approx(entropy_exp(scipy.linalg.svdvals(rows)), rel=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_measure_on_a_subset_is_the_pure_functions_on_it(share: float) -> None:
    x = states(9, 70, 20, cone=0.8, rogue=3.0)
    keep = torch.rand(70, generator=torch.Generator().manual_seed(3)) < share
    spectral = torch.nonzero(keep).flatten()[::2]
    values = measured(x, keep, spectral)
    for key in PURE:
        rows = x[spectral] if key in SPECTRAL or key.startswith("dimension") else x[keep]
        expected = geometry.sink_ratio(x[keep], x) if key == "sink_ratio" else pure(key, rows)
        assert values[key] == close(float(expected)), key
    found = geometry.measure(x, keep, spectral, sink_factor=math.inf)
    assert found.count == int(keep.sum())
    assert torch.allclose(found.contributions, geometry.dimension_contributions(x[keep]), atol=1e-7)
    assert torch.equal(found.histogram, geometry.histogram(x[keep]))
    assert found.extra["paper"] == close(float(geometry.paper_mean_cosine(x)))


def test_default_spectral_rows_are_the_first_kept_ones() -> None:
    x = states(10, 300, 8)
    keep = torch.ones(300, dtype=torch.bool)
    keep[:7] = False
    values = measured(x, keep)
    assert values["entropy_rank"] == close(float(geometry.entropy_rank(x[7 : 7 + geometry.SPECTRAL_TOKENS])))


# --- closed forms -----------------------------------------------------------------------------------


def test_equal_rows() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, 3.0]).expand(6, 4)
    for value in (geometry.mean_cosine(x), geometry.entropy_rank(x), geometry.participation_ratio(x)):
        assert float(value) == pytest.approx(1, abs=1e-9)
    assert float(geometry.cosine_std(x)) == pytest.approx(0, abs=1e-7)
    assert float(geometry.relative_variance(x)) == float(geometry.total_variance(x)) == 0
    assert float(geometry.paper_mean_cosine(x)) == pytest.approx(1)
    assert int(geometry.histogram(x)[-1]) == 15


def test_orthonormal_rows() -> None:
    x = torch.eye(7, 11)
    assert float(geometry.mean_cosine(x)) == pytest.approx(0, abs=1e-12)
    assert float(geometry.entropy_rank(x)) == pytest.approx(7)
    assert float(geometry.effective_rank(x)) == pytest.approx(6)  # centring takes one direction
    assert math.isinf(float(geometry.participation_ratio(x)))
    assert float(geometry.relative_variance(x)) == pytest.approx(1 - 1 / 7)
    assert float(geometry.paper_mean_cosine(x)) == pytest.approx(1 / 7)


def test_an_opposite_pair() -> None:
    x = torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
    assert float(geometry.mean_cosine(x)) == pytest.approx(-1)
    assert float(geometry.effective_rank(x)) == pytest.approx(1)
    assert float(geometry.entropy_rank(x)) == pytest.approx(1)
    assert float(geometry.participation_ratio(x)) == pytest.approx(1)
    assert float(geometry.median_norm(x)) == 7.5
    assert float(geometry.sink_ratio(x)) == pytest.approx(10 / 7.5)
    assert float(geometry.paper_mean_cosine(x)) == pytest.approx(0, abs=1e-12)


def test_two_clusters() -> None:
    x = torch.eye(2).repeat_interleave(5, 0)
    assert float(geometry.mean_cosine(x)) == pytest.approx(20 / 45)
    assert float(geometry.entropy_rank(x)) == pytest.approx(2)
    assert [float(geometry.cosine_quantile(x, q)) for q in (0.0, 0.5, 1.0)] == [0, 0, 1]


def test_a_known_spectrum() -> None:
    """λ = (½, ¼, ¼): entropy 1.5 bit, so 2^1.5 directions."""
    x = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    assert float(geometry.entropy_rank(x)) == pytest.approx(2**1.5)


# --- the simulation table: what each metric sees (S = 512, d = 768) ---------------------------------


def simulated(case: str) -> np.ndarray:
    rng = np.random.default_rng(42)
    n, d = 512, 768
    x = rng.standard_normal((n, d))
    direction = rng.standard_normal(d)
    direction /= np.linalg.norm(direction)
    if case == "cone":
        x += direction * math.sqrt(d * 0.9 / 0.1)
    if case == "rogue":
        x[:, 3] += 60
    if case == "sink":
        x[0] *= 3000 / np.linalg.norm(x[0])
    if case == "power":
        x *= np.arange(1, d + 1) ** -0.5
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("case", "mean", "std", "raw", "entropy", "inverse"),
    [
        ("isotropic", 0.000, 0.036, 457, 366, 764),
        ("cone", 0.900, 0.005, 306, 2.5, 1.2),
        ("rogue", 0.825, 0.009, 349, 4.5, 1.5),
        ("sink", 0.000, 0.036, 233, 368, 775),
        ("power", 0.000, 0.159, 370, 122, 39),
    ],
)
def test_simulation_table(case: str, mean: float, std: float, raw: float, entropy: float, inverse: float) -> None:
    x = torch.from_numpy(simulated(case))
    keep = torch.ones(512, dtype=torch.bool)
    values = measured(x, keep, torch.arange(512))
    assert values["mean_cosine"] == pytest.approx(mean, abs=0.01)
    assert values["cosine_std"] == pytest.approx(std, abs=0.002)
    assert values["entropy_rank"] == pytest.approx(entropy, rel=0.05)
    assert values["participation_ratio"] == pytest.approx(inverse, rel=0.06)
    assert values["effective_rank_with_sink"] == pytest.approx(raw, rel=0.02)  # raw uncentred rows
    if case == "cone":  # centring is blind to the cone: that is what makes it a rank and not a second cone
        assert values["effective_rank"] == pytest.approx(457, rel=0.02)
    if case == "rogue":
        assert values["mean_cosine_without_top_dimensions"] == pytest.approx(0, abs=0.01)
        assert values["top_dimension_share"] == pytest.approx(1, abs=0.02)
    if case == "sink":
        assert values["sink_ratio"] == pytest.approx(3000 / math.sqrt(768), rel=0.02)


def test_gaussian_null_is_the_mean_of_gaussian_draws() -> None:
    assert geometry.gaussian_null("entropy_rank", 512, 768, draws=1) == pytest.approx(366, rel=0.01)
    rng = np.random.default_rng(5)
    draws = [oracle(rng.standard_normal((64, 48)).astype(np.float32)) for _ in range(6)]
    for key in SPECTRAL:
        expected = float(np.mean([draw[key] for draw in draws]))
        assert geometry.gaussian_null(key, 64, 48) == pytest.approx(expected, rel=0.01), key


def test_gaussian_null_is_seeded() -> None:
    first = geometry.gaussian_null("effective_rank", 20, 10)
    geometry.repeated_null.cache_clear()
    torch.manual_seed(99)
    assert geometry.gaussian_null("effective_rank", 20, 10) == first


# --- identities -------------------------------------------------------------------------------------


@every_cloud
def test_contributions_sum_to_the_mean_cosine(recipe: dict[str, Any]) -> None:
    x = states(**recipe)
    assert float(geometry.dimension_contributions(x).sum()) == pytest.approx(float(geometry.mean_cosine(x)), rel=1e-12)


@every_cloud
def test_participation_ratio_is_moments_of_the_cosine(recipe: dict[str, Any]) -> None:
    x = states(**recipe)
    second = float(geometry.cosine_std(x)) ** 2 + float(geometry.mean_cosine(x)) ** 2
    assert float(geometry.participation_ratio(x)) == pytest.approx(1 / second)


@every_cloud
def test_relative_variance_is_one_minus_the_mean_resultant(recipe: dict[str, Any]) -> None:
    x = states(**recipe).double()
    unit = x / x.norm(dim=1, keepdim=True)
    n = len(x)
    assert float(geometry.relative_variance(x)) == pytest.approx(
        1 - n * float(x.mean(0).square().sum() / x.square().sum())
    )
    resultant = (1 + (n - 1) * float(geometry.mean_cosine(x))) / n
    assert float(geometry.relative_variance(unit)) == pytest.approx(1 - resultant)


@every_cloud
def test_the_published_mean_counts_the_diagonal(recipe: dict[str, Any]) -> None:
    x = states(**recipe)
    n = len(x)
    expected = ((n - 1) * float(geometry.mean_cosine(x)) + 1) / n
    assert float(geometry.paper_mean_cosine(x)) == pytest.approx(expected)


def test_centring_with_the_same_tokens_says_nothing() -> None:
    """Why no "centred cosine" is offered: it is −1/(n−1) whatever the data, on rows of equal length."""
    x = states(3, 512, 64, cone=2.0).double()
    unit = x / x.norm(dim=1, keepdim=True)
    assert float(geometry.mean_cosine(unit - unit.mean(0))) == pytest.approx(-1 / 511, abs=2e-4)


def test_cross_text_is_the_mean_over_pairs_of_texts() -> None:
    texts = [states(s, n, 16, cone=0.7) for s, n in ((1, 5), (2, 9), (3, 7))]
    blocks = [cosine_similarity(a, b).ravel() for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]
    assert float(geometry.cross_text_cosine(texts)) == pytest.approx(np.concatenate(blocks).mean(), rel=1e-5)
    assert math.isnan(float(geometry.cross_text_cosine(texts[:1])))


# --- histogram and quantiles ------------------------------------------------------------------------


@every_cloud
def test_histogram_counts_every_pair(recipe: dict[str, Any]) -> None:
    x = states(**recipe)
    n = len(x)
    pairs = cosine_similarity(x.double().numpy())[np.triu_indices(n, 1)]
    expected = np.histogram(np.clip(pairs, -1, 1), bins=200, range=(-1, 1))[0]
    found = geometry.histogram(x)
    assert found.dtype == torch.int64 and int(found.sum()) == n * (n - 1) // 2
    assert np.abs(found.numpy() - expected).sum() <= 4  # a pair on an edge may fall on either side
    assert int(geometry.measure(x, sink_factor=math.inf).histogram.sum()) == n * (n - 1) // 2


@pytest.mark.parametrize("q", geometry.QUANTILES)
@pytest.mark.parametrize("n", [2, 3, 10, 41])
def test_quantiles_are_exact_on_ties(q: float, n: int) -> None:
    rng = np.random.default_rng(n)
    x = np.eye(5)[rng.integers(0, 5, n)].astype(np.float32)  # cosines are 0 or 1, nothing else
    pairs = (x @ x.T)[np.triu_indices(n, 1)]
    expected = np.quantile(pairs, q)
    tensor = torch.from_numpy(x)
    assert float(geometry.cosine_quantile(tensor, q)) == pytest.approx(expected, abs=1e-12)
    assert geometry.measure(tensor).values[f"cosine_q{round(100 * q):02d}"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_exact_on_many_pairs(seed: int) -> None:
    x = cloud(seed, 150 + seed, 12, cone=seed / 3)
    unit = torch.from_numpy(x) / torch.from_numpy(x).norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T).numpy()[np.triu_indices(len(x), 1)].astype(np.float64)
    for q in geometry.QUANTILES:
        expected = np.quantile(pairs, q)
        assert geometry.measure(torch.from_numpy(x)).values[f"cosine_q{round(100 * q):02d}"] == close(expected)


def test_quantile_outside_the_unit_interval() -> None:
    with pytest.raises(ValueError, match="q must be"):
        geometry.cosine_quantile(states(1, 4, 3), 1.5)


def test_quantiles_of_more_pairs_than_torch_sorts() -> None:
    """torch.quantile refuses 2^24 values; 5,900 rows have 17 million pairs."""
    values = torch.linspace(0, 1, 2**24 + 3, dtype=torch.float64)
    assert float(quantile(values, 0.25)) == pytest.approx(0.25)


# --- invariances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SCALE_FREE)
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_scale_changes_nothing(key: str, factor: float) -> None:
    x = states(11, 30, 20, cone=0.8, rogue=1.0)
    assert float(pure(key, factor * x)) == pytest.approx(float(pure(key, x)), rel=1e-5)


@pytest.mark.parametrize("key", ROTATION_FREE)
def test_rotation_changes_nothing(key: str) -> None:
    x = states(12, 30, 20, cone=0.8).double()
    turn = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert float(pure(key, x @ turn)) == pytest.approx(float(pure(key, x)), rel=1e-9)


@every_key
def test_order_changes_nothing(key: str) -> None:
    x = states(13, 31, 20, cone=0.8)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(1))
    columns = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert float(pure(key, x[order][:, columns])) == pytest.approx(float(pure(key, x)), rel=1e-9)
    assert measured(x[order])[key] == close(measured(x)[key])


@every_key
def test_batch_dimensions(key: str) -> None:
    x = torch.stack([states(s, 9, 6, cone=s / 3) for s in range(6)]).reshape(2, 3, 9, 6)
    result = pure(key, x)
    assert result.shape == (2, 3)
    assert float(result[1, 2]) == pytest.approx(float(pure(key, x[1, 2])), nan_ok=True)


def test_batch_dimensions_of_vectors() -> None:
    x = torch.stack([states(s, 9, 6) for s in range(4)]).reshape(2, 2, 9, 6)
    assert geometry.dimension_contributions(x).shape == (2, 2, 6)
    assert geometry.top_dimensions(x).shape == (2, 2, 3)
    assert geometry.histogram(x).shape == (2, 2, 200)
    assert geometry.sink_ratio(x[..., 1:, :], x).shape == (2, 2)


def test_each_text_loses_its_own_three_strongest_dimensions() -> None:
    a, b = states(1, 30, 12), states(2, 30, 12)
    a[:, 1] += 9
    b[:, 7] += 9
    value = geometry.mean_cosine_without_top_dimensions(torch.stack([a, b]))
    assert value.abs().max() < 0.1
    assert geometry.top_dimensions(torch.stack([a, b]))[:, 0].tolist() == [1, 7]


# --- hazards ----------------------------------------------------------------------------------------

directional = [k for k in PURE if k not in ("relative_variance", "total_variance", "median_norm", "sink_ratio")]


@pytest.mark.parametrize("key", directional)
def test_a_zero_row_is_left_out(key: str) -> None:
    x = states(14, 20, 10, cone=0.9)
    with_zero = torch.cat([x[:5], torch.zeros(1, 10), x[5:]])
    assert float(pure(key, with_zero)) == pytest.approx(float(pure(key, x)), rel=1e-9)
    assert measured(with_zero)[key] == close(measured(x)[key])


def test_a_row_beside_a_sink_still_has_a_direction() -> None:
    """1e-6 of the root mean square: a massive activation of 1e4 must not cost the others their direction."""
    x = states(15, 64, 16, cone=1.0)
    sunk = x.clone()
    sunk[0] *= 1e4
    assert float(geometry.mean_cosine(sunk)) == pytest.approx(float(geometry.mean_cosine(x)), rel=1e-5)


def test_only_zero_rows() -> None:
    x = torch.zeros(4, 3)
    for key in directional:
        assert math.isnan(float(pure(key, x))), key
    assert all(math.isnan(value) for value in geometry.measure(x).settled().values.values())


@pytest.mark.parametrize("key", [k for k in directional if k != "entropy_rank"] + ["total_variance"])
def test_one_row_has_no_geometry(key: str) -> None:
    assert math.isnan(float(pure(key, states(1, 1, 5))))


def test_one_row_has_a_norm_and_nothing_else() -> None:
    x = torch.tensor([[3.0, 4.0]])
    assert float(geometry.median_norm(x)) == 5 and float(geometry.sink_ratio(x)) == 1
    found = geometry.measure(x).settled()
    assert found.count == 1 and all(math.isnan(value) for value in found.values.values())
    few = geometry.measure(states(1, 5, 4), torch.tensor([True, False, False, False, False])).settled()
    naive = {"mean_cosine_with_sink", "effective_rank_with_sink"}
    assert {key for key, value in few.values.items() if math.isfinite(value)} == naive
    assert torch.equal(few.contributions, torch.zeros(4)) and int(few.histogram.sum()) == 0


@pytest.mark.parametrize("d", [1, 2, 3])
def test_few_dimensions(d: int) -> None:
    x = cloud(16, 12, d, cone=0.5)
    for key, value in oracle(x).items():
        if key == "mean_cosine_without_top_dimensions":  # nothing is left
            assert math.isnan(float(pure(key, torch.from_numpy(x))))
            assert math.isnan(measured(torch.from_numpy(x))[key])
        else:
            assert float(pure(key, torch.from_numpy(x))) == pytest.approx(value, rel=1e-7, abs=1e-9, nan_ok=True), key
    assert geometry.top_dimensions(torch.from_numpy(x)).shape == (d,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = states(17, 8, 5)
    x[3, 2] = bad
    for key in PURE:
        with pytest.raises(ValueError, match="not finite"):
            pure(key, x)
    with pytest.raises(ValueError, match="1 of 8 states are not finite"):
        geometry.measure(x)


def test_shapes_and_types_that_are_refused() -> None:
    for wrong in (torch.zeros(5), torch.zeros(0, 5), torch.zeros(5, 0), torch.ones(3, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="states must be"):
            geometry.mean_cosine(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_full(dtype: torch.dtype) -> None:
    """The input's rounding is the only one: the same rows in float32 give the same numbers."""
    x = (100 * states(18, 24, 16, cone=0.5)).to(dtype)  # squares overflow float16
    expected = measured(x.float())
    for key, value in measured(x).items():
        assert value == close(expected[key]), key
    for key in PURE:
        assert float(pure(key, x)) == close(float(pure(key, x.float()))), key


@pytest.mark.parametrize("factor", [1e20, 1e-20])
def test_huge_and_tiny_rows(factor: float) -> None:
    x = states(19, 24, 16, cone=0.5).double()
    expected = measured(x.float())
    squared = {"total_variance": factor**2, "median_norm": factor}
    values = measured((factor * x).float())
    for key in PURE:
        wanted = pytest.approx(expected[key] * squared.get(key, 1), rel=1e-4)
        assert float(pure(key, factor * x)) == wanted, key
        assert values[key] == wanted, key
    assert values["effective_rank_with_sink"] == pytest.approx(expected["effective_rank_with_sink"], rel=1e-4)


def test_a_large_offset_does_not_eat_the_variance() -> None:
    x = (states(20, 50, 8).double() + 1e4).float()
    expected = oracle(x.numpy())
    values = measured(x)
    for key in ("relative_variance", "total_variance"):
        assert values[key] == pytest.approx(expected[key], rel=1e-4)


def test_inputs_are_left_alone_and_need_no_gradient() -> None:
    x = states(21, 10, 6).requires_grad_()
    before = x.detach().clone()
    values = measured(x)
    assert not geometry.mean_cosine(x).requires_grad and math.isfinite(values["mean_cosine"])
    assert torch.equal(x.detach(), before)


def test_measure_takes_inference_tensors_and_views() -> None:
    with torch.inference_mode():
        x = states(22, 20, 12, cone=0.4)
        wide = torch.cat([x, x], dim=1)[:, :12]
        assert measured(wide) == pytest.approx(measured(x), nan_ok=True)


def test_ranges_of_the_metrics_table() -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {key: functools.partial(pure, key) for key in PURE}
    for seed in range(6):
        x = states(seed, 12, 5, cone=seed / 2)
        for key, function in functions.items():
            value, metric = float(function(x)), METRICS[key]
            if math.isnan(value):
                continue
            assert metric.low is None or value >= metric.low - 1e-9, key
            assert metric.high is None or value <= metric.high + 1e-9, key


# --- pairs of different tokens ----------------------------------------------------------------------


def distinct_by_pairs(x: np.ndarray, ids: np.ndarray) -> float:
    cosines = cosine_similarity(x.astype(np.float64))
    different = ids[:, None] != ids[None]
    return float(cosines[different].mean()) if different.any() else math.nan


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_the_distinct_mean_is_over_pairs_of_different_tokens(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    x, ids = cloud(30, 40, 12, cone=0.7), rng.integers(0, tokens, 40)
    expected = pytest.approx(distinct_by_pairs(x, ids), rel=1e-8, nan_ok=True)
    tensor, numbers = torch.from_numpy(x), torch.from_numpy(ids)
    assert float(geometry.mean_cosine_distinct(tensor, numbers)) == expected
    value = geometry.measure(tensor, ids=numbers).values["mean_cosine_distinct"]
    assert value == expected


def test_without_repetition_the_distinct_mean_is_the_mean() -> None:
    x = states(31, 30, 8, cone=1.0)
    value = float(geometry.mean_cosine_distinct(x, torch.arange(30)))
    assert value == pytest.approx(float(geometry.mean_cosine(x)), rel=1e-12)


def test_what_the_verdict_reads_over_distinct_pairs() -> None:
    """Without the top dimensions and with the sink: the same quantities, over pairs of different tokens."""
    x, ids = cloud(32, 50, 12, cone=0.7, rogue=4.0, sink=200.0), np.random.default_rng(0).integers(0, 9, 50)
    keep = torch.ones(50, dtype=torch.bool)
    keep[0] = False
    found = geometry.measure(torch.from_numpy(x), keep, ids=torch.from_numpy(ids))
    kept, rest = ids[1:], x[1:].copy()
    rest[:, geometry.top_dimensions(torch.from_numpy(rest)).numpy()] = 0
    assert found.values["mean_cosine_distinct"] == pytest.approx(distinct_by_pairs(x[1:], kept), rel=1e-6)
    assert found.extra["without_distinct"] == pytest.approx(distinct_by_pairs(rest, kept), rel=1e-6)
    assert found.extra["sink_distinct"] == pytest.approx(distinct_by_pairs(x, ids), rel=1e-6)


def test_a_zero_row_is_left_out_of_distinct_pairs() -> None:
    x, ids = states(33, 20, 6, cone=0.5), torch.arange(20) % 3
    longer = torch.cat([x, torch.zeros(1, 6)])
    value = float(geometry.mean_cosine_distinct(longer, torch.cat([ids, torch.tensor([9])])))
    assert value == pytest.approx(float(geometry.mean_cosine_distinct(x, ids)), rel=1e-12)
    with pytest.raises(ValueError, match="do not fit"):
        geometry.mean_cosine_distinct(x, ids[:3])


def test_sums_of_shared_tokens() -> None:
    x, ids = states(34, 20, 6, cone=0.5), torch.arange(20) % 4
    keep = torch.ones(20, dtype=torch.bool)
    keep[:2] = False
    found = geometry.measure(x, keep, ids=ids, shared=torch.stack([ids == 3, ids == 1]))
    units = torch.nn.functional.normalize(x.double(), dim=1)
    for row, token in zip(found.shared, (3, 1), strict=True):
        chosen = keep & (ids == token)
        assert torch.allclose(row[:-1], units[chosen].sum(0)) and int(row[-1]) == int(chosen.sum())
    assert geometry.measure(x, keep).shared.shape == (0, 7)


def test_same_pairs_are_ordered_and_of_one_token() -> None:
    ids = torch.tensor([5, 2, 5, 2, 5])
    assert geometry.same_pairs(ids).tolist() == [[0, 0, 1, 2], [2, 4, 3, 4]]
    x = states(35, 5, 4, cone=0.4)
    known = geometry.measure(x, ids=ids, same=geometry.same_pairs(ids)).values
    assert known == pytest.approx(geometry.measure(x, ids=ids).values, nan_ok=True)


def test_distinct_pairs_across_blocks_of_the_gram_matrix() -> None:
    """1,100 rows are three blocks; pairs of one token lie inside a block and across."""
    x, ids = cloud(36, 1100, 12, cone=0.7), np.random.default_rng(0).integers(0, 30, 1100)
    value = geometry.measure(torch.from_numpy(x), ids=torch.from_numpy(ids)).values["mean_cosine_distinct"]
    assert value == pytest.approx(distinct_by_pairs(x, ids), rel=1e-6)


# --- symmetric matrices -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d", "cone"), [(1, 5, 0.0), (2, 5, 1.0), (3, 3, 1.0), (40, 24, 0.5), (60, 9, 5.0)])
def test_eigenvalues_with_and_without_the_mean(n: int, d: int, cone: float) -> None:
    x = cloud(40, n, d, cone=cone).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    gram, centred = unit @ unit.T, unit - unit.mean(0)
    whole, rest, squares = symmetric.with_and_without_mean(gram)
    assert whole.eigenvalues() == pytest.approx(scipy.linalg.eigvalsh(gram), abs=1e-12)
    assert rest.eigenvalues() == pytest.approx(scipy.linalg.eigvalsh(centred @ centred.T)[1:], abs=1e-12)
    assert squares == pytest.approx(np.square(centred @ centred.T).sum(), abs=1e-12)
    assert symmetric.tridiagonal(gram).eigenvalues() == pytest.approx(whole.eigenvalues(), abs=1e-12)


def test_of_a_symmetric_matrix_only_the_upper_triangle_is_read() -> None:
    """Also where it is a part of a larger one, as in a text with rows that only the metrics with sink keep."""
    x = cloud(45, 33, 40, cone=0.5).astype(np.float64)
    gram, lengths = x @ x.T, np.linalg.norm(x, axis=1)
    upper = np.triu(gram)
    upper[np.tril_indices(33, -1)] = math.nan
    for ours, full in zip(
        symmetric.with_and_without_mean(upper[:30, :30])[:2],
        symmetric.with_and_without_mean(gram[:30, :30])[:2],
        strict=True,
    ):
        assert ours.eigenvalues() == pytest.approx(full.eigenvalues(), rel=1e-12, abs=1e-12)
    raw = symmetric.tridiagonal(np.triu(gram / lengths / lengths[:, None]), lengths).eigenvalues()
    assert raw == pytest.approx(scipy.linalg.eigvalsh(gram), rel=1e-10)
    assert symmetric.row_sums(upper[:30, :30]) == pytest.approx(gram[:30, :30].sum(1), rel=1e-12)


def test_equal_rows_leave_nothing_without_their_mean() -> None:
    assert not symmetric.with_and_without_mean(np.ones((256, 256)))[1].eigenvalues().any()


SPREADS = {
    "open": {},
    "a cone": {"cone": 2.0},
    "nearly one direction": {"cone": 300.0},
    "a rogue coordinate": {"cone": 0.5, "rogue": 40.0},
    "a massive sink": {"cone": 0.5, "sink": 2000.0},
}


def by_eigenvalues(gram: np.ndarray, *, roots: bool, noise: float = 0.0) -> float:
    """The definition, from LAPACK's eigenvalues."""
    values = scipy.linalg.eigvalsh(gram)
    values = np.where(values > max(noise, len(values) * 2.2e-16 * values.max()), values, 0.0)
    p = np.sqrt(values) if roots else values
    p = p[p > 0] / p.sum()
    return float(np.exp(-p @ np.log(p)))


@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize(("n", "d"), [(40, 64), (64, 63), (64, 20), (2, 9)])
def test_ranks_from_resolvents_are_those_of_the_eigenvalues(kind: str, n: int, d: int) -> None:
    """Full rank, one short of it, and far from it; raw rows, unit rows, and these without their mean."""
    x = cloud(43, n, d, **SPREADS[kind]).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    whole, centred, _ = symmetric.with_and_without_mean(unit @ unit.T)
    raw = symmetric.tridiagonal(x @ x.T)
    mean = unit - unit.mean(0)
    for form, gram, roots, noise in (
        (whole, unit @ unit.T, False, 0.0),
        (raw, x @ x.T, True, 0.0),
        (centred, mean @ mean.T, True, 16 * 2.2e-16 * n),
    ):
        expected = by_eigenvalues(gram, roots=roots, noise=noise)
        (found,) = spectrum.perplexities([form], roots=roots)
        assert found == pytest.approx(expected, rel=1e-8), (kind, roots)


def test_repeated_and_zero_rows_are_counted_by_their_eigenvalues() -> None:
    """Eigenvalues that are only rounding: no share of them is left, however many there are."""
    x = np.repeat(cloud(44, 20, 40).astype(np.float64), 5, axis=0)
    gram = x @ x.T
    (found,) = spectrum.perplexities([symmetric.tridiagonal(gram)], roots=True)
    assert found == pytest.approx(by_eigenvalues(gram, roots=True), rel=1e-9) and found < 20
    nothing = symmetric.tridiagonal(np.zeros((4, 4)))
    assert math.isnan(spectrum.perplexities([nothing], roots=True)[0]) and spectrum.perplexities([], roots=False) == []
    assert spectrum.perplexities([symmetric.tridiagonal(np.eye(1))], roots=True) == [pytest.approx(1.0)]


def test_ranks_do_not_depend_on_what_is_measured_beside_them() -> None:
    """To the last bit: a resumed run measures a text by itself, a whole one among others."""
    forms = [symmetric.tridiagonal(np.cov(cloud(seed, n, 50))) for seed in range(7) for n in (30, 31)]
    for roots in (True, False):
        together = spectrum.perplexities(forms, roots=roots)
        assert together == [spectrum.perplexities([form], roots=roots)[0] for form in forms]
        assert together[3:5] == spectrum.perplexities(forms[3:5], roots=roots)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_upper_triangle_of_a_gram_matrix(dtype: type) -> None:
    rows = cloud(41, 33, 7).astype(dtype)
    expected = np.triu(rows.astype(np.float64) @ rows.astype(np.float64).T)
    assert np.triu(symmetric.upper_gram(rows)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert np.triu(symmetric.upper_gram(np.asfortranarray(rows))) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_what_is_above_the_diagonal_row_by_row(n: int, dtype: type) -> None:
    matrix = cloud(46, n, n).astype(dtype)
    entries = np.full(n * (n - 1) // 2, math.nan, dtype=dtype)
    symmetric.above_diagonal(matrix, entries)
    assert np.array_equal(entries, matrix[np.triu_indices(n, 1)])


def test_other_threads_run_while_lapack_does() -> None:
    """scipy's own Python functions keep the interpreter to themselves: a pool of threads would wait in line."""
    gram, beats, done = np.cov(cloud(42, 900, 1000).astype(np.float64)), [], threading.Event()

    def beat() -> None:
        while not done.wait(0.001):
            beats.append(time.perf_counter())

    thread = threading.Thread(target=beat)
    thread.start()
    begun = time.perf_counter()
    symmetric.tridiagonal(gram).eigenvalues()
    ended = time.perf_counter()
    done.set()
    thread.join()
    assert sum(begun < moment < ended for moment in beats) > 5


# --- dimension --------------------------------------------------------------------------------------


def test_the_moments_are_u_statistics_over_every_four_rows() -> None:
    x = cloud(40, 7, 5, cone=0.6).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    above, below = [], []
    for i, j, k, m in itertools.permutations(range(7), 4):
        first, second = unit[i] - unit[j], unit[k] - unit[m]
        above.append((first @ first) * (second @ second) / 4)
        below.append((first @ second) ** 2 / 4)
    found = geometry.measure(torch.from_numpy(x)).settled().extra
    assert found["dimension_numerator"] == pytest.approx(np.mean(above))
    assert found["dimension_denominator"] == pytest.approx(np.mean(below))


@pytest.mark.parametrize("n", [32, 64, 256, 1024])
def test_the_dimension_does_not_depend_on_the_number_of_rows(n: int) -> None:
    """Unit rows spread evenly in 64 of 1,024 dimensions: 64 at any n, where the rank's null ratio falls sixfold."""
    generator = torch.Generator().manual_seed(n)
    moments = np.zeros(2)
    for _ in range(max(4, 2048 // n)):
        rows = torch.randn(n, 64, generator=generator, dtype=torch.float64)
        units = torch.nn.functional.normalize(rows, dim=1)
        gram = units @ units.T
        centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
        moments += [float(moment) for moment in geometry.dimension_moments(centred)]
    assert moments[0] / moments[1] == pytest.approx(64, rel=0.03)


def test_the_null_ratio_of_the_same_cloud_does_depend_on_it() -> None:
    ratios = []
    for n in (31, 255):
        rows = torch.randn(n, 64, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        ratios.append(float(geometry.effective_rank(rows)) / geometry.gaussian_null("effective_rank", n, 1024))
    assert ratios[0] > 0.9 and ratios[1] < 0.3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_dimension_below_four_rows(n: int) -> None:
    assert math.isnan(float(geometry.dimension(states(1, n, 6))))
    assert math.isnan(geometry.measure(states(1, n, 6)).settled().extra["dimension_denominator"])


# --- sinks ------------------------------------------------------------------------------------------


def test_a_sink_is_found_wherever_it_stands() -> None:
    x, keep = states(50, 64, 16, cone=0.5), torch.ones(64, dtype=torch.bool)
    keep[0] = False
    sunk = x.clone()
    sunk[[0, 7, 20]] *= 60.0
    assert torch.nonzero(geometry.sinks(sunk, keep)).flatten().tolist() == [0, 7, 20]
    found, without = geometry.measure(sunk, keep).settled(), keep.clone()
    without[[7, 20]] = False
    expected = geometry.measure(x, without, torch.nonzero(without).flatten()).settled()
    naive = ("mean_cosine_with_sink", "effective_rank_with_sink", "sink_ratio")
    for key, value in found.values.items():
        assert key in naive or value == close(expected.values[key]), key
    assert found.count == 61 and sorted(found.sinks[:, 0].int().tolist()) == [0, 7, 20]
    assert found.values["mean_cosine_with_sink"] == close(float(geometry.mean_cosine(sunk)))
    kept = torch.nonzero(without).flatten()
    rows = torch.cat([sunk[kept], sunk[[0, 7, 20]]]).double().numpy()
    assert found.values["effective_rank_with_sink"] == close(entropy_exp(scipy.linalg.svdvals(rows)))


@pytest.mark.parametrize(("factor", "count"), [(19.9, 0), (20.1, 1)])
def test_the_factor_is_of_the_median_before_detection(factor: float, count: int) -> None:
    x = torch.nn.functional.normalize(states(51, 41, 8), dim=1)
    x[5] *= factor
    assert int(geometry.sinks(x).sum()) == len(geometry.measure(x).sinks) == count


def test_spectral_rows_that_are_sinks_are_dropped_and_not_redrawn() -> None:
    x, keep = states(52, 40, 8, cone=0.5), torch.ones(40, dtype=torch.bool)
    spectral = torch.tensor([2, 5, 9, 14, 30])
    x[9] *= 100.0
    found = geometry.measure(x, keep, spectral).settled()
    assert found.values["entropy_rank"] == close(float(geometry.entropy_rank(x[[2, 5, 14, 30]])))
    assert found.repeats.tolist() == [[1, 4]]


def test_the_channels_of_a_sink() -> None:
    x = states(53, 30, 8)
    x[4] = torch.zeros(8)
    x[4, 6], x[4, 2] = 500.0, -900.0
    position, ratio, first, second = geometry.measure(x).sinks[0].tolist()
    others = x[[i for i in range(30) if i != 4]]
    assert (position, first, second) == (4, 2, 6)
    assert ratio == close(float(x[4].norm()) / float(geometry.median_norm(others)))


def test_too_few_rows_are_left_beside_sinks() -> None:
    x = torch.tensor([[1.0, 0, 0], [100.0, 1, 0], [0, 1.0, 0]])
    found = geometry.measure(x, torch.tensor([True, True, False])).settled()
    assert found.count == 2  # the median of two lies between them: 100 is no sink beside 1
    alone = geometry.measure(x, torch.tensor([True, False, False])).settled()
    assert alone.count == 1 and math.isnan(alone.values["mean_cosine"]) and math.isnan(alone.values["effective_rank"])
    nothing = geometry.measure(x, torch.zeros(3, dtype=torch.bool)).settled()
    assert nothing.count == 0 and math.isfinite(nothing.values["mean_cosine_with_sink"])
    assert math.isnan(geometry.gaussian_null("effective_rank", 1, 8))


# --- ranges, and nulls of texts that repeat ----------------------------------------------------------


def test_rounding_does_not_leave_the_range() -> None:
    """Equal rows: the sums give 1.0000000000000002 without a clamp."""
    for seed in range(40):
        x = states(seed, 1, 7).double().expand(5 + seed, 7)
        found = geometry.measure(x, sink_factor=math.inf).settled()
        assert float(geometry.mean_cosine(x)) <= 1 and found.extra["paper"] <= 1
        for key, value in found.values.items():
            metric = METRICS[key]
            assert math.isnan(value) or metric.high is None or value <= metric.high, key
            assert math.isnan(value) or metric.low is None or value >= metric.low, key


def test_the_null_of_a_text_that_repeats_itself() -> None:
    """Five tokens, each ten times: no more than four directions are left once the mean is taken away."""
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(geometry.effective_rank(rows.repeat_interleave(10, 0)))
    assert geometry.repeated_null("effective_rank", ((10, 5),), 64) == pytest.approx(expected, rel=0.05)
    assert geometry.repeated_null("effective_rank", ((10, 5),), 64) < 4.001
    assert geometry.repeated_null("entropy_rank", ((1, 30),), 16) == geometry.gaussian_null("entropy_rank", 30, 16)
