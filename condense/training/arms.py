"""One arm: what it does to training, trained from the source weights, saved, reloaded and measured.

Every arm goes through the same functions; what is measured is the saved and reloaded file.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from condense.diagnosis.run import OnText, analyze
from condense.errors import UnavailableError, UsageError
from condense.models.checkpoint import Checkpoint
from condense.records.diagnosis import Diagnosis
from condense.records.plans import ArmSpec, Plan, Schedule
from condense.texts.windows import Windows
from condense.training.interventions import Intervention, Regulariser, dispersion_config
from condense.training.loop import OnStep, Trained, train
from condense.training.remedies import (
    COSREG_DEFAULT,
    ActiveForgetting,
    cosreg,
    embedding_dropout,
    noisy_embedding,
)
from condense.training.rows import Rows
from condense.training.saving import save_model


def intervention(spec: ArmSpec, plan: Plan) -> Intervention:
    """What an arm does while it trains; the control and larger-vocab do nothing more than cross-entropy."""
    if spec.remedy == "dispersion":
        chosen = replace(plan, loss=spec.loss or plan.loss, layers=spec.layers or plan.layers)
        weight = plan.coefficient if spec.coefficient is None else spec.coefficient
        return Intervention(dispersion_config(chosen, weight))
    silent = dispersion_config(plan, 0.0)
    if spec.remedy == "embedding-dropout":
        return Intervention(silent, hooks=embedding_dropout)
    if spec.remedy == "noisy-embedding":
        return Intervention(silent, hooks=noisy_embedding)
    if spec.remedy == "active-forgetting":
        return Intervention(silent, callbacks=lambda: (ActiveForgetting(seed=plan.seed),))
    if spec.remedy == "cosreg":
        weight = COSREG_DEFAULT if spec.coefficient is None else spec.coefficient
        return Intervention(silent, regulariser=Regulariser(weight, cosreg))
    return Intervention(silent)


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
) -> Trained:
    """Train a freshly opened checkpoint and save it in `folder/model`; training checkpoints are removed.

    The source's model is used up. Errors as `train`; UsageError where LoRA cannot be applied.
    """
    torch.manual_seed(plan.seed)
    model: Any = adapted(source.model, plan) if plan.use_peft else source.model
    trained = train(
        model, source.tokenizer, rows, plan, schedule, intervention=acts, folder=folder, masked=masked, resume=resume,
        on_step=on_step,
    )  # fmt: skip
    save_model(model, source, folder / "model", merge=plan.merge_adapter, adapter=folder / "adapter")
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old, ignore_errors=True)
    del model
    gc.collect()
    return trained


def adapted(model: Any, plan: Plan) -> Any:
    """The model with LoRA adapters; only they are trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UnavailableError("--use-peft needs the package peft", "pip install 'condense-lm[peft]'") from None
    targets: Any = plan.lora_target_modules
    targets = targets if targets == "all-linear" else targets.split(",")
    config = LoraConfig(
        r=plan.lora_r, lora_alpha=plan.lora_alpha, lora_dropout=plan.lora_dropout, target_modules=targets
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"LoRA cannot be applied: {str(error).splitlines()[0][:200]}", "see --lora-target-modules"
        ) from None


def measure_arm(
    current: Checkpoint,
    name: str,
    validation: Windows,
    probe: Windows,
    seed: int,
    *,
    on_phase: Callable[[str], None],
    on_text: OnText,
) -> tuple[Diagnosis, Diagnosis]:
    """Measure a model on the validation and on the probe windows, under the name it is to have in the records."""
    named = replace(current, info=replace(current.info, id=name))
    on_phase("validation text")
    first = analyze(named, validation, seed=seed, on_text=on_text)
    on_phase("probe text")
    return first, analyze(named, probe, seed=seed, on_text=on_text)
