"""What training would stumble over after minutes of measuring, refused before anything is trained or removed."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer, TrainingArguments

from condense.dispersion.config import chosen_blocks
from condense.errors import UnavailableError, UsageError, first_line
from condense.models.checkpoint import Checkpoint
from condense.models.layers import find_stacks
from condense.records.options import MAX_SEED
from condense.records.plans import ArmSpec, Plan, TrialPlan, with_setting
from condense.records.schedules import warmup_steps
from condense.training.interventions import Intervention
from condense.training.loop import arguments
from condense.training.prepare import Prepared
from condense.training.pretraining import refuse_other_optimizer
from condense.training.remedies import remedy_of
from condense.training.trackers import refuse_trackers

_ROWS_LOOKED_AT = 64


def refuse_settings(asked: TrialPlan, opened: Checkpoint, texts: Prepared) -> None:
    """Refuse settings that do not go together, with each other or with the model.

    UsageError for a warm-up that leaves no step at the peak rate, a temperature that no arm reads, more seeds than
    there are, an optimizer, a learning-rate schedule or a tracker that Trainer does not know, UnavailableError for a
    tracker that is not installed; both for an arm that cannot be trained.
    """
    plan = asked.training
    settings = arguments(plan, texts.schedule, Path("runs"), next(opened.model.parameters()).device)
    acts = [_refuse_arm(spec, plan, settings, opened, texts) for spec in asked.arms]
    if plan.tau != Plan.tau and not any(act.dispersion.coefficient and act.dispersion.constants for act in acts):
        raise UsageError("--tau is given, but no arm has a loss with a temperature", "leave --tau out")
    for tried in [with_setting(plan, setting) for setting in asked.grid()] or [plan]:
        _refuse_warmup(tried, texts.schedule.steps, "training", "--max-steps")
        if texts.then is not None:
            _refuse_warmup(tried, texts.then.schedule.steps, "training on the next text", "--then-steps")
    if plan.seed + plan.seeds - 1 > MAX_SEED:
        raise UsageError(f"--seed {plan.seed} leaves no room for {plan.seeds} seeds", f"the last one is {MAX_SEED}")
    refuse_trackers(plan.report_to)


def _refuse_arm(
    spec: ArmSpec, plan: Plan, settings: TrainingArguments, opened: Checkpoint, texts: Prepared
) -> Intervention:
    """What an arm does. UsageError or UnavailableError for one that cannot be trained, or would be as the control.

    Its hooks are put on the model and taken off again: some do not go with every architecture.
    """
    needs, leave_out = remedy_of(spec).needs, f"leave {spec.name} out"
    try:
        acts = remedy_of(spec).acts(spec, plan)
        for stack in find_stacks(opened.model):
            chosen_blocks(acts.dispersion.layers, stack.blocks)
    except ValueError as error:
        raise UsageError(first_line(error), f"see --layers, and {spec.name}@LAYERS of an arm") from None
    if "trained embeddings" in needs and plan.use_peft:
        raise UsageError(
            f"{spec.name} acts on the embeddings, which LoRA does not train", f"leave --use-peft or {spec.name} out"
        )
    if "Adam" in needs:
        refuse_other_optimizer(Trainer.get_optimizer_cls_and_kwargs(settings, opened.model)[0])
    if "next tokens" in needs and texts.masked:
        raise UnavailableError(f"{spec.name} needs a causal model: a masked one predicts no next token", leave_out)
    if "several texts" in needs and texts.schedule.batch_size == 1 and _one_text_a_row(texts):
        raise UsageError(
            f"{spec.name} draws tokens from all texts of a micro-batch, and each has one row of one text",
            f"use --per-device-train-batch-size 2 or more, or {leave_out}",
        )
    with acts.hooks(opened.model):
        return acts


def _one_text_a_row(texts: Prepared) -> bool:
    """Whether no row among the first ones holds more than one document."""
    rows = (texts.rows[number] for number in range(min(len(texts.rows), _ROWS_LOOKED_AT)))
    return not any("position_ids" in row and int((row["position_ids"] == 0).sum()) > 1 for row in rows)


def _refuse_warmup(plan: Plan, steps: int, what: str, option: str) -> None:
    """UsageError where the learning rate would not reach its peak before the end."""
    warmup = warmup_steps(plan.warmup, steps)
    if warmup >= steps:
        raise UsageError(
            f"a warm-up of {warmup} steps leaves none of the {steps} steps of {what} at the learning rate",
            f"lower the warm-up (--warmup, --tune warmup_steps), or give a larger {option}",
        )
