"""The dispersion penalty inside Hugging Face's `Trainer` and its relatives, and a monitor for any of them.

    class DispersedSFT(DispersionMixin, SFTTrainer): ...
    trainer = DispersedSFT(model, ..., dispersion=DispersionConfig(coefficient=0.1))

What keeps the gradient right (each line is a trap that has a test):

* The cross-entropy comes from `super().compute_loss`; a mean of one's own would be 5 to 12 times too large.
* `Trainer` divides by the accumulation steps only a loss that is not yet normalised; the penalty follows suit.
* The penalty is added after super's multiplication by the number of processes, because it is not a share of a sum.
* Each micro-batch weighs as many sequences as it has, of all those in the optimizer step over all ranks, so the
  penalty of the step is that of one whole batch, not a mean of means. Exact where a batch is a mapping with
  `input_ids`; for other batches micro-batches count alike. Per-token rescaling inside a step is left to super.
* Nothing is added in evaluation, and the choice of tokens depends on the optimizer step alone, so a resumed run
  repeats the uninterrupted one bit by bit.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense import geometry
from condense.dispersion.disperser import Disperser, DispersionConfig, chosen_blocks
from condense.dispersion.tokens import read_documents, special_tokens
from condense.errors import RunError, UsageError
from condense.models.layers import Site, find_stacks, run, unwrapped, watching

FAINT, HEAVY = 1e-3, 0.5  # |penalty| / CE outside these deserves a warning

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class DispersionMixin(_Base):
    """Adds the penalty to any `Trainer` subclass: `class MySFT(DispersionMixin, SFTTrainer)`, in this order.

    One keyword of its own, `dispersion`: a `DispersionConfig` or a mapping of its fields. Special tokens are those
    of the tokenizer, unless the config names others. Logged beside `loss` (which is the sum): `ce_loss`,
    `dispersion_penalty`, `dispersion_value`, `mean_cosine`, `penalty_to_ce`, all means over the steps since the
    last log, over all ranks.

    Sets every layerdrop to 0 and `logging_nan_inf_filter` to False. UsageError under `nn.DataParallel` and under
    context or sequence parallelism, where no process sees the whole of a sequence. RunError, naming the step and
    before the weights are touched, if a loss or gradient is not finite.
    """

    def __init__(
        self, *args: Any, dispersion: DispersionConfig | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        # The arguments of a Trainer yet to be named: the one place where they have to be relayed unseen.
        super().__init__(*args, **kwargs)
        _refuse_split_batches(self)
        self.args.logging_nan_inf_filter = False
        config = dispersion if isinstance(dispersion, DispersionConfig) else DispersionConfig(**(dispersion or {}))
        if config.special_ids is None and hasattr(self.processing_class, "all_special_ids"):
            config = replace(config, special_ids=tuple(self.processing_class.all_special_ids))
        self._disperser = Disperser(self.model, **vars(config))
        self._sequences: float | None = None
        self._since_log = _Tally()
        self.add_callback(_Guard(self))

    @property
    def disperser(self) -> Disperser:
        """The disperser in use, with the readings of the last micro-batch."""
        return self._disperser

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as super does; the hooks are on the model for so long."""
        self._since_log = _Tally()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CondensationMonitor) and callback.trainer is None:
                callback.trainer = self
        try:
            return super().train(*args, **kwargs)
        finally:
            self._disperser.detach()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, as super; their sequences are counted over all ranks."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self._count(batch) for batch in batches]
        total = -math.inf if None in counts else sum(count for count in counts if count is not None)
        self._sequences = float(self.accelerator.gather(torch.tensor([total], device=device)).sum())
        self._since_log.steps += bool(batches)
        return batches, items

    def _count(self, batch: Any) -> int | None:
        known = isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor)
        return self._disperser.sequences(batch) if known and batch["input_ids"].ndim == 2 else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Super's loss plus, in training, the penalty in the same scale."""
        if not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        disperser, count = self._ready(), self._count(inputs)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        penalty = disperser.penalty(step=self.state.global_step)
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        undivided = 1 if self._is_scaled(num_items_in_batch) else steps
        weight = self._weight(count, steps)
        total = loss + penalty.to(loss.device) * (weight * undivided)
        if not bool(torch.isfinite(total)):
            raise RunError(f"the loss at step {self.state.global_step} is {float(total.detach())}", _NON_FINITE_HINT)
        self._since_log.add(loss.detach() / undivided, disperser, weight)
        return (total, outputs) if return_outputs else total

    def _ready(self) -> Disperser:
        """The disperser with its hooks on the model that is being trained, which `model_init` may have replaced."""
        if self._disperser.model is not self.model:
            self._disperser.detach()
            self._disperser = Disperser(self.model, **vars(self._disperser.config))
        return self._disperser.attach()

    def _is_scaled(self, items: Tensor | int | None) -> bool:
        """Whether super's loss is already a share of the step's: the rule in `Trainer.training_step`."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def _weight(self, count: int | None, steps: int) -> float:
        """Share of a micro-batch in the penalty of its step; times the ranks, over which gradients are averaged."""
        if count is None or self._sequences is None or not math.isfinite(self._sequences):
            return 1 / steps
        return count / max(self._sequences, 1.0) * int(self.accelerator.num_processes)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as super does, with the dispersion readings beside a training loss."""
        if "loss" in logs and self._since_log.steps:
            sums = self.accelerator.gather(self._since_log.sums(self.args.device)[None])
            logs.update(self._since_log.readings(sums.mean(0), self._disperser.config.coefficient))
            self._since_log = _Tally()
        super().log(logs, start_time)


