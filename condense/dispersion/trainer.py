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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.dispersion.callback import CondensationMonitor
from condense.dispersion.config import DispersionConfig
from condense.dispersion.disperser import Disperser
from condense.errors import RunError, UsageError
from condense.models.layers import unwrapped

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class DispersionMixin(_Base):
    """Adds the penalty to any `Trainer` subclass: `class MySFT(DispersionMixin, SFTTrainer)`, in this order.

    One keyword of its own, `dispersion`: a `DispersionConfig` or a mapping of its fields. Special tokens are those
    of the tokenizer, unless the config names others. Logged beside `loss` (which is the sum): `ce_loss`,
    `dispersion_penalty`, `dispersion_value`, `mean_cosine`, `penalty_to_ce`, all means over the steps since the
    last log, over all ranks. Beside a trainer whose loss is not cross-entropy (DPO, KTO, GRPO, a reward model …) the
    first and the last are called `task_loss` and `penalty_to_task_loss`.

    Sets every layerdrop to 0 and `logging_nan_inf_filter` to False. UsageError under `nn.DataParallel` and under
    context or sequence parallelism, where no process sees the whole of a sequence. RunError, naming the step and
    before the weights are touched, if a loss or gradient is not finite; at the next log where only the norm is not.
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
        self._begin_tally()
        self.add_callback(_Guard(self))

    @property
    def disperser(self) -> Disperser:
        """The disperser in use, with the readings of the last micro-batch."""
        return self._disperser

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as super does; the hooks are on the model for so long."""
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

    def _begin_tally(self) -> None:
        self._since_log = _Tally()
        self._losses: list[Tensor] = []  # of the micro-batches of a step, looked at once before the optimizer's

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
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        undivided = 1 if self._is_scaled(num_items_in_batch) else steps
        disperser, step = self._ready(), self.state.global_step
        if disperser.config.has_ended(step):
            disperser.penalty(step=step)  # takes the hooks off, and the readings with them
            loss, outputs, own = self._supers_loss(model, inputs, return_outputs, num_items_in_batch)
            self._losses.append(loss.detach())
            self._since_log.add(own / undivided)
            return (loss, outputs) if return_outputs else loss
        count = self._count(inputs)
        loss, outputs, own = self._supers_loss(model, inputs, return_outputs, num_items_in_batch)
        penalty = self._penalty(disperser, step)
        weight = self._weight(count, steps)
        total = loss + penalty.to(loss.device) * (weight * undivided)
        self._losses.append(total.detach())
        self._since_log.add(own / undivided)
        self._since_log.add_penalty(penalty.detach(), disperser, weight)
        return (total, outputs) if return_outputs else total

    def _check_step(self) -> None:
        """RunError if states or the loss of a micro-batch since the last optimizer step were not finite."""
        self._disperser.check()
        losses, self._losses = self._losses, []
        values = torch.stack(losses).tolist() if losses else []
        for value in values:
            if not math.isfinite(value):
                raise RunError(f"the loss at step {self.state.global_step} is {value}", _NON_FINITE_HINT)

    def _penalty(self, disperser: Disperser, step: int) -> Tensor:
        return disperser.penalty(step=step)

    def _supers_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, items: Tensor | int | None
    ) -> tuple[Tensor, Any, Tensor]:
        """Super's loss, the outputs if they are wanted, and the loss that is logged, without a router's share."""
        routed = _router_coefficient(self.model)
        result = super().compute_loss(model, inputs, return_outputs or bool(routed), items)
        loss, outputs = result if return_outputs or routed else (result, None)
        return loss, outputs, _without_router_loss(loss.detach(), outputs, routed)

    def _ready(self) -> Disperser:
        """The disperser of the model in training (`model_init` may replace it), attached till its schedule ends."""
        config = replace(self._disperser.config, steps=max(1, self.state.max_steps))
        if self._disperser.model is not self.model or config != self._disperser.config:
            self._disperser.detach()
            self._disperser = Disperser(self.model, **vars(config))
        ended = config.has_ended(self.state.global_step)
        return self._disperser if ended else self._disperser.attach()

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
        """Log as super does, with the dispersion readings beside a training loss.

        RunError where the norm of the last gradient is beyond float range: clipping has made nothing of that gradient,
        and the arm would be taken for one that does not move the model.
        """
        norm = logs.get("grad_norm")
        scaled = self.accelerator.mixed_precision == "fp16"  # there overflow skips the step and lowers the scale
        if norm is not None and not math.isfinite(norm) and not scaled:
            step = self.state.global_step - 1
            raise RunError(f"non-finite gradient norm at step {step}: {norm}", _TOO_LARGE)
        if "loss" in logs and self._since_log.steps:
            sums = self.accelerator.gather(self._since_log.sums(self.args.device)[None])
            name = "ce" if is_cross_entropy(type(self)) else "task_loss"
            logs.update(self._since_log.readings(sums.mean(0), name))
            self._since_log = _Tally()
        super().log(logs, start_time)


