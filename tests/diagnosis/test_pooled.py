"""One vector per text, against plain numpy; halves that find each other, against a loop; hazards."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from condense.diagnosis.pooled import BLIND_CLS, NO_CLS, NO_HALVES, ONE_DOCUMENT, halves_of, pool, pooled_view
from condense.diagnosis.resume import decode, encode
from condense.diagnosis.run import analyze
from condense.metrics import POOLED, POOLINGS
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import windows


def cloud(n: int = 12, d: int = 20, cone: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.standard_normal((n, d)) + cone * rng.standard_normal(d)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def view_of(rows: np.ndarray, documents: Any, halves: np.ndarray | None = None) -> dict[str, Any]:
    """The view of windows whose three vectors are all `rows`; halves (N, 2, d)."""
    vectors = [torch.tensor(row, dtype=torch.float64).repeat(3, 1) for row in rows]
    parts: list[Any] = [None] * len(rows)
    if halves is not None:
        parts = [torch.tensor(half, dtype=torch.float64)[:, None].repeat(1, 3, 1) for half in halves]
    return pooled_view(vectors, parts, documents)


# --- the vectors -------------------------------------------------------------------------------------


def test_the_vectors_of_a_text() -> None:
    x = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    x[4] *= 1000  # a sink: not in the mean
    keep = torch.ones(9, dtype=torch.bool)
    keep[[0, 8]] = False
    found = pool(torch.from_numpy(x), keep, begins_with_special=True).double().numpy()
    mean = x[[1, 2, 3, 5, 6, 7]].astype(float).mean(0)
    for row, expected in zip(found, (mean, x[7], x[0]), strict=True):
        assert np.allclose(row, expected / np.linalg.norm(expected), atol=1e-6)
    assert found.shape == (3, 6)
    without = pool(torch.from_numpy(x), keep, begins_with_special=False)
    assert bool(torch.isnan(without[2]).all()) and torch.equal(without[:2], torch.from_numpy(found[:2]).float())
    nothing = pool(torch.from_numpy(x), torch.zeros(9, dtype=torch.bool), begins_with_special=False)
    assert bool(torch.isnan(nothing).all())
    huge = pool(torch.from_numpy(x).double() * 1e150, keep, begins_with_special=True)
    assert np.allclose(huge.numpy(), found, atol=1e-6)
    assert bool(torch.isnan(pool(torch.zeros(9, 6), keep, begins_with_special=True)).all())  # no direction


@pytest.mark.parametrize(("first", "content", "last"), [(0, 8, 0), (1, 8, 0), (1, 9, 1), (0, 7, 2), (0, 1, 0)])
def test_halves_are_texts_of_their_own(first: int, content: int, last: int) -> None:
    ids = torch.arange(first + content + last)
    special = torch.tensor([True] * first + [False] * content + [True] * last)
    cut, marked = halves_of(ids, special)
    half = content // 2
    around = list(range(first)), list(range(first + content, first + content + last))
    assert cut[0].tolist() == [*around[0], *range(first, first + half), *around[1]]
    assert cut[1].tolist() == [*around[0], *range(first + content - half, first + content), *around[1]]
    assert marked.tolist() == [[True] * first + [False] * half + [True] * last] * 2


# --- numbers against plain numpy ---------------------------------------------------------------------


@pytest.mark.parametrize("documents", [tuple(range(12)), (0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 4)])
def test_cosine_between_texts(documents: tuple[int, ...]) -> None:
    rows = cloud()
    of = view_of(rows, documents)["mean"]["cosine"]

    def plain(chosen: list[int]) -> float:
        pairs = [rows[i] @ rows[j] for i in chosen for j in chosen if documents[i] != documents[j]]
        return float(np.mean(pairs))

    assert of.value == pytest.approx(plain(list(range(12))), abs=1e-12)
    groups = sorted(set(documents))
    deleted = [plain([i for i in range(12) if documents[i] != group]) for group in groups]
    assert of.deleted == pytest.approx(deleted, abs=1e-12)
    shares = np.array([documents.count(group) / 12 for group in groups])
    variance = (len(groups) - 1) / len(groups) * np.square(np.array(deleted) - np.mean(deleted)).sum()
    import scipy.stats

    half = scipy.stats.t.ppf(0.975, 1 / np.square(shares).sum() - 1) * math.sqrt(variance)
    assert (of.low, of.high) == pytest.approx((max(-1, of.value - half), min(1, of.value + half)), abs=1e-9)


def test_dimension_and_effective_rank() -> None:
    rows = cloud(n=14, d=9)
    found = view_of(rows, tuple(range(14)))["last"]
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    singular = singular[singular > 1e-12]
    p = singular / singular.sum()
    assert found["effective_rank"].value == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert found["effective_rank"].null_ratio == pytest.approx(
        found["effective_rank"].value / found["effective_rank"].null
    )
    # (tr Σ)²/tr(Σ²) by U-statistics written out over distinct indices
    n, differences = len(rows), rows[:, None] - rows[None]
    lengths = np.square(differences).sum(2) / 2  # E over i≠j is tr Σ
    numerator = denominator = 0.0
    count = 0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for m in range(n):
                    if len({i, j, k, m}) == 4:
                        numerator += lengths[i, j] * lengths[k, m]
                        denominator += (differences[i, j] @ differences[k, m]) ** 2 / 4
                        count += 1
    assert found["dimension"].value == pytest.approx(numerator / denominator, rel=1e-9)
    for key in ("dimension", "effective_rank"):
        assert found[key].low < found[key].value < found[key].high and len(found[key].deleted) == 14


def test_a_half_without_a_vector_is_not_called_one_text() -> None:
    """All tokens of a half may be sinks."""
    halves = cloud(n=10, d=12, seed=5)[:, None] * np.ones((10, 2, 1))
    halves[3, 1] = np.nan
    found = view_of(cloud(n=10, d=12, seed=5), tuple(range(10)), halves)["mean"]["halves_found"]
    assert found.value is None and found.reason == "half a text has no such vector"


def test_halves_that_find_each_other() -> None:
    rng = np.random.default_rng(5)
    own = cloud(n=10, d=12, seed=5)
    halves = own[:, None] + 0.35 * rng.standard_normal((10, 2, 12))
    halves /= np.linalg.norm(halves, axis=2, keepdims=True)
    found = view_of(own, tuple(range(10)), halves)["mean"]["halves_found"]
    hits = []
    for i in range(10):
        one = max(range(10), key=lambda j: halves[i, 0] @ halves[j, 1]) == i
        other = max(range(10), key=lambda j: halves[i, 1] @ halves[j, 0]) == i
        hits.append((one + other) / 2)
    assert 0 < np.mean(hits) < 1  # the case decides something
    assert found.per_text == tuple(hits) and found.value == pytest.approx(np.mean(hits)) and found.null == 0.1
    assert 0 <= found.low <= found.value <= found.high <= 1
    same = view_of(own, tuple(range(10)), np.repeat(own[:, None], 2, axis=1))["mean"]["halves_found"]
    assert same.value == same.low == same.high == 1
    collapsed = np.broadcast_to(own[0], (10, 2, 12)).copy()
    assert view_of(own, tuple(range(10)), collapsed)["mean"]["halves_found"].value == pytest.approx(0.1)


# --- hazards -----------------------------------------------------------------------------------------


def test_what_is_undefined_says_why() -> None:
    rows = cloud()
    one = view_of(rows, (0,) * 12)["mean"]
    assert one["cosine"].value is None and one["cosine"].reason == ONE_DOCUMENT
    assert one["effective_rank"].low is not None  # over its windows
    unknown = view_of(rows, ())["mean"]
    assert unknown["dimension"].value is not None and unknown["dimension"].low is None and unknown["dimension"].reason
    single = view_of(rows[:1], (0,))["mean"]
    assert all(number.value is None and number.reason for number in single.values())
    assert view_of(rows, tuple(range(12)))["mean"]["halves_found"].reason == NO_HALVES
    assert pooled_view([None], [None], (0,)) == {} and pooled_view([], [], ()) == {}
    equal = view_of(np.repeat(rows[:1], 12, axis=0), tuple(range(12)))
    assert equal["mean"]["cosine"].value == pytest.approx(1)
    assert equal["mean"]["effective_rank"].value is None and equal["mean"]["dimension"].value is None
    assert equal["cls"]["cosine"].reason == BLIND_CLS
    missing = torch.tensor(rows[:, None].repeat(3, 1))
    missing[:, 2] = torch.nan
    assert pooled_view(list(missing), [None] * 12, tuple(range(12)))["cls"]["cosine"].reason == NO_CLS


def test_many_documents_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval leaves out 64 groups of documents; the rank reads at most 256 windows."""
    rows = cloud(n=600, d=16, cone=0.5)
    found = view_of(rows, tuple(range(600)))["mean"]
    assert len(found["cosine"].deleted) == len(found["effective_rank"].deleted) == 64
    assert found["effective_rank"].value < 16 and found["effective_rank"].null is not None
    exact = view_of(rows[:60], tuple(range(60)))["mean"]["cosine"]
    assert len(exact.deleted) == 60


