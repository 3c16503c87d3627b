"""Bits per byte of a model whose tokenizer differs, on exactly the bytes that another model was scored on.

Bits per byte is comparable across tokenizers only on the same bytes. A window of the other tokenizer covers other
bytes, so the passages of the reference windows are coded anew: what stood before the first predicted byte is
context, the rest is scored. Both parts are tokenised apart, so that no token reaches across the border.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from condense.intervals import bootstrap_interval, mean_interval
from condense.models.checkpoint import Checkpoint
from condense.records.diagnosis import Estimate, Quality
from condense.texts.windows import Windows, added_specials


def rescored(quality: Quality, checkpoint: Checkpoint, reference: Windows, seed: int) -> Quality:
    """The quality of a causal model on the passages of the reference windows, in place of its own windows'.

    Loss and perplexity are per token of this tokenizer, so only bits per byte compares. Unchanged where there are
    no passages (no offsets) or the model has no such score.
    """
    if quality.bits_per_byte.value is None or len(reference.passages) != len(reference):
        return quality
    scores = [score_passage(checkpoint, context, text) for context, text in reference.passages]
    bits = np.array([nats for nats, _ in scores]) / math.log(2)
    sizes = np.array(reference.predicted_bytes, dtype=np.float64)
    low, high = bootstrap_interval(np.stack([bits, sizes], axis=1), lambda m: m[:, 0] / m[:, 1], seed)
    per_token = tuple(nats / tokens for nats, tokens in scores)
    mean, loss_low, loss_high = mean_interval(per_token)
    return replace(
        quality,
        loss=Estimate(mean, loss_low, loss_high, per_token),
        perplexity=Estimate(_exp(mean), _exp(loss_low), _exp(loss_high), tuple(map(math.exp, per_token))),
        bits_per_byte=Estimate(float(bits.sum() / sizes.sum()), low, high, tuple((bits / sizes).tolist())),
        predicted_tokens=tuple(tokens for _, tokens in scores),
        predicted_bytes=tuple(size or 0 for size in reference.predicted_bytes),
    )


def _exp(value: float | None) -> float | None:
    return None if value is None or value > 700 else math.exp(value)


@torch.inference_mode()
def score_passage(checkpoint: Checkpoint, context: str, text: str) -> tuple[float, int]:
    """Nats that the model needs for `text` behind `context` (and the tokenizer's own beginning), and its tokens.

    With nothing before it the text follows an EOS. ValueError where there is none either: nothing predicts it then.
    """
    tokenizer: Any = checkpoint.tokenizer
    before = [*added_specials(tokenizer)[0], *_ids(tokenizer, context)]
    wanted = _ids(tokenizer, text)
    if not before and tokenizer.eos_token_id is None:
        raise ValueError("nothing stands before the first token, so nothing predicts it")
    before = before or [tokenizer.eos_token_id]
    ids = torch.tensor([[*before, *wanted]], device=checkpoint.model.device)
    logits: Tensor = checkpoint.model(input_ids=ids).logits[0, len(before) - 1 : -1]
    nats = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(wanted), 128):
        part = slice(start, start + 128)
        targets = ids[0, len(before) :][part]
        losses = functional.cross_entropy(logits[part].float(), targets, reduction="none")
        nats += losses.cpu().sum(dtype=torch.float64)
    return float(nats), len(wanted)


def _ids(tokenizer: Any, text: str) -> list[int]:
    coded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(coded["input_ids"])
