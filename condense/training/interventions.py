"""What an arm adds to plain training, as one value: a dispersion loss, hooks on the model, callbacks, a regulariser.

The trainer, the timing of a step and the process that measures memory all read the same value, so that what is
timed is what is trained. An arm without any of it is the control. The parts below can each be read against its paper;
which arm uses which is in condense/training/remedies.py.

    embedding_dropout    Merity et al., 2018, arXiv 1708.02182     around training
    noisy_embedding      Jain et al., 2023, arXiv 2310.05914       around training
    ActiveForgetting     Chen et al., 2023, arXiv 2307.01163       a callback of `Trainer`
    cosreg               Gao et al., 2019, arXiv 1907.12009        added to the loss
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.dispersion.config import DispersionConfig
from condense.dispersion.disperser import Disperser
from condense.dispersion.losses import mean_cosine
from condense.dispersion.tokens import find_documents
from condense.errors import UnavailableError, UsageError
from condense.models.layers import forward_pass, unwrapped
from condense.records.plans import DROPOUT_P, FORGET_EVERY, NOISE_ALPHA, Plan

Hooks = Callable[[Any], AbstractContextManager[None]]


def _nothing(model: Any) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


def _leave(model: Any) -> None:
    pass


@dataclass(frozen=True)
class Regulariser:
    """A scalar of the model itself, added to the loss once per optimizer step at a coefficient."""

    coefficient: float
    value: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Intervention:
    """What an arm does while it trains; the default does nothing but log the mean cosine (coefficient 0).

    `hooks(model)` is a context around training, also around a single timed pass: behind it weights are as they would
    be without it. `finish(model)` changes the trained model once, before it is saved. `callbacks()` makes fresh
    callbacks for one run, and what they have in `details` afterwards is reported with the run.
    """

    dispersion: DispersionConfig = field(default_factory=lambda: DispersionConfig(coefficient=0.0))
    hooks: Hooks = _nothing
    finish: Callable[[Any], None] = _leave
    callbacks: Callable[[], tuple[Any, ...]] = tuple
    regulariser: Regulariser | None = None


def dispersion_config(plan: Plan, coefficient: float) -> DispersionConfig:
    """The loss of a plan at a coefficient; tau only where the loss has one.

    Coefficient 0 only reads the cosine, to the last step: it has nothing that a schedule could take away.
    """
    return DispersionConfig(
        coefficient=coefficient,
        loss=plan.loss,
        layers=plan.layers,
        paper_sites=plan.paper_sites,
        max_tokens=plan.max_tokens,
        seed=plan.seed,
        constants={"tau": plan.tau} if plan.loss in ("angular", "l2_repel", "robust") else None,
        schedule=plan.coefficient_schedule if coefficient else "constant",
    )


def forward_backward(model: Any, inputs: dict[str, Tensor], intervention: Intervention) -> None:
    """One pass forward and backward of a micro-batch as the arm trains it; gradients are left on the model."""
    config = intervention.dispersion
    with contextlib.ExitStack() as around:
        around.enter_context(intervention.hooks(model))
        disperser = None
        if config.coefficient:
            disperser = around.enter_context(Disperser(model, **vars(replace(config, schedule="constant"))))
        with forward_pass(model):
            loss = model(**inputs).loss
        if loss is None:
            raise UnavailableError(
                f"{type(unwrapped(model)).__name__} gives no loss where it is given labels: it cannot be trained here",
                "train it in a loop of your own: condense.Disperser",
            )
        if disperser is not None:
            loss = loss + disperser.penalty()
        if intervention.regulariser is not None:
            loss = loss + intervention.regulariser.coefficient * intervention.regulariser.value(model)
        loss.backward()


def adapted(model: Any, plan: Plan) -> Any:
    """The model with LoRA adapters; only they are trained.

    UnavailableError without the package peft, UsageError where the target modules are not there.
    """
    if importlib.util.find_spec("peft") is None:
        raise UnavailableError("--use-peft needs the package peft", "pip install 'condense-lm[peft]'")
    from peft import LoraConfig, get_peft_model

    targets: Any = plan.lora_target_modules
    targets = targets if targets == "all-linear" else targets.split(",")
    config = LoraConfig(
        r=plan.lora_r, lora_alpha=plan.lora_alpha, lora_dropout=plan.lora_dropout, target_modules=targets
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = {name.rpartition(".")[2]: None for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        raise UsageError(
            f"LoRA cannot be applied: {str(error).splitlines()[0][:200]}",
            f"choose --lora-target-modules of {', '.join(linear) or 'another model: this one has no linear modules'}",
        ) from None


@contextmanager
def as_trained(model: Any, plan: Plan) -> Iterator[tuple[Any, int, str]]:
    """The model as a plan trains it, how many parameters that trains, and which modules adapters are in, in words.

    LoRA adapters are fresh ones, and are taken off again.
    """
    if not plan.use_peft:
        yield model, sum(parameter.numel() for parameter in model.parameters()), ""
        return
    was = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        tuned = adapted(model, plan)
    trained, every = tuned.get_nb_trainable_parameters()
    modules = ", ".join(sorted(tuned.peft_config["default"].target_modules))
    try:
        yield tuned, trained, f"{modules}: {trained:,} parameters are trained beside {every - trained:,}"
    finally:
        tuned.unload()
        vars(model).pop("peft_config", None)
        for parameter, required in was:
            parameter.requires_grad_(required)


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