# --- in a run ----------------------------------------------------------------------------------------


def measured(checkpoint: Any, **options: Any) -> Diagnosis:
    texts = windows(checkpoint.tokenizer, num_texts=6, max_length=48, positions=checkpoint.positions)
    return analyze(checkpoint, texts, spectral_tokens=32, **options)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_of_every_kind_of_model(name: str, opened: Callable[[str], Any]) -> None:
    run = measured(opened(name), halves=True)
    assert set(run.pooled) == set(POOLINGS) and all(set(numbers) == set(POOLED) for numbers in run.pooled.values())
    assert run.pooled["mean"]["cosine"].value is not None and run.pooled["last"]["halves_found"].value is not None
    cls = run.pooled["cls"]["cosine"]
    reason = {"gpt2": NO_CLS, "llama": BLIND_CLS, "t5": NO_CLS, "bert": None}[name]
    assert cls.reason == reason and (cls.value is None) == (reason is not None)


def test_against_the_model_itself(opened: Callable[[str], Any]) -> None:
    """Mean and CLS of BERT's last_hidden_state, and of its halves run as texts of their own."""
    checkpoint = opened("bert")
    texts = windows(checkpoint.tokenizer, num_texts=6, max_length=48, positions=checkpoint.positions)
    run = analyze(checkpoint, texts, spectral_tokens=32, halves=True)

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states = checkpoint.model.bert(ids[None]).last_hidden_state[0].double()
        rows = torch.stack([states[1:-1].mean(0), states[-2], states[0]])
        return rows / rows.norm(dim=1, keepdim=True)

    rows = torch.stack([embedded(ids) for ids in texts.ids])
    for number, name in enumerate(POOLINGS):
        units = rows[:, number]
        cosine = float((units.sum(0).square().sum() - 6) / 30)
        assert run.pooled[name]["cosine"].value == pytest.approx(cosine, abs=1e-6)
    content = texts.ids[:, 1:-1]
    ends = texts.ids[:, :1], texts.ids[:, -1:]
    first, second = (
        torch.stack([embedded(ids) for ids in torch.cat([ends[0], part, ends[1]], dim=1)])
        for part in (content[:, :23], content[:, 23:])
    )
    for number, name in enumerate(POOLINGS):
        cosines = first[:, number] @ second[:, number].T
        right = (cosines.argmax(1) == torch.arange(6)).double() + (cosines.argmax(0) == torch.arange(6)).double()
        assert run.pooled[name]["halves_found"].per_text == pytest.approx((right / 2).tolist())


