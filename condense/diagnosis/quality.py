"""How well does the model predict the windows it is measured on? Always beside geometry.

Causal models: next-token loss from the last hidden state, head applied in blocks of positions so that
no full logits matrix is held; checked once against the model's own logits. Masked models: pseudo-loss
on a seeded 15 % mask (Salazar et al. 2020, arXiv:1910.14659), labelled as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from condense.errors import UnavailableError
from condense.intervals import over_documents, ratio_over_documents
from condense.models.checkpoint import Checkpoint
from condense.models.custom import logits as logits_in
from condense.models.custom import output_head
from condense.models.layers import PROBE_TOKENS, Stack, forward_pass, input_device, last_state, run, sent
from condense.records.base import Estimate
from condense.records.diagnosis import Objective, Quality
from condense.texts.tokens import added_specials
from condense.texts.windows import Windows

MASK_RATE = 0.15
_COUNTED = 65_536  # tokens that `counting_loss` reads
_BLOCK = 128  # positions whose logits are held at once
_ROWS, _WORDS = 512, 1024  # the same for a plain head: positions, words
_HELD = 2**17  # logits of a plain head that are held at once on a CPU, whose cache holds so many and a copy
LABELS: dict[Objective, str] = {
    "causal": "next-token loss",
    "masked": "pseudo-loss on a seeded 15 % mask",
}


@dataclass(frozen=True)
class Score:
    """Sum of the negative log-likelihoods of one text's predicted tokens (nats) and their number."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Scorer:
    """How the texts of one model are scored; `reason`: why they cannot be scored, or None.

    `head` maps last hidden states to logits; None where only the whole model gives the right ones.
    """

    model: Any
    objective: Objective
    head: nn.Module | None
    mask_token_id: int | None
    seed: int
    reason: str | None = None

    def losses(self, states: Tensor, ids: Tensor) -> Tensor:
        """Nats that each token but the first costs, from last hidden states (S, d); ids (S,) -> (S − 1,).

        Where the logits are, without waiting for that device; `score` sums them. Causal, with a head.
        """
        if self.head is None:
            raise ValueError("this model is scored as a whole: use losses_of_model")
        weight, targets = _plain_weight(self.head, states), ids[1:].to(states.device, non_blocking=True)
        rows = _BLOCK if weight is None else _ROWS
        parts = zip(torch.split(states[:-1], rows), torch.split(targets, rows), strict=True)
        if weight is None:
            return torch.cat([_token_losses(self.head(some), wanted) for some, wanted in parts])
        return torch.cat([_online_losses(some, weight, wanted) for some, wanted in parts])

    def losses_of_model(self, index: int, ids: Tensor, special: Tensor) -> Tensor:
        """The same with a forward pass of the whole model over one text; ids, special (S,) on the host.

        Of a masked model the nats of the masked tokens alone.
        """
        device = input_device(self.model)
        if self.objective == "masked":
            chosen = mask_positions(special, self.seed, index)
            masked = sent(ids.index_fill(0, chosen, int(self.mask_token_id or 0)).unsqueeze(0), device)
            with forward_pass(self.model):
                logits = logits_of(self.model(input_ids=masked), masked)[0]
            return _token_losses(logits[sent(chosen, logits.device)], sent(ids[chosen], logits.device))
        row = sent(ids.unsqueeze(0), device)
        with forward_pass(self.model):
            logits = logits_of(self.model(input_ids=row), row)[0, :-1]
        parts = zip(torch.split(logits, _BLOCK), torch.split(row[0, 1:], _BLOCK), strict=True)
        return torch.cat([_token_losses(some, wanted) for some, wanted in parts])

    def score(self, losses: Tensor, special: Tensor) -> Score:
        """The score of a text from what its tokens cost; waits for the device of the losses. special (S,)."""
        known = losses.cpu() if self.objective == "masked" else losses.cpu()[~special[1:]]
        return Score(float(known.sum(dtype=torch.float64)), len(known))


def mask_positions(special: Tensor, seed: int, index: int) -> Tensor:
    """Positions to mask in text `index`: 15 % of the ordinary tokens, at least one, drawn by a seeded generator."""
    ordinary = torch.nonzero(~special).flatten()
    count = max(1, round(MASK_RATE * len(ordinary)))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return ordinary[torch.randperm(len(ordinary), generator=generator)[:count]].sort().values


