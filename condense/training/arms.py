"""One arm: trained from the source weights, saved, reloaded and measured.

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
from condense.models.checkpoint import Checkpoint
from condense.records.diagnosis import Diagnosis
from condense.records.plans import Plan, Schedule
from condense.texts.windows import Windows
from condense.training.interventions import Intervention, adapted
from condense.training.loop import OnStep, Trained, train
from condense.training.rows import Rows
from condense.training.saving import save_model


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
