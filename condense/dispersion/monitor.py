"""Geometry of a model while it trains, logged by a callback of Hugging Face's `Trainer`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense import geometry
from condense.dispersion.disperser import chosen_blocks
from condense.dispersion.tokens import read_documents, special_tokens
from condense.errors import UsageError
from condense.models.layers import Site, find_stacks, run, watching

FAINT, HEAVY = 1e-3, 0.5  # |penalty| / CE outside these deserves a warning


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