def logits_of(output: Any, ids: Tensor) -> Tensor:
    """Logits (B, S, V) over the vocabulary; BERT's pre-training head returns other logits too."""
    values = output.prediction_logits if hasattr(output, "prediction_logits") else logits_in(output, ids)
    if values is None:
        raise UnavailableError(f"the model returns {type(output).__name__} without logits", "it needs `logits`")
    return values


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    targets = targets.to(logits.device, non_blocking=True)
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def _plain_weight(head: nn.Module, states: Tensor) -> Tensor | None:
    """The weight (V, d) of a head that is nothing but a matrix product where the states are; None for any other."""
    plain = type(head) is nn.Linear and getattr(head, "bias", None) is None and not hasattr(head, "_hf_hook")
    weight = getattr(head, "weight", None)
    if not plain or head._forward_hooks or head._forward_pre_hooks or not isinstance(weight, Tensor):
        return None
    return weight if weight.device == states.device and weight.dtype == states.dtype else None


def _online_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood per position, the log-sum-exp accumulated over blocks of the vocabulary.

    A block of logits stays in the processor's cache: the whole (S, V) matrix, larger than most models'
    states together, is never written. torch's kernel for log-softmax takes a third of the time of a maximum,
    exponentials and their sum one after the other. states (S, d), weight (V, d), targets (S,) -> (S,) float32.
    """
    size = min(_WORDS, _HELD // max(1, len(states))) if states.device.type == "cpu" else _WORDS
    total = torch.full((len(states),), -math.inf, device=states.device)
    for words in torch.split(weight, size):
        logits = (states @ words.T).float()
        total = torch.logaddexp(total, logits[:, 0] - torch.log_softmax(logits, dim=1)[:, 0])
    chosen = (states.float() * weight[targets].float()).sum(1).to(states.dtype)  # rounded as the rest
    losses: Tensor = total - chosen.float()
    return losses


@torch.inference_mode()
def make_scorer(
    model: Any, stacks: tuple[Stack, ...], objective: Objective, windows: Windows, seed: int, missing: str | None
) -> Scorer:
    """Choose how to score, trying the head on the first tokens against the model's own logits."""
    plain = Scorer(model, objective, None, windows.mask_token_id, seed, missing)
    if missing:
        return plain
    if objective == "masked":
        no_mask = None if windows.mask_token_id is not None else "the tokenizer has no mask token"
        return Scorer(model, objective, None, windows.mask_token_id, seed, no_mask)
    if objective != "causal":
        reason = {
            "seq2seq": "an encoder–decoder model has no next-token loss on a text without a source and a target",
            "none": "the model has no language-modelling head",
        }[objective]
        return Scorer(model, objective, None, None, seed, reason)
    head = output_head(model)
    ids = windows.ids[:1, :PROBE_TOKENS].to(input_device(model))
    states = last_state(run(model, stacks, ids))
    with forward_pass(model):
        expected = logits_of(model(input_ids=ids), ids).float()
    try:
        agrees = head is not None and torch.allclose(head(states).float(), expected, rtol=1e-4, atol=1e-4)
    except (RuntimeError, TypeError):
        agrees = False
    return Scorer(model, objective, head if agrees else None, None, seed) if agrees else plain


def summarise(scorer: Scorer, scores: list[Score], windows: Windows) -> Quality:
    """Loss, perplexity and bits per byte over windows with 95 % intervals over documents; None with the reason."""
    if scorer.reason:
        empty = Estimate(None, reason=scorer.reason)
        return Quality(empty, empty, empty, label="not measured")
    documents = windows.info.documents
    loss = _loss_estimate(scores, documents)
    return Quality(
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=_bits_per_byte(scorer, scores, windows),
        predicted_tokens=tuple(score.tokens for score in scores),
        predicted_bytes=tuple(size or 0 for size in windows.predicted_bytes),
        label=LABELS[scorer.objective],
    )


def _loss_estimate(scores: Sequence[Score], documents: Sequence[int]) -> Estimate:
    """Mean over windows of the nats per token, with its interval over documents."""
    per_text = tuple(score.nats / score.tokens for score in scores)
    spread = over_documents(per_text, documents)
    return Estimate(spread.value, *spread.clipped(0.0), per_text, reason=spread.reason)


def _bits_per_byte_of(scores: Sequence[Score], sizes: Sequence[int | None], documents: Sequence[int]) -> Estimate:
    """Bits over bytes of all windows, with the interval of a ratio over documents; the windows' own ratios."""
    bits = np.array([score.nats for score in scores]) / math.log(2)
    bytes_of = np.array([size or 0 for size in sizes], dtype=np.float64)
    spread = ratio_over_documents(bits, bytes_of, documents)
    return Estimate(spread.value, *spread.clipped(0.0), tuple((bits / bytes_of).tolist()), reason=spread.reason)