class DispersionTrainer(DispersionMixin, Trainer):
    """`transformers.Trainer` with the dispersion penalty: one keyword more, `dispersion`."""


def _refuse_split_batches(trainer: Any) -> None:
    if trainer.args.n_gpu > 1:
        raise UsageError(
            f"{trainer.args.n_gpu} GPUs in one process: nn.DataParallel splits batches behind the penalty's back",
            "start with `torchrun --nproc-per-node N`, or show one GPU with CUDA_VISIBLE_DEVICES=0",
        )
    if trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise UsageError(
            "context or sequence parallelism: no process sees the tokens of a whole sequence",
            "use data, tensor or fully sharded data parallelism",
        )


_NON_FINITE_HINT = "lower the learning rate, use bfloat16 or float32 instead of float16, look at the last batches"


@dataclass
class _Tally:
    """Sums since the last log, kept on the device so that a step waits for nothing."""

    steps: int = 0
    ce: Tensor | float = 0.0
    value: Tensor | float = 0.0
    cosine: Tensor | float = 0.0
    weight: float = 0.0

    def add(self, ce: Tensor, disperser: Disperser, weight: float) -> None:
        self.ce = self.ce + ce
        self.value = self.value + disperser.value.to(ce.device) * weight
        self.cosine = self.cosine + disperser.mean_cosine.to(ce.device) * weight
        self.weight += weight

    def sums(self, device: torch.device) -> Tensor:
        parts = (self.ce, self.value, self.cosine, self.weight)
        return torch.stack([torch.as_tensor(part, dtype=torch.float32, device=device) for part in parts])

    def readings(self, sums: Tensor, coefficient: float) -> dict[str, float]:
        ce, value, cosine, weight = sums.tolist()
        ce, penalty = ce / self.steps, coefficient * value / self.steps
        readings = {"ce_loss": ce, "dispersion_penalty": penalty}
        if weight:
            readings |= {"dispersion_value": value / weight, "mean_cosine": cosine / weight}
        return readings | ({"penalty_to_ce": abs(penalty) / ce} if ce > 0 else {})


