"""Embedding and unembedding matrices: numbers against NumPy, untrained rows, the null, `--weights-only`."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from condense import geometry
from condense.cli.console import MANNER
from condense.diagnosis.run import analyze_weights
from condense.errors import UsageError
from condense.metrics import MATRIX
from condense.models.checkpoint import checkpoint_of, load
from condense.records.diagnosis import MATRICES, WEIGHTS_ONLY, Diagnosis
from tests.models.test_bad_input import condense

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _manners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    yield
    MANNER.quiet = MANNER.debug = False


def rows(count: int, width: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Rows with a decaying spectrum and a common shift."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(2.0, 0.3, width, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scales + shift


# --- the numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width", "shift"), [(300, 24, 0.4), (20, 64, 0.0), (9000, 8, 1.0)])
def test_the_numbers_are_those_of_all_rows(count: int, width: int, shift: float) -> None:
    """9,000 rows are more than one block; 20 of width 64 leave directions without variance."""
    x = rows(count, width, shift=shift)
    found, a = geometry.measure_matrix(x), x.numpy()
    lengths = np.linalg.norm(a, axis=1)
    u = a / lengths[:, None]
    singular = np.linalg.svd(u - u.mean(0), compute_uv=False)[: min(count - 1, width)]
    share = singular / singular.sum()
    values = found.values
    assert values["mean_cosine"] == pytest.approx(((u.sum(0) ** 2).sum() - count) / (count * (count - 1)), abs=1e-12)
    assert values["mean_shift"] == pytest.approx(np.linalg.norm(a.mean(0)) / np.sqrt((lengths**2).mean()), rel=1e-12)
    assert values["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert values["norm_q05"] == pytest.approx(np.quantile(lengths, 0.05)) and values["untrained_share"] == 0.0
    if count < 1000:  # the functions that take all pairs
        assert values["dimension"] == pytest.approx(geometry.dimension(x).item(), rel=1e-9)
        assert values["effective_rank"] == pytest.approx(geometry.effective_rank(x).item(), rel=1e-6)
        assert values["mean_cosine"] == pytest.approx(geometry.mean_cosine(x).item(), abs=1e-12)
    variances = np.sort(np.linalg.eigvalsh(np.cov(u.T)))[::-1]
    assert found.spectrum[0] == pytest.approx(variances[0] / variances.mean(), rel=1e-9)
    assert len(found.spectrum) == min(width, 48)


def test_rows_that_were_never_trained_are_counted() -> None:
    x = rows(400, 64, shift=0.2).float()
    fresh = torch.randn(30, 64, generator=torch.Generator().manual_seed(5)) * 0.02
    x[10:40] = fresh
    x[50:53] = 0.0
    x[60:64] = x[60]
    found = geometry.measure_matrix(x, 0.02)
    assert (found.zero, found.duplicate, found.initial) == (3, 4, 30)
    assert found.values["untrained_share"] == pytest.approx(37 / 400)
    without = geometry.measure_matrix(x)  # the config does not say how rows are drawn
    assert without.initial is None and without.values["untrained_share"] == pytest.approx(7 / 400)
    assert geometry.measure_matrix(x.bfloat16(), 0.02).zero == 3
    with pytest.raises(ValueError, match="not finite"):
        geometry.measure_matrix(torch.full((4, 3), math.nan))


@pytest.mark.parametrize(("count", "width"), [(400, 24), (2000, 48), (30, 64)])
def test_the_null_is_that_of_gaussian_rows(count: int, width: int) -> None:
    """Drawn as one matrix of width × width; here against rows that are really drawn."""
    drawn = [geometry.measure_matrix(rows_of_noise(count, width, seed)) for seed in range(6)]
    rank, spectrum = geometry.matrix_null(count, width)
    assert rank == pytest.approx(np.mean([one.values["effective_rank"] for one in drawn]), rel=0.01)
    if count > width:
        assert spectrum[0] == pytest.approx(np.mean([one.spectrum[0] for one in drawn]), rel=0.05)
        assert len(spectrum) == len(drawn[0].spectrum)
        assert np.mean([one.values["dimension"] for one in drawn]) == pytest.approx(width, rel=0.02)


def test_the_null_of_the_dimension_holds_for_few_rows() -> None:
    """U-statistics: Gaussian rows have the dimension of the width, be there fewer of them or more."""
    config = transformers.GPT2Config(n_embd=256, n_layer=1, n_head=4, vocab_size=40, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    reading = analyze_weights(checkpoint_of(model, torch.zeros(1, 4, dtype=torch.long))).matrices[MATRICES[0]]
    assert reading.metrics["dimension"].null == 256
    assert reading.metrics["dimension"].null_ratio == pytest.approx(1, abs=0.25)


def test_what_is_not_finite_is_not_called_quantised(tiny: Copy) -> None:
    """Tied to the head, too: neither is measured."""
    model = transformers.GPT2LMHeadModel.from_pretrained(tiny("gpt2"))
    with torch.no_grad():
        model.transformer.wte.weight[3] = math.nan
    run = analyze_weights(checkpoint_of(model, torch.zeros(1, 4, dtype=torch.long)))
    assert not run.matrices and "not finite" in run.verdict.findings[0].seen


def rows_of_noise(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- of a model ------------------------------------------------------------------------------------------


def test_matrices_of_a_model(diagnosed: Callable[[str], Diagnosis], opened: Callable[[str], Any]) -> None:
    run, model = diagnosed("llama"), opened("llama").model
    assert tuple(run.matrices) == MATRICES and not run.matrices[MATRICES[0]].tied
    for name, module in zip(MATRICES, (model.model.embed_tokens, model.lm_head), strict=True):
        reading, expected = run.matrices[name], geometry.measure_matrix(module.weight)
        assert set(reading.metrics) == {key.partition(".")[2] for key in MATRIX}
        own = reading.metrics["mean_cosine"]
        assert own.value == own.low == own.high == expected.values["mean_cosine"]
        assert reading.metrics["effective_rank"].null_ratio == pytest.approx(1.0, abs=0.02)  # random weights
        assert reading.metrics["untrained_share"].value == pytest.approx(1.0, abs=0.02)  # and never trained
    tied = diagnosed("gpt2").matrices
    assert tied[MATRICES[0]].tied and tied[MATRICES[0]] == tied[MATRICES[1]]
    assert Diagnosis.from_json(run.to_json()).matrices == run.matrices
    assert "unembedding-matrix.mean_shift" in run.rows()[-1] and "embedding-matrix.tied" in run.rows()[0]


def test_models_without_a_head_have_one(tiny: Copy, tmp_path: Path) -> None:
    model = transformers.LlamaModel.from_pretrained(tiny("llama"))
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(tmp_path)
    assert tuple(analyze_weights(load(tmp_path, device="cpu")).matrices) == MATRICES[:1]


# --- without a text --------------------------------------------------------------------------------------


def test_weights_only(tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A diagnosis without corpus and sites; no forward pass, and every surface of it."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(transformers.GPT2Model, "forward", never)
    out = tmp_path / "out"
    result = condense("analyze", tiny("gpt2"), "--weights-only", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "no text" in result.stdout and "Tied matrices 480 × 32" in " ".join(result.stdout.split())
    data = json.loads((out / "diagnosis.json").read_text())
    assert data["corpus"] is None and data["sites"] == [] and data["verdict"]["level"] == "undefined"
    assert data["matrices"]["embedding-matrix"]["tied"] is True
    run = Diagnosis.from_json(out / "diagnosis.json")
    assert run.corpus.is_absent and run.deep["mean_cosine"].reason == WEIGHTS_ONLY
    assert run.to_json() == (out / "diagnosis.json").read_text()
    page = (out / "report.html").read_text()
    assert "Weights only" in page and "2602.20433" in page and "Over depth" not in page
    assert "mean shift" in (out / "report.md").read_text()
    table = (out / "layers.csv").read_text().splitlines()
    assert len(table) == 3 and table[1].startswith("embedding-matrix,")
    assert condense("report", out / "diagnosis.json").stdout == result.stdout
    again = condense("analyze", tiny("gpt2"), "--weights-only", "-o", out, "--device", "cpu", "--force")
    assert again.exit_code == 0  # its own files are known again
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(__file__).parents[2] / "condense" / "data" / "diagnosis.schema.json"
    jsonschema.validate(data, json.loads(schema.read_text()))
    other = condense("compare", out / "diagnosis.json", out / "diagnosis.json")
    assert other.exit_code == 2 and "weights alone" in other.stderr


def test_the_gate(tiny: Copy, tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    analyze_weights(load(tiny("gpt2"), device="cpu")).to_json(saved)
    good, other = "embedding-matrix.mean_cosine <= 0.5", "unembedding-matrix.effective_rank.null_ratio >= 0.5"
    mixed = condense("check", saved, "--assert", good, "--assert", other, "--assert", "deep.mean_cosine <= 0.1")
    assert mixed.exit_code == 0 and "NOT RUN deep.mean_cosine" in mixed.stdout
    assert condense("check", saved, "--assert", "embedding-matrix.mean_shift >= 0.9").exit_code == 1
    assert condense("check", saved, "--assert", "embedding_matrix.norm_q50 >= 0.01").exit_code == 0
    assert condense("check", saved, "--assert", "embedding-matrix.mean_shfit >= 0.9").exit_code == 2
    by_default = condense("check", saved)
    assert by_default.exit_code == 0 and "NOT RUN" in by_default.stdout
    change = "embedding-matrix.mean_cosine <= baseline + 0.01"
    assert condense("check", saved, "--baseline", saved, "--assert", change).exit_code == 0


def test_a_reading_that_lacks_a_number_has_it_undefined(diagnosed: Callable[[str], Diagnosis], tmp_path: Path) -> None:
    data = json.loads(diagnosed("gpt2").to_json())
    data["matrices"][MATRICES[0]]["metrics"].pop("mean_shift")
    data["matrices"][MATRICES[1]]["metrics"].clear()
    (tmp_path / "run.json").write_text(json.dumps(data))
    result = condense("report", tmp_path / "run.json", "--md", tmp_path / "run.md")
    assert result.exit_code == 0, result.output
    targets = ("--assert", "embedding-matrix.mean_shift<=1", "--assert", "unembedding-matrix.effective_rank>=2")
    checked = condense("check", tmp_path / "run.json", *targets)
    assert checked.output.count("it was not measured") == 2 and "internal error" not in checked.output


def test_a_saved_run_of_an_older_release_has_none(diagnosed: Callable[[str], Diagnosis], tmp_path: Path) -> None:
    data = json.loads(diagnosed("llama").to_json())
    del data["matrices"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    read = Diagnosis.from_json(tmp_path / "old.json")
    assert read.matrices == {} and "Embedding and unembedding" not in read.to_html(plotlyjs="none")
    with pytest.raises(UsageError, match="no embedding-matrix"):
        from condense.gate.assertions import parse_inline
        from condense.gate.run import evaluate

        evaluate(read, (parse_inline("embedding-matrix.mean_cosine <= 1"),))