def perplexity(loss: Estimate) -> Estimate:
    """The exponential of a loss in nats per token, of its bounds and of its texts; null with the reason beyond floats.

    e^709.8 is the largest float: a diverged checkpoint can lose more, and its report is written all the same.
    """
    value, low, high = (_exponential(bound) for bound in (loss.value, loss.low, loss.high))
    per_text = None if loss.per_text is None else tuple(_exponential(text) for text in loss.per_text)
    reason = loss.reason
    if value is None and loss.value is not None:
        reason = f"exp of {loss.value:,.0f} nats per token is beyond the numbers there are"
    return Estimate(value, low, high, per_text, reason=reason)


def _exponential(nats: float | None) -> float | None:
    try:
        return None if nats is None else math.exp(nats)
    except OverflowError:
        return None


def _bits_per_byte(scorer: Scorer, scores: list[Score], windows: Windows) -> Estimate:
    if scorer.objective == "masked":
        return Estimate(None, reason="a pseudo-likelihood on masked tokens does not code the text")
    if any(size is None or size == 0 for size in windows.predicted_bytes):
        return Estimate(None, reason="the tokenizer gives no offsets into the text")
    return _bits_per_byte_of(scores, windows.predicted_bytes, windows.info.documents)


def counting_loss(tokens: Sequence[int], vocabulary: int) -> float:
    """Nats per token of a model that only counts the tokens it has read so far: the loss from repetition alone.

    After t tokens, u of them distinct, a token read n times has probability n/(t + u); the rest, u/(t + u), is shared
    by the tokens not yet read (escape method C, Moffat 1990). Over the first 65,536 tokens.
    """
    counts: dict[int, int] = {}
    nats = 0.0
    for read, token in enumerate(tokens[:_COUNTED]):
        distinct, seen = len(counts), counts.get(token, 0)
        unread = max(1, vocabulary - distinct)
        nats += math.log(unread if read == 0 else (read + distinct) * (1 / seen if seen else unread / distinct))
        counts[token] = seen + 1
    return nats / max(1, min(len(tokens), _COUNTED))


def rescored(quality: Quality, checkpoint: Checkpoint, reference: Windows, seed: int) -> Quality:
    """The quality of a causal model on the passages of the reference windows, in place of its own windows'.

    Loss and perplexity are per token of this tokenizer, so only bits per byte compares. Unchanged where there are
    no passages (no offsets) or the model has no such score.
    """
    if quality.bits_per_byte.value is None or len(reference.passages) != len(reference):
        return quality
    scores = [Score(*score_passage(checkpoint, context, text)) for context, text in reference.passages]
    documents = reference.info.documents
    loss = _loss_estimate(scores, documents)
    return replace(
        quality,
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=_bits_per_byte_of(scores, reference.predicted_bytes, documents),
        predicted_tokens=tuple(score.tokens for score in scores),
        predicted_bytes=tuple(size or 0 for size in reference.predicted_bytes),
    )


@torch.inference_mode()
def score_passage(checkpoint: Checkpoint, context: str, text: str) -> tuple[float, int]:
    """Nats that the model needs for `text` behind `context` (and the tokenizer's own beginning), and its tokens.

    Without context the text follows an EOS. ValueError where there is none either: nothing predicts its first token.
    """
    tokenizer: Any = checkpoint.tokenizer
    before = [*added_specials(tokenizer, context + text)[0], *_ids_without_specials(tokenizer, context)]
    wanted = _ids_without_specials(tokenizer, text)
    if not before and tokenizer.eos_token_id is None:
        raise ValueError("nothing stands before the first token, so nothing predicts it")
    before = before or [tokenizer.eos_token_id]
    ids = torch.tensor([[*before, *wanted]], device=checkpoint.model.device)
    with forward_pass(checkpoint.model):
        logits: Tensor = checkpoint.model(input_ids=ids).logits[0, len(before) - 1 : -1]
    nats = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(wanted), 128):
        part = slice(start, start + 128)
        targets = ids[0, len(before) :][part]
        losses = functional.cross_entropy(logits[part].float(), targets, reduction="none")
        nats += losses.cpu().sum(dtype=torch.float64)
    return float(nats), len(wanted)


def _ids_without_specials(tokenizer: Any, text: str) -> list[int]:
    coded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(coded["input_ids"])
