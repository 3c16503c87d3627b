"""The monitor as a callback of Hugging Face's `Trainer`: the probe's geometry beside the losses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.dispersion.monitor import Probe, deep_of, readings
from condense.dispersion.tokens import ids_among, parameters_of, read_documents, special_tokens
from condense.errors import UsageError
from condense.models.layers import find_stacks, unwrapped

_PROBED = {key: f"probe_{key}" for key in ("mean_cosine", "effective_rank", "relative_variance")}
_LONGEST, _MOST_TEXTS = 128, 4  # of a probe that is taken from the first batch
FAINT, HEAVY = 1e-3, 0.5  # |penalty| / CE outside these deserves a warning


class CondensationMonitor(TrainerCallback):
    """How condensed a model is while it trains: fixed probe texts, measured every so many steps.

    Works beside any `Trainer`. Logs, to whatever `report_to` names, `probe_mean_cosine`, `probe_effective_rank` and
    `probe_relative_variance`: means over the texts and the deepest half of the blocks (of the last
    stack), without position 0 and special tokens, in evaluation mode. Shows them with the losses of the last log
    on one line of `stream`, rewritten in place on a terminal. Warns, once each, when |penalty| / CE (logged by
    `DispersionMixin`) is above 0.5, at the expense of the language, or below 1e-3, too faint to act, also at the
    coefficient that a schedule starts from; not beside a loss that is no cross-entropy (DPO, GRPO …), whose size says
    nothing. Without a Trainer: `condense.Monitor`.

    probe    ids (N, S) of N texts, measured before the first step too. Default: up to 4 documents of 128 tokens
             from the first training batch, another one after a resume: give a probe if runs are to be compared.
    every    optimizer steps between two measurements; default: the logging steps.
    quiet    no terminal line.
    trainer  needed beside a Trainer without `DispersionMixin`: `trainer.add_callback(CondensationMonitor(
             trainer=trainer))`, since a callback is not given its trainer. UsageError at the start without it.
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
            inner = unwrapped(model)
            names = parameters_of(inner)

            def read(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
                handle.remove()
                inputs = {**dict(zip(names, args, strict=False)), **kwargs}
                ids = inputs.get("input_ids")
                inputs["input_ids"] = ids if isinstance(ids, Tensor) else ids_among(inputs)
                if inputs["input_ids"] is None:
                    warnings.warn("CondensationMonitor saw no token ids in the first batch: give a probe", stacklevel=2)
                else:
                    texts = _texts(inputs, special)[:_MOST_TEXTS]
                    self._probe = [(ids[:_LONGEST], keep[:_LONGEST]) for ids, keep in texts]

            handle = inner.register_forward_pre_hook(read, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and log if it is time to."""
        if state.global_step % (self._every or state.logging_steps) == 0:
            due = control.should_log  # which logging takes as done
            self._measure(kwargs["model"])
            control.should_log = due

    def _measure(self, model: nn.Module) -> None:
        if self._probe and self.trainer is not None:
            # Not the subclass's `log`: SFTTrainer's would empty its own averages into this entry.
            blocks = readings(model, self._probe, tuple(_PROBED))
            numbers = deep_of(blocks, find_stacks(model)[-1].blocks)
            Trainer.log(self.trainer, {_PROBED[key]: value for key, value in numbers.items()})

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
            self._judge(logs["penalty_to_ce"], self._undiminished(logs))
        if not self._quiet and logs and any(key in logs for key in _SHOWN):
            self._show(state)

    def _undiminished(self, logs: dict[str, float]) -> float:
        """|penalty| / CE as it would be before the schedule lowered the coefficient."""
        config: Any = getattr(getattr(self.trainer, "disperser", None), "config", None)
        value, ce = logs.get("dispersion_value"), logs.get("ce_loss")
        if config is None or value is None or not ce:
            return logs["penalty_to_ce"]
        return float(abs(config.coefficient * value) / ce)

    def _judge(self, ratio: float, undiminished: float) -> None:
        """Warn of a penalty that is too large now, or too small even where no schedule has lowered it."""
        if undiminished < FAINT:
            ratio, verdict, advice = undiminished, "too faint to act", "raise"
        elif ratio > HEAVY:
            verdict, advice = "it outweighs the language", "lower"
        else:
            return
        if verdict not in self._warned:
            self._warned.add(verdict)
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
    "task_loss": ("task loss", ".4f"),
    "penalty_to_ce": ("|penalty|/CE", ".2g"),
    "probe_mean_cosine": ("cosine", ".3f"),
    "probe_effective_rank": ("rank", ".1f"),
    "probe_relative_variance": ("variance", ".3f"),
}


def _texts(inputs: Mapping[str, Any], special: Tensor) -> Probe:
    """Ids (n,) of each document in a model's inputs, and which of them count; those without a pair left out."""
    documents, ids = read_documents(inputs, special), inputs["input_ids"]
    count = int(documents.document.max()) + 1
    masks = [documents.attended & (documents.document == number) for number in range(count)]
    texts = [(ids[mask].clone(), documents.valid[mask]) for mask in masks]
    return [(text, keep) for text, keep in texts if int(keep[:_LONGEST].sum()) >= 2]
