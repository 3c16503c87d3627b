"""Train one arm: the Hugging Face `Trainer` underneath, the dispersion loss beside cross-entropy.

Every arm gets the same rows in the same order, the same seed, steps and optimizer; the control arm is the
same trainer with coefficient 0. Checkpoints are marked complete by a manifest that is written last, so
that `--resume` never continues from a torn one.
"""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from condense.diagnosis.distributed import failing_together, joined
from condense.errors import (
    CondenseError,
    RunError,
    UnavailableError,
    UsageError,
    first_line,
    is_out_of_memory,
    system_failure,
)
from condense.files import json_or_none, write_text
from condense.folders import File, changed, describe
from condense.models.adapters import merged_after_training
from condense.models.checkpoint import Checkpoint
from condense.models.layers import raised_inside, unwrapped
from condense.models.locate import DTYPES
from condense.records.learning import Scores
from condense.records.plans import Plan
from condense.records.schedules import warmup_steps
from condense.records.treatment import Curve, Schedule
from condense.training.arm_trainer import ArmTrainer, filled, launch_unchanged, launched_sharded, skeleton_of
from condense.training.chats import IGNORED
from condense.training.interventions import Intervention, adapted
from condense.training.learning import Clock, Evaluation
from condense.training.rows import Rows
from condense.training.trackers import RunName, tracked

MANIFEST = "condense_complete.json"
MASK_RATE = 0.15
OnStep = Callable[[int, int, dict[str, float]], None]


class InterruptedRunError(Exception):
    """A signal asked the run to stop; a checkpoint was saved. Carries the exit code (130 or 143)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted ({code})")
        self.code = code


@dataclass(frozen=True)
class Trained:
    """What training an arm left: the curve with its |penalty| / cross-entropy, the time, what its callbacks say.

    `scores` are of the validation text on the way; `seconds` of training and saving, since the last resume.
    """

    curve: Curve
    seconds: float
    details: tuple[str, ...] = ()
    scores: Scores = field(default_factory=Scores)


def arguments(
    plan: Plan, schedule: Schedule, folder: Path, device: torch.device, name: RunName | None = None
) -> TrainingArguments:
    """Trainer's settings for a plan; ValueErrors of Trainer (an unknown optimizer, say) become UsageError."""
    bf16 = plan.precision == "bf16" or (plan.precision == "auto" and device.type == "cuda")
    try:
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch_size,
            gradient_accumulation_steps=schedule.accumulation,
            learning_rate=plan.peak_rate,
            lr_scheduler_type=plan.lr_scheduler,
            warmup_steps=warmup_steps(plan.warmup, schedule.steps),
            weight_decay=plan.weight_decay,
            adam_beta1=0.9,
            adam_beta2=0.95,
            max_grad_norm=plan.max_grad_norm,
            optim=plan.optim,
            seed=plan.seed,
            data_seed=plan.seed,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            activation_checkpointing=plan.activation_checkpointing,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=plan.report_to,
            run_name=name and str(name),
            project=name.group if name else "condense",
            save_strategy="steps" if plan.save_steps else "no",
            save_steps=plan.save_steps or 500,
            save_total_limit=2,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            disable_tqdm=True,
            fsdp=True if plan.fsdp and not launched_sharded() else None,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(f"these training options do not go together: {str(error).splitlines()[0][:200]}") from None


