"""Bits per byte of the validation text while an arm trains: a callback that scores the windows at some steps.

It draws nothing at random and leaves the model as it was, so that a run trains the same with it and without; its time
is not counted. What it has is kept in Trainer's log history, which survives a resume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.diagnosis.quality import Scorer, score_passage
from condense.errors import RunError
from condense.models.checkpoint import Checkpoint
from condense.models.layers import unwrapped
from condense.records.learning import Scores
from condense.texts.windows import Windows

POINTS = 16
"""Steps at which a run is evaluated by default, the end among them."""
SHARE = 0.2
"""Evaluations may take this share of the training's time, by default."""
FORWARD = 1 / 3
"""A forward pass beside forward and backward."""
_NATS, _SECONDS = "condense_nats", "condense_seconds"

Score = Callable[[Any], Sequence[float]]


def evaluated_steps(steps: int, points: int) -> frozenset[int]:
    """The steps at which a run is evaluated on its way: evenly apart, the last step left out."""
    made = {round(steps * number / points) for number in range(1, points)} if points > 1 else set()
    return frozenset(step for step in made if 0 < step < steps)


def default_points(train_tokens: int, window_tokens: int) -> int:
    """How many points of a curve take at most `SHARE` of the training's time; at most `POINTS`, none below 4."""
    affordable = int(SHARE * train_tokens / (FORWARD * max(1, window_tokens)))
    return min(POINTS, affordable + 1) if affordable >= 3 else 0


@dataclass(frozen=True)
class WindowScore:
    """Nats per window of a model in training: on its own windows, or on the passages of the control's windows."""

    source: Checkpoint
    windows: Windows
    by_passage: bool = False

    def __call__(self, model: Any) -> list[float]:
        """Score every window; the model is put into evaluation mode and back. RunError for a non-finite loss."""
        was = model.training
        model.eval()
        try:
            scores = self._nats(model)
        finally:
            model.train(was)
        if not all(map(math.isfinite, scores)):
            raise RunError(f"non-finite loss on {self.windows.info.source}", "lower the learning rate")
        return scores

    @torch.inference_mode()
    def _nats(self, model: Any) -> list[float]:
        if self.by_passage:
            current = replace(self.source, model=model)
            return [score_passage(current, context, text)[0] for context, text in self.windows.passages]
        scorer = Scorer(unwrapped(model), "causal", None, None, 0)
        texts = enumerate(zip(self.windows.ids, self.windows.special, strict=True))
        return [scorer.score(scorer.losses_of_model(number, *text), text[1]).nats for number, text in texts]


@dataclass(frozen=True)
class Evaluation:
    """What scores a model in training, and after which steps."""

    score: Score = lambda model: ()
    steps: frozenset[int] = frozenset()


class Clock(TrainerCallback):
    """Seconds of training alone, and the scores at some steps.

    On a CPU the processor time over the number of threads, so that other load is not counted; else wall time.
    """

    def __init__(self, device: torch.device, evaluation: Evaluation | None = None) -> None:
        """Take what scores a model, and after which steps it does."""
        self._device, self._evaluation = device, evaluation or Evaluation()
        self._spent, self._begun = 0.0, 0.0

    @property
    def kind(self) -> Literal["processor", "wall"]:
        """What is counted."""
        return "processor" if self._device.type == "cpu" else "wall"

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _pause(self) -> None:
        self._spent += self._now() - self._begun

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out what is done meanwhile."""
        self._pause()
        try:
            yield
        finally:
            self._begun = self._now()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the seconds that a checkpoint kept."""
        kept: list[Any] = [entry[_SECONDS] for entry in state.log_history if _SECONDS in entry]
        self._spent, self._begun = float(kept[-1]) if kept else 0.0, self._now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Score the model where that is wanted, and note the time for a checkpoint that is about to be written."""
        step = state.global_step
        wanted = step in self._evaluation.steps
        if not wanted and not control.should_save:
            return
        self._pause()
        entry: dict[str, Any] = {"step": step, _SECONDS: round(self._spent, 4)}
        if wanted:
            entry[_NATS] = [round(nats, 4) for nats in self._evaluation.score(kwargs["model"])]
        state.log_history.append(entry)
        self._begun = self._now()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out the time that saving took."""
        kept: list[Any] = [entry[_SECONDS] for entry in state.log_history if _SECONDS in entry]
        self._spent, self._begun = (float(kept[-1]) if kept else self._spent), self._now()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self._pause()

    def scores(self, history: Sequence[dict[str, Any]]) -> Scores:
        """What was scored, from Trainer's log history, and the seconds of all of training."""
        entries = [entry for entry in history if _NATS in entry]
        return Scores(
            step=tuple(int(entry["step"]) for entry in entries),
            seconds=tuple(float(entry[_SECONDS]) for entry in entries),
            nats=tuple(tuple(map(float, entry[_NATS])) for entry in entries),
            total_seconds=round(self._spent, 4),
            clock=self.kind,
        )
