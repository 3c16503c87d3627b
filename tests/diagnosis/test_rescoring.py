"""Bits per byte on another model's bytes: equal to its own where the tokens are the same, and to a plain sum."""

import math

import pytest
import torch

from condense.diagnosis.quality import rescored, score_passage
from condense.diagnosis.run import analyze
from condense.texts.windows import windows


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_passages_are_what_is_predicted(opened, name):
    checkpoint = opened(name)
    texts = windows(checkpoint.tokenizer, num_texts=4, max_length=48, positions=checkpoint.positions)
    assert len(texts.passages) == 4
    assert [len(text.encode()) for _, text in texts.passages] == list(texts.predicted_bytes)
    for row, (context, text) in zip(texts.ids, texts.passages, strict=True):
        decoded = checkpoint.tokenizer.decode(row, skip_special_tokens=True)
        assert decoded == context + text
    assert all((context == "") == (name == "llama") for context, _ in texts.passages), "a BOS stands before the text"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_with_the_same_tokenizer_nothing_changes(opened, name):
    checkpoint = opened(name)
    texts = windows(checkpoint.tokenizer, num_texts=6, max_length=64, positions=checkpoint.positions)
    own = analyze(checkpoint, texts, spectral_tokens=16).quality
    again = rescored(own, checkpoint, texts, 0)
    same = [
        index
        for index, (_, text) in enumerate(texts.passages)
        if len(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]) == own.predicted_tokens[index]
    ]
    assert len(same) >= 3, "most texts are cut where a token ends"
    for index in same:
        assert again.bits_per_byte.per_text[index] == pytest.approx(own.bits_per_byte.per_text[index], rel=1e-4)
    assert again.predicted_bytes == own.predicted_bytes


def test_it_is_the_sum_over_the_tokens_of_the_passage(opened):
    checkpoint = opened("gpt2")
    context, text = "The river", " carried the boats past the mill."
    nats, count = score_passage(checkpoint, context, text)
    ids = [checkpoint.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (context, text)]
    with torch.no_grad():
        logs = checkpoint.model(torch.tensor([ids[0] + ids[1]])).logits[0].log_softmax(-1)
    expected = -sum(float(logs[len(ids[0]) - 1 + i, token]) for i, token in enumerate(ids[1]))
    assert (nats, count) == (pytest.approx(expected, rel=1e-5), len(ids[1]))


def test_another_tokenizer_is_scored_on_the_same_bytes(opened, tokenizers):
    """A uniform model needs log2 V bits for each of its tokens, whatever the reference's tokens are."""
    from condense.models.checkpoint import Checkpoint
    from tests.conftest import VOCABULARY, build, byte_tokenizer, tiny_config

    reference = windows(tokenizers["bytes"], num_texts=3, max_length=40)
    coarse = byte_tokenizer(size=300)
    model = build(tiny_config("gpt2"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    checkpoint = Checkpoint(model, coarse, opened("gpt2").info, 128)
    own = analyze(checkpoint, windows(coarse, num_texts=3, max_length=40), spectral_tokens=16).quality
    found = rescored(own, checkpoint, reference, 0)
    assert found.predicted_bytes == reference.predicted_bytes
    tokens = [len(coarse(text, add_special_tokens=False)["input_ids"]) for _, text in reference.passages]
    bits = sum(tokens) * math.log2(VOCABULARY) / sum(reference.predicted_bytes)
    assert found.bits_per_byte.value == pytest.approx(bits, rel=1e-6)
    assert found.bits_per_byte.value != pytest.approx(own.bits_per_byte.value, rel=1e-3)