def train(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    plan: Plan,
    schedule: Schedule,
    *,
    intervention: Intervention,
    folder: Path,
    masked: bool,
    resume: bool = False,
    on_step: OnStep | None = None,
    name: RunName | None = None,
    evaluation: Evaluation | None = None,
) -> tuple[Trained, Any]:
    """Train a model in place on rows, by cross-entropy and what the arm's intervention adds; how, and the model.

    Every process of a distributed run calls it. With `plan.fsdp` the model is another one, whole on the first process.
    RunError for a non-finite loss or gradient, out of memory or a full disk; InterruptedRunError after a signal.
    """
    stop, ranks = _Stop(), joined()
    log, callbacks = _Log(on_step, schedule.steps), intervention.callbacks()
    device = next(model.parameters()).device
    clock = Clock(device, evaluation)
    with failing_together(str(folder)), launch_unchanged():
        skeleton = skeleton_of(model) if plan.fsdp and ranks.is_first else None
        trainer = ArmTrainer(
            model=model,
            args=arguments(plan, schedule, folder, device, name),
            train_dataset=rows,
            data_collator=collator(tokenizer, masked, plan.seed),
            processing_class=tokenizer,
            dispersion=intervention.dispersion,
            regulariser=intervention.regulariser,
            clock=clock,
            callbacks=[stop, log, _Manifest(), *callbacks, clock],
            rows_per_step=schedule.tokens_per_step // schedule.row_length,
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                trainer.remove_callback(callback)
        started = time.perf_counter()
        with stop, tracked(name), intervention.hooks(model):
            _run(trainer, ranks.told(last_complete(folder) if resume and ranks.is_first else None))
        stop.agree()
        intervention.finish(model)
        if plan.fsdp and stop.code is None:
            weights = trainer.gathered()
            model = filled(skeleton, weights) if skeleton is not None else None
    if stop.code is not None:
        raise InterruptedRunError(stop.code)
    history = trainer.state.log_history
    details = tuple(line for callback in callbacks for line in getattr(callback, "details", ()))
    seconds = time.perf_counter() - started
    trained = Trained(log.curve(history), seconds, details, clock.scores(history))
    return trained, model


def train_arm(
    source: Checkpoint,
    rows: Rows,
    plan: Plan,
    schedule: Schedule,
    acts: Intervention,
    folder: Path,
    *,
    masked: bool,
    resume: bool = False,
    on_step: OnStep | None = None,
    name: RunName | None = None,
    evaluation: Evaluation | None = None,
) -> Trained:
    """Train a freshly opened checkpoint and save it in `folder/model`, beside its training checkpoints.

    The source's model is used up; of several processes the first saves. Errors as `train`; UsageError where LoRA
    cannot be applied.
    """
    torch.manual_seed(plan.seed)
    model: Any = adapted(source.model, plan) if plan.use_peft else source.model
    more: Any = {"masked": masked, "resume": resume, "on_step": on_step, "name": name, "evaluation": evaluation}
    trained, model = train(model, source.tokenizer, rows, plan, schedule, intervention=acts, folder=folder, **more)
    if joined().is_first:
        save_model(model, source, folder / "model", merge=plan.merge_adapter, adapter=folder / "adapter")
    del model
    gc.collect()
    return trained


def save_model(model: Any, source: Checkpoint, folder: Path, *, merge: bool, adapter: Path) -> None:
    """Save a trained model as an ordinary checkpoint in the source's dtype, with tokenizer and generation config.

    LoRA adapters are merged; without `merge` they are also kept in `adapter` as they are.
    """
    if hasattr(model, "merge_and_unload"):
        model = merged_after_training(model, keep=None if merge else adapter)
    model.config.use_cache = source.use_cache
    model = model.to(dtype=DTYPES.get(source.source_dtype, torch.float32))
    try:
        model.save_pretrained(str(folder))
        source.tokenizer.save_pretrained(str(folder))
    except Exception as error:  # safetensors reports a full disk by an exception of its own
        if "no space left" in str(error).lower():
            raise RunError(f"disk full while saving to {folder}", "free some space, then --resume") from error
        raise


def _run(trainer: Any, checkpoint: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception as error:
        text = str(error).lower()
        if "no space left" in text or "unexpected pos" in text:
            raise RunError("disk full while saving a checkpoint", "free some space, then --resume") from error
        if is_out_of_memory(error):
            raise RunError("out of memory while training", _LESS_MEMORY) from error
        if system_failure(error) is None:  # a model also writes its checkpoints
            _refuse_failing(error, unwrapped(trainer.model))
        raise


def _refuse_failing(error: Exception, model: Any) -> None:
    """UnavailableError for what a checkpoint's own code raised in its forward pass; nothing for any other error."""
    if not isinstance(error, CondenseError) and raised_inside(error, model):
        raise UnavailableError(
            f"{type(model).__name__} fails in its forward pass in training: {first_line(error)[:160]}"
        ) from error


_LESS_MEMORY = "lower --per-device-train-batch-size or --max-length, or use --activation-checkpointing"


def collator(tokenizer: Any, masked: bool, seed: int) -> Any:
    """Rows to batches; for masked models 15 % of the tokens are masked by a seeded draw, the same in every arm."""
    if not masked:
        return default_data_collator
    return _MaskingCollator(tokenizer, mlm=True, mlm_probability=MASK_RATE, seed=seed)


class _MaskingCollator(DataCollatorForLanguageModeling):
    """Masks at least one token of every row: the loss of a row without any label is not a number.

    What is masked in a row depends on the seed and on which row of which pass it is (`draw`), not on the batch, so that
    a resumed run and one of several processes mask the same.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As super; of rows with a `draw` each with a generator of its own."""
        if "draw" not in examples[0]:
            return dict(super().torch_call(examples))
        masked = []
        for row in examples:
            self.generator = torch.Generator().manual_seed((self.seed or 0) * 1_000_003 + int(row["draw"]))
            masked.append(super().torch_call([{key: value for key, value in row.items() if key != "draw"}]))
        return {key: torch.cat([row[key] for row in masked]) for key in masked[0]}

    def torch_mask_tokens(self, inputs: Any, special_tokens_mask: Any = None, **more: Any) -> tuple[Any, Any]:
        """As super; where no token of a row was drawn, its middle one is masked."""
        original = inputs.clone()
        if special_tokens_mask is None:
            marks = [
                self.tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
                for row in original.tolist()
            ]
            special_tokens_mask = torch.tensor(marks, dtype=torch.bool)
        masked, labels = super().torch_mask_tokens(inputs, special_tokens_mask=special_tokens_mask, **more)
        for row in (labels == IGNORED).all(1).nonzero().flatten().tolist():
            ordinary = (~special_tokens_mask[row].bool()).nonzero().flatten()
            if len(ordinary):
                middle = ordinary[len(ordinary) // 2]
                labels[row, middle] = original[row, middle]
                masked[row, middle] = self.tokenizer.mask_token_id
        return masked, labels


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest says that all its files are there in full."""
    numbered = {int(path.name[11:]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()}
    return next((numbered[step] for step in sorted(numbered, reverse=True) if is_complete(numbered[step])), None)


def is_complete(checkpoint: Path) -> bool:
    """True if the manifest, written last, lists files of exactly these sizes and hashes."""
    listed = json_or_none(checkpoint / MANIFEST)
    try:
        files = {str(name): File(file["size"], file["sha256"]) for name, file in listed.items()}
    except (LookupError, TypeError, AttributeError):
        return False
    return bool(files) and not changed(checkpoint, files)


class _Manifest(TrainerCallback):
    """Mark a checkpoint complete by listing its files with their sizes and hashes, last."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ranks = joined()
        ranks.largest(0)  # every process has written its part
        if not ranks.is_first:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        write_text(folder / MANIFEST, json.dumps({name: asdict(file) for name, file in describe(folder).items()}))


class _Stop(TrainerCallback):
    """SIGINT and SIGTERM set a flag; the step in hand is finished, a checkpoint is saved, training ends.

    A signal to one of several processes ends all of them after the same step.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._flag)
        except ValueError:  # not in the main thread: the caller owns the signals
            self._old.clear()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def agree(self) -> None:
        """Take the signal of any process as one to all; every process calls it at the same point."""
        self.code = joined().largest(self.code or 0) or None

    def _flag(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.agree()
        if self.code is not None:
            control.should_save = True
            control.should_training_stop = True


class _Log(TrainerCallback):
    """Pass each logged step on to the progress display, and make the curve of the whole run."""

    def __init__(self, on_step: OnStep | None, steps: int) -> None:
        self._on_step, self._steps = on_step, steps

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self._on_step is not None and logs and "loss" in logs:
            self._on_step(state.global_step, self._steps, logs)

    @staticmethod
    def curve(history: list[dict[str, float]]) -> Curve:
        """The curve from Trainer's log history (which survives a resume)."""
        entries = [entry for entry in history if "loss" in entry]
        return Curve(
            step=tuple(int(e["step"]) for e in entries),
            ce_loss=tuple(float(e.get("ce_loss", e["loss"])) for e in entries),
            penalty=tuple(_penalty(e) for e in entries),
            mean_cosine=tuple(_finite(e.get("mean_cosine")) for e in entries),
            gradient_norm=tuple(float(e.get("grad_norm", 0.0)) for e in entries),
            learning_rate=tuple(float(e.get("learning_rate", 0.0)) for e in entries),
        )


def _penalty(entry: dict[str, float]) -> float:
    return float(entry.get("dispersion_penalty", 0.0)) + float(entry.get("regulariser_penalty", 0.0))


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)