class _Guard(TrainerCallback):
    """Layerdrop off when training begins, and no step on a gradient that is not finite."""

    def __init__(self, trainer: DispersionMixin) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        modules = list(unwrapped(kwargs["model"]).modules())
        # Blocks read it from their stack, which copied it from the config when it was built.
        for part in [*modules, *(module.config for module in modules if hasattr(module, "config"))]:
            for name in [name for name in vars(part) if name.endswith("layerdrop") and getattr(part, name)]:
                setattr(part, name, 0.0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if getattr(self._trainer.accelerator, "scaler", None) is not None:
            return  # float16: the scaler meets overflow by skipping the step and lowering its scale
        gradients = ((name, parameter.grad) for name, parameter in kwargs["model"].named_parameters())
        finite = {name: torch.isfinite(grad).all() for name, grad in gradients if grad is not None}
        for name, flag in finite.items():  # read only now: one wait for the device, not one for each
            if not bool(flag):
                raise RunError(f"the gradient of {name} at step {state.global_step} is not finite", _NON_FINITE_HINT)


# --- the monitor ------------------------------------------------------------------------------------


class CondensationMonitor(TrainerCallback):
    """How condensed a model is while it trains: fixed probe texts, measured every so many steps.

    Works beside any `Trainer`. Logs, to whatever `report_to` names, `probe_mean_cosine`, `probe_effective_rank` and
    `probe_relative_variance`: means over the texts, then medians over the deepest half of the blocks (of the last
    stack), without position 0 and special tokens, in evaluation mode. Shows them with the losses of the last log
    on one line of `stream`, rewritten in place on a terminal. Warns, once each, when |penalty| / CE (logged by
    `DispersionMixin`) is below 1e-3, too faint to act, or above 0.5, at the expense of the language.

    probe    ids (N, S) of N texts, measured before the first step too. Default: up to 4 documents of 128 tokens
             from the first training batch, another one after a resume: give a probe if runs are to be compared.
    every    optimizer steps between two measurements; default: the logging steps.
    quiet    no terminal line.
    trainer  needed beside a Trainer without `DispersionMixin`: `trainer.add_callback(CondensationMonitor(
             trainer=trainer))`, since callbacks are not told whose they are. UsageError at the start without it.
    """

    def __init__(
        self,
        probe: Tensor | None = None,
        *,
        every: int | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        if probe is not None and (probe.ndim != 2 or probe.shape[1] < 4):
            raise ValueError(f"probe must be ids (N, S) with S >= 4, got {tuple(probe.shape)}")
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.trainer = trainer
        self._given = probe
        self._probe: list[tuple[Tensor, Tensor]] = []
        self._every = every
        self._quiet = quiet
        self._stream = stream
        self._latest: dict[str, float] = {}
        self._warned: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the probe once, or else take it from the first forward pass. UsageError without a trainer."""
        if self.trainer is None:
            raise UsageError(
                "CondensationMonitor does not know its trainer",
                "trainer.add_callback(CondensationMonitor(trainer=trainer)), or use DispersionTrainer",
            )
        model = kwargs["model"]
        special = special_tokens(model, getattr(kwargs.get("processing_class"), "all_special_ids", None))
        if self._given is not None:
            self._probe = _texts({"input_ids": self._given}, special)
            self._measure(model)
        elif not self._probe:
            root = find_stacks(model)[0].root

            def read(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
                handle.remove()
                if isinstance(inputs.get("input_ids"), Tensor):
                    self._probe = [(ids[:128], keep[:128]) for ids, keep in _texts(inputs, special)[:4]]

            handle = root.register_forward_pre_hook(read, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and log if it is time to."""
        if state.global_step % (self._every or state.logging_steps) == 0:
            due = control.should_log  # which logging takes as done
            self._measure(kwargs["model"])
            control.should_log = due

    def _measure(self, model: nn.Module) -> None:
        if self._probe and self.trainer is not None:
            # Not the subclass's `log`: SFTTrainer's would empty its own averages into this entry.
            Trainer.log(self.trainer, _readings(model, self._probe))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Warn about the weight of the penalty, and renew the terminal line."""
        self._latest |= {key: value for key, value in (logs or {}).items() if key in _SHOWN}
        if not state.is_world_process_zero:
            return
        if logs and logs.get("penalty_to_ce"):
            self._judge(logs["penalty_to_ce"])
        if not self._quiet and logs and any(key in logs for key in _SHOWN):
            self._show(state)

    def _judge(self, ratio: float) -> None:
        verdict = "too faint to act" if ratio < FAINT else "it outweighs the language" if ratio > HEAVY else ""
        if verdict and verdict not in self._warned:
            self._warned.add(verdict)
            advice = "raise" if ratio < FAINT else "lower"
            warnings.warn(
                f"|penalty| / CE is {ratio:.2g}: {verdict}; {advice} the dispersion coefficient", stacklevel=2
            )

    def _show(self, state: TrainerState) -> None:
        stream = self._stream or sys.stderr
        parts = [f"{title} {self._latest[key]:{form}}" for key, (title, form) in _SHOWN.items() if key in self._latest]
        line = f"step {state.global_step}/{state.max_steps}  " + "  ".join(parts)
        stream.write(f"\r\x1b[2K{line}" if stream.isatty() else line + "\n")
        stream.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the terminal line standing."""
        stream = self._stream or sys.stderr
        if not self._quiet and self._latest and state.is_world_process_zero and stream.isatty():
            stream.write("\n")


_SHOWN = {
    "loss": ("loss", ".4f"),
    "ce_loss": ("CE", ".4f"),
    "penalty_to_ce": ("|penalty|/CE", ".2g"),
    "probe_mean_cosine": ("cosine", ".3f"),
    "probe_effective_rank": ("rank", ".1f"),
    "probe_relative_variance": ("variance", ".3f"),
}
_PROBED = {
    "probe_mean_cosine": geometry.mean_cosine,
    "probe_effective_rank": geometry.effective_rank,
    "probe_relative_variance": geometry.relative_variance,
}


def _texts(inputs: Mapping[str, Any], special: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ids (n,) of each document in a model's inputs, and which of them count; those without a pair left out."""
    documents, ids = read_documents(inputs, special), inputs["input_ids"]
    count = int(documents.document.max()) + 1
    places = [documents.attended & (documents.document == number) for number in range(count)]
    texts = [(ids[place].clone(), documents.valid[place]) for place in places]
    return [(text, keep) for text, keep in texts if int(keep[:128].sum()) >= 2]


@torch.no_grad()
def _readings(model: nn.Module, probe: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The probe metrics now: mean over texts, median over the deepest half of the blocks of the last stack."""
    stacks, training = find_stacks(model), model.training
    device = next(model.parameters()).device
    deep = chosen_blocks("late", stacks[-1].blocks)
    sums = {key: torch.zeros(len(deep), dtype=torch.float64) for key in _PROBED}
    model.eval()
    try:
        for ids, keep in probe:
            text = keep.cpu()

            def receive(site: Site, states: Tensor, text: Tensor = text) -> None:
                if site.name == "block" and site.index in deep:
                    for key, metric in _PROBED.items():
                        sums[key][deep.index(site.index)] += float(metric(states[0].detach().cpu()[text]))

            with watching(stacks[-1], receive):
                run(model, stacks, ids[None].to(device))
    finally:
        model.train(training)
    return {key: float(total.quantile(0.5)) / len(probe) for key, total in sums.items()}