def test_batches_journal_and_twin_change_nothing(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    run = measured(checkpoint, halves=True)
    batched = measured(checkpoint, halves=True, batch_size=4)
    for name in ("mean", "last"):
        for key in POOLED:
            assert batched.pooled[name][key].value == pytest.approx(run.pooled[name][key].value, abs=1e-5)
    twin = measured(checkpoint, twin=True)
    assert twin.twin is not None and twin.twin.pooled == {}
    assert twin.pooled["mean"]["cosine"] == run.pooled["mean"]["cosine"]
    again = Diagnosis.from_json(run.to_dict())
    assert again.pooled == run.pooled
    row = next(row for row in run.rows() if row["site"] == "output")
    assert row["pooled.mean.cosine"] == run.pooled["mean"]["cosine"].value and "pooled.mean.cosine_low" in row
    assert replace(run, pooled={}).rows()[-1].keys() < row.keys()


def test_a_reading_keeps_its_vectors_in_the_journal(opened: Callable[[str], Any]) -> None:
    from condense.diagnosis.forward import read_texts
    from condense.diagnosis.quality import make_scorer
    from condense.models.layers import find_stacks

    checkpoint = opened("gpt2")
    texts = windows(checkpoint.tokenizer, num_texts=2, max_length=32, positions=checkpoint.positions)
    stacks = find_stacks(checkpoint.model)
    scorer = make_scorer(checkpoint.model, stacks, "causal", texts, 0, None)
    options = {"indices": [0, 1], "batch_size": 1, "spectral_tokens": 16, "seed": 0}
    for halves in (False, True):
        for reading in read_texts(checkpoint.model, stacks, texts, scorer, halves=halves, **options):  # type: ignore[arg-type]
            back = decode(encode(reading))
            assert reading.pooled is not None and back.pooled is not None
            assert torch.equal(torch.nan_to_num(back.pooled), torch.nan_to_num(reading.pooled))
            assert (back.halves is None) == (not halves)


def test_every_surface_shows_it(opened: Callable[[str], Any]) -> None:
    from rich.console import Console

    from condense.report.diagnosis.text import show_diagnosis

    run = measured(opened("bert"), halves=True)
    page, markdown = run.to_html(plotlyjs="none"), run.to_markdown()
    assert page.count("One vector per text") >= 1 and "chance 0.17" in page
    assert "One vector per text" in markdown and "halves that find each other" in markdown
    console = Console(width=100, file=io.StringIO())
    show_diagnosis(run, console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert text.count("one vector per text") == 3 and "halves found" in text and "(chance 0.17)" in text
    without = replace(run, pooled={})
    assert "One vector per text" not in without.to_html(plotlyjs="none") + without.to_markdown()
