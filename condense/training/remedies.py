"""The other arms of a trial, each small enough to be read against its paper.

    embedding_dropout    Merity et al., 2018, arXiv 1708.02182     around training
    noisy_embedding      Jain et al., 2023, arXiv 2310.05914       around training
    ActiveForgetting     Chen et al., 2023, arXiv 2307.01163       a callback of `Trainer`
    cosreg               Gao et al., 2019, arXiv 1907.12009        added to the loss
    enlarge_vocabulary   Sennrich et al., 2016, arXiv 1508.07909   before training (condense/vocabulary.py)

Dispersion itself is in condense/dispersion.py and condense/disperser.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.dispersion.losses import mean_cosine
from condense.dispersion.tokens import find_documents
from condense.errors import UnavailableError, UsageError
from condense.models.layers import unwrapped
from condense.records.plans import COSREG_DEFAULT, ArmSpec
from condense.training.vocabulary import MAX_GROWTH, MIN_FREQUENCY, Enlarged, enlarge_vocabulary

__all__ = [
    "COSREG_DEFAULT", "DROPOUT_P", "FORGET_EVERY", "MAX_GROWTH", "MIN_FREQUENCY", "NOISE_ALPHA", "ActiveForgetting",
    "Definition", "Enlarged", "cosreg", "definition", "embedding_dropout", "enlarge_vocabulary", "noisy_embedding",
]  # fmt: skip

DROPOUT_P = 0.1
NOISE_ALPHA = 5.0
FORGET_EVERY = 1000


# --- around training --------------------------------------------------------------------------------


@contextmanager
def embedding_dropout(model: nn.Module, p: float = DROPOUT_P) -> Iterator[None]:
    """Drop whole words: in training, each row of the embedding matrix is 0 with probability p, else x 1/(1-p).

    One draw for each forward pass of the model, so that a word is dropped wherever it stands in the batch, but for
    the first token of each row or packed document, which stays as it is: nothing stands before it to look at, so
    without position embeddings its state would be exactly 0 after every block, where the gradient of a chain of
    RMSNorms overflows (measured: NaN in 20 of 30 blocks of SmolLM2-135M). A tied head uses the whole matrix. The
    draw is from torch's global generator, whose state `Trainer` saves and restores. ValueError unless 0 <= p < 1.

    Source: Merity, Keskar and Socher, 2018, arXiv 1708.02182, section 4.3 (after Gal and Ghahramani, 2016).
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be at least 0 and below 1, got {p}")

    def drop(embeddings: Any, ids: Tensor, output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        kept = torch.empty(len(embeddings.weight), device=output.device).bernoulli_(1 - p) / (1 - p)
        factor = kept[ids].masked_fill(_starts(ids, inputs), 1.0)
        return output * factor.unsqueeze(-1).to(output.dtype)

    with _changing_embeddings(model, drop):
        yield


Change = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@contextmanager
def _changing_embeddings(model: nn.Module, change: Change) -> Iterator[None]:
    """In training, put change(embeddings, ids, output, inputs) in place of what the input embeddings give.

    inputs: the tensors that the model itself was called with, by name.
    """
    inputs: dict[str, Tensor] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.clear()
        inputs.update({name: value for name, value in kwargs.items() if isinstance(value, Tensor)})

    def changed(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        given = dict(inputs)
        inputs.clear()  # they belong to this pass alone
        return change(module, args[0], output, given)

    hooks = (
        model.register_forward_pre_hook(note, with_kwargs=True),
        _embeddings(model).register_forward_hook(changed),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _starts(ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Where a row or a packed document begins: bool, shaped as the ids."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    attended = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.shape != ids.shape else mask.bool()
    placed = positions if positions is not None and positions.shape == ids.shape else None
    none = torch.zeros(0, dtype=torch.long)
    documents = find_documents(attended, None, placed, none)
    return attended & (documents.position == 0)


@contextmanager
def noisy_embedding(model: nn.Module, alpha: float = NOISE_ALPHA) -> Iterator[None]:
    """In training, add noise from U(-1, 1) x alpha / sqrt(L d) to the embeddings, new in each forward pass.

    d is the width, L the length of each row without its padding, from the `attention_mask` that the model is called
    with; without a mask of shape (B, S), L is S. Positions of padding get no noise. (Hugging Face's own
    `neftune_noise_alpha` counts the padding in L and puts noise there too.) ValueError unless alpha >= 0.

    Source: Jain et al., 2023, arXiv 2310.05914, algorithm 1.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")

    def disturb(embeddings: Any, ids: Tensor, output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        real, mask = torch.ones(output.shape[:-1], device=output.device), inputs.get("attention_mask")
        if mask is not None and mask.shape == real.shape:
            real = (mask != 0).to(real)
        bound = alpha / (real.sum(-1, keepdim=True).clamp(min=1) * output.shape[-1]).sqrt()
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1)
        return output + (noise * (bound * real).unsqueeze(-1)).to(output.dtype)

    with _changing_embeddings(model, disturb):
        yield


def _embeddings(model: Any) -> Any:
    found = model.get_input_embeddings()
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise UnavailableError(f"{type(model).__name__} has no matrix of input embeddings")
    return found


# --- in training ------------------------------------------------------------------------------------


class ActiveForgetting(TrainerCallback):
    """Forget the input embeddings every so many optimizer steps: draw them anew and zero their moments.

    every    K; by default min(1000, steps / 3, rounded up), read from the trainer when training begins. There is
             no reset after the last step, which would leave a model that has forgotten.
    seed     of the new rows, together with the step: a resumed run draws the same.
    resets   how many there were. details: in words, what was done.

    New rows are N(0, s), s the model's `initializer_range` (.02 if it has none); the row of the padding is 0. State
    tensors of the optimizer that have the weight's shape are zeroed, its count of steps is not. A head tied to the
    embeddings is the same matrix and is forgotten with them. UsageError where the embeddings are not trained.

    Source: Chen et al., 2023, arXiv 2307.01163: a method for pre-training, for a body that adapts to new languages.
    """

    def __init__(self, seed: int = 0, every: int | None = None) -> None:
        """Keep the seed and K. ValueError unless K is at least 1."""
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every, self.resets = every, 0
        self._seed, self._tied = seed, False

    @property
    def details(self) -> tuple[str, ...]:
        """What was done, once training has begun."""
        if self.every is None:
            return ()
        times = "once" if self.resets == 1 else f"{self.resets} times"
        said = f"input embeddings forgotten {times}, every {self.every:,} steps, never after the last"
        return (said, *(("the head is tied to the embeddings and was forgotten with them",) * self._tied))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle K, and count the resets that a resumed run has behind it."""
        model = unwrapped(kwargs["model"])
        weight = _embeddings(model).weight
        if not weight.requires_grad:
            raise UsageError(
                "active forgetting draws the embeddings anew, but they are not trained here (LoRA?)",
                "train all weights, or leave active-forgetting out",
            )
        self.every = self.every or min(FORGET_EVERY, max(1, math.ceil(state.max_steps / 3)))
        self.resets = min(state.global_step, state.max_steps - 1) // self.every
        self._tied = getattr(_head(model), "weight", None) is weight

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reset after every K-th step but the last; before a checkpoint of the same step is written."""
        if self.every is None or state.global_step % self.every or state.global_step >= state.max_steps:
            return
        model = unwrapped(kwargs["model"])
        reset_embeddings(model, kwargs["optimizer"], seed=self._seed + state.global_step)
        self.resets += 1


@torch.no_grad()
def reset_embeddings(model: nn.Module, optimizer: Any, *, seed: int) -> None:
    """Draw the input embeddings of a model anew, in place, and zero what the optimizer remembers of them."""
    embeddings = _embeddings(model)
    weight = embeddings.weight
    drawn = torch.empty(weight.shape).normal_(0, _spread(model), generator=torch.Generator().manual_seed(seed))
    if embeddings.padding_idx is not None:
        drawn[embeddings.padding_idx] = 0
    weight.copy_(drawn)  # drawn on the processor, so that every rank and every device has the same rows
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.zero_()


def _spread(model: Any) -> float:
    """The standard deviation that the model's own initialisation uses; BART and its relatives call it `init_std`."""
    text = model.config.get_text_config()
    named = (getattr(text, name, None) for name in ("initializer_range", "init_std"))
    return float(next((value for value in named if value is not None), 0.02))


def cosreg(model: nn.Module) -> Tensor:
    """How far the directions of the words agree: the mean cosine over pairs of rows of the output embeddings.

    Every row of the matrix counts, those of padding up to a round size too; rows of zeros do not. Differentiable;
    its cost is O(V d), through the norm of the sum of the unit rows. The paper divides by V^2, here the mean is
    over the V (V-1) pairs of different rows. UnavailableError for a model without a head.

    Shapes: scalar. Range: [-1 / (V-1), 1].
    Source: Gao et al., 2019, arXiv 1907.12009, "cosine regularization", with coefficient 1.
    """
    head = _head(model)
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise UnavailableError(f"{type(unwrapped(model)).__name__} has no output embeddings to regularise")
    return mean_cosine(head.weight[None])


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


# --- in words ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Definition:
    """What an arm does, with its constants, and who proposed it."""

    title: str
    definition: str
    source: str


def definition(spec: ArmSpec) -> Definition:
    """The definition of an arm, with the constants in use."""
    given = {
        "control": ("Control", "Cross-entropy only: same text in the same order, same steps, same seed.", "—"),
        "dispersion": (
            "Dispersion loss",
            f"Cross-entropy + {spec.coefficient} · the {spec.loss} loss on the directions of the tokens of a text, "
            f"mean over the states after {_blocks(spec.layers)}.",
            "Liu et al., 2026, arXiv:2602.00217",
        ),
        "embedding-dropout": (
            "Embedding dropout",
            f"In training each row of the input embedding matrix is dropped with probability {DROPOUT_P:g} in a "
            f"forward pass, wherever its token stands but at the start of a document; the others are multiplied by "
            f"1/{1 - DROPOUT_P:g}.",
            "Merity et al., 2018, arXiv:1708.02182",
        ),
        "noisy-embedding": (
            "Noisy embeddings (NEFTune)",
            f"In training U(−1, 1) · {NOISE_ALPHA:g}/√(L·d) is added to the input embeddings; L is the length of "
            "the row without padding, d the width.",
            "Jain et al., 2023, arXiv:2310.05914",
        ),
        "active-forgetting": (
            "Active forgetting",
            f"Every min({FORGET_EVERY:,}, a third of the) steps the input embeddings are drawn anew and their "
            "optimizer moments zeroed, never after the last step. A pre-training method: late in fine-tuning it "
            "destroys what the embeddings knew.",
            "Chen et al., 2023, arXiv:2307.01163",
        ),
        "larger-vocab": (
            "Larger vocabulary",
            f"New tokens continue the tokenizer's BPE merges on the training text (frequency ≥ {MIN_FREQUENCY}, at "
            f"most {MAX_GROWTH:.0%} of the vocabulary); their rows start as the mean of the pieces they replace. "
            "To be compared by bits per byte, not by perplexity.",
            "Merges: Sennrich et al., 2016, arXiv:1508.07909; larger vocabularies: Tao et al., 2024, arXiv:2407.13623",
        ),
        "cosreg": (
            "Cosine regularisation",
            f"Cross-entropy + {spec.coefficient} · the mean cosine over pairs of rows of the output embedding matrix.",
            "Gao et al., 2019, arXiv:1907.12009",
        ),
    }
    return Definition(*given[spec.remedy])


def _blocks(layers: str | None) -> str:
    named = {
        "all": "all blocks", "late": "the deepest half of the blocks", "early": "the first half of the blocks",
        "last": "the last block",
    }  # fmt: skip
    return named.get(str(layers), f"the blocks {str(layers).replace(',', ', ')}")
