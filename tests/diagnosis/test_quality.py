"""Losses against transformers' own, bytes by the formula, and reasons where there is no number."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from condense.diagnosis.forward import read_texts
from condense.diagnosis.quality import MASK_RATE, Scorer, make_scorer, mask_positions, summarise
from condense.diagnosis.run import analyze
from condense.models.checkpoint import load, objective
from condense.models.layers import find_stacks
from condense.records.diagnosis import Quality
from condense.texts.windows import Windows, windows
from tests.conftest import CAUSAL, build, write_checkpoint


def made(checkpoint: Any, count: int = 4, length: int = 48) -> Windows:
    return windows(checkpoint.tokenizer, num_texts=count, max_length=length)


def measured(model: Any, kind: Any, texts: Windows, batch_size: int = 1, seed: int = 0) -> tuple[Any, Quality]:
    """The scorer and the quality of a model on windows."""
    stacks = find_stacks(model)
    scorer = make_scorer(model, stacks, kind, texts, seed, None)
    settings = {"batch_size": batch_size, "spectral_tokens": 8, "seed": seed}
    readings = read_texts(model, stacks, texts, scorer, indices=list(range(len(texts))), **settings)
    scores = [reading.score for reading in readings]
    return scorer, summarise(scorer, [score for score in scores if score is not None], texts)


@torch.no_grad()
def own_losses(model: Any, texts: Windows) -> list[float]:
    return [float(model(input_ids=row[None], labels=row[None]).loss) for row in texts.ids]


# --- causal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_is_transformers_own(opened: Callable[[str], Any], name: str, batch_size: int) -> None:
    checkpoint = opened(name)
    texts = made(checkpoint)
    scorer, quality = measured(checkpoint.model, "causal", texts, batch_size)
    assert scorer.head is not None and quality.label == "next-token loss"
    expected = own_losses(checkpoint.model, texts)
    assert quality.loss.per_text == pytest.approx(expected, rel=1e-5)
    assert quality.loss.value == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert quality.predicted_tokens == (47,) * 4


def test_long_windows_are_scored_in_blocks(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    texts = made(checkpoint, 2, 128)
    short = made(checkpoint, 2, 3)
    for these in (texts, short):
        assert measured(checkpoint.model, "causal", these)[1].loss.per_text == pytest.approx(
            own_losses(checkpoint.model, these), rel=1e-5
        )


def test_perplexity_and_bits_per_byte_are_the_formula(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    texts = made(checkpoint)
    quality = measured(checkpoint.model, "causal", texts)[1]
    losses, tokens = quality.loss.per_text, quality.predicted_tokens
    assert losses is not None and quality.predicted_bytes == texts.predicted_bytes
    assert quality.perplexity.value == pytest.approx(math.exp(sum(losses) / 4))  # type: ignore[arg-type]
    bits = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / math.log(2)  # type: ignore[operator]
    assert quality.bits_per_byte.value == pytest.approx(bits / sum(texts.predicted_bytes))  # type: ignore[arg-type]
    for estimate in (quality.loss, quality.perplexity, quality.bits_per_byte):
        assert estimate.low is not None and estimate.high is not None and estimate.value is not None
        assert estimate.low < estimate.value < estimate.high


def test_bits_per_byte_of_a_uniform_model(opened: Callable[[str], Any], tokenizers: dict[str, Any]) -> None:
    """All logits equal: log2 of the vocabulary for every token."""
    from tests.conftest import VOCABULARY, tiny_config

    model = build(tiny_config("llama"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    texts = windows(tokenizers["bytes"], num_texts=3, max_length=32)
    quality = measured(model, "causal", texts)[1]
    expected = math.log2(VOCABULARY) * 3 * 31 / sum(texts.predicted_bytes)  # type: ignore[arg-type]
    assert quality.bits_per_byte.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("far", [0.0, 60.0, 400.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_block_by_block_are_those_of_all_logits(far: float, dtype: torch.dtype) -> None:
    """Three blocks of words, the last one short; a word of the second one may be e^400 times as likely as the first."""
    generator = torch.Generator().manual_seed(3)
    states, weight = (torch.randn(size, 16, generator=generator).to(dtype) for size in (600, 2500))
    states[::7, 0], weight[:, 0], weight[1500, 0] = 1.0, 0.0, far
    head = torch.nn.Linear(16, 2500, bias=False).to(dtype)
    head.weight = torch.nn.Parameter(weight)
    ids = torch.randint(0, 2500, (600,), generator=generator)
    losses = Scorer(None, "causal", head, None, 0).losses(states, ids).detach()
    logits = (states[:-1] @ weight.T).double()
    expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    assert losses.double() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-2, abs=1e-5)


def test_specials_are_not_predicted(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    texts = made(checkpoint, 1, 32)
    texts.special[0, [7, 31]] = True
    quality = measured(checkpoint.model, "causal", texts)[1]
    assert quality.predicted_tokens == (29,)
    with torch.no_grad():
        logs = checkpoint.model(texts.ids).logits[0, :-1].log_softmax(-1)
    nats = -logs[torch.arange(31), texts.ids[0, 1:]]
    expected = nats[[i for i in range(31) if i + 1 not in (7, 31)]].mean()
    assert quality.loss.value == pytest.approx(float(expected), rel=1e-5)


def test_a_head_that_is_not_all_of_the_head_is_not_used(tokenizers: dict[str, Any]) -> None:
    """Gemma 2 caps its logits after the head: the loss must come from the whole model."""
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=480, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=48, max_position_embeddings=128, initializer_range=0.5, final_logit_softcapping=2.0,
        query_pre_attn_scalar=16, sliding_window=64,
    )  # fmt: skip
    model = build(config, cls=transformers.Gemma2ForCausalLM)
    texts = windows(tokenizers["bytes"], num_texts=2, max_length=32)
    scorer, quality = measured(model, "causal", texts)
    assert scorer.head is None and scorer.reason is None
    assert quality.loss.per_text == pytest.approx(own_losses(model, texts), rel=1e-5)


def test_no_offsets_no_bits(opened: Callable[[str], Any]) -> None:
    import dataclasses

    checkpoint = opened("gpt2")
    texts = dataclasses.replace(made(checkpoint), predicted_bytes=(None,) * 4)
    quality = measured(checkpoint.model, "causal", texts)[1]
    assert quality.bits_per_byte.value is None and "offsets" in str(quality.bits_per_byte.reason)
    assert quality.loss.value is not None


# --- masked -----------------------------------------------------------------------------------------


def test_mask_is_seeded_and_spares_specials() -> None:
    special = torch.zeros(50, dtype=torch.bool)
    special[[0, 49]] = True
    first = mask_positions(special, 0, 3)
    torch.manual_seed(1)
    assert torch.equal(first, mask_positions(special, 0, 3))
    assert len(first) == round(MASK_RATE * 48) and not set(first.tolist()) & {0, 49}
    assert not torch.equal(first, mask_positions(special, 0, 4))
    assert not torch.equal(first, mask_positions(special, 1, 3))
    assert len(mask_positions(torch.tensor([True, False, True]), 0, 0)) == 1


def test_masked_loss_is_by_hand(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("bert")
    texts = made(checkpoint)
    quality = measured(checkpoint.model, "masked", texts)[1]
    assert quality.label == "pseudo-loss on a seeded 15 % mask"
    for index, row in enumerate(texts.ids):
        chosen = mask_positions(texts.special[index], 0, index)
        ids, labels = row.clone(), torch.full_like(row, -100)
        ids[chosen], labels[chosen] = checkpoint.tokenizer.mask_token_id, row[chosen]
        with torch.no_grad():
            expected = float(checkpoint.model(input_ids=ids[None], labels=labels[None]).loss)
        assert quality.loss.per_text is not None
        assert quality.loss.per_text[index] == pytest.approx(expected, rel=1e-5)
    assert quality.bits_per_byte.value is None and quality.bits_per_byte.reason
    again = measured(checkpoint.model, "masked", texts, batch_size=3)[1]
    assert again.loss == quality.loss
    assert measured(checkpoint.model, "masked", texts, seed=1)[1].loss != quality.loss


def test_no_mask_token_no_loss(opened: Callable[[str], Any], tokenizers: dict[str, Any]) -> None:
    quality = measured(opened("bert").model, "masked", windows(tokenizers["bytes"], num_texts=2, max_length=32))[1]
    assert quality.loss.value is None and "mask token" in str(quality.loss.reason)


# --- no head ----------------------------------------------------------------------------------------


def test_a_head_without_weights_has_a_reason(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    checkpoint = load(folder, device="cpu")
    assert "lm_head.weight" in str(checkpoint.head_missing)
    diagnosis = analyze(checkpoint, made(checkpoint), spectral_tokens=16)
    for estimate in (diagnosis.quality.loss, diagnosis.quality.perplexity, diagnosis.quality.bits_per_byte):
        assert estimate.value is None and "lm_head.weight" in str(estimate.reason)
    assert diagnosis.deep["mean_cosine"].value is not None and diagnosis.quality.label == "not measured"


def test_a_model_without_a_head_has_a_reason(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    import transformers

    from tests.conftest import tiny_config

    config = tiny_config("gpt2")
    config.architectures = ["GPT2Model"]
    folder = write_checkpoint(tmp_path, config, tokenizers["bytes"], cls=transformers.GPT2Model)
    checkpoint = load(folder, device="cpu")
    assert checkpoint.info.objective == "none"
    quality = analyze(checkpoint, made(checkpoint), spectral_tokens=16).quality
    assert quality.loss.value is None and "no language-modelling head" in str(quality.loss.reason)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt2", "causal"), ("qwen3", "causal"), ("bert", "masked"), ("albert", "masked"), ("t5", "seq2seq")],
)
def test_objective(opened: Callable[[str], Any], name: str, kind: str) -> None:
    assert objective(opened(name).model) == kind == opened(name).info.objective


def test_seq2seq_has_a_reason(diagnosed: Callable[[str], Any]) -> None:
    assert diagnosed("bart").quality.loss.value is None and "encoder" in str(diagnosed("bart").quality.loss.reason)