class DispersionTrainer(DispersionMixin, Trainer):
    """`transformers.Trainer` with the dispersion penalty: one keyword more, `dispersion`."""


def _router_coefficient(model: Any) -> float:
    """What a mixture of experts multiplies its router's auxiliary loss by before it adds it; 0 where it adds none."""
    config: Any = getattr(unwrapped(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)


def _without_router_loss(loss: Tensor, outputs: Any, coefficient: float) -> Tensor:
    """The loss without the router's share, which is no cross-entropy; in the scale that the Trainer gave the loss."""
    auxiliary = getattr(outputs, "aux_loss", None) if coefficient else None
    if not isinstance(auxiliary, Tensor) or not isinstance(getattr(outputs, "loss", None), Tensor):
        return loss
    own = outputs.loss.detach()
    scale = torch.where(own != 0, loss / own, torch.ones_like(loss))
    return loss - coefficient * auxiliary.detach().to(loss.device) * scale


_OTHER_LOSSES = ("DPO", "KTO", "GRPO", "ORPO", "CPO", "BCO", "RLOO", "PPO", "GKD", "PRM", "Reward", "NashMD", "SDPO")


def is_cross_entropy(trainer: type) -> bool:
    """Whether a Trainer class trains on cross-entropy: not where it or a parent is one of TRL's with another loss."""
    names = [kind.__name__ for kind in trainer.__mro__ if kind.__name__.endswith("Trainer")]
    return not any(loss in name for name in names for loss in _OTHER_LOSSES)


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


_TOO_LARGE = "lower the coefficient or the learning rate"
_NON_FINITE_HINT = "lower the learning rate, use bfloat16 or float32 instead of float16, look at the last batches"


@dataclass
class _Tally:
    """Sums since the last log, kept on the device so that a step waits for nothing."""

    steps: int = 0
    ce: Tensor | float = 0.0
    value: Tensor | float = 0.0
    cosine: Tensor | float = 0.0
    penalty: Tensor | float = 0.0
    weight: float = 0.0

    def add(self, ce: Tensor) -> None:
        self.ce = self.ce + ce

    def add_penalty(self, penalty: Tensor, disperser: Disperser, weight: float) -> None:
        self.value = self.value + disperser.value * weight
        self.cosine = self.cosine + disperser.mean_cosine * weight
        self.penalty = self.penalty + penalty * weight
        self.weight += weight

    def sums(self, device: torch.device) -> Tensor:
        parts = (self.ce, self.value, self.cosine, self.penalty, self.weight)
        return torch.stack([torch.as_tensor(part, dtype=torch.float32, device=device) for part in parts])

    def readings(self, sums: Tensor, name: str) -> dict[str, float]:
        ce, value, cosine, penalty, weight = sums.tolist()
        ce, penalty = ce / self.steps, penalty / self.steps
        readings = {"ce_loss" if name == "ce" else name: ce, "dispersion_penalty": penalty}
        if weight:
            readings |= {"dispersion_value": value / weight, "mean_cosine": cosine / weight}
        return readings | ({f"penalty_to_{name}": abs(penalty) / ce} if ce > 0 else {})


class _Guard(TrainerCallback):
    """Layerdrop off when training begins, and no step on a gradient that is not finite."""

    def __init__(self, trainer: DispersionMixin) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._begin_tally()  # anew where a smaller batch is tried after an error
        modules = list(unwrapped(kwargs["model"]).modules())
        # Blocks read it from their stack, which copied it from the config when it was built.
        for part in [*modules, *(module.config for module in modules if hasattr(module, "config"))]:
            for name in [name for name in vars(part) if name.endswith("layerdrop") and getattr(part, name)]:
                setattr(part, name, 0.0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._check_step()
        if getattr(self._trainer.accelerator, "scaler", None) is not None:
            return  # float16: the scaler meets overflow by skipping the step and lowering its scale
        gradients = ((name, parameter.grad) for name, parameter in kwargs["model"].named_parameters())
        finite = {name: torch.isfinite(grad).all() for name, grad in gradients if grad is not None}
        for name, flag in finite.items():  # read only now: one wait for the device, not one for each
            if not bool(flag):
                raise RunError(f"the gradient of {name} at step {state.global_step} is not finite", _NON_FINITE_HINT)
